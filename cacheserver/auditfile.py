"""The files of the audit log: one that is written, and those that were written before.

Law of this file: a line is one write(2) at the file's end, so that a daemon that is killed leaves whole lines. None is
synced: a crash of the host may take the last seconds, but thousands of syncs a second would slow down every download.
Nothing but a regular file is written to, and no symlink is followed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator

READ_BYTES = 256 << 10
LINE_BYTES_MAX = 256 << 10  # of what is read: ours are shorter
_COARSE_SECONDS = 1.0  # a file's time may be that of the last tick of the kernel's clock

_log = logging.getLogger(__name__)


class AuditFile:
    """Appends lines; begins a new file where the old one is full, or has been put away by somebody else.

    Args:
        path: of the file that is written; `path.1` is the one before, and so on.
        size_max: bytes after which a new one is begun.
        count: how many are kept, that one among them.
    """

    def __init__(self, path: str, size_max: int, count: int) -> None:
        self._path = path
        self._size_max = size_max
        self._count = count
        self._fd = -1
        self._file: tuple[int, int] | None = None
        self._size = 0
        self._is_torn = False

    def become(self, size_max: int, count: int) -> None:
        """Goes by these from the next line on."""
        self._size_max, self._count = size_max, count

    def append(self, line: bytes) -> None:
        """Writes a line, with its end. Raises OSError where it cannot: then it is not there, or only its beginning."""
        if self._fd < 0 or _identity(self._path) != self._file:  # logrotate has renamed it
            self._open()
        if self._size and self._size + len(line) > self._size_max:
            self._rotate()
        data = b"\n" + line if self._is_torn else line  # so that this one is whole
        self._is_torn = True
        written = os.write(self._fd, data)
        self._size += written
        if written != len(data):  # what a full disk has room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._is_torn = False

    def close(self) -> None:
        """Lets the file go; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file = -1, None

    def _open(self) -> None:
        self.close()
        # Not blocking: somebody may have put a pipe there.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it is no file of the daemon's own")
            is_torn = bool(found.st_size) and os.pread(fd, 1, found.st_size - 1) != b"\n"
        except OSError:
            os.close(fd)
            raise
        self._fd, self._file, self._size, self._is_torn = fd, (found.st_dev, found.st_ino), found.st_size, is_torn

    def _rotate(self) -> None:
        """Begins a new file. Where the old one cannot be renamed it grows on, and that is tried again later."""
        try:
            for number in range(self._count - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(_name(self._path, number - 1), _name(self._path, number))
            if self._count == 1:
                os.unlink(self._path)
        except OSError as error:
            self._size = 0
            _log.warning("%s cannot be put away, it grows on: %s", self._path, error.strerror)
            return
        self._open()


class AuditReader:
    """Reads the lines of all files, the oldest first, while they are written and renamed.

    Args:
        count: how many files there may be.
        since: files that have not been written to after that time are passed over.
    """

    def __init__(self, path: str, count: int, since: float = 0.0) -> None:
        self._path = path
        self._count = count
        self._since = since

    def batches(self) -> Iterator[list[bytes]]:
        """The lines, without their ends, as they are read; an empty list where there is none now. It has no end."""
        fds = list[int]()  # the file that is read, and the one after it
        try:
            while not fds:
                if (first := self._oldest()) >= 0:
                    fds.append(first)
                else:
                    yield []
            rest = b""
            while True:
                # Before the last look for lines: to a file that has one after it none is added.
                if (following := self._after(fds[0])) >= 0:
                    fds.append(following)
                if following < 0 or os.fstat(fds[0]).st_mtime > self._since - _COARSE_SECONDS:
                    _rewind(fds[0])
                    while data := os.read(fds[0], READ_BYTES):
                        *lines, rest = (rest + data).split(b"\n")
                        rest = rest if len(rest) <= LINE_BYTES_MAX else b""
                        if lines:
                            yield lines
                if following >= 0:
                    os.close(fds.pop(0))
                    rest = b""
                else:
                    yield []
        finally:
            for fd in fds:
                os.close(fd)

    def _oldest(self) -> int:
        """A descriptor of the oldest file; -1 where there is none."""
        number = self._count - 1
        while number >= 0:
            fd = self._open(number)
            if fd >= 0 and number + 1 < self._count and _identity(_name(self._path, number + 1)):
                os.close(fd)  # they were renamed in between: there is an older one
                number = self._count
            elif fd >= 0:
                return fd
            number -= 1
        return -1

    def _after(self, fd: int) -> int:
        """A descriptor of the file that was begun after this one; -1 where this is the last.

        Files only ever move to higher numbers, so that whoever looks upwards finds this one.
        """
        found = os.fstat(fd)
        mine = found.st_dev, found.st_ino
        while True:
            number = next((n for n in range(self._count) if _identity(_name(self._path, n)) == mine), None)
            if number is None:  # too old to be kept, or put away under another name
                return self._oldest() if not found.st_nlink else self._open(0)
            fresh = next((fd for n in range(number - 1, -1, -1) if (fd := self._open(n)) >= 0), -1)
            if _identity(_name(self._path, number)) == mine:
                return fresh
            if fresh >= 0:  # they were renamed in between: it may not be the next one
                os.close(fresh)

    def _open(self, number: int) -> int:
        try:
            return os.open(_name(self._path, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return -1


def _rewind(fd: int) -> None:
    """Begins again where a file has been cut off, as logrotate's copytruncate does."""
    if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
        os.lseek(fd, 0, os.SEEK_SET)


def _name(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
