"""Rests of a sweep: in proportion to its work, and none while somebody waits for it, for the room or for a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver.rests import REST_TIMES, WORK_SECONDS, WORK_SECONDS_MAX, Awaited, Rests
from cacheserver.space import Amount, Limits
from cacheserver.words import Progress
from tests.rig.until import until
from tests.unit.house import PATIENCE_SECONDS, PAYER, House
from tests.unit.sweeping import ALL, Place, bring, left, names

SIZE = 4096


class Worker:
    """A thread's processor time, of which each step takes so many seconds; and its rests, in seconds."""

    def __init__(self, step: float) -> None:
        self.time = 0.0
        self.step = step
        self.slept: list[float] = []
        self.while_asleep: Callable[[], object] = lambda: None
        self.rests = Rests(self.worked, self.sleep)

    def worked(self) -> float:
        """Each look at the clock is after another step."""
        self.time += self.step
        return self.time

    def sleep(self, seconds: float) -> None:
        """Takes no time of a processor."""
        self.slept.append(seconds)
        self.while_asleep()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for houses."""
    place = Place(tmp_path)
    yield place
    for house in place.houses:
        house.close()


@pytest.fixture
def worker() -> Worker:
    """One whose every step is long enough for a rest."""
    return Worker(WORK_SECONDS)


@pytest.fixture
def house(place: Place, worker: Worker) -> House:
    """A house whose sweeps are that worker's, with four artifacts."""
    house = place.house(rests=worker.rests)
    for name in "abcd":
        bring(house, name, SIZE)
    return house


def test_rests_are_in_proportion_to_the_work() -> None:
    """After each moment of it, however many steps that is; a long step counts as no more than its most."""
    worker = Worker(WORK_SECONDS / 4)
    for _ in range(1000):
        worker.rests.rest()
    assert sum(worker.slept) == pytest.approx(REST_TIMES * worker.time, rel=0.3)
    assert max(worker.slept) < 2 * REST_TIMES * WORK_SECONDS
    worker.step = 100 * WORK_SECONDS_MAX
    worker.slept.clear()
    worker.rests.rest()
    assert worker.slept == [REST_TIMES * WORK_SECONDS_MAX]


def test_another_thread_has_a_clock_of_its_own() -> None:
    """Whose time is less than what the one before it had used: it rests all the same, and no longer than ever."""
    worker = Worker(WORK_SECONDS)
    worker.time = 1000.0
    worker.rests.rest()
    worker.time = 0.0
    for _ in range(3):
        worker.rests.rest()
    assert len(worker.slept) == 4 and max(worker.slept) <= REST_TIMES * WORK_SECONDS_MAX


def test_who_is_waited_for_does_not_rest() -> None:
    """For as long as anybody waits."""
    worker = Worker(WORK_SECONDS)
    with worker.rests.none():
        with worker.rests.none():
            worker.rests.rest()
        worker.rests.rest()
    assert worker.slept == []
    worker.rests.rest()
    assert len(worker.slept) == 1


def test_a_lock_knows_who_waits() -> None:
    """And not who has it; one at a time has it."""
    lock, got, go_on = Awaited(), threading.Event(), threading.Event()

    def want() -> None:
        with lock:
            got.set()
            go_on.wait(PATIENCE_SECONDS)

    with lock:
        assert not lock.is_awaited
        thread = threading.Thread(target=want)
        thread.start()
        until(lambda: lock.is_awaited, "somebody to wait")
        assert not got.is_set()
    assert got.wait(PATIENCE_SECONDS) and not lock.is_awaited
    go_on.set()
    thread.join(PATIENCE_SECONDS)
    with lock:
        assert not lock.is_awaited


def test_a_sweep_that_nobody_waits_for_rests(house: House, worker: Worker) -> None:
    """An operator's, say, after each file; and what it lets go is the same."""
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["a", "b", "c", "d"]
    assert len(worker.slept) >= 8  # as many blobs, and manifests


def test_a_download_waits_for_no_rest_of_its_sweep(house: House, worker: Worker) -> None:
    """What it waits for is the room."""
    house.sweeper.reservations.limits = Limits(Amount(4 * SIZE), Amount(0))
    with house.sweeper.room("x", 2 * SIZE, 1, Progress()):
        assert names(house) == "cd" and worker.slept == []


def test_a_download_waits_for_no_rest_of_another_sweep(
    house: House, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it has come behind: that rests no more, from then on."""
    monkeypatch.setattr("cacheserver.sweeper.STEP_TREES", 1)
    house.sweeper.reservations.limits = Limits(Amount(4 * SIZE), Amount(0))
    found = []

    def want_room() -> None:
        with house.sweeper.room("x", 3 * SIZE, 1, Progress()):
            found.append(names(house))

    thread = threading.Thread(target=want_room)

    def begin() -> None:
        thread.start()
        until(lambda: worker.rests._hasty, "a download to wait for its room")

    worker.while_asleep = begin
    house.sweeper.sweep(free_bytes=ALL)
    thread.join(PATIENCE_SECONDS)
    assert found == [""] and len(worker.slept) == 1


def test_who_adds_something_waits_for_no_rest(house: House, worker: Worker) -> None:
    """Files go away from their names under the lock that everything takes that adds some: who wants it has it soon."""
    lock = house.store._blobs_lock
    thread = threading.Thread(target=lambda: lock.__enter__() or lock.__exit__())  # type: ignore[func-returns-value]

    def begin() -> None:
        worker.while_asleep = lambda: None
        thread.start()
        until(lambda: lock.is_awaited, "somebody to wait for the lock")

    worker.while_asleep = begin
    house.sweeper.sweep(free_bytes=ALL)
    thread.join(PATIENCE_SECONDS)
    beside_the_lock = 4  # views are removed when their names are gone
    assert not thread.is_alive() and names(house) == "" and len(worker.slept) <= 1 + beside_the_lock


def test_a_store_that_is_too_full_is_relieved_without_rest(house: House, worker: Worker) -> None:
    """Above the high watermark there is time; above the limit there is none."""
    house.sweeper.reservations.limits = Limits(Amount(4 * SIZE - 1), Amount(0))
    assert house.sweeper.watch() and worker.slept == []
    house.sweeper.reservations.limits = Limits(Amount(house.sweeper.reservations.fill().stored + 1), Amount(0))
    assert house.sweeper.watch() and worker.slept


def test_who_is_over_a_quota_waits_for_no_rest(house: House, worker: Worker) -> None:
    """A download waits for what its user has to let go first."""
    house.index.ledger.charge({(held.tree, PAYER.uid): house.now for held in house.index.asked()})
    assert house.sweeper.relieve([PAYER.uid], 2 * SIZE, "a quota") == {}
    assert names(house) == "cd" and worker.slept == []
