"""What is costly is made seldom, and by one at a time."""

from __future__ import annotations

import threading

import pytest

from cacheserver.snapshots import AGE_SECONDS_MIN, SHARE_OF_TIME, Snapshots


class Maker:
    """Makes a number, and takes so long for it."""

    def __init__(self) -> None:
        self.now, self.cost, self.times = 0.0, 0.0, 0

    def __call__(self, key: str) -> int:
        self.now += self.cost
        self.times += 1
        return self.times


def test_what_was_cheap_is_made_anew_soon_and_what_was_costly_later() -> None:
    """So that no more than its share of the time goes into it."""
    make = Maker()
    snapshots = Snapshots(make, lambda: make.now)
    assert snapshots.get("a") == 1 == snapshots.get("a")
    make.now += AGE_SECONDS_MIN
    make.cost = 3.0
    assert snapshots.get("a") == 2
    make.now += 3.0 * SHARE_OF_TIME - 0.1
    assert snapshots.get("a") == 2
    make.now += 0.2
    assert snapshots.get("a") == 3
    assert snapshots.get("b") == 4 and snapshots.get("a") == 3


def test_while_one_makes_it_the_others_get_the_old_one() -> None:
    """Who has none waits for it, and does not make a second."""
    now, begun, go = [0.0], threading.Event(), threading.Event()
    made: list[str] = []

    def make(key: str) -> int:
        if made:
            begun.set()
            assert go.wait(30)
        made.append(key)
        return len(made)

    snapshots = Snapshots(make, lambda: now[0])
    assert snapshots.get("a") == 1
    now[0] += AGE_SECONDS_MIN
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(snapshots.get("a")))
    slow.start()
    assert begun.wait(30)
    assert snapshots.get("a") == 1
    go.set()
    slow.join(30)
    assert answers == [2] and snapshots.get("a") == 2 and made == ["a", "a"]


def test_what_fails_is_tried_again() -> None:
    """Nobody is locked out by it."""
    failing = [True]

    def make(key: str) -> int:
        if failing.pop():
            raise OSError("gone")
        return 1

    snapshots = Snapshots(make, lambda: 0.0)
    failing.append(True)
    failing.reverse()
    with pytest.raises(OSError, match="gone"):
        snapshots.get("a")
    failing[:] = [False]
    assert snapshots.get("a") == 1
