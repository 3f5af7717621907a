"""Where the commands write: standard output, in whatever encoding it has."""

from __future__ import annotations

import sys

from artifactcache import render


def write(data: bytes) -> None:
    """Write bytes as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def line(text: str) -> None:
    """Print what is shown to people: whatever the terminal's encoding lacks is escaped."""
    write(render.printable(text).encode(sys.stdout.encoding or "utf-8", "backslashreplace") + b"\n")


def lines(texts: list[str]) -> None:
    """Print several."""
    for text in texts:
        line(text)
