"""What would go next: it is what a sweep then takes, in this order, and for these reasons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.holdings import DUE, PINNED, YOUNG
from cacheserver.outlook import LOOKED_AT_MAX, Outlook
from cacheserver.retention import Verdict
from cacheserver.sweeper import LEASED
from tests.unit.house import House
from tests.unit.sweeping import ALL, Place, bring, left


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for houses."""
    place = Place(tmp_path)
    yield place
    for house in place.houses:
        house.close()


def front(house: House, most: int = 10) -> list[tuple[str, str]]:
    """Names, and why each stays or goes."""
    outlook = Outlook(house.sweeper, house.index.holdings, lambda: house.now)
    return [(one.names[0][-1], one.kept or one.reason) for one in outlook.front(most)]


@pytest.mark.parametrize("policy", ["gdsf", "lru", "s3-fifo"])
def test_it_is_what_a_sweep_takes(place: Place, policy: str) -> None:
    """In its order and with its reasons; to look takes nothing."""
    house = place.house(policy=policy)
    house.sweeper.tidy()  # as the daemon does when it has started: this policy's ranks count from now on
    for name, seconds in zip("abcdef", (50.0, 10.0, 30.0, 20.0, 60.0, 40.0), strict=True):
        house.now += 10
        bring(house, name, 30, seconds)
    house.now += 10
    assert house.find("s3://bucket/b")
    house.cache.record_uses()
    seen = front(house)
    assert seen == front(house) and len(seen) == 6
    assert front(house, 2) == seen[:2]
    swept = house.sweeper.sweep(free_bytes=ALL)
    assert left(swept) == [name for name, _ in seen]
    assert [one.reason for one in swept.leaving] == [why for _, why in seen]


def test_what_stays_is_told_before_what_goes(place: Place) -> None:
    """With what keeps it; what a rule wants gone goes first."""
    house = place.house(grace_seconds=5.0, policy="lru")
    held = {}
    for name in "abcdy":
        house.now += 10
        held[name] = bring(house, name, 30).held
    house.sweeper.leases.forget_lingering()
    house.now += 2
    house.ticks += 100
    house.index.pins.pin("s3://bucket/a", "", owner=1, asked="s3://bucket/a", now=house.now, seconds=100)
    house.sweeper.leases.take(held["b"].tree)
    house.index.rulings.record({held["d"].tree: Verdict(drop_at=house.now - 1)})
    found = front(house)
    assert dict(found[:3]) == {"a": PINNED, "b": LEASED, "y": YOUNG}
    assert [name for name, _ in found[3:]] == ["d", "c"] and found[3][1] == DUE


def test_no_more_is_looked_at_than_is_shown(place: Place) -> None:
    """However many stand there, and even where all of them stay."""
    house = place.house()
    assert front(house) == []
    looked: list[str] = []
    for name in "abcdef":
        bring(house, name, 10)
    is_leased = house.sweeper.leases.is_leased
    house.sweeper.leases.is_leased = lambda tree: looked.append(tree) or is_leased(tree)  # type: ignore[method-assign, func-returns-value]
    assert len(front(house, 2)) == 2 and len(looked) == 2
    assert LOOKED_AT_MAX >= 100
