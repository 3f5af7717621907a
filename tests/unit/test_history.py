"""The counters of a day: what is kept of them, and how long."""

from __future__ import annotations

from itertools import pairwise

from cacheserver.history import OLD_MAX, RECENT_MAX, SAMPLE_SECONDS, SELDOM_SECONDS, History, Sample


def sample(at: float) -> Sample:
    """One of this time."""
    return Sample(at, int(at), 0, 0, 0, 0)


def test_the_last_hour_is_whole_and_the_day_before_it_thinned() -> None:
    """However long the daemon runs, it is no more than that; each is asked for from where one was."""
    history = History()
    times = [float(number * SAMPLE_SECONDS) for number in range(1, 50_000)]
    for at in times:
        history.note(sample(at))
    kept = [one.at for one in history.since(0.0)]
    assert kept[-RECENT_MAX:] == times[-RECENT_MAX:] and len(kept) == RECENT_MAX + OLD_MAX
    old = kept[:OLD_MAX]
    assert {after - before for before, after in pairwise(old)} == {SELDOM_SECONDS}
    assert times[-1] - kept[0] > 23 * 3600
    assert [one.at for one in history.since(times[-3])] == times[-2:] and history.since(times[-1]) == []


def test_a_clock_that_is_set_back_begins_anew() -> None:
    """Times never go back in what is shown."""
    history = History()
    for at in (100.0, 110.0, 50.0, 60.0):
        history.note(sample(at))
    assert [one.at for one in history.since(0.0)] == [50.0, 60.0]
