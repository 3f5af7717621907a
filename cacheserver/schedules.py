"""Times of the week: what the key `at` says, and when such a time was last.

Law of this file: values in, values out. What the host's clocks on the wall show is a function that the caller has; each
time comes once on its day, whatever they do: one that they skip comes as much later, one that they show twice comes
with the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

DAY_SECONDS, DAY_MINUTES, WEEK_DAYS = 86_400, 1_440, 7
FIRST_DAY = 3  # 1970-01-01 was a Thursday
TIMES_MAX = 50  # of one schedule
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
WORDS = 'a time of day in quotes, as in "06:30", "Mon..Fri 06:30" or "Sat,Sun 09:00", or a list of such'
_TIME = re.compile(r"\s*(?:([^\s0-9][^\s]{0,99})\s+)?([0-9]{1,2}):([0-9]{2})\s*")

Ahead = Callable[[float], float]  # seconds that local time is ahead of UTC, at a moment in seconds since the epoch


class Time(NamedTuple):
    """A time of day, in minutes since midnight, on some days of the week: 0 is Monday."""

    days: tuple[int, ...]
    minute: int


Schedule = tuple[Time, ...]


def read(texts: Iterable[str]) -> Schedule:
    """The times that some texts stand for. Raises ValueError, whose words finish "… must be"."""
    return tuple(sorted({_time(text) for text in texts}))


def latest(schedule: Schedule, now: float, ahead: Ahead) -> float:
    """The last moment of a schedule that is not after `now`, in seconds since the epoch; minus infinity for none."""
    today = math.floor((now + ahead(now)) / DAY_SECONDS)
    # A week ago is one at least; the day before that is for hosts whose clocks have skipped a whole day.
    days = range(today - WEEK_DAYS - 1, today + 1)
    return max((moment for moment in _moments(schedule, days, ahead) if moment <= now), default=-math.inf)


def gap(schedule: Schedule) -> float:
    """The longest that one time of a schedule is after the one before it, in seconds."""
    week = WEEK_DAYS * DAY_MINUTES
    times = sorted({day * DAY_MINUTES + minute for days, minute in schedule for day in days})
    return 60.0 * max(((b - a - 1) % week + 1 for a, b in zip(times, times[1:] + times[:1], strict=True)), default=0)


def _moments(schedule: Schedule, days: Iterable[int], ahead: Ahead) -> Iterator[float]:
    for day in days:
        for time in schedule:
            if (day + FIRST_DAY) % WEEK_DAYS in time.days:
                yield _moment(day * DAY_SECONDS + time.minute * 60, ahead)


def _moment(shown: int, ahead: Ahead) -> float:
    """When clocks on the wall show so many seconds since midnight of 1970-01-01: for the first time, where they are put
    back; where they skip it, what it would be had they not been put forward."""
    as_before, as_after = shown - ahead(shown - DAY_SECONDS), shown - ahead(shown + DAY_SECONDS)
    if as_before + ahead(as_before) != shown and as_after + ahead(as_after) == shown:
        return as_after
    return as_before


def _time(text: str) -> Time:
    found = _TIME.fullmatch(text)
    if not found or int(found[2]) > 23 or int(found[3]) > 59:
        raise ValueError(WORDS)
    days = {day for part in (found[1] or "Mon..Sun").split(",") for day in _days(part)}
    return Time(tuple(sorted(days)), int(found[2]) * 60 + int(found[3]))


def _days(text: str) -> Iterator[int]:
    """Those of `Mon`, or of `Fri..Mon`: over the week's end too."""
    first, dots, last = text.partition("..")
    day, end = _day(first), _day(last if dots else first)
    while True:
        yield day
        if day == end:
            return
        day = (day + 1) % WEEK_DAYS


def _day(text: str) -> int:
    if text.capitalize() not in DAYS:
        raise ValueError(f"{WORDS}: days are {', '.join(DAYS)}")
    return DAYS.index(text.capitalize())
