"""What was promised stays, whatever the origin, the disk or a quota say meanwhile."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace, NotFound
from cacheserver.allowances import Allowance
from cacheserver.retention import Verdict
from cacheserver.settings import QuotasConfig
from cacheserver.space import Amount, Limits
from tests.unit.accounts import ALICE, BOB, fetch, name
from tests.unit.house import House
from tests.unit.sweeping import ALL, bring, names, offer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """One whose artifacts may go at once."""
    house = House(tmp_path / "store", grace_seconds=0.0)
    yield house
    house.close()


@pytest.mark.parametrize("how", ["pinned", "kept by a rule"])
def test_what_the_origin_has_no_more_stays_where_that_was_promised(house: House, how: str) -> None:
    """A fetch is told NotFound, and nothing is served for it; but the bytes stay, for a proxy's answer may be no more
    than that. What nobody has promised goes."""
    held, other = bring(house, "p", 30).held, bring(house, "q", 30).held
    house.cache.record_uses()
    if how == "pinned":
        assert house.index.pins.pin(held.uri, "", owner=0, asked=held.uri, now=house.now)
    else:
        house.index.rulings.record({held.tree: Verdict(kept_until=math.inf)})
    files, house.origin.files = house.origin.files, {}
    for uri in (held.uri, other.uri):
        with pytest.raises(NotFound):
            house.bring(uri, refresh=True)
    for _ in range(2):
        house.ticks, house.now = house.ticks + 100, house.now + 100
        house.sweeper.tidy()
        house.sweeper.sweep(free_bytes=ALL)
    assert names(house) == "p" and house.find(held.uri) is None
    house.origin.files = files
    assert house.bring(held.uri).held.tree == held.tree
    assert house.bring(other.uri).origin_bytes > 0


def test_what_cannot_be_removed_stops_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays and is told; all others go, those that are due too, and when it can be removed, it is."""
    stuck, other = bring(house, "s", 30).held, bring(house, "o", 30).held
    path, rename = house.store.view(stuck.tree), os.rename

    def refuse(source: str, target: str, **options: int) -> None:
        if source == path:
            raise OSError(errno.EPERM, "Operation not permitted", source)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    house.ticks += 100
    assert len(house.sweeper.sweep(free_bytes=ALL).leaving) == 2
    house.index.rulings.record({bring(house, "d", 30).held.tree: Verdict(drop_at=house.now)})
    house.ticks += 100
    house.sweeper.tidy()
    assert names(house) == "" and house.sweeper.evicted_count == 3
    assert os.listdir(house.root / "views") == [stuck.tree] and not house.store.tree(other.tree)
    monkeypatch.undo()
    house.sweeper.tidy()
    assert os.listdir(house.root / "views") == []


def test_a_quota_makes_nothing_go_for_what_the_disk_has_no_room_for(tmp_path: Path) -> None:
    """NoSpace, and everything is there still that was."""
    quotas = QuotasConfig(users={name(ALICE): Allowance(held=Amount(300))})
    house = House(tmp_path / "store", Limits(Amount(250), Amount(0)), grace_seconds=0.0, quotas=quotas)
    try:
        fetch(house, offer(house, "a", 50), ALICE)
        fetch(house, offer(house, "b", 60), ALICE)
        leased = fetch(house, offer(house, "c", 100), BOB).held
        house.leases.take(leased.tree)
        house.ticks += 100
        with pytest.raises(NoSpace):
            fetch(house, offer(house, "d", 200), ALICE)
        assert names(house) == "abc"
    finally:
        house.close()
