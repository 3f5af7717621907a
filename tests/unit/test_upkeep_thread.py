"""The thread that does the chores: nothing ends it but its end."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from artifactcache.errors import NoSpace
from cacheserver import upkeep
from cacheserver.upkeep import Upkeep
from tests.unit.house import PATIENCE_SECONDS


class Chores:
    """Chores that count how often they were done, and a last one that says when there have been enough rounds."""

    def __init__(self) -> None:
        self.done = Counter[str]()
        self.enough = threading.Event()
        self.errors: dict[str, Exception] = {}

    def chore(self, name: str, rounds: int = 0) -> Callable[[], object]:
        """A chore that does nothing, or raises what it is told to."""

        def chore() -> None:
            self.done[name] += 1
            if rounds and self.done[name] >= rounds:
                self.enough.set()
            if error := self.errors.get(name):
                raise error

        return chore


@pytest.fixture
def chores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chores]:
    """Chores, in rounds that take no time."""
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.001)
    yield Chores()


def run(chores: Chores, wanted: list[tuple[float, Callable[[], object]]]) -> Upkeep:
    """A thread that has done enough rounds, and goes on."""
    thread = Upkeep("upkeep", wanted)
    thread.start()
    assert chores.enough.wait(PATIENCE_SECONDS)
    assert thread._thread.is_alive()
    return thread


def end(thread: Upkeep) -> None:
    """Ends it, and sees that it ends."""
    thread.stop()
    thread._thread.join(PATIENCE_SECONDS)
    assert not thread._thread.is_alive()


@pytest.mark.parametrize(
    ("error", "level", "times"),
    [(NoSpace("The disk is full: free some space."), logging.WARNING, 2), (KeyError("a defect"), logging.ERROR, 2)],
    ids=["of ours", "a defect"],
)
def test_a_chore_that_fails_keeps_nothing_from_being_done(
    chores: Chores, caplog: pytest.LogCaptureFixture, error: Exception, level: int, times: int
) -> None:
    """Neither the others nor itself, in the next round; and it is told once for each chore, a defect with where it
    was: each second of it would fill the log."""
    chores.errors = {"first": error, "last": error}
    with caplog.at_level(logging.WARNING):
        end(run(chores, [(0, chores.chore("first")), (0, chores.chore("second")), (0, chores.chore("last", 10))]))
    assert chores.done["first"] >= 10 and chores.done["second"] >= 10
    assert {record.levelno for record in caplog.records} == {level}
    told = caplog.records[0]
    assert len(caplog.records) == times if level == logging.WARNING else len(caplog.records) >= times
    assert told.getMessage() == (str(error) if level == logging.WARNING else "a chore failed")
    assert bool(told.exc_info) == (level == logging.ERROR)


def test_each_chore_has_its_time(chores: Chores) -> None:
    """All of them in the first round, then each after so many."""
    counts = Counter[str]()

    def look() -> None:
        if not chores.enough.is_set():
            counts.update(chores.done)

    end(run(chores, [(0.003, chores.chore("third")), (0, chores.chore("each", 10)), (0, look)]))
    done_at_tenth = chores.done["third"]
    assert done_at_tenth >= 4 and chores.done["each"] >= 10
    assert (chores.done["third"] - 1) * 3 < chores.done["each"] <= chores.done["third"] * 3
    assert counts["third"] == sum((n + 2) // 3 for n in range(1, 10)), "in the first round, and in every third after it"


def test_nothing_is_begun_after_the_end(chores: Chores) -> None:
    """The chore that runs goes on to its own end, and none of those behind it begins."""
    begun, go_on = threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)

    thread = Upkeep("upkeep", [(0, long), (0, chores.chore("never"))])
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    thread.stop()
    go_on.set()
    end(thread)
    assert chores.done["never"] == 0


def test_threads_do_not_wait_for_each_other(chores: Chores) -> None:
    """What waits for the origin keeps nothing waiting that looks after the disk."""
    go_on = threading.Event()
    waiting = Upkeep("waiting", [(0, lambda: go_on.wait(PATIENCE_SECONDS))])
    waiting.start()
    end(run(chores, [(0, chores.chore("each", 5))]))
    go_on.set()
    end(waiting)


def test_what_comes_back_is_told_again(chores: Chores, caplog: pytest.LogCaptureFixture) -> None:
    """Once a chore has gone well, the next failure is news, whatever it says; so is another one."""
    errors = iter([NoSpace("full"), NoSpace("full"), None, NoSpace("full"), NoSpace("fuller"), NoSpace("full")])

    def chore() -> None:
        error = next(errors, None)
        if error is not None:
            raise error

    with caplog.at_level(logging.WARNING):
        end(run(chores, [(0, chore), (0, chores.chore("last", 10))]))
    assert caplog.messages == ["full", "full", "fuller", "full"]


def test_threads_that_hang_have_one_time_together() -> None:
    """However many they are: whoever ends them has as long for all as for one."""
    go_on, begun = threading.Event(), threading.Barrier(5)

    def hang() -> None:
        begun.wait(PATIENCE_SECONDS)
        go_on.wait(PATIENCE_SECONDS)

    threads = [Upkeep(f"hangs-{n}", [(0, hang)]) for n in range(4)]
    for one in threads:
        one.start()
    begun.wait(PATIENCE_SECONDS)
    asked: list[float] = []

    def left(most: float) -> float:
        asked.append(min(most, 0.3 / 2 ** len(asked)))
        return asked[-1]

    Upkeep.stop_all(threads, left)
    assert len(asked) == len(threads), "each is waited for as long as is left for all"
    go_on.set()
    for one in threads:
        end(one)
