"""The folder in which a tree is made before it gets its name.

It lies beside the destination, is its owner's alone (0700), and is locked with flock for as long as its client
lives. Whatever happens it is gone in the end: with its client's own clean-up or, where that was killed, with the
next client that stages beside it.

Everything here is named relative to descriptors, so neither the length of a path nor somebody who renames folders
meanwhile can lead it astray.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Iterator

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PREFIX = ".artifactcache-"
TREE = b"tree"
ATTEMPTS_MAX = 100
ABANDONED_ENTRIES_MAX = 10_000  # names looked at beside the destination; a larger folder is not worth the time


class Staging:
    """A staging folder that exists."""

    def __init__(self, beside: int, folder: int, name: str) -> None:
        self.beside = beside
        """Descriptor of the folder that it is in."""
        self.folder = folder
        """Its own descriptor."""
        self.name = name
        """Its name in the folder that it is in."""
        self.tree = -1
        """Descriptor of the folder in which the tree is made."""
        self.folder_mode = 0o700
        """The mode that the caller's folders are to have in the end."""

    def make_tree(self) -> None:
        """Make the folder `tree` anew, of mode 0777 for now."""
        self.discard()
        os.mkdir(TREE, 0o777, dir_fd=self.folder)
        self.tree = os.open(TREE, FOLDER_FLAGS, dir_fd=self.folder)
        # A new folder shows what the umask, which cannot be read without changing it, leaves of 0777, and
        # whether the group is inherited.
        self.folder_mode = stat.S_IMODE(os.fstat(self.tree).st_mode)
        os.fchmod(self.tree, self.open_mode)

    @property
    def open_mode(self) -> int:
        """The mode of folders while the daemon links into them."""
        return 0o777 | (self.folder_mode & stat.S_ISGID)

    def discard(self) -> None:
        """Delete all that is in it."""
        if self.tree >= 0:
            os.close(self.tree)
            self.tree = -1
        clear(self.folder)

    def discard_quietly(self) -> None:
        """Delete what can be deleted. What led here is the better error."""
        with contextlib.suppress(OSError):
            try:
                self.discard()
            except KeyboardInterrupt:  # one that comes during the clean-up comes after it
                self.discard()
                raise

    def lock_holds(self) -> bool:
        """Tell whether a second flock is refused. Some network filesystems grant it to everybody."""
        second = os.open(self.name, FOLDER_FLAGS, dir_fd=self.beside)
        try:
            return not _lock(second)
        finally:
            os.close(second)


@contextlib.contextmanager
def staged(parent: bytes) -> Iterator[Staging]:
    """Make a staging folder in the folder `parent`, and the folders above it where they are missing.

    In the end the staging folder is deleted; after an exception so are the folders above, as far as this made them.
    """
    made: list[bytes] = []
    try:
        with contextlib.ExitStack() as undo:
            staging = _make(parent, made, undo)
            remove_abandoned(staging)
            yield staging
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there
                os.rmdir(folder)
        raise


def _make(parent: bytes, made: list[bytes], undo: contextlib.ExitStack) -> Staging:
    for attempt in itertools.count(1):
        try:
            beside = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if attempt > ATTEMPTS_MAX:  # a symlink to nowhere
                raise
            with contextlib.suppress(FileNotFoundError):  # another client makes and removes the same ones
                _make_folders(parent, made)
            continue
        mine = undo.enter_context(contextlib.ExitStack())
        mine.callback(os.close, beside)
        name = PREFIX + os.urandom(8).hex()
        mine.callback(_remove, beside, name)
        try:
            os.mkdir(name, 0o700, dir_fd=beside)
            folder = os.open(name, FOLDER_FLAGS, dir_fd=beside)
        except FileNotFoundError:
            # Another client that had made `parent` has failed and taken it away; or `name` was swept.
            mine.close()
            if attempt > ATTEMPTS_MAX:
                raise
            continue
        staging = Staging(beside, folder, name)
        mine.callback(os.close, folder)
        mine.callback(staging.discard_quietly)
        if _lock(folder) is not False and _is_at(folder, name, beside):
            return staging
        mine.close()  # somebody took it for abandoned, before it was locked
        if attempt > ATTEMPTS_MAX:
            raise BlockingIOError(errno.EAGAIN, "staging folders cannot be locked here")
    raise AssertionError("unreachable")


def _make_folders(path: bytes, made: list[bytes]) -> None:
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:
            continue
        made.append(folder)


def _lock(folder: int) -> bool | None:
    """Return True where the lock is ours, False where it is another's, None where there are no locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(folder: int, name: str, parent: int) -> bool:
    try:
        return os.path.samestat(os.fstat(folder), os.stat(name, dir_fd=parent, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove(parent: int, name: str) -> None:
    with contextlib.suppress(OSError):  # it was never made, or what is in it could not be deleted
        os.rmdir(name, dir_fd=parent)


def remove_abandoned(staging: Staging) -> None:
    """Delete the staging folders beside this one whose clients were killed. Does what it can, and is silent."""
    with contextlib.suppress(OSError):
        with os.scandir(staging.beside) as entries:
            names = [
                entry.name
                for entry in itertools.islice(entries, ABANDONED_ENTRIES_MAX)
                if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
            ]
        if len(names) > 1 and staging.lock_holds():
            for name in names:
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(staging.beside, name)


def _remove_if_abandoned(parent: int, name: str) -> None:
    folder = os.open(name, FOLDER_FLAGS, dir_fd=parent)
    try:
        if os.fstat(folder).st_uid == os.geteuid() and _lock(folder):
            clear(folder)
            os.rmdir(name, dir_fd=parent)
    finally:
        os.close(folder)


def clear(top: int) -> None:
    """Delete everything in the folder `top`, however deep, with two descriptors and no recursion.

    Folders inside folders are moved up before what held them is deleted. Each is first closed to everybody else: a
    daemon that still links into it is refused from then on. Symlinks are deleted, never followed.
    """
    while entries := entries_of(top):
        for name, is_folder in entries:
            # Two clients may be deleting it: what another has deleted already is as it should be.
            with contextlib.suppress(FileNotFoundError):
                if is_folder:
                    _delete_folder(top, name)
                else:
                    os.unlink(name, dir_fd=top)


def _delete_folder(top: int, name: bytes) -> None:
    try:
        folder = os.open(name, FOLDER_FLAGS, dir_fd=top)
    except PermissionError:  # one that even its owner may not read
        os.chmod(name, 0o700, dir_fd=top)
        folder = os.open(name, FOLDER_FLAGS, dir_fd=top)
    try:
        with contextlib.suppress(PermissionError):  # of another owner, but perhaps free to be deleted from
            os.fchmod(folder, 0o700)
        for inner, is_folder in entries_of(folder):
            with contextlib.suppress(FileNotFoundError):
                if is_folder:
                    _move_up(inner, folder, top)
                else:
                    os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # a daemon of the same user was faster: the next round gets it
            raise


def _move_up(name: bytes, folder: int, top: int) -> None:
    elsewhere = os.urandom(8).hex().encode()
    try:
        os.rename(name, elsewhere, src_dir_fd=folder, dst_dir_fd=top)
    except PermissionError:  # to move a folder one must be allowed to write to it
        os.chmod(name, 0o700, dir_fd=folder)
        os.rename(name, elsewhere, src_dir_fd=folder, dst_dir_fd=top)


def entries_of(folder: int) -> list[tuple[bytes, bool]]:
    """List a folder: each name, and whether it is a folder itself."""
    # To begin at the beginning, and on btrfs to see what was made since the descriptor was opened.
    os.lseek(folder, 0, os.SEEK_SET)
    with os.scandir(folder) as entries:
        return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]


class Descent:
    """Goes through the folders of a tree in the manifest's order, with one descriptor for each level.

    Paths that begin alike stand together in a sorted list, so every folder is entered and left once.
    """

    def __init__(
        self,
        top: int,
        *,
        enter: Callable[[bytes, int], None] | None = None,
        leave: Callable[[int], None] | None = None,
    ) -> None:
        """Begin at `top`. `enter` gets a folder's name and its parent before it is opened, `leave` its descriptor."""
        self._descriptors = [top]
        self._names: list[bytes] = []
        self._at = b""
        self._enter = enter
        self._leave = leave

    def go(self, folder: bytes) -> int:
        """Go to `folder` and return its descriptor, which stays open until the descent goes on."""
        if folder != self._at:
            names = folder.split(b"/") if folder else []
            common = 0
            for wanted, present in zip(names, self._names, strict=False):
                if wanted != present:
                    break
                common += 1
            self._leave_below(common)
            for name in names[common:]:
                parent = self._descriptors[-1]
                if self._enter is not None:
                    self._enter(name, parent)
                self._descriptors.append(os.open(name, FOLDER_FLAGS, dir_fd=parent))
                self._names.append(name)
            self._at = folder
        return self._descriptors[-1]

    def _leave_below(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            descriptor = self._descriptors.pop()
            try:
                if self._leave is not None:
                    self._leave(descriptor)
            finally:
                os.close(descriptor)

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._leave = None
        self._leave_below(0)
