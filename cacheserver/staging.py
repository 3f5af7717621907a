"""Files on their way into the store: written, hashed as they grow, finished.

Law of this file: what is hashed is what was written, in one pass, by one open file that nobody else has. What the disk
has kept of a beginning is believed only where it has the hash that was noted when it was written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from blake3 import blake3
from xxhash import xxh3_128

from artifactcache.errors import CacheError, Corrupted
from cacheserver import libc
from cacheserver.faults import trouble
from cacheserver.hashing import READ_BYTES
from cacheserver.words import BlobRow

WRITE_BEHIND_BYTES = 16 << 20  # the disk works while the origin sends: else all of a large file waits for its sync
# The most that a killed daemon loses of a large file. To note costs 25 us, a fiftieth of what it costs to hash as much.
NOTE_EVERY_BYTES = 4 << 20
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_NO_CLONE = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.ETXTBSY, errno.EACCES}
)

_log = logging.getLogger(__name__)


class Staged(NamedTuple):
    """A finished file in staging/, what a row will say of it, and the origin's entity tag of these bytes. `is_noted`:
    there may be a note beside it."""

    path: str
    row: BlobRow
    etag: str = ""
    is_noted: bool = False


class Sink:
    """A new file that is being written.

    Args:
        path: nothing is there yet, or the beginning of the file.
        expected: bytes that it is to have; None where nobody knows. More are refused as they come.
        what: names it in messages.
        etag: the entity tag of what is there already; empty where nothing is.
        proven: how many bytes of what is there already are noted, and their XXH3-128. The rest is cut off; where these
            are others by now, the file begins anew.
        note: told of the entity tag of what is written, how many bytes are, and their XXH3-128: when the tag is known,
            every so many bytes, and in the end.
        spend: told of bytes that have come; it may wait.
    """

    def __init__(
        self,
        path: str,
        expected: int | None,
        what: str,
        *,
        etag: str = "",
        proven: tuple[int, str] = (0, ""),
        note: Callable[[str, int, str], None] | None = None,
        spend: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.etag = etag
        self.size = 0
        self._expected = expected
        self._what = what
        self._note = note
        self._noted: int | None = None  # so many bytes; None where no note is there
        self._spend = spend
        how = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, how if etag else how | os.O_CREAT | os.O_EXCL, 0o600)
        self._blake, self._xxh3 = blake3(), xxh3_128()
        if etag:
            try:
                self._go_on(proven)
            except OSError:
                os.close(self._fd)
                raise
        self.resumed = self._begun = self.size

    def begin(self, etag: str) -> None:
        """Says of which entity tag the bytes are that follow, those that are there already included; empty where the
        origin has none that proves anything."""
        if etag != self.etag:
            self._tell(etag)
        self.etag = etag

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes at the end.

        Raises Corrupted where they are too many, and what `faults` has where the disk does not take them: that is no
        trouble of the origin's.
        """
        if self._expected is not None and self.size + len(chunk) > self._expected:
            raise Corrupted(f"{self._what}: the origin lists {self._expected} bytes and sends more.")
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise trouble(error, "a download could not be written") from None
        self.size += len(chunk)
        if self.size - self._begun >= WRITE_BEHIND_BYTES:
            libc.begin_writing(self._fd, self._begun, self.size - self._begun)
            self._begun = self.size
        self._blake.update(chunk)
        self._xxh3.update(chunk)
        if self._noted is not None and self.size - self._noted >= NOTE_EVERY_BYTES:
            try:
                self._tell(self.etag)
            except OSError as error:
                raise trouble(error, "a download could not be written") from None
        if self._spend:
            self._spend(len(chunk))

    def restart(self) -> None:
        """Forgets what was written: the origin begins anew."""
        if self.etag:
            self._tell("")  # what is written next is not what was noted
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = self.resumed = self._begun = 0
        self.etag = ""
        self._blake, self._xxh3 = blake3(), xxh3_128()

    def clone(self, source: int) -> bool:
        """Makes it share the blocks of another file, where the filesystem can. Then it is hashed by reading."""
        try:
            fcntl.ioctl(self._fd, _FICLONE, source)
        except OSError as error:
            if error.errno in _NO_CLONE:
                return False
            raise
        self._hash_again()
        return True

    def take_over(self, path: str) -> None:
        """Takes a file on the same filesystem, which somebody who only knows names has written, for its own.

        Raises CacheError where it is not a plain file of one name: a file that has another name could be changed there.
        """
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fd
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
            raise CacheError(f"{path} is not a file of the daemon's own.")
        if self.etag:
            self._tell("")
        os.replace(path, self.path)
        self.etag, self.resumed = "", 0
        self._hash_again()
        if self._spend:
            self._spend(self.size)

    def check(self) -> None:
        """Raises Corrupted where bytes are missing."""
        if self._expected is not None and self.size != self._expected:
            raise Corrupted(f"{self._what}: the origin lists {self._expected} bytes and sent {self.size}.")

    def finish(self) -> Staged:
        """Ends it. Raises Corrupted where bytes are missing."""
        self.check()
        os.fchmod(self._fd, 0o444)
        seen = os.fstat(self._fd)
        row = BlobRow(self._blake.hexdigest(), self.size, self._xxh3.hexdigest(), seen.st_ino, seen.st_mtime_ns)
        return Staged(self.path, row, self.etag, self._note is not None)

    def _tell(self, etag: str) -> None:
        if self._note:
            self._note(etag, self.size, self._xxh3.hexdigest())
            self._noted = self.size if etag else None

    def _go_on(self, proven: tuple[int, str]) -> None:
        """Takes what is there for the beginning of the file, as far as it is what was noted of it."""
        found = os.fstat(self._fd).st_size
        is_right = proven[0] <= found and (self._expected is None or found <= self._expected)
        if is_right:
            os.ftruncate(self._fd, proven[0])  # what follows was written, but nobody has noted what it was
            self._hash_again()
            is_right = (self.size, self._xxh3.hexdigest()) == proven
        if is_right:
            self._noted = self.size
            os.lseek(self._fd, self.size, os.SEEK_SET)
        else:
            _log.warning("the beginning of %s is not what was written of it: it is downloaded anew", self._what)
            self.restart()

    def _hash_again(self) -> None:
        self.size, self._blake, self._xxh3 = 0, blake3(), xxh3_128()
        buffer = bytearray(min(os.fstat(self._fd).st_size + 1, READ_BYTES))
        view = memoryview(buffer)
        while count := os.preadv(self._fd, [buffer], self.size):
            self._blake.update(view[:count])
            self._xxh3.update(view[:count])
            self.size += count

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._noted is not None and self._noted != self.size:
                with contextlib.suppress(OSError):  # what was noted before is right, and less
                    self._tell(self.etag)
        finally:
            os.close(self._fd)


def fsync(path: str) -> None:
    """Makes sure that a file's bytes, or a folder's names, survive a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
