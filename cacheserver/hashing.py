"""Hashing open files.

Law of this file: a file is read once, in pieces, whatever its length, and nothing is believed of its length.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from blake3 import blake3
from xxhash import xxh3_128

READ_BYTES = 1 << 20


def both_of(file: io.FileIO, size: int) -> tuple[str, str, int]:
    """BLAKE3-256 and XXH3-128, hexadecimal, and the length of a file that was `size` bytes long a moment ago."""
    blake, xxh3, seen = blake3(), xxh3_128(), 0
    for chunk in _chunks(file, size):
        blake.update(chunk)
        xxh3.update(chunk)
        seen += len(chunk)
    return blake.hexdigest(), xxh3.hexdigest(), seen


def xxh3_of(file: io.FileIO, size: int) -> str:
    """XXH3-128, hexadecimal, of a file that was `size` bytes long a moment ago."""
    xxh3 = xxh3_128()
    for chunk in _chunks(file, size):
        xxh3.update(chunk)
    return xxh3.hexdigest()


def _chunks(file: io.FileIO, size: int) -> Iterator[memoryview]:
    """What is in a file that was `size` bytes long a moment ago; each chunk is good until the next."""
    buffer = bytearray(min(size + 1, READ_BYTES))  # a larger one costs more to clear than a small file to hash
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        yield view[:count]
