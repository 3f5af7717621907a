"""What is asked again of the origin, when, and what is noticed then."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from artifactcache.errors import NotFound, OriginUnavailable
from cacheserver import local as local_room
from cacheserver import uris
from cacheserver.errands import Ask
from cacheserver.local import LocalFiles
from cacheserver.selection import Selection
from cacheserver.staging import Sink
from cacheserver.words import Brought, File, Location, Resolved
from tests.unit.house import FRESHNESS, PATIENCE_SECONDS, House

DUE = FRESHNESS.relist_after + 1


def get(house: House, uri: str, *, refresh: bool = False) -> Brought:
    """What the service does for one fetch."""
    asked = uris.parse(uri)
    version = house.cache.version_of(asked, refresh=refresh)
    if not refresh and not version.is_new and (held := house.cache.find(version.artifact, Selection(), view=False)):
        return held
    ask = Ask.STRICTLY if refresh else Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
    return house.cache.bring(version.artifact, Selection(), ask)[0].future.result(30)


def model(house: House, version: int, root: str, stamp: str = "made") -> None:
    """Registers a version of the model `m`."""
    base = f"models:/m/{version}"
    house.origin.versions[base] = Resolved(base, root, (), True, stamp)


@pytest.fixture
def run(house: House) -> str:
    """The root of a finished run with three files."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/same": b"same", f"{root}/other": b"early", f"{root}/gone": b"gone"}
    return root


def change(house: House, root: str) -> None:
    """Somebody rewrites a file with as many bytes, removes one and adds one."""
    house.origin.files[f"{root}/other"] = b"final"
    del house.origin.files[f"{root}/gone"]
    house.origin.files[f"{root}/new"] = b"new"


CHANGED = {"same": b"same", "other": b"final", "new": b"new"}


@pytest.mark.parametrize("tags", ["listed", "asked"])
def test_a_finished_run_is_listed_again_when_its_time_is_up(house: House, run: str, tags: str) -> None:
    """Until then nobody is asked; then only what changed or was added is downloaded, and what is gone is dropped."""
    house.origin.tags = tags
    house.bring("runs:/r")
    change(house, run)
    house.now += FRESHNESS.relist_after - 1
    assert set(house.content(get(house, "runs:/r").held)) == {"same", "other", "gone"}
    house.now += 2
    again = get(house, "runs:/r")
    assert house.content(again.held) == CHANGED and again.origin_bytes == len(b"final" + b"new")
    listings = house.origin.listings.total()
    assert get(house, "runs:/r").origin_bytes == 0 and house.origin.listings.total() == listings, "trusted anew"


def test_what_has_not_changed_is_trusted_anew(house: House, run: str) -> None:
    """One look at the origin, of which nothing is written but its time, serves the whole next span."""
    house.origin.tags = "asked"
    first = house.bring("runs:/r")
    house.now += DUE
    again = get(house, "runs:/r")
    assert (again.origin_bytes, again.held.fetched_at) == (0, first.held.fetched_at)
    listings = house.origin.listings.total()
    house.now += DUE - 2
    assert get(house, "runs:/r").held.tree == first.held.tree and house.origin.listings.total() == listings


def test_without_entity_tags_a_listing_shows_sizes_only(house: House, run: str) -> None:
    """A file rewritten with as many bytes is then noticed by `refresh` alone, which downloads everything."""
    house.bring("runs:/r")
    change(house, run)
    house.now += DUE
    assert house.content(get(house, "runs:/r").held) == CHANGED | {"other": b"early"}
    refreshed = get(house, "runs:/r", refresh=True)
    assert house.content(refreshed.held) == CHANGED and refreshed.origin_bytes == len(b"same" + b"final" + b"new")


@pytest.mark.parametrize("tags", ["listed", "asked"])
def test_a_refresh_takes_only_what_has_changed(house: House, run: str, tags: str) -> None:
    """Where there are entity tags: they are compared now, whatever is trusted."""
    house.origin.tags = tags
    house.bring("runs:/r")
    assert get(house, "runs:/r", refresh=True).origin_bytes == 0
    change(house, run)
    refreshed = get(house, "runs:/r", refresh=True)
    assert house.content(refreshed.held) == CHANGED and refreshed.origin_bytes == len(b"final" + b"new")


def test_a_tag_that_is_never_the_same_is_no_evidence(house: House, run: str) -> None:
    """A server that makes one up for each answer costs one download more, not one each time."""
    house.origin.tags = "unsteady"
    house.bring("runs:/r")
    house.now += DUE
    assert get(house, "runs:/r").origin_bytes > 0
    house.now += DUE
    assert get(house, "runs:/r").origin_bytes == 0


def test_a_clock_that_is_set_back_makes_nothing_young(house: House, run: str) -> None:
    """What was checked in the future is checked again."""
    house.origin.tags = "asked"
    house.bring("runs:/r")
    change(house, run)
    house.now -= 10 * DUE
    assert house.content(get(house, "runs:/r").held) == CHANGED


def test_a_running_run_that_rewrites_a_file(house: House, run: str) -> None:
    """As a checkpoint is, each time with as many bytes: every call gets the one that is there."""
    house.origin.tags = "asked"
    house.origin.run("r", settled=False)
    house.bring("runs:/r")
    for content in (b"step1", b"step2"):
        house.origin.files[f"{run}/other"] = content
        again = get(house, "runs:/r")
        assert house.content(again.held)["other"] == content and again.origin_bytes == len(content)


def test_what_a_bare_uri_brought_serves_the_finished_run(house: House, run: str) -> None:
    """Where an entity tag proves it: nothing of it is downloaded again, unless it was rewritten meanwhile."""
    house.origin.tags = "asked"
    house.bring(run)
    house.origin.files[f"{run}/other"] = b"final"
    brought = house.bring("runs:/r")
    assert house.content(brought.held)["other"] == b"final" and brought.origin_bytes == len(b"final")


def test_an_alias_that_moves_back(house: House) -> None:
    """A rollback is served at once, and from the store."""
    for number in (1, 2):
        model(house, number, f"s3://bucket/v{number}")
        house.origin.files[f"s3://bucket/v{number}/x"] = str(number).encode()
    for number, is_new in ((1, True), (2, True), (1, False)):
        house.origin.aliases["models:/m@champion"] = str(number)
        got = get(house, "models:/m@champion")
        assert house.content(got.held) == {"x": str(number).encode()} and (got.origin_bytes > 0) == is_new


def test_a_model_that_was_made_anew(house: House) -> None:
    """Its version 1 is another one. By an alias that is noticed at once, by the number when its time is up."""
    model(house, 1, "s3://bucket/old", "monday")
    house.origin.aliases["models:/m@champion"] = "1"
    house.origin.files = {"s3://bucket/old/x": b"old", "s3://bucket/new/x": b"new"}
    get(house, "models:/m@champion")
    model(house, 1, "s3://bucket/new", "tuesday")
    assert house.content(get(house, "models:/m/1").held) == {"x": b"old"}, "a version is trusted"
    assert house.content(get(house, "models:/m@champion").held) == {"x": b"new"}
    assert house.content(get(house, "models:/m/1").held) == {"x": b"new"}
    model(house, 1, "s3://bucket/old", "wednesday")
    house.now += DUE
    assert house.content(get(house, "models:/m/1").held) == {"x": b"old"}


def remade(house: House, *, first: str, then: str) -> dict[str, bytes | None]:
    """Brings one path of a model by its alias; while that lasts, the model is made anew and `then` is brought of it.
    Returns what `first` is by the alias after that."""
    model(house, 1, "s3://bucket/old", "monday")
    house.origin.aliases["models:/m@champion"] = "1"
    house.origin.files = {f"s3://bucket/{age}/{name}": age.encode() for age in ("old", "new") for name in ("a/x", "y")}
    get(house, "models:/m@champion/y")
    reached, go = threading.Event(), threading.Event()

    def hold(uri: str) -> None:
        if uri == "s3://bucket/old/a/x":
            reached.set()
            assert go.wait(PATIENCE_SECONDS)

    house.origin.before_download = hold
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, house, first)
        assert reached.wait(PATIENCE_SECONDS)
        house.now += 5
        model(house, 1, "s3://bucket/new", "tuesday")
        try:
            assert set(house.content(get(house, then).held).values()) == {b"new"}
        finally:
            go.set()
        slow.result(PATIENCE_SECONDS)
    house.now += 5
    return house.content(get(house, first).held)


@pytest.mark.parametrize("first", ["models:/m@champion/a", "models:/m/1/a", "models:/m@champion"])
@pytest.mark.parametrize("then", ["models:/m@champion/y", "models:/m@champion"])
def test_a_model_that_is_made_anew_while_it_is_brought(house: House, first: str, then: str) -> None:
    """What was brought of the old one is not remembered as the new one's, by whatever path and whoever ends first."""
    assert set(remade(house, first=first, then=then).values()) == {b"new"}


def test_an_alias_may_be_trusted_for_a_while(house: House) -> None:
    """As long as its time to live says; `refresh` asks all the same."""
    house.cache._freshness = FRESHNESS.__class__(FRESHNESS.relist_after, 60.0, FRESHNESS.stale_after)
    for number in (1, 2):
        model(house, number, f"s3://bucket/v{number}")
        house.origin.files[f"s3://bucket/v{number}/x"] = str(number).encode()
    asked = uris.parse("models:/m@champion")
    house.origin.aliases[asked.base] = "1"
    assert house.cache.version_of(asked).artifact.selector == "1"
    house.origin.aliases[asked.base] = "2"
    house.now += 59
    assert house.cache.version_of(asked).artifact.selector == "1"
    assert house.cache.version_of(asked, refresh=True).artifact.selector == "2"
    house.origin.aliases[asked.base] = "1"
    house.now += 61
    assert house.cache.version_of(asked).artifact.selector == "1"


# -- without the origin -----------------------------------------------------------------------------------------------


def test_what_is_held_is_given_out_without_the_origin(house: House, run: str) -> None:
    """Trusted or not, whole or in part, by its alias too; stale where the origin should have been asked."""
    model(house, 1, run)
    house.origin.aliases["models:/m@champion"] = "1"
    get(house, "models:/m@champion")
    get(house, "runs:/r")
    house.origin.down = True
    assert not get(house, "runs:/r").stale
    assert house.cache.version_of(uris.parse("models:/m@champion")).stale
    assert house.content(get(house, "runs:/r/same").held) == {"same": b"same"}
    house.now += DUE
    for uri in ("runs:/r", "runs:/r/other", "models:/m@champion", "models:/m/1/gone", run):
        got = get(house, uri)
        assert got.stale and got.origin_bytes == 0, uri
    for uri in ("runs:/r/none", "runs:/other", "models:/m@other", "models:/m/2"):
        with pytest.raises(OriginUnavailable):
            get(house, uri)
    with pytest.raises(OriginUnavailable):
        get(house, "runs:/r", refresh=True)


def test_what_the_origin_has_no_more_is_not_given_out(house: House, run: str) -> None:
    """A run that was deleted is NotFound when it is asked for again, and stays so when the origin does not answer."""
    house.bring("runs:/r")
    house.bring("runs:/r/same")
    del house.origin.versions["runs:/r"]
    house.now += DUE
    with pytest.raises(NotFound):
        get(house, "runs:/r")
    house.origin.down = True
    for uri in ("runs:/r", "runs:/r/same"):
        with pytest.raises(OriginUnavailable):
            get(house, uri)


def test_an_alias_that_was_removed_is_forgotten(house: House, run: str) -> None:
    """It is NotFound, and stays unknown when the origin does not answer."""
    model(house, 1, run)
    house.origin.aliases["models:/m@champion"] = "1"
    get(house, "models:/m@champion")
    del house.origin.aliases["models:/m@champion"]
    with pytest.raises(NotFound):
        get(house, "models:/m@champion")
    house.origin.down = True
    with pytest.raises(OriginUnavailable):
        get(house, "models:/m@champion")


def test_a_local_entity_tag_changes_with_the_bytes(tmp_path: Path) -> None:
    """Also where a file is rewritten with as many bytes and its mtime is set back; a copy has the listed one."""
    root, file = tmp_path / "root", tmp_path / "root" / "file"
    root.mkdir()
    file.write_bytes(b"early")
    before = file.stat()
    local = LocalFiles(str(root), forbidden="/proc", world_only=False, clock=lambda: before.st_ctime + 1)

    def listed() -> File:
        return local.listing(Location(str(root), "file")).files[0]

    first = listed()
    with Sink(str(tmp_path / "copy"), first.size, "file") as sink:
        local.fill(first, sink)
        assert sink.finish().etag == first.etag == listed().etag
    file.write_bytes(b"final")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listed().etag != first.etag


@pytest.mark.parametrize(("later", "is_evidence"), [(0.005, False), (0.05, True), (-5.0, False)])
def test_a_local_file_that_was_just_written(tmp_path: Path, later: float, is_evidence: bool) -> None:
    """Has no entity tag: a second write within the same tick of the clock would leave the same one."""
    file = tmp_path / "root" / "file"
    file.parent.mkdir()
    file.write_bytes(b"early")
    local = LocalFiles(
        str(file.parent), forbidden="/proc", world_only=False, clock=lambda: file.stat().st_ctime + later
    )
    listed = local.listing(Location(str(file.parent), "file")).files[0]
    walked = local.listing(Location(str(file.parent), "")).files[0]
    with Sink(str(tmp_path / "copy"), listed.size, "file") as sink:
        local.fill(listed, sink)
        assert [bool(tag) for tag in (listed.etag, walked.etag, sink.finish().etag)] == [is_evidence] * 3


def test_a_filesystem_whose_times_are_whole_seconds() -> None:
    """A tick of its clock is that much longer."""
    seen = SimpleNamespace(st_dev=1, st_ino=2, st_size=3, st_mtime_ns=5 * 10**9, st_ctime_ns=5 * 10**9, st_ctime=5.0)
    assert not local_room._evidence(seen, 6.0) and local_room._evidence(seen, 7.5)  # type: ignore[arg-type]
