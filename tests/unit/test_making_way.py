"""What has changed at the origin makes way for what it has become, where there is no room for both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace, OriginUnavailable
from cacheserver.settings import QuotasConfig
from cacheserver.words import Resolved
from tests.unit.accounts import ALICE, fetch, held, name
from tests.unit.house import FRESHNESS, PATIENCE_SECONDS, ROOMY, Gate, House
from tests.unit.sweeping import ALL, Place, bring, left, names

ARTIFACT = "s3://bucket/p"  # where `Gate` looks


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for houses."""
    place = Place(tmp_path)
    yield place
    for house in place.houses:
        house.close()


def rewrite(house: House, **files: bytes) -> None:
    """From now on the origin has this there, and what was seen of it is too old to be trusted."""
    house.origin.tags = "listed"
    house.origin.files = {uri: b for uri, b in house.origin.files.items() if not uri.startswith(ARTIFACT + "/")}
    house.origin.files |= {f"{ARTIFACT}/{name}": content for name, content in files.items()}
    house.ticks += 100
    house.now += FRESHNESS.relist_after + 1


@pytest.mark.parametrize("refresh", [False, True])
def test_the_old_one_goes_for_the_new_one(place: Place, refresh: bool) -> None:
    """In a store that has room for one of them only; whether the listing was due or somebody wants it anew."""
    house = place.house(100)
    rewrite(house, data=b"1" * 80)
    old = house.bring(ARTIFACT).held
    rewrite(house, data=b"2" * 80)
    new = house.bring(ARTIFACT, refresh=refresh)
    assert house.content(new.held) == {"data": b"2" * 80} and new.origin_bytes == 80
    assert not house.index.holdings.has(old.tree) and house.sweeper.evicted_count == 1
    assert house.index.totals()["blob_bytes"] == 80 and house.leases.total() == 0


def test_what_the_new_one_counts_on_stays(place: Place) -> None:
    """A tree that has some of its bytes is not evicted for the rest, however little else there is to evict: those are
    not downloaded again, and where there is no room for both that is told."""
    house = place.house(100)
    rewrite(house, base=b"b" * 40, data=b"1" * 20)
    old = house.bring(ARTIFACT).held
    bring(house, "x", 20)
    rewrite(house, base=b"b" * 40, data=b"2" * 30)
    assert house.bring(ARTIFACT).origin_bytes == 30
    assert house.index.holdings.has(old.tree) and names(house) == "p"
    house.sweeper.tidy()
    rewrite(house, base=b"b" * 40, data=b"3" * 50)
    with pytest.raises(NoSpace, match="1 leased"):
        house.bring(ARTIFACT)
    assert house.find(ARTIFACT) is None and names(house) == "p", "nothing has gone for what does not fit"


def test_what_is_looked_at_during_a_download_may_go(place: Place) -> None:
    """There was room for both when it began: the old one is evicted for somebody else before it ends."""
    house = place.house()
    rewrite(house, top=b"1" * 20)
    house.bring(ARTIFACT)
    rewrite(house, top=b"2" * 20)
    gate = Gate(house, "top")
    flight = house.start(ARTIFACT)
    gate.wait()
    try:
        assert left(house.sweeper.sweep(free_bytes=ALL)) == ["p"]
    finally:
        gate.open()
    assert flight.future.result(PATIENCE_SECONDS).origin_bytes == 20
    house.cache.leave(flight)


def test_where_the_old_one_is_gone_the_origins_error_is_told(place: Place) -> None:
    """It was evicted for the new one, and the download breaks off: there is nothing to be handed out instead, and
    what is told is why. Where there was room for both the old one is handed out."""
    for capacity, is_held in ((100, False), (1000, True)):
        house = place.house(capacity)
        rewrite(house, data=b"1" * 80)
        house.bring(ARTIFACT)
        rewrite(house, data=b"2" * 80)

        def fail(uri: str) -> None:
            raise OriginUnavailable("breaks off")

        house.origin.before_download = fail
        if is_held:
            brought = house.bring(ARTIFACT)
            assert brought.stale and house.content(brought.held) == {"data": b"1" * 80}
        else:
            with pytest.raises(OriginUnavailable, match="breaks off"):
                house.bring(ARTIFACT)
            assert names(house) == "" and house.leases.total() == 0
        house.origin.before_download = lambda uri: None
        rewrite(house, data=b"2" * 80)
        assert house.content(house.bring(ARTIFACT).held) == {"data": b"2" * 80}


def test_the_old_one_goes_for_the_new_one_on_an_account(tmp_path: Path) -> None:
    """A quota that has room for one of them is no reason to refuse the other."""
    quotas = QuotasConfig(users={name(ALICE): held(100)})
    house = House(tmp_path / "store", ROOMY, grace_seconds=0.0, quotas=quotas)
    try:
        rewrite(house, data=b"1" * 80)
        old = fetch(house, ARTIFACT, ALICE).held
        rewrite(house, data=b"2" * 80)
        assert fetch(house, ARTIFACT, ALICE).origin_bytes == 80
        assert not house.index.holdings.has(old.tree)
    finally:
        house.close()


def test_another_part_counts_on_what_was_leased_for_it(place: Place) -> None:
    """A folder of a run and its logged model lie below one that is held: what the one counts on is not given back
    because the other has changed."""
    house = place.house(100)
    rewrite(house, **{"run/m/base": b"b" * 40, "model/data": b"1" * 20})
    folder = house.bring(ARTIFACT).held
    house.origin.versions["runs:/r"] = Resolved("runs:/r", f"{ARTIFACT}/run", (("m", f"{ARTIFACT}/model"),), True)
    rewrite(house, **{"run/m/base": b"b" * 40, "model/data": b"2" * 50})
    with pytest.raises(NoSpace, match="1 leased"):
        house.bring("runs:/r/m")
    assert house.index.holdings.has(folder.tree)
    rewrite(house, **{"run/m/base": b"b" * 40, "model/data": b"2" * 30})
    gate = Gate(house, "model/data")
    flight = house.start("runs:/r/m")
    gate.wait()
    try:
        assert not house.sweeper.sweep(free_bytes=ALL).leaving, "nor while that is on its way"
    finally:
        gate.open()
    brought = flight.future.result(PATIENCE_SECONDS)
    house.cache.leave(flight)
    assert house.content(brought.held) == {"base": b"b" * 40, "data": b"2" * 30} and brought.origin_bytes == 30
