"""Whether something fits: the limits of the store's size, as a pure decision.

Law of this file: bytes and numbers in, words out; it measures nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

BYTES_MAX = 1 << 62
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z%]*)\s*")


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
    if found and found[2] in _UNITS and float(found[1]) * _UNITS[found[2]] <= BYTES_MAX:
        return Amount(float(found[1]) * _UNITS[found[2]])
    raise ValueError('bytes as in "500GiB", or per cent of the filesystem as in "10%"')


@dataclass(frozen=True)
class Limits:
    """How much the store may hold, and how much it leaves free on its filesystem.

    Attributes:
        high, low: per cent of what it may hold: a sweep begins above the one, and goes down to the other.
    """

    capacity: Amount
    min_free: Amount
    high: float = 95.0
    low: float = 90.0


class Fill(NamedTuple):
    """How full a store and its disk are, in bytes.

    Attributes:
        stored: all blobs, each once.
        coming: of downloads under way, no blobs yet.
        unwritten: of downloads under way, not on the disk yet.
        total, free: the store's filesystem.
    """

    stored: int
    coming: int
    unwritten: int
    total: int
    free: int


class Need(NamedTuple):
    """How many bytes have to go: so that the disk has room again, and so that the store is within its capacity."""

    disk_bytes: int
    capacity_bytes: int

    def __bool__(self) -> bool:
        return self.disk_bytes > 0 or self.capacity_bytes > 0


def pressure(fill: Fill, limits: Limits, *, above: float) -> Need:
    """What a sweep has to free: where the store is fuller than `above` per cent, all down to the low watermark.

    What it may hold is the less of its capacity and of what its disk has room for beside everybody else's bytes: as
    others fill the disk it gives way.
    """
    held = fill.stored + fill.coming
    room = held + fill.free - fill.unwritten - limits.min_free.of(fill.total)
    capacity = limits.capacity.of(fill.total)
    return Need(_excess(held, room, above, limits.low), _excess(held, capacity, above, limits.low))


def _excess(held: int, room: int, above: float, low: float) -> int:
    return max(0, held - int(room * low / 100)) if held > room * above / 100 else 0


def missing(needed: int, fill: Fill, limits: Limits, *, written: int = 0) -> Need:
    """What has to go so that `needed` more bytes fit.

    Args:
        written: how many of them are on the disk already: beginnings of files that were broken off.
    """
    over = fill.stored + fill.coming + needed - limits.capacity.of(fill.total)
    under = limits.min_free.of(fill.total) - (fill.free - fill.unwritten - (needed - written))
    return Need(max(0, under), max(0, over))


def shortage(needed: int, fill: Fill, limits: Limits, *, written: int = 0) -> str | None:
    """Why `needed` more bytes do not fit, in words; None where they do. Arguments as those of `missing`."""
    under, over = missing(needed, fill, limits, written=written)
    if over:
        return (
            f"{show(needed)} more do not fit: the store's capacity is {show(limits.capacity.of(fill.total))},"
            f" {show(fill.stored)} are held and {show(fill.coming)} on their way. {show(over)} are missing; raise"
            " [store] capacity."
        )
    if under:
        return (
            f"{show(needed - written)} more do not fit: {show(fill.free)} of the store's disk are free,"
            f" {show(fill.unwritten)} of them are promised, and {show(limits.min_free.of(fill.total))} stay free."
            f" {show(under)} are missing; free some space on that disk."
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
