"""What downloads that failed have left: the next attempt goes on with it, and nobody is refused for its sake."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_128

from artifactcache.errors import NoSpace, OriginUnavailable
from cacheserver import work
from cacheserver.holdings import Gone
from cacheserver.leftovers import key_of
from cacheserver.space import Need
from cacheserver.words import Standing
from tests.rig.until import until
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate, House
from tests.unit.sweeping import ALL, Place, bring, names

DAY_SECONDS = 86_400


@pytest.fixture
def place(room: Path) -> Iterator[Place]:
    """Houses of so many bytes."""
    place = Place(room)
    yield place
    for house in place.houses:
        house.close()


def fail(house: House, name: str, size: int) -> str:
    """A download of which a file of so many bytes arrives, and another one does not."""
    uri = f"s3://bucket/{name}"
    house.origin.files |= {f"{uri}/data": (name.encode() + b"." * size)[:size], f"{uri}/last": b"!"}
    came = threading.Event()

    def before(which: str) -> None:
        if which == f"{uri}/last":
            assert came.wait(PATIENCE_SECONDS)
            raise OriginUnavailable("broke off")

    house.origin.before_download = before
    house.origin.after_download = lambda which: came.set()
    with pytest.raises(OriginUnavailable):
        house.bring(uri)
    house.origin.before_download = house.origin.after_download = lambda which: None
    return uri


def begin(house: House, uri: str, content: bytes, at: float) -> Path:
    """The beginning of a file, last written at some time, that waits for somebody to go on with it."""
    path = Path(house.store.stage())
    path.write_bytes(content)
    house.store.partials.note(str(path), key_of(uri), '"tag"', len(content), xxh3_128(content).hexdigest())
    os.utime(path, (at, at))
    assert house.store.partials.set_aside(str(path))
    return path


def remains(house: House) -> str:
    """The names of the artifacts of which finished files are left, one letter each."""
    return "".join(sorted(uri.split("/")[3] for uri in house.index.arrivals.at_or_below("s3://bucket")))


def test_what_failed_closes_the_store_for_a_moment_only(place: Place) -> None:
    """The next attempt has the grace time to come; from then on somebody else gets the room: rows and files go."""
    house = place.house(100, grace_seconds=60.0)
    fail(house, "a", 80)
    with pytest.raises(NoSpace):
        bring(house, "b", 50)
    house.ticks += 61
    bring(house, "b", 50)
    assert remains(house) == "" and house.index.totals()["blob_bytes"] == 50
    assert [p.stat().st_size for p in (house.root / "blobs").glob("*/*")] == [50]
    assert house.index.holdings.leaving() == (Gone({}, {}), "")


def test_the_next_attempt_goes_on_where_nobody_needs_the_room(place: Place) -> None:
    """However long after, within a day: what has arrived is not downloaded again, though sweeps have passed."""
    house = place.house(100)
    uri = fail(house, "a", 80)
    house.ticks += 3600
    house.now += 3600
    house.sweeper.watch()
    house.sweeper.tidy()
    assert house.store.leftovers.expire(house.now - DAY_SECONDS) == 0
    house.bring(uri)
    assert house.origin.downloads[f"{uri}/data"] == 1


def test_a_running_download_keeps_what_has_arrived(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a clock that leaps two days, a sweep of all there is, and another download that would need the room."""
    monkeypatch.setattr(work, "BATCH_FILES", 1)
    house = place.house(20)
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    house.origin.files |= {f"{ROOT}/\udcff": b"no UTF-8", "s3://bucket/other": b"." * 15}
    gate = Gate(house, "top")
    flight = house.start(ROOT)
    gate.wait()
    until(lambda: house.index.totals()["blob_bytes"] == 14, "all files but one to arrive")
    house.now += 2 * DAY_SECONDS
    assert house.store.leftovers.expire(house.now - DAY_SECONDS) == 0
    assert house.sweeper.sweep(free_bytes=ALL).freed_bytes == 0
    with pytest.raises(NoSpace):
        house.bring("s3://bucket/other")
    house.sweeper.tidy()
    gate.open()
    flight.future.result(PATIENCE_SECONDS)
    assert set(house.origin.downloads.values()) == {1}


def test_a_beginning_that_a_promise_counts_on_stays(place: Place) -> None:
    """It was taken for written: without it the download would write more than it was promised."""
    house = place.house()
    house.origin.files = {f"{ROOT}/top": b"4444"}
    beginning = begin(house, f"{ROOT}/top", b"444", house.now)
    gate = Gate(house, "top")
    flight = house.start(ROOT)
    gate.wait()
    house.now += 2 * DAY_SECONDS
    assert house.sweeper.sweep(free_bytes=ALL).freed_bytes == 0 and beginning.exists()
    assert house.store.leftovers.expire(house.now - DAY_SECONDS) == 0 and beginning.exists()
    gate.open()
    flight.future.result(PATIENCE_SECONDS)
    assert house.store.leftovers.expire(house.now - DAY_SECONDS) == 1
    assert house.staging() == []


def test_the_oldest_go_first_and_no_more_than_is_needed(place: Place) -> None:
    """Beginnings among them where the disk is short; for the capacity they do nothing, and stay."""
    house = place.house(100)
    begun = house.now - 5
    for name in "abc":
        fail(house, name, 20)
        house.now += 10
    beginning = begin(house, "s3://bucket/d/data", b"." * 20, begun)
    planned = house.sweeper.sweep(free_bytes=40, dry_run=True)
    first = house.index.arrivals.at_or_below("s3://bucket/a")["s3://bucket/a/data"][0].digest
    assert [one.name for one in planned.cleared.leftovers] == [str(beginning), first]
    assert planned.freed_bytes == 40 and planned.enough and remains(house) == "abc"
    bring(house, "e", 60)
    assert remains(house) == "bc" and beginning.exists()
    swept = house.sweeper.sweep(free_bytes=40)
    assert swept.cleared.freed_bytes == 40 and names(house) == "e" and remains(house) == "c"
    assert house.staging() == []


def test_leftovers_go_before_any_tree(place: Place) -> None:
    """Whoever makes room: a download, which takes all or nothing, a watch, or a sweep."""
    house = place.house(100)
    bring(house, "a", 40)
    fail(house, "b", 40)
    with pytest.raises(NoSpace):
        bring(house, "x", 101)
    assert (names(house), remains(house)) == ("a", "b")
    assert house.sweeper.could_fit(100) and not house.sweeper.could_fit(101)
    bring(house, "c", 50)
    assert (names(house), remains(house)) == ("ac", "")
    fail(house, "d", 6)
    assert house.sweeper.watch()  # 96 of 100: down to 90
    assert (names(house), remains(house)) == ("ac", "")
    fail(house, "d", 6)
    bring(house, "e", 60)  # which takes what was left, and a tree
    assert len(names(house)) == 1 + ("a" in names(house)) and remains(house) == ""


def test_what_is_linked_elsewhere_frees_no_disk(place: Place, room: Path) -> None:
    """It goes for the capacity only."""
    house = place.house(100)
    fail(house, "a", 40)
    (blob,) = (house.root / "blobs").glob("*/*")
    os.link(blob, room / "outside")
    swept = house.sweeper.sweep(free_bytes=10)
    assert swept.freed_bytes == 0 and not swept.enough and remains(house) == "a"
    bring(house, "b", 70)
    assert remains(house) == ""


@pytest.mark.parametrize(
    ("counted_on", "stays"),
    [
        ("s3://bucket/a", True),
        ("s3://bucket/a/data", True),
        ("s3://bucket/", True),
        ("s3://bucket/a/dat", False),
        ("s3://bucket/a/data/more", False),
        ("s3://other/a", False),
    ],
)
@pytest.mark.parametrize("name", ["data", "data\udcff"])
def test_the_deletion_looks_again_who_counts_on_it(place: Place, counted_on: str, stays: bool, name: str) -> None:
    """A plan is advice: what somebody counts on since stays, at or below what he names; finished or just begun."""
    house = place.house()
    leftovers, pause = house.store.leftovers, lambda: None
    path = house.store.stage()
    Path(path).write_bytes(b"left")
    house.store.keep({key_of(f"s3://bucket/a/{name}"): house.store.measure(path)}, Standing.FINISHED, house.now)
    begin(house, f"s3://bucket/a/{name}", b"begun", house.now)
    planned = leftovers.plan(Need(ALL, ALL), pause)
    assert len(planned.leftovers) == 2
    with leftovers.counting(0.0) as count_on:
        count_on(counted_on.replace("data", name))
        assert len(leftovers.clear(planned, "a test").leftovers) == (0 if stays else 2)
    assert len(leftovers.clear(planned, "a test").leftovers) == (2 if stays else 0)
    assert house.index.all_digests() == [] and house.staging() == []


def test_a_daemon_that_ends_before_the_file_is_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is gone, the index has what is leaving, and the next one removes it."""
    house = place.house()
    fail(house, "a", 40)

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(house.disk, "take_out", end)
    with pytest.raises(KeyboardInterrupt):
        house.sweeper.sweep(free_bytes=ALL)
    monkeypatch.undo()
    assert house.index.all_digests() == [] and len(list((house.root / "blobs").glob("*/*"))) == 1
    house.store.departures.tidy()
    assert list((house.root / "blobs").glob("*/*")) == []


def test_a_download_that_counts_on_what_is_going_waits_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the step that decides is over: what it finds then is there, or has gone."""
    house = place.house()
    uri = fail(house, "a", 40)
    drop, found = house.index.arrivals.drop, list[int]()

    def count() -> None:
        with house.store.leftovers.counting(0.0) as count_on:
            count_on(uri)
            found.append(len(house.index.arrivals.at_or_below(uri)))

    counting = threading.Thread(target=count)

    def slowly(*arguments: object) -> dict[str, int]:
        counting.start()
        counting.join(0.2)  # it cannot come any further
        assert not found
        return drop(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(house.index.arrivals, "drop", slowly)
    assert house.sweeper.sweep(free_bytes=ALL).freed_bytes == 40
    counting.join(PATIENCE_SECONDS)
    assert found == [0]
