"""Whether something fits: the limits of the store's size, as a pure decision.

Law of this file: bytes and numbers in, words out; it measures nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True)
class Amount:
    """Bytes, or a per cent of the filesystem."""

    number: float
    percent: bool = False

    def of(self, total: int) -> int:
        """Bytes, on a filesystem of `total` bytes."""
        return int(total * self.number / 100) if self.percent else int(self.number)


def parse_amount(text: str) -> Amount:
    """Reads "500GiB" or "10%". Raises ValueError with words that finish "… must be"."""
    found = _AMOUNT.fullmatch(text)
    if found and found[2] == "%" and float(found[1]) <= 100:
        return Amount(float(found[1]), percent=True)
    if found and found[2] in _UNITS:
        return Amount(float(found[1]) * _UNITS[found[2]])
    raise ValueError('bytes as in "500GiB", or per cent of the filesystem as in "10%"')


@dataclass(frozen=True)
class Limits:
    """How much the store may hold, and how much it leaves free on its filesystem."""

    capacity: Amount
    min_free: Amount


def shortage(
    needed: int, *, written: int = 0, stored: int, coming: int, unwritten: int, total: int, free: int, limits: Limits
) -> str | None:
    """Why `needed` more bytes do not fit, in words; None where they do.

    Args:
        written: how many of them are on the disk already: beginnings of files that were broken off.
        stored: bytes of all blobs.
        coming: bytes of downloads under way that are no blobs yet.
        unwritten: bytes of downloads under way that are not on the disk yet.
        total, free: bytes of the store's filesystem.
    """
    capacity, min_free = limits.capacity.of(total), limits.min_free.of(total)
    over = stored + coming + needed - capacity
    if over > 0:
        return (
            f"{show(needed)} more do not fit: the store's capacity is {show(capacity)}, {show(stored)} are held and"
            f" {show(coming)} on their way. {show(over)} are missing; raise [store] capacity."
        )
    rest = needed - written
    under = min_free - (free - unwritten - rest)
    if under > 0:
        return (
            f"{show(rest)} more do not fit: {show(free)} of the store's disk are free, {show(unwritten)} of them are"
            f" promised, and {show(min_free)} stay free. {show(under)} are missing; free some space on that disk."
        )
    return None


def show(count: int) -> str:
    """Bytes for a message."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
