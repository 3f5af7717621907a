"""Leases: a tree is leased or doomed, and never both."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from cacheserver.leases import Leases
from tests.unit.house import PATIENCE_SECONDS

LEASERS, SWEEPERS, ROUNDS = 6, 2, 400


@dataclass
class Clock:
    """A clock that never jumps, and goes only when it is told."""

    ticks: float = 0.0
    leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(lambda: self.ticks)


@pytest.fixture
def clock() -> Clock:
    """A clock, and leases by it."""
    return Clock()


ME = object()


def test_a_lease_counts_until_it_is_given_back(clock: Clock) -> None:
    """As often as it was taken: others have it still."""
    leases = clock.leases
    assert not leases.is_leased("t") and leases.count("t") == leases.total() == 0
    leases.take("t")
    leases.take("t")
    leases.take("other")
    assert (leases.count("t"), leases.count("other"), leases.total()) == (2, 1, 3)
    leases.give_back("t")
    assert leases.is_leased("t") and leases.doom(["t"]) == []
    leases.give_back("t")
    assert not leases.is_leased("t") and (leases.count("t"), leases.total()) == (0, 1)
    assert leases.doom(["t", "other"]) == ["t"]


def test_who_lingers_is_not_doomed_until_that_is_over(clock: Clock) -> None:
    """What was just brought stays, though nobody has it; to the second, and it is no lease that is counted."""
    leases = clock.leases
    leases.linger(ME, ["t"], 10.0)
    assert leases.is_leased("t") and leases.count("t") == leases.total() == 0
    clock.ticks = 9.99
    assert leases.doom(["t"]) == []
    clock.ticks = 10.0
    assert not leases.is_leased("t") and leases.doom(["t"]) == ["t"]


def test_lingering_ends_sooner_where_it_is_said_again(clock: Clock) -> None:
    """Whoever waited has it: what stays longer than is promised for all takes room from others."""
    leases = clock.leases
    leases.linger(ME, ["t", "kept"], 10.0)
    leases.linger(ME, ["t"], 0.0)
    assert leases.doom(["t", "kept"]) == ["t"]


def test_what_lingered_is_not_remembered_for_ever(clock: Clock) -> None:
    """A daemon brings millions of trees."""
    leases = clock.leases
    for n in range(1000):
        leases.linger(ME, [str(n)], 10.0)
    clock.ticks = 10.0
    leases.forget_lingering()
    assert not leases._until


def test_a_block_holds_what_it_asks_for(clock: Clock) -> None:
    """Once, however often it asks; until it ends, also by an error; then all of it lingers."""
    leases, trees = clock.leases, list[str]()
    with pytest.raises(KeyError), leases.holding(ME, trees, linger_seconds=5.0) as hold:
        for tree in ("a", "b", "a"):
            hold(tree)
        assert trees == ["a", "b"] and leases.total() == 2
        raise KeyError
    assert leases.total() == 0 and leases.doom(["a", "b", "c"]) == ["c"]
    clock.ticks = 5.0
    assert leases.doom(["a", "b"]) == ["a", "b"]


def test_a_block_lets_go_what_it_does_not_need(clock: Clock) -> None:
    """At once, and it does not linger either; what somebody else has is theirs, and it may be asked for again."""
    leases, trees = clock.leases, list[str]()
    leases.take("b")
    with leases.holding(ME, trees, linger_seconds=5.0) as hold:
        for tree in ("a", "b", "c", "d"):
            hold(tree)
        hold.let_go(["a", "b", "d"])
        assert trees == ["c"] and leases.total() == 2
        assert leases.doom(["a", "b", "c"]) == ["a"]
        hold("d")
    assert trees == ["c", "d"] and leases.doom(["b", "c", "d"]) == []
    leases.give_back("b")
    assert leases.total() == 0 and leases.doom(["b"]) == ["b"]


def test_who_wants_what_is_doomed_waits_and_gets_it(clock: Clock) -> None:
    """Until it is spared, whatever else is spared before; what is not doomed is had at once."""
    leases = clock.leases
    assert leases.doom(["t", "u"]) == ["t", "u"]
    got = threading.Event()

    def take() -> None:
        leases.take("t")
        got.set()

    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(take)
        leases.take("free")
        leases.spare(["u"])
        leases.take("u")
        assert not leases.is_leased("t") and not got.is_set()
        assert leases.doom(["t"]) == ["t"], "a sweep that comes again meets nobody who waits"
        leases.spare(["t"])
        waiter.result(timeout=PATIENCE_SECONDS)
    assert leases.is_leased("t") and leases.doom(["t"]) == []


def test_nothing_is_leased_and_doomed_at_once(dice: random.Random) -> None:
    """Many threads lease, linger, doom and spare at random: each sees that what it has is not doomed."""
    leases = Leases(lambda: 0.0)
    trees = [f"tree {n}" for n in range(4)]
    lock = threading.Lock()
    taken, doomed, wrong = Counter[str](), set[str](), list[str]()
    seeds = [dice.random() for _ in range(LEASERS + SWEEPERS)]

    def lease(seed: float) -> None:
        chance = random.Random(seed)
        for _ in range(ROUNDS):
            tree = chance.choice(trees)
            leases.take(tree)
            with lock:
                taken[tree] += 1
                wrong.extend(f"{tree} is doomed, and leased" for _ in range(tree in doomed))
            if not leases.is_leased(tree) or leases.count(tree) < 1:
                wrong.append(f"{tree} is leased, and not counted")
            with lock:
                taken[tree] -= 1
            leases.give_back(tree)

    def sweep(seed: float) -> None:
        chance = random.Random(seed)
        for _ in range(ROUNDS):
            # As sweeps do, one at a time has a tree: two that doom the same would spare it for each other.
            some = chance.sample(trees[seeds.index(seed) % SWEEPERS :: SWEEPERS], chance.randint(1, 2))
            got = leases.doom(some)
            with lock:
                doomed.update(got)
                wrong.extend(f"{tree} is leased, and doomed" for tree in got if taken[tree] > 0)
            with lock:
                doomed.difference_update(got)
            leases.spare(got)

    with ThreadPoolExecutor(LEASERS + SWEEPERS) as pool:
        threads = [pool.submit(lease if n < LEASERS else sweep, seed) for n, seed in enumerate(seeds)]
        for thread in threads:
            thread.result(timeout=PATIENCE_SECONDS)
    assert wrong == [] and leases.total() == 0
    assert leases.doom(trees) == trees
