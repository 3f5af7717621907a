"""Times of the week: what may stand under `at`, and when such a time was last, whatever clocks are put to."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from cacheserver import readers
from cacheserver.schedules import DAY_SECONDS, Ahead, Schedule, Time, gap, latest, read

HOUR, WEEK = 3600, 7 * DAY_SECONDS
DAILY = tuple(range(7))
SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()  # 02:00 is 03:00 there
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()  # 03:00 is 02:00 there


def berlin(at: float) -> float:
    """Local time of 2026 in a zone that has summer time."""
    return 2 * HOUR if SPRING <= at < AUTUMN else HOUR


def utc(at: float) -> float:
    """The local time of a host without a zone."""
    return 0


def auckland(at: float) -> float:
    """Far ahead of UTC, where it is another day for most of the time."""
    return 13 * HOUR


def honolulu(at: float) -> float:
    """Far behind it."""
    return -10 * HOUR


def samoa(at: float) -> float:
    """A zone that has skipped a whole day."""
    return 14 * HOUR if at >= SPRING else -10 * HOUR


def local(text: str, ahead: Ahead = utc) -> float:
    """The moment at which clocks show this; where they show it twice the first time."""
    shown = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    return min(at for at in (shown - ahead(shown - DAY_SECONDS), shown - ahead(shown)) if at + ahead(at) == shown)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("06:30", [(DAILY, 390)]),
        (" 6:05 ", [(DAILY, 365)]),
        ("00:00", [(DAILY, 0)]),
        ("Mon 23:59", [((0,), 1439)]),
        ("Mon..Fri 06:30", [((0, 1, 2, 3, 4), 390)]),
        ("fri..MON 06:30", [((0, 4, 5, 6), 390)]),
        ("Tue,Sat..Sun,Tue  12:00", [((1, 5, 6), 720)]),
        ("Thu..Thu 12:00", [((3,), 720)]),
        (["18:00", "Sat 06:30", "06:30", "Mon..Sun 18:00"], [(DAILY, 390), (DAILY, 1080), ((5,), 390)]),
    ],
)
def test_what_may_stand_there(value: object, expected: list[tuple[tuple[int, ...], int]]) -> None:
    """Times of day, on all days or some, alone or several; what is there twice counts once."""
    assert readers.at(value) == tuple(Time(*one) for one in expected)


@pytest.mark.parametrize(
    "value",
    [
        *("", "24:00", "06:60", "6", "6:5", "06:30:00", "06.30", "-1:00", "noon", "06:30 Mon", "Mon", "@daily"),
        *("Mon-Fri 06:30", "Monday 06:30", "Mon.. 06:30", "..Fri 06:30", "Mon...Fri 06:30", "Mon, 06:30", ", 06:30"),
        *("30 6 * * 1-5", "M\u043en 06:30", "\u0660\u0666:30", 390, 6.5, True, None, {}, [], [390], ["06:30", "6h"]),
        *(["06:30"] * 51, ["06:30", ["07:00"]]),
    ],
)
def test_what_may_not(value: object) -> None:
    """The words say what may."""
    with pytest.raises(ValueError, match=r'^a time of day in quotes, as in "06:30", "Mon..Fri 06:30"'):
        readers.at(value)


@pytest.mark.parametrize("ahead", [utc, berlin, auckland, honolulu])
def test_a_time_is_the_last_one_from_its_moment_on(ahead: Ahead) -> None:
    """Not a second before; also a week, or the days of an end of the week, later."""
    for schedule, first, second in (
        (["06:30"], "2026-06-03T06:30", "2026-06-04T06:30"),
        (["00:00"], "2026-06-03T00:00", "2026-06-04T00:00"),
        (["Wed 06:30"], "2026-06-03T06:30", "2026-06-10T06:30"),
        (["Mon..Fri 23:59"], "2026-06-05T23:59", "2026-06-08T23:59"),
        (["Sun 12:00", "Tue 00:01"], "2026-06-07T12:00", "2026-06-09T00:01"),
    ):
        times, before, then = read(schedule), local(first, ahead), local(second, ahead)
        assert latest(times, before, ahead) == before == latest(times, then - 1, ahead)
        assert latest(times, then, ahead) == then == latest(times, then + 0.5, ahead)
        assert latest(times, before - 1, ahead) < before


@pytest.mark.parametrize("ahead", [utc, berlin, auckland, honolulu])
def test_each_time_comes_once_on_its_day(ahead: Ahead) -> None:
    """Whatever the clocks do meanwhile: a look each minute of the weeks in which they are put forward and back."""
    schedule = read(["00:00", "00:30", "02:00", "02:30", "02:59", "03:00", "Sun 03:15", "06:30", "23:59"])
    for change in (SPRING, AUTUMN):
        begin, end = change - WEEK // 2, change + WEEK // 2
        # From midnight to midnight of the clocks on the wall, so that as many days are seen of each time.
        begin, end = (at - (at + ahead(at)) % DAY_SECONDS for at in (begin, end))
        looked_at, looks = begin - 1, []
        for minute in range(round((end - begin) / 60)):
            now = begin + 60 * minute
            if latest(schedule, now, ahead) > looked_at:
                looked_at = now
                looks.append(now)
        hidden = 1 if ahead is berlin and change == SPRING else 0  # 02:00 comes with 03:00
        assert len(looks) == 7 * 8 + 1 - hidden


def test_a_time_that_clocks_skip_comes_as_much_later() -> None:
    """02:30 is 03:30 in the night in which 02:00 is 03:00, and 02:30 again in the next."""
    schedule = read(["02:30"])
    skipped = local("2026-03-29T03:30", berlin)
    assert latest(schedule, skipped - 1, berlin) == local("2026-03-28T02:30", berlin)
    assert latest(schedule, skipped, berlin) == skipped == latest(schedule, skipped + 22 * HOUR, berlin)
    assert latest(schedule, local("2026-03-30T02:30", berlin), berlin) == local("2026-03-30T02:30", berlin)


def test_a_time_that_clocks_show_twice_comes_with_the_first() -> None:
    """And not an hour later again."""
    schedule, first = read(["02:30"]), AUTUMN - HOUR / 2
    assert latest(schedule, first - 1, berlin) == local("2026-10-24T02:30", berlin)
    assert latest(schedule, first, berlin) == first == latest(schedule, first + HOUR, berlin)


def test_a_day_that_was_skipped_is_made_up_for() -> None:
    """At that time of the day after it, once: a Sunday's on Monday."""
    schedule, made_up = read(["Sun 06:30"]), SPRING - HOUR + 16.5 * HOUR
    shown = datetime.fromtimestamp(made_up + samoa(made_up), UTC)
    assert (shown.day, shown.hour, shown.minute, shown.weekday()) == (30, 6, 30, 0)
    week_before = datetime(2026, 3, 22, 16, 30, tzinfo=UTC).timestamp()
    assert latest(schedule, made_up - 1, samoa) == week_before
    assert latest(schedule, made_up, samoa) == made_up == latest(schedule, made_up + 6 * DAY_SECONDS - 1, samoa)


def test_what_has_no_times_has_no_last_one() -> None:
    """An empty schedule says nothing; nor is a time missed by the clock of 1970."""
    assert latest((), SPRING, utc) == -math.inf
    assert latest(read(["00:00"]), 0.0, utc) == 0.0


@pytest.mark.parametrize(
    ("texts", "hours"),
    [
        (["06:30"], 24),
        (["Wed 06:30"], 168),
        (["Mon..Fri 06:30"], 72),
        (["06:00", "18:00"], 12),
        (["06:00", "07:00"], 23),
        (["Sun 23:00", "Mon 01:00"], 166),
        ([], 0),
    ],
)
def test_how_long_one_waits_at_most(texts: list[str], hours: int) -> None:
    """Over the end of the week too."""
    schedule: Schedule = read(texts)
    assert gap(schedule) == hours * HOUR
