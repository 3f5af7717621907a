"""How many questions a server is asked at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cacheserver.throttle import START, WINDOW_MIN, Throttle, next_limit
from tests.rig.until import until
from tests.unit.house import PATIENCE_SECONDS


@pytest.mark.parametrize(("at_once", "away"), [(1, 0.0), (2, 0.0), (4, 0.0), (1, 10.0), (8, 10.0)])
def test_it_settles_where_more_would_only_wait(at_once: int, away: float) -> None:
    """A server that works on `at_once` questions, each for a second, and is `away` seconds away, is asked as many as
    keep it busy, one or two more, and no more than that."""
    busy = at_once * (1 + away)

    def mean(limit: int) -> float:
        return away + max(1.0, limit / at_once - away)

    limit, shortest = START, mean(START)
    seen = []
    for _ in range(200):
        limit = next_limit(limit, shortest, mean(limit))
        seen.append(limit)
    assert min(seen[100:]) >= busy - 1 and max(seen[100:]) <= busy + 2, seen[100:]


def test_nobody_asks_more_than_the_limit() -> None:
    """The others wait; a question that fails gives its place back, and teaches nothing."""
    throttle, inside, most = Throttle(3, lambda: 0.0), [0], [0]
    lock, go = threading.Lock(), threading.Event()

    def ask(number: int) -> None:
        with throttle.question(30):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            assert go.wait(PATIENCE_SECONDS)
            with lock:
                inside[0] -= 1
            if number % 3 == 0:
                raise ValueError

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, number) for number in range(100)]
        until(lambda: inside[0] == START, "the first questions to be asked")
        assert throttle.limit == START
        go.set()
    assert sum(one.exception() is not None for one in asked) == 34
    assert START < throttle.limit <= 3 and most[0] <= 3


def test_who_asks_one_by_one_learns_nothing_of_more() -> None:
    """The limit stays where it is used."""
    now = [0.0]
    throttle = Throttle(16, lambda: now[0])
    for _ in range(20 * WINDOW_MIN):
        with throttle.question(30):
            now[0] += 1.0
    assert throttle.limit <= START + 1


def test_nobody_waits_for_ever_behind_a_server_that_hangs() -> None:
    """Whoever has waited for so long, while none of those before was answered, is told."""
    throttle, patience = Throttle(1, lambda: 0.0), 0.2
    told = pytest.raises(TimeoutError, match="none of the questions before it")
    with throttle.question(patience), told, throttle.question(patience):
        raise AssertionError("nobody asks beside the one that hangs")
