"""What people write on a command line for a duration or a size. Pure; raises ValueError with words for the user."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# Those of the daemon's configuration.
_BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_BYTES |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*")


def duration(text: str) -> float:
    """Read "90s", "15m", "12h", "7d" or "2w"; return seconds."""
    found = _NUMBER_AND_UNIT.fullmatch(text)
    if not found or found[2] not in _SECONDS or not float(found[1]):
        raise ValueError(
            f"{text!r} is no duration: write a number above 0 and s, m, h, d or w for its unit, as in 90s, 15m, 12h, "
            "7d or 2w"
        )
    return float(found[1]) * _SECONDS[found[2]]


def size(text: str) -> int:
    """Read "10GiB", "500MB" or a number of bytes; return bytes."""
    found = _NUMBER_AND_UNIT.fullmatch(text)
    count = int(float(found[1]) * _BYTES[found[2]]) if found and found[2] in _BYTES else 0
    if not count:
        raise ValueError(
            f"{text!r} is no size: write a number above 0 and its unit, as in 10GiB, 500MiB or 2TB; without a unit it "
            "is bytes"
        )
    return count
