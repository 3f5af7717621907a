"""An index and a mirror that have not seen the same changes: the one that knows more is right, as far as that explains
how they differ; what it does not explain is believed of neither."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver import fsck, restoring, uris
from cacheserver.mirror import path_of
from cacheserver.recovery import ASKED_AGAIN, NAMES
from tests.unit.house import FEW, FILES, House
from tests.unit.lost import LATER, MODEL, fill, known, reopened

CHANGED = {"new": b"what the origin has now"}


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[House]:
    """Two versions that share files, a selection of one, an alias and a pin."""
    house = fill(House(tmp_path / "store"))
    yield house
    with contextlib.suppress(sqlite3.ProgrammingError):  # a test has closed it
        house.close()


def _checkpoint(house: House) -> bytes:
    """The index as it is now, without a log."""
    house.index._tables._db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
    return (house.root / "index.db").read_bytes()


def _puts(image: bytes) -> Callable[[Path], None]:
    """Somebody puts that in the index's place."""

    def put(root: Path) -> None:
        (root / "index.db").write_bytes(image)

    return put


def _change(house: House, root: str) -> None:
    """The origin has something else there."""
    for path in [path for path in house.origin.files if path.startswith(f"{root}/")]:
        del house.origin.files[path]
    house.origin.files |= {f"{root}/{name}": content for name, content in CHANGED.items()}


def _counts(root: Path, by: int) -> None:
    """The mirror's count of changes is off."""
    _do(Path(path_of(str(root / "index.db"))), f"UPDATE mirror SET changes = changes + {by}")


def _do(path: Path, sql: str) -> None:
    """As a bit that flips: no trigger of the daemon's sees it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(sql)
        db.commit()


def test_a_lost_change_of_a_name_is_not_taken_back(filled: House) -> None:
    """What was acknowledged last is served, and not what an index without its last changes says."""
    root = filled.origin.run("cc")
    filled.origin.files[f"{root}/old"] = b"as it was"
    filled.bring("runs:/cc")
    filled.index.versions.record_alias("models:/resnet@champion", "3", filled.now)
    image = _checkpoint(filled)
    _change(filled, root)
    filled.now += 10
    assert filled.content(filled.bring("runs:/cc", refresh=True).held) == CHANGED
    filled.index.versions.record_alias("models:/resnet@champion", "4", filled.now)
    filled.cache.record_uses()
    before = known(filled.root)
    house = reopened(filled, _puts(image))
    try:
        now = known(house.root)
        assert {name: now[name] for name in ASKED_AGAIN} == {name: before[name] for name in ASKED_AGAIN}
        house.origin.down, house.now = True, filled.now
        found = house.find("runs:/cc")
        assert found is not None and house.content(found.held) == CHANGED
        assert house.index.totals()["artifact_count"] == before["counters"][0][0]
        house.sweeper.tidy()
        assert house.content(found.held) == CHANGED and house.find(MODEL) is not None
    finally:
        house.close()
    assert known(house.root)["counters"] == before["counters"]


def test_a_lost_removal_of_a_name_stays_one(filled: House) -> None:
    """An artifact that was evicted, an account, and a pin that was ended, do not come back."""
    filled.index.pins.pin(LATER, "", owner=7, asked=LATER, now=filled.now, seconds=1e9)
    image = _checkpoint(filled)
    filled.index.pins.unpin([LATER], "", filled.now)
    held = filled.index.held(LATER, "")
    assert held is not None
    filled.store.departures.evict([held.tree], now=filled.now, young_since=filled.now)
    before = known(filled.root)
    house = reopened(filled, _puts(image))
    try:
        assert house.index.held(LATER, "") is None and house.find(MODEL) is not None
        now = known(house.root)
        assert {name: now[name] for name in NAMES} == {name: before[name] for name in NAMES}
        assert [one.item.tree for one, _ in house.index.holdings.drops(now=1e10, young_since=0.0)] == [held.tree]
    finally:
        house.close()


def test_a_lost_change_whose_manifest_is_gone_is_asked_again(filled: House) -> None:
    """It is neither what it was, nor what nobody can tell any more."""
    root = filled.origin.run("cc")
    filled.origin.files[f"{root}/old"] = b"as it was"
    filled.bring("runs:/cc")
    image = _checkpoint(filled)
    _change(filled, root)
    filled.now += 10
    tree = filled.bring("runs:/cc", refresh=True).held.tree

    def lose(store: Path) -> None:
        _puts(image)(store)
        (store / "manifests" / tree[:2] / tree[2:]).unlink()

    house = reopened(filled, lose)
    try:
        assert house.index.held("runs:/cc", "") is None and house.index.held(MODEL, "") is not None
        assert house.content(house.bring("runs:/cc").held) == CHANGED
    finally:
        house.close()


def test_an_index_that_was_made_anew_counts_on(filled: House) -> None:
    """So that one from before, which somebody puts back, is known for an older one."""
    for seconds in range(99):
        filled.index.versions.record_alias("models:/resnet@champion", "4", filled.now + seconds)
    image = _checkpoint(filled)
    house = reopened(filled, lambda root: (root / "index.db").unlink())
    root = house.origin.run("cc")
    house.origin.files[f"{root}/old"] = b"brought later"
    house.bring("runs:/cc")
    house = reopened(house, _puts(image))
    try:
        house.origin.down = True
        assert house.find("runs:/cc") is not None and house.find(MODEL) is not None
    finally:
        house.close()


ROT = "UPDATE artifacts SET tree = (SELECT tree FROM artifacts WHERE uri = '{}') WHERE uri = '{}'"


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("who", ["daemon", "fsck"])
def test_rot_is_found_where_the_counts_differ(filled: House, by: int, who: str) -> None:
    """The evidence is looked at before one of the two is made anew of the other."""
    tracking, before = filled.origin, known(filled.root)
    filled.close()
    _do(filled.root / "index.db", ROT.format(LATER, MODEL))
    _counts(filled.root, by)
    if who == "fsck":
        fsck.check(str(filled.root))
    house = House(filled.root, origin=tracking)
    try:
        found = house.find(MODEL)
        assert (found is None) == (by < 0), "a mirror that knows more is right"
        brought = found or house.bring(MODEL)
        assert {k: v for k, v in house.content(brought.held).items() if v is not None} == FILES
        assert house.find(LATER) is not None and known(house.root)["pins"] == before["pins"]
        assert restoring.compare(house.index) == [] and not house.index.is_behind
    finally:
        house.close()


def test_rot_is_found_before_a_mirror_that_is_behind_is_mended(filled: House) -> None:
    """While it serves, too."""
    _do(filled.root / "index.db", ROT.format(LATER, MODEL))
    _counts(filled.root, -1)
    filled.index._tables.is_behind = True
    assert not restoring.mend(filled.index, filled.disk) and not filled.index.is_behind
    assert filled.index.held(MODEL, "") is None and filled.index.held(LATER, "") is not None


def test_more_differences_than_lost_changes(filled: House) -> None:
    """One change explains one difference: where there are two, neither file is believed of either name."""
    tracking = filled.origin
    filled.close()
    mirror = Path(path_of(str(filled.root / "index.db")))
    _do(mirror, "UPDATE mirrored_aliases SET version = '3'")
    _do(mirror, "UPDATE mirrored_versions SET root = root || 'x' WHERE version = 'models:/resnet/3'")
    _counts(filled.root, 1)
    house = House(filled.root, origin=tracking)
    try:
        assert not known(house.root)["aliases"] and MODEL not in [row[1] for row in known(house.root)["versions"]]
        assert house.cache.version_of(uris.parse("models:/resnet@champion")).artifact.base == LATER
        brought = house.bring(LATER)
        assert {k: v for k, v in house.content(brought.held).items() if v is not None} == FILES | FEW
    finally:
        house.close()


def test_a_mirror_that_only_lacks_names_costs_nothing(filled: House) -> None:
    """What was written to the index last is no rot where the mirror has all else as the index has it."""
    before = known(filled.root)

    def lose(root: Path) -> None:
        _do(Path(path_of(str(root / "index.db"))), f"DELETE FROM mirrored_artifacts WHERE uri = '{LATER}'")
        _counts(root, -2)

    house = reopened(filled, lose)
    try:
        assert known(house.root) == before
    finally:
        house.close()
