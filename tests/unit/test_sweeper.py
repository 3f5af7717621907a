"""Sweeps over a whole cache: what goes for what comes, what stays, and what both cost others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace
from cacheserver.disk import Space
from cacheserver.holdings import PINNED, RULED, YOUNG
from cacheserver.planning import LINKED
from cacheserver.reservations import FILE_BYTES
from cacheserver.retention import Verdict
from cacheserver.sweeper import FAILED_ROUNDS, LEASED, STEP_TREES
from tests.unit.house import PATIENCE_SECONDS, Gate
from tests.unit.sweeping import ALL, Place, bring, left, names, offer

YEAR = 366 * 86_400.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for houses."""
    place = Place(tmp_path)
    yield place
    for house in place.houses:
        house.close()


def test_the_cheapest_to_fetch_again_goes_for_what_comes(place: Place) -> None:
    """And no more of it than it takes; the files go with the rows."""
    house = place.house(100)
    for name, seconds in (("a", 50.0), ("b", 10.0), ("c", 30.0)):
        bring(house, name, 30, seconds)
    bring(house, "d", 30, 40.0)
    assert names(house) == "acd" and house.origin.downloads["s3://bucket/b/data"] == 1
    bring(house, "e", 40, 40.0)
    assert names(house) == "ade" and house.index.totals()["blob_bytes"] == 100
    assert (house.sweeper.evicted_count, house.sweeper.evicted_bytes) == (2, 60)
    bring(house, "b", 30)
    assert "b" in names(house) and house.origin.downloads["s3://bucket/b/data"] == 2


def test_what_is_used_stays(place: Place) -> None:
    """A hit writes nothing, and counts all the same when room is needed."""
    house = place.house(100, policy="lru")
    for name in "abc":
        house.now += 10
        bring(house, name, 30)
    house.now += 10
    assert house.find("s3://bucket/a")
    house.now += 10
    bring(house, "d", 30)
    assert names(house) == "acd"


def test_nothing_goes_for_what_cannot_fit(place: Place) -> None:
    """NoSpace says what it would have taken and what had to stay; whoever asks next finds all that was there."""
    house = place.house(100)
    for name in "abc":
        bring(house, name, 30)
    tree = bring(house, "a", 30).held.tree
    house.leases.take(tree)
    with pytest.raises(NoSpace, match=f"80 B more do not fit.*capacity is 100 B.*had to stay.*1 {LEASED}"):
        house.bring(offer(house, "d", 80))
    with pytest.raises(NoSpace, match="200 B more do not fit"):
        house.bring(offer(house, "e", 200))
    assert names(house) == "abc" and house.sweeper.evicted_count == 0
    house.leases.give_back(tree)
    bring(house, "d", 80)
    assert names(house) == "d"


def test_what_is_promised_is_kept(place: Place) -> None:
    """Leased, pinned, kept by a rule or young: each stays when all that may go does, and the reasons are counted."""
    house = place.house(grace_seconds=60.0)
    leased, pinned, ruled, free = (bring(house, name, 30).held for name in "lprf")
    house.leases.take(leased.tree)
    house.index.pins.pin(pinned.uri, "", owner=1, asked=pinned.uri, now=house.now)
    house.index.rulings.record({ruled.tree: Verdict(kept_until=house.now + 1e6)})
    assert left(house.sweeper.sweep(free_bytes=ALL)) == [], "all were handed out just now"
    house.now, house.ticks = house.now + 61, house.ticks + 61
    young = bring(house, "y", 30).held
    house.ticks += 61
    swept = house.sweeper.sweep(free_bytes=ALL)
    assert left(swept) == ["f"] and not swept.enough and swept.freed_bytes == 30
    assert swept.kept == {LEASED: 1, PINNED: 1, RULED: 1, YOUNG: 1}
    assert names(house) == "lpry" and house.store.tree(free.tree) is None
    house.leases.give_back(leased.tree)
    house.index.pins.unpin([pinned.uri], "", house.now)
    house.index.rulings.record({ruled.tree: Verdict()})
    house.now += 61
    assert sorted(left(house.sweeper.sweep(free_bytes=ALL))) == ["l", "p", "r", "y"]
    assert house.index.held(young.uri, "") is None and house.index.totals()["blob_bytes"] == 0


def test_what_a_download_counts_on_stays(place: Place) -> None:
    """The tree that it compares with, and the files that have arrived; then it is there, and was downloaded once."""
    house = place.house()
    house.origin.tags = "listed"
    uri = offer(house, "a", 30)
    house.origin.files |= {f"{uri}/old": b"old", f"{uri}/late": b"late"}
    house.bring(uri)
    house.origin.files |= {f"{uri}/new": b"new", f"{uri}/later": b"later"}
    gate = Gate(house)
    gate._uris = {f"{uri}/later"}
    flight = house.start(uri, refresh=False)
    house.cache.leave(flight)
    flight = house.start(uri, refresh=True)
    gate.wait()
    swept = house.sweeper.sweep(free_bytes=ALL)
    assert left(swept) == [] and swept.kept == {LEASED: 1}
    house.sweeper.tidy()
    gate.open()
    brought = flight.future.result(timeout=PATIENCE_SECONDS)
    assert left(house.sweeper.sweep(free_bytes=ALL)) == [], "whoever waits for it has not leased it yet"
    assert set(house.content(brought.held)) == {"data", "old", "late", "new", "later"}
    house.cache.leave(flight)
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["", "a"], "the one before it has no name any more"
    assert house.index.totals()["blob_count"] == 0


def test_a_store_that_is_too_full_is_swept_to_the_low_watermark(place: Place) -> None:
    """Above 95 per cent of its capacity down to 90; below that nothing goes by itself."""
    house = place.house(1000, policy="lru")
    for number, name in enumerate("abcdefghi"):
        house.now += number
        bring(house, name, 105)
    assert house.index.totals()["blob_bytes"] == 945
    house.sweeper.watch()
    assert names(house) == "abcdefghi"
    bring(house, "j", 6)
    house.sweeper.watch()
    assert names(house) == "bcdefghij" and house.index.totals()["blob_bytes"] == 846
    assert house.sweeper.sweep().leaving == () and house.sweeper.sweep().enough


def test_others_who_fill_the_disk_get_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store gives way until so much is free as must be; where nothing more may go that is told, and not at once
    again."""
    house = place.house(min_free=100, policy="lru")
    for name in "abc":
        house.now += 1
        bring(house, name, 100)
    free = 10_000

    def space() -> Space:
        return Space(100_000, free - house.index.totals()["blob_bytes"])

    monkeypatch.setattr(house.disk, "space", space)
    house.sweeper.watch()
    assert names(house) == "abc"
    free = 300 + 50
    house.sweeper.watch()
    assert names(house) == "bc" and space().free == 150
    house.sweeper.watch()
    assert names(house) == "bc", "that is enough"
    house.leases.take(house.index.asked()[0].tree)
    free = 100
    house.sweeper.watch()
    assert names(house) == "b", "as much as may go"
    house.leases.give_back(house.index.asked()[0].tree)
    for _ in range(FAILED_ROUNDS - 1):
        house.sweeper.watch()
        assert names(house) == "b"
    house.sweeper.watch()
    assert names(house) == ""


def test_a_full_disk_makes_room_for_what_comes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the capacity, with what files cost beside their bytes; where others have filled it, NoSpace."""
    house = place.house(min_free=1000)
    for name in "abc":
        bring(house, name, 4000)
    free = 13_000 + 100

    def space() -> Space:
        return Space(100_000, free - house.index.totals()["blob_bytes"])

    monkeypatch.setattr(house.disk, "space", space)
    with pytest.raises(NoSpace, match="of the store's disk are free"):
        house.bring(offer(house, "d", 13_000 - FILE_BYTES))
    assert names(house) == "abc"
    bring(house, "e", 4000)
    assert len(names(house)) == 2 and "e" in names(house)


@pytest.mark.parametrize("full", ["the disk", "the capacity"])
def test_what_is_linked_outside_goes_for_the_capacity_only(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """Its bytes stay on the disk, whoever evicts it; but the store has them no more."""
    house = place.house(250, policy="lru") if full == "the capacity" else place.house(min_free=100)
    for name in "ab":
        house.now += 1
        held = bring(house, name, 100).held
        if name == "a":
            os.link(house.blob(house.digest(held, "data")), tmp_path / "outside")
    if full == "the disk":
        monkeypatch.setattr(house.disk, "space", lambda: Space(10**6, 0))
        house.sweeper.watch()
        assert names(house) == "a" and house.sweeper.sweep().kept == {LINKED: 1}
    else:
        house.leases.take(held.tree)
        bring(house, "c", 100)
        assert names(house) == "bc" and house.sweeper.evicted_bytes == 0
    assert (tmp_path / "outside").read_bytes() == b"a" + b"." * 99


def test_two_downloads_at_once_share_the_room(place: Place) -> None:
    """Each gets what it needs, and neither what the other was promised; a third that cannot fit beside them evicts
    nothing."""
    house = place.house(100)
    for name in "abk":
        kept = bring(house, name, {"a": 40, "b": 40, "k": 20}[name])
    house.leases.take(kept.held.tree)
    coming = [offer(house, name, 40) for name in "cde"]
    gate = Gate(house)
    gate._uris = {f"{uri}/data" for uri in coming}
    flights = [house.start(coming[0])]
    gate.wait()
    assert names(house) in ("ak", "bk"), "one has gone for the first"
    flights.append(house.start(coming[1]))
    gate.wait()
    assert names(house) == "k" and house.reservations.fill().coming == 80
    with pytest.raises(NoSpace, match="80 B on their way"):
        house.bring(coming[2])
    gate.open()
    for flight in flights:
        flight.future.result(timeout=PATIENCE_SECONDS)
        house.cache.leave(flight)
    assert names(house) == "cdk" and house.index.totals()["blob_bytes"] == 100
    assert house.reservations.fill().coming == 0


def test_who_has_waited_for_a_sweep_looks_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has made the room meanwhile: nothing more goes for it."""
    house = place.house(100)
    trees = [bring(house, name, 30).held.tree for name in "abc"]
    looked, space = threading.Event(), house.disk.space

    def look() -> Space:
        looked.set()
        return space()

    uri = offer(house, "d", 30)
    monkeypatch.setattr(house.disk, "space", look)
    with house.sweeper._turn:
        flight = house.start(uri)
        assert looked.wait(PATIENCE_SECONDS)
        house.store.departures.evict(trees[:1], now=house.now, young_since=house.now)
    flight.future.result(timeout=PATIENCE_SECONDS)
    house.cache.leave(flight)
    assert names(house) == "bcd" and house.sweeper.evicted_count == 0


def test_many_go_in_steps(place: Place) -> None:
    """More than one transaction takes: all of them, each told once."""
    house = place.house()
    count = 2 * STEP_TREES + 3
    for number in range(count):
        house.bring(offer(house, f"{number}", 10))
    assert len(house.sweeper.sweep(free_bytes=10 * count).leaving) == count == house.sweeper.evicted_count
    assert house.index.totals() == dict.fromkeys(house.index.totals(), 0)


@pytest.mark.parametrize("jump", [-10 * YEAR, 10 * YEAR], ids=["back", "forward"])
def test_a_clock_that_is_set(place: Place, jump: float) -> None:
    """By years: what came just now stays for the grace time as always, what came before that is not kept for ever."""
    house = place.house(grace_seconds=60.0)
    bring(house, "a", 10)
    house.now += jump
    assert left(house.sweeper.sweep(free_bytes=ALL)) == []
    house.now, house.ticks = house.now + 61, house.ticks + 61
    bring(house, "b", 10)
    house.now, house.ticks = house.now + 59, house.ticks + 59
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["a"]
    house.now, house.ticks = house.now + 2, house.ticks + 2
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["b"]
