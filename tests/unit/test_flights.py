"""Single flight, under real threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cacheserver.flights import Flights
from cacheserver.words import Progress
from tests.unit.house import PATIENCE_SECONDS

CALLERS = 32


@pytest.fixture
def flights() -> Iterator[Flights[int]]:
    """Flights of numbers."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        yield Flights(pool)


def test_any_number_of_callers_cause_the_work_once(flights: Flights[int]) -> None:
    """32 threads that ask at once get the one result of one run, and exactly one of them started it."""
    runs, released, ready = [], threading.Event(), threading.Barrier(CALLERS)

    def work(progress: Progress) -> int:
        assert released.wait(PATIENCE_SECONDS)
        runs.append(1)
        return len(runs)

    def ask(_: int) -> tuple[int, bool]:
        ready.wait(PATIENCE_SECONDS)
        flight, started = flights.join("key", work)
        if ready.wait(PATIENCE_SECONDS) == 0:  # all have joined
            assert flights.count() == 1
            released.set()
        return flight.future.result(PATIENCE_SECONDS), started

    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(ask, range(CALLERS)))
    assert [result for result, _ in answers] == [1] * CALLERS
    assert sum(started for _, started in answers) == 1
    assert flights.count() == 0


def test_other_keys_do_not_wait(flights: Flights[int]) -> None:
    """A flight under way holds up no other."""
    released = threading.Event()
    slow, _ = flights.join("slow", lambda progress: int(released.wait(PATIENCE_SECONDS)))
    quick, _ = flights.join("quick", lambda progress: 2)
    assert quick.future.result(PATIENCE_SECONDS) == 2 and not slow.future.done()
    released.set()
    assert slow.future.result(PATIENCE_SECONDS) == 1


def test_a_failure_reaches_all_and_the_key_is_free_afterwards(flights: Flights[int]) -> None:
    """Everybody hears the same error; who asks next starts anew."""
    released = threading.Event()

    def fail(progress: Progress) -> int:
        assert released.wait(PATIENCE_SECONDS)
        raise ValueError("no luck")

    joined = [flights.join("key", fail) for _ in range(3)]
    assert [started for _, started in joined] == [True, False, False]
    released.set()
    errors = {id(flight.future.exception(PATIENCE_SECONDS)) for flight, _ in joined}
    assert len(errors) == 1
    again, started = flights.join("key", lambda progress: 7)
    assert started and again.future.result(PATIENCE_SECONDS) == 7


@pytest.mark.parametrize("fails", [False, True])
def test_the_key_is_free_before_the_result_is_there(flights: Flights[int], fails: bool) -> None:
    """Who has seen the result of a flight, or its error, never joins that flight again."""
    released, seen = threading.Event(), list[int]()

    def work(progress: Progress) -> int:
        assert released.wait(PATIENCE_SECONDS)
        return 1 // (not fails)

    flight, _ = flights.join("key", work)
    flight.future.add_done_callback(lambda _: seen.append(flights.count()))  # runs while the result is being set
    released.set()
    flight.future.exception(PATIENCE_SECONDS)
    again, started = flights.join("key", lambda progress: 2)
    assert started and again.future.result(PATIENCE_SECONDS) == 2
    assert seen == [0]


def test_even_an_interrupt_in_the_work_reaches_those_who_wait(flights: Flights[int]) -> None:
    """Whatever the work raises, nobody waits for ever."""

    def interrupted(progress: Progress) -> int:
        raise SystemExit(1)

    flight, _ = flights.join("key", interrupted)
    assert isinstance(flight.future.exception(PATIENCE_SECONDS), SystemExit)
    assert flights.count() == 0


def test_after_the_end_a_flight_fails_at_once(flights: Flights[int]) -> None:
    """Where the pool takes no work any more, the caller gets an error, not silence."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    ended = Flights[int](pool)
    flight, _ = ended.join("key", lambda progress: 1)
    assert isinstance(flight.future.exception(PATIENCE_SECONDS), RuntimeError)
    assert ended.count() == 0


def test_all_see_how_far_it_is(flights: Flights[int]) -> None:
    """Those who join see the numbers of the one who started."""
    told, released = threading.Event(), threading.Event()

    def work(progress: Progress) -> int:
        progress.bytes_done = 5
        told.set()
        return int(released.wait(PATIENCE_SECONDS))

    flights.join("key", work)
    assert told.wait(PATIENCE_SECONDS)
    joined, started = flights.join("key", work)
    assert not started and joined.progress.bytes_done == 5
    released.set()
    assert joined.future.result(PATIENCE_SECONDS) == 1


def test_who_needs_a_fresh_answer_waits_for_the_next_flight(flights: Flights[int]) -> None:
    """A flight that has begun may have asked too early. However many need a fresh answer, one flies after it."""
    begun, go, count = threading.Event(), threading.Event(), iter(range(1, 10))

    def work(progress: Progress) -> int:
        begun.set()
        assert go.wait(PATIENCE_SECONDS)
        return next(count)

    first, _ = flights.join("key", work, fresh=True)
    assert begun.wait(PATIENCE_SECONDS)
    later = [flights.join("key", work, fresh=True) for _ in range(5)]
    joined, started = flights.join("key", work)
    assert joined is first and not started
    assert [started for _, started in later] == [True] + [False] * 4 and len({id(f) for f, _ in later}) == 1
    go.set()
    assert first.future.result(PATIENCE_SECONDS) == 1 and later[0][0].future.result(PATIENCE_SECONDS) == 2
    assert flights.count() == 0


def test_the_next_flight_begins_when_the_one_before_it_has_failed(flights: Flights[int]) -> None:
    """Who waits for it hears its own answer, not the error of the other."""
    go = threading.Event()

    def fail(progress: Progress) -> int:
        assert go.wait(PATIENCE_SECONDS)
        raise ValueError("the first")

    first, _ = flights.join("key", fail)
    second, _ = flights.join("key", lambda progress: 2, fresh=True)
    go.set()
    assert second.future.result(PATIENCE_SECONDS) == 2
    with pytest.raises(ValueError, match="the first"):
        first.future.result(PATIENCE_SECONDS)
