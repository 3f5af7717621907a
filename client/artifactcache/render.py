"""How the commands show things: tables, sizes, ages, JSON, b3sum lines, a progress bar. Pure but for the bar."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TextIO

from artifactcache.results import Fetched, File, Progress

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
BAR_CELLS = 30
DIGEST_CHARS = 12  # of a digest in a table


def size(size_bytes: float) -> str:
    """Write a size as people read it."""
    value, units = float(size_bytes), iter(_UNITS)
    unit = next(units)
    while abs(value) >= 1024 and unit != _UNITS[-1]:
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def cost(origin_bytes: int, shared_bytes: int) -> str:
    """Write what a fetch took, and from where."""
    taken = [(origin_bytes, "the origin"), (shared_bytes, "the shared tier")]
    return " and ".join(f"{size(count)} from {whence}" for count, whence in taken if count) or "held already"


def age(seconds: float) -> str:
    """Write an age in its largest unit."""
    for length, unit in _AGES:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "0 s"


def moment(at: float) -> str:
    """Write a time as the local one, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def count(number: int, noun: str) -> str:
    """Write how many there are of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Align rows in columns; those in `right` to the right."""
    to_right = set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in to_right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Escape what would break a line or a terminal; bytes that are not UTF-8 appear as \\xNN."""
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def b3sum_line(file: File) -> bytes | None:
    """Write a line for `b3sum --check`: a name with a backslash or newline is escaped, and marked so.

    None where b3sum could not check it: it reads UTF-8 only, and takes a return before a newline for part of that.
    """
    try:
        path = file.path.encode()
    except UnicodeEncodeError:
        return None
    if path.endswith(b"\r"):
        return None
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    return (b"\\" if escaped != path else b"") + file.digest.encode() + b"  " + escaped + b"\n"


def document(value: object) -> str:
    """Write a result, or a list of results, as one JSON document.

    Lone surrogates stand for bytes, as in Python. JSON has no infinity: it is the string "Infinity", as in protobuf's
    JSON, which most languages make a number of again.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=True, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Fetched):
        names = [each.name for each in dataclasses.fields(value)]
        shown = {name: getattr(value, name) for name in names if name not in ("location", "_leases")}
        return {"path": value.location, **shown}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value


class Bar:
    """A progress bar on a terminal; elsewhere nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = False
        self._wanted = self._stream is not None and self._stream.isatty()

    def __call__(self, progress: Progress) -> None:
        """Draw how far it is."""
        if not self._wanted:
            return
        total = max(progress.bytes_total, progress.bytes_done)
        filled = BAR_CELLS * progress.bytes_done // total if total else 0
        bar = "#" * filled + "-" * (BAR_CELLS - filled)
        self._stream.write(
            f"\r[{bar}] {size(progress.bytes_done)} of {size(total)}, "
            f"{progress.files_done} of {progress.files_total} files\x1b[K"
        )
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Take it away again."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
