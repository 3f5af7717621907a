"""The origin's artifact stores that are folders of this host: `file:` URIs and plain paths.

Law of this file: every path is opened below the artifact's root by openat2(2) with RESOLVE_BENEATH, so that no symlink,
however quickly it is swapped in, makes the daemon read anything else; what is read is what was opened, not what stands
at the name a moment later; and what is listed may be handed out, for bytes that are held already are not opened again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from artifactcache.errors import CacheError, Corrupted, NotFound, PermissionDenied
from cacheserver import names
from cacheserver.hashing import READ_BYTES
from cacheserver.libc import open_beneath
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location

LOCAL_SCHEMES = frozenset({"", "file"})
ENTRIES_MAX = 2_000_000  # of one artifact; a listing without end stops here
CLONE_BYTES_MIN = 1 << 16  # below it, to read and write costs less than to ask
# Of everybody: where the group has no right, its members have none, whatever all others have.
_READ, _ENTER = stat.S_IRGRP | stat.S_IROTH, stat.S_IXGRP | stat.S_IXOTH
# Two writes in one tick of the clock that a filesystem's times are of leave no trace of the second one: who looks too
# soon after the first has no evidence. A tick of Linux before 6.13 is up to 10 ms; filesystems without fractions have
# seconds, or two of them.
TICK_SECONDS_MAX = 0.02
WHOLE_TICK_SECONDS_MAX = 2.0
UPLOADING = b".artifact.uploading."  # MLflow writes a file under such a name until it is whole


class LocalFiles:
    """One artifact root on this host.

    Args:
        root: its folder.
        forbidden: a folder of which nothing is read, by whatever way or name it is reached: the store.
        world_only: whether everything must be readable by every user of the host,
        clock: seconds since the epoch.
        exempt: unless the root lies in one of these folders, each as it may be named and where it really is.

    Raises NotFound, PermissionDenied, and Corrupted for what is no plain file.
    """

    transport = "file"

    def __init__(
        self,
        root: str,
        *,
        forbidden: str,
        world_only: bool,
        clock: Callable[[], float],
        exempt: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._clock = clock
        self._root = root
        self._forbidden = _identity(os.stat(forbidden))
        self._world_only = self._serves_all = world_only
        self._exempt = exempt

    def listing(self, location: Location) -> Listing:
        """All files at a location of this root, or the one file it is."""
        path, now = location.path, self._clock()
        root_fd = self._open_root()
        try:
            fd = self._open(root_fd, path or ".")
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    return Listing(list(self._walk(root_fd, path, now)), "")
                self._check(fd, path)
                name = path.rpartition("/")[2]
                found = os.fstat(fd)
                return Listing([File(os.fsencode(name), found.st_size, path, etag=_evidence(found, now))], name)
            finally:
                os.close(fd)
        finally:
            os.close(root_fd)

    def fill(self, file: File, sink: Sink) -> None:
        """Clones one file, or copies it."""
        now = self._clock()
        root_fd = self._open_root()
        try:
            source = self._open(root_fd, file.remote)
            try:
                self._check(source, file.remote)
                sink.restart()
                sink.begin(_etag(os.fstat(source)))
                if not self._serves_all:  # others' writers could hold this one, and its process, for ever
                    _await_writers(source)
                if (file.size or 0) < CLONE_BYTES_MIN or not sink.clone(source):
                    while chunk := os.read(source, READ_BYTES):
                        sink.write(chunk)  # which ends it where the file grows while it is read
                found = os.fstat(source)
                if sink.etag != _etag(found):
                    raise Corrupted(f"{names.show(f'{self._root}/{file.remote}')} was written to while it was read.")
                sink.begin(_evidence(found, now))
            finally:
                os.close(source)
        finally:
            os.close(root_fd)

    def _walk(self, root_fd: int, top: str, now: float) -> Iterator[File]:
        folders, seen = [top], 0
        skip = len(os.fsencode(top)) + 1 if top else 0
        while folders:
            folder = folders.pop()
            fd = self._open(root_fd, folder or ".")
            try:
                self._check(fd, folder, is_folder=True)
                found = sorted(n for n in os.listdir(fd) if not os.fsencode(n).startswith(UPLOADING))
                if not found and folder != top:
                    yield File(os.fsencode(folder)[skip:], 0, folder, is_folder=True)
                for name in found:
                    seen += 1
                    if seen > ENTRIES_MAX:
                        raise Corrupted(f"{self._root}: more than {ENTRIES_MAX} files.")
                    remote = f"{folder}/{name}" if folder else name
                    path = os.fsencode(remote)[skip:]
                    if wrong := names.fault(path):
                        raise Corrupted(f"{self._root}: the path {names.show(path)} {wrong}.")
                    seen_as = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISLNK(seen_as.st_mode):
                        seen_as = self._behind(root_fd, remote)
                    if stat.S_ISDIR(seen_as.st_mode):
                        folders.append(remote)
                    else:  # the way to it was looked at with its folder, or behind the symlink: no file is opened here
                        self._check_mode(seen_as, remote)
                        yield File(path, seen_as.st_size, remote, etag=_evidence(seen_as, now))
            finally:
                os.close(fd)

    def _behind(self, root_fd: int, remote: str) -> os.stat_result:
        fd = self._open(root_fd, remote)
        try:
            self._check_way(fd, remote)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(error, self._root) from None
        try:
            # Each time anew: another folder may stand there by the second attempt.
            self._world_only = self._serves_all and not self._is_exempt(os.readlink(f"/proc/self/fd/{fd}"))
            self._check_way(fd, "")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_exempt(self, true: str) -> bool:
        """Whether the root lies where it is named, below an exempt folder. A symlink, which whoever may create runs can
        lay where his own would be, exempts nothing: it may lead to a folder of somebody else's run."""
        named = os.path.normpath(self._root)
        for known, real in self._exempt:
            for folder in (known, real):
                inside = folder.rstrip("/") + "/"
                below = os.path.normpath(os.path.join(real, named[len(inside) :]))
                if f"{named}/".startswith(inside) and true == below:
                    return True
        return False

    def _open(self, root_fd: int, path: str) -> int:
        try:
            # NONBLOCK: a FIFO in the folder must not hold the daemon; it is refused when it is looked at.
            return open_beneath(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(error, f"{self._root}/{path}") from None

    def _check(self, fd: int, path: str, *, is_folder: bool = False) -> None:
        self._check_mode(os.fstat(fd), path, is_folder=is_folder)
        self._check_way(fd, path)

    def _check_mode(self, found: os.stat_result, path: str, *, is_folder: bool = False) -> None:
        if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(found.st_mode):
            raise Corrupted(f"{names.show(f'{self._root}/{path}')} is no {'folder' if is_folder else 'plain file'}.")
        self._check_store(found)
        needed = _READ | (_ENTER if is_folder else 0)
        if self._world_only and found.st_mode & needed != needed:
            raise self._private(path)

    def _check_way(self, fd: int, path: str) -> None:
        """Looks at every folder above what was opened: a symlink may have led through one that no listing has seen."""
        try:
            above = os.readlink(f"/proc/self/fd/{fd}")
            while above != "/":
                above = os.path.dirname(above)
                found = os.stat(above)
                self._check_store(found)
                if self._world_only and found.st_mode & _ENTER != _ENTER:
                    raise self._private(path)
        except OSError as error:
            raise _refusal(error, f"{self._root}/{path}") from None

    def _check_store(self, found: os.stat_result) -> None:
        """By device and inode: a mount, or a root above the store, leads there under another name."""
        if _identity(found) == self._forbidden:
            raise PermissionDenied(f"{self._root} lies in the store itself, or has it inside, which is no origin.")

    def _private(self, path: str) -> PermissionDenied:
        return PermissionDenied(
            f"{names.show(f'{self._root}/{path}')} is not readable by every user of this host: a daemon that serves"
            " several users hands out only such files, except of runs and models below a folder that its administrator"
            " lists in [origin] local_roots."
        )


def _await_writers(fd: int) -> None:
    """Waits until what is being written to a file is.

    A write(2) notes its time when it begins, so that one that has begun before a file's times are looked at, and that
    goes on while it is read, leaves no other trace. It holds the inode's lock until it ends, as SEEK_HOLE does while it
    looks (ext4, btrfs and tmpfs; where it does not, as on XFS, reads wait for writes); and one that begins later shows.
    Nothing ends that wait, no signal either, before the writer's pages are there, and these may come from wherever he
    likes.
    """
    with contextlib.suppress(OSError):  # an empty file has no hole, and some filesystems know of none
        os.lseek(fd, 0, os.SEEK_HOLE)
    os.lseek(fd, 0, os.SEEK_SET)


def _etag(found: os.stat_result) -> str:
    """Changes with the bytes: nothing but the clock of the host can set a file's ctime back."""
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


def _evidence(found: os.stat_result, now: float) -> str:
    """The entity tag, as far as it proves anything of bytes that are read from `now` on."""
    is_whole = found.st_ctime_ns % 1_000_000_000 == 0
    tick = WHOLE_TICK_SECONDS_MAX if is_whole else TICK_SECONDS_MAX
    return _etag(found) if now - found.st_ctime >= tick else ""


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _refusal(error: OSError, path: str) -> CacheError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"{names.show(path)}: no such file or folder.")
    if error.errno in (errno.EXDEV, errno.ELOOP):
        return PermissionDenied(f"{names.show(path)} is a symlink that leads out of the artifact.")
    return PermissionDenied(f"{names.show(path)} cannot be read by the daemon: {error.strerror}.")
