"""Rates: so many bytes a second and no more, whoever shares them. The clock stands still but for those who wait."""

from __future__ import annotations

import random
import threading

import pytest

from cacheserver.pace import BURST_SECONDS, NAP_SECONDS_MAX, Pace
from tests.unit.house import PATIENCE_SECONDS


class Clock:
    """Seconds that pass only while somebody waits; how long the naps were."""

    def __init__(self) -> None:
        self.ticks = 5000.0
        self.naps: list[float] = []
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        """They pass at once."""
        with self._lock:
            self.ticks += seconds
            self.naps.append(seconds)

    def pace(self, rate: int) -> Pace:
        """A rate by this clock."""
        return Pace(rate, lambda: self.ticks, self.sleep)


def test_bytes_are_paid_for_with_seconds() -> None:
    """What comes at once after a pause is for nothing; from then on each second buys the rate."""
    clock = Clock()
    pace, began = clock.pace(100), clock.ticks
    pace.spend(round(100 * BURST_SECONDS))
    assert clock.naps == []
    for _ in range(7):
        pace.spend(50)
    assert clock.ticks - began == pytest.approx(3.5)


def test_a_long_pause_saves_no_more_than_a_burst() -> None:
    """Who did nothing for an hour may not have an hour's bytes at once."""
    clock = Clock()
    pace = clock.pace(100)
    pace.spend(100)
    clock.ticks += 3600.0
    began = clock.ticks
    pace.spend(1000)
    assert clock.ticks - began == pytest.approx(10 - BURST_SECONDS)


@pytest.mark.parametrize("chunk", [1, 37, 100_000])
def test_the_size_of_chunks_does_not_matter(chunk: int) -> None:
    """A file that comes in one piece takes as long as one that comes in crumbs."""
    clock = Clock()
    pace, began, left = clock.pace(1000), clock.ticks, 20_000
    while left > 0:
        pace.spend(min(chunk, left))
        left -= chunk
    assert clock.ticks - began == pytest.approx(20 - BURST_SECONDS)


def test_naps_are_short() -> None:
    """A large piece of a small rate is waited for in small steps, so that what stops a daemon is not slept through."""
    clock = Clock()
    clock.pace(1).spend(60)
    assert max(clock.naps) <= NAP_SECONDS_MAX and sum(clock.naps) == pytest.approx(60 - BURST_SECONDS)


def test_several_who_share_a_rate_have_it_together(dice: random.Random) -> None:
    """However many threads take from it, together they get no more than the rate."""
    clock = Clock()
    pace, began = clock.pace(1000), clock.ticks
    sizes = [[dice.randrange(1, 500) for _ in range(40)] for _ in range(6)]

    def take(own: list[int]) -> None:
        for count in own:
            pace.spend(count)

    threads = [threading.Thread(target=take, args=(own,)) for own in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    total = sum(map(sum, sizes))
    assert clock.ticks - began >= total / 1000 - BURST_SECONDS - 1e-6


def test_others_do_not_wait() -> None:
    """Another rate by the same clock is not touched by what one owes, nor is who waits in the way of others' turns."""
    clock, held, waiting = Clock(), threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        waiting.set()
        assert held.wait(PATIENCE_SECONDS)
        clock.sleep(seconds)

    slow, other = Pace(1, lambda: clock.ticks, sleep), clock.pace(1)
    thread = threading.Thread(target=slow.spend, args=(2,))
    thread.start()
    assert waiting.wait(PATIENCE_SECONDS)
    other.spend(1)
    assert clock.naps == []
    held.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
