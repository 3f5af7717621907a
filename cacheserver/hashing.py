"""Hashing open files.

Law of this file: a file is read once, in pieces, whatever its length, and nothing is believed of its length.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3
from xxhash import xxh3_128

READ_BYTES = 1 << 20
# What a filesystem says that cannot read past the kernel's memory, or not this piece. All else is said of the bytes:
# read the usual way, what the kernel remembers would hide a disk that has lost them.
_INDIRECT_ERRNOS = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def both_of(chunks: Iterable[memoryview]) -> tuple[str, str, int]:
    """BLAKE3-256 and XXH3-128, hexadecimal, of what is in a file, and how long it is."""
    blake, xxh3, seen = blake3(), xxh3_128(), 0
    for chunk in chunks:
        blake.update(chunk)
        xxh3.update(chunk)
        seen += len(chunk)
    return blake.hexdigest(), xxh3.hexdigest(), seen


def xxh3_of(chunks: Iterable[memoryview]) -> str:
    """XXH3-128, hexadecimal, of what is in a file."""
    xxh3 = xxh3_128()
    for chunk in chunks:
        xxh3.update(chunk)
    return xxh3.hexdigest()


def blake3_of(chunks: Iterable[memoryview]) -> str:
    """BLAKE3-256, hexadecimal, of what is in a file."""
    blake = blake3()
    for chunk in chunks:
        blake.update(chunk)
    return blake.hexdigest()


def chunks(file: io.FileIO, size: int) -> Iterator[memoryview]:
    """What is in a file that was `size` bytes long a moment ago; each chunk is good until the next."""
    buffer = bytearray(min(size + 1, READ_BYTES))  # a larger one costs more to clear than a small file to hash
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        yield view[:count]


def read(file: io.FileIO, spend: Callable[[int], None] | None = None) -> Iterator[memoryview]:
    """What is in a file: `from_disk` where somebody has to hear what was read."""
    return chunks(file, os.fstat(file.fileno()).st_size) if spend is None else from_disk(file, spend)


def from_disk(file: io.FileIO, spend: Callable[[int], None]) -> Iterator[memoryview]:
    """The same as the disk has it (O_DIRECT of open(2)), where its filesystem can: what the kernel remembers of a file
    says nothing of the disk, and reading a large store would push out of memory what jobs need there.

    Args:
        spend: called with the length of each chunk.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, fcntl.fcntl(file.fileno(), fcntl.F_GETFL) | os.O_DIRECT)
    # At the beginning of a page, as it has to be. It goes with the last look at it: closing it is an error while an
    # error of reading, which is the one to tell, holds one.
    view = memoryview(mmap.mmap(-1, READ_BYTES))
    while count := _read(file, view):
        yield view[:count]
        spend(count)


def _read(file: io.FileIO, view: memoryview) -> int:
    try:
        return file.readinto(view)
    except OSError as error:
        flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
        if error.errno not in _INDIRECT_ERRNOS or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return file.readinto(view)
