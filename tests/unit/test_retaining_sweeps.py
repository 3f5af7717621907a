"""Retention rules, and the sweeps that go by what they say: between a start and its first answers, and after a hit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.retaining import Retaining
from cacheserver.retention import Facts, Rule, Verdict
from cacheserver.words import Record, Standing
from tests.unit.house import ROOMY, TRACKING_URI, House
from tests.unit.sweeping import ALL, bring, names

DROP = Rule("drop", drop=50.0)


class Nobody:
    """An origin that is not asked."""

    name = TRACKING_URI

    def describe(self, versions: list[str], needs: frozenset[str]) -> dict[str, Facts]:
        """None of these rules needs it."""
        raise AssertionError


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house in which nothing is young."""
    house = House(tmp_path / "store", ROOMY, grace_seconds=0.0)
    yield house
    house.close()


def rules(house: House, *some: Rule) -> Retaining:
    """As the daemon puts them together when it starts."""
    retaining = Retaining(house.index, Nobody(), some, lambda: house.now, lambda: None)
    house.sweeper.judge = retaining.judge
    return retaining


def later(house: House, seconds: float) -> None:
    """Time passes."""
    house.now += seconds
    house.ticks += seconds


def test_what_is_due_goes_by_itself(house: House) -> None:
    """Not before its time, and not while somebody has it."""
    rules(house, DROP)
    tree = bring(house, "a", 10).held.tree
    later(house, 49.0)
    house.sweeper.tidy()
    assert names(house) == "a"
    house.leases.take(tree)
    later(house, 2.0)
    house.sweeper.tidy()
    assert names(house) == "a"
    house.leases.give_back(tree)
    house.sweeper.tidy()
    assert names(house) == ""


def test_what_is_kept_stays_when_all_goes(house: House) -> None:
    """Through a sweep that takes whatever it can get, until its time is over."""
    rules(house, Rule("keep", keep=100.0))
    bring(house, "a", 10)
    later(house, 99.0)
    house.sweeper.sweep(free_bytes=ALL)
    assert names(house) == "a"
    later(house, 2.0)
    house.sweeper.sweep(free_bytes=ALL)
    assert names(house) == ""


def test_lower_priorities_go_first(house: House) -> None:
    """All of them before the next, whatever the policy says."""
    rules(house, Rule("low", priority=-1))
    bring(house, "a", 10, 100.0)
    rules(house, Rule("high", priority=1))
    bring(house, "b", 10, 1.0)
    house.sweeper.judge = lambda trees: None
    bring(house, "c", 10, 50.0)
    later(house, 1000.0)
    for left in ("bc", "b", ""):
        house.sweeper.sweep(free_bytes=1)
        assert names(house) == left


@pytest.mark.parametrize("sweep", ["tidy", "sweep"])
def test_what_the_last_rules_wanted_gone_is_for_the_new_ones_to_say(house: House, sweep: str) -> None:
    """Who mends a rule that drops too much, and starts the daemon again, loses nothing by the old one."""
    rules(house, DROP)
    bring(house, "a", 10)
    house.cache.record_uses()
    later(house, 1000.0)
    rules(house, Rule("keep", keep=math.inf))
    getattr(house.sweeper, sweep)()
    assert names(house) == "a"


@pytest.mark.parametrize("sweep", ["tidy", "sweep"])
def test_a_use_that_is_not_written_down_counts(house: House, sweep: str) -> None:
    """A hit writes nothing; what a rule keeps since its last use is kept since then all the same."""
    rules(house, Rule("both", keep=50.0, drop=80.0))
    uri = bring(house, "a", 10).held.uri
    house.cache.record_uses()
    later(house, 90.0)
    assert house.find(uri)
    later(house, 10.0)
    getattr(house.sweeper, sweep)()
    assert names(house) == "a"


@pytest.mark.parametrize("reason", ["due", "nobody's"])
def test_what_is_to_go_by_itself_is_looked_at_again(house: House, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """It was planned to go, and before its row does a rule wants it gone no more, or an artifact is it again: it stays,
    and goes another time where that is so again."""
    held, doom = bring(house, "a", 10).held, house.leases.doom
    house.cache.record_uses()
    manifest = house.tree(held).manifest

    def end() -> None:
        if reason == "due":
            house.index.rulings.record({held.tree: Verdict(drop_at=house.now)})
        else:
            house.index.forget(held.uri)

    def and_before_that(trees: list[str]) -> list[str]:
        assert trees == [held.tree]
        if reason == "due":
            house.index.rulings.record({held.tree: Verdict()})
        else:
            record = Record(held.uri, "", "", Standing.FINISHED, True, house.now)
            house.store.commit(manifest, [record], (), house.now)
        return doom(trees)

    end()
    later(house, 100.0)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(house.leases, "doom", and_before_that)
        house.sweeper.tidy()
    assert names(house) == "a" and house.find(held.uri) and house.sweeper.evicted_count == 0
    end()
    later(house, 100.0)
    house.sweeper.tidy()
    assert not house.index.holdings.has(held.tree)
