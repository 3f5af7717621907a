"""The origin's artifact stores that are folders of this host: `file:` URIs and plain paths.

Law of this file: every path is opened below the artifact's root by openat2(2) with RESOLVE_BENEATH, so that no symlink,
however quickly it is swapped in, makes the daemon read anything else; and what is read is what was opened, not what
stands at the name a moment later.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from artifactcache.errors import CacheError, Corrupted, NotFound, PermissionDenied
from cacheserver import names
from cacheserver.libc import open_beneath
from cacheserver.words import File, Listing

LOCAL_SCHEMES = frozenset({"", "file"})
ENTRIES_MAX = 2_000_000  # of one artifact; a listing without end stops here
COPY_BYTES = 1 << 30
UPLOADING = b".artifact.uploading."  # MLflow writes a file under such a name until it is whole


class LocalFiles:
    """One artifact root on this host.

    Args:
        root: its folder.
        forbidden: a folder that it must not lie in.
        world_only: whether everything must be readable by every user of the host.

    Raises NotFound, PermissionDenied.
    """

    def __init__(self, root: str, *, forbidden: str, world_only: bool) -> None:
        self._root = root
        self._forbidden = forbidden
        self._world_only = world_only

    def listing(self, path: str) -> Listing:
        """All files below a path of the root, or the one file it is."""
        root_fd = self._open_root()
        try:
            fd = self._open(root_fd, path or ".")
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    return Listing(list(self._walk(root_fd, path)), "")
                self._check(fd, path)
                name = path.rpartition("/")[2]
                return Listing([File(os.fsencode(name), os.fstat(fd).st_size, path)], name)
            finally:
                os.close(fd)
        finally:
            os.close(root_fd)

    def copy(self, path: str, to: str) -> None:
        """Copies one file to a new path."""
        root_fd = self._open_root()
        try:
            source = self._open(root_fd, path)
            try:
                self._check(source, path)
                target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    _copy(source, target)
                finally:
                    os.close(target)
            finally:
                os.close(source)
        finally:
            os.close(root_fd)

    def _walk(self, root_fd: int, top: str) -> Iterator[File]:
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
                    else:
                        yield File(path, seen_as.st_size, remote)
            finally:
                os.close(fd)

    def _behind(self, root_fd: int, remote: str) -> os.stat_result:
        fd = self._open(root_fd, remote)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(error, self._root) from None
        try:
            true = os.readlink(f"/proc/self/fd/{fd}")
            if true == self._forbidden or true.startswith(self._forbidden.rstrip("/") + "/"):
                raise PermissionDenied(f"{self._root} lies in the store itself, which is no origin.")
            if self._world_only:
                self._check_parents(true)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open(self, root_fd: int, path: str) -> int:
        try:
            # NONBLOCK: a FIFO in the folder must not hold the daemon; it is refused when it is looked at.
            return open_beneath(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(error, f"{self._root}/{path}") from None

    def _check(self, fd: int, path: str, *, is_folder: bool = False) -> None:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
            raise Corrupted(f"{names.show(f'{self._root}/{path}')} is no {'folder' if is_folder else 'plain file'}.")
        needed = stat.S_IROTH | (stat.S_IXOTH if is_folder else 0)
        if self._world_only and mode & needed != needed:
            raise self._private(path)
        if self._world_only:  # a symlink may have led through folders that no listing has looked at
            self._check_parents(os.readlink(f"/proc/self/fd/{fd}"), path)

    def _check_parents(self, true: str, path: str = "") -> None:
        while true != "/":
            true = os.path.dirname(true)
            if not os.stat(true).st_mode & stat.S_IXOTH:
                raise self._private(path)

    def _private(self, path: str) -> PermissionDenied:
        return PermissionDenied(
            f"{names.show(f'{self._root}/{path}')} is not readable by every user of this host: a daemon that serves"
            " several users hands out only such files by a file: URI. Fetch the run or the model that it belongs to."
        )


def _copy(source: int, target: int) -> None:
    try:
        while os.copy_file_range(source, target, COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        # Between filesystems of two kinds; it goes on where the first way ended.
        while os.sendfile(target, source, None, COPY_BYTES):
            pass


def _refusal(error: OSError, path: str) -> CacheError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"{names.show(path)}: no such file or folder.")
    if error.errno in (errno.EXDEV, errno.ELOOP):
        return PermissionDenied(f"{names.show(path)} is a symlink that leads out of the artifact.")
    return PermissionDenied(f"{names.show(path)} cannot be read by the daemon: {error.strerror}.")
