"""An index that is damaged or gone is made anew, and loses only when things were used."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError, NoSpace
from cacheserver import holdings, restoring, uris
from cacheserver.disk import Disk
from cacheserver.holdings import Gone
from cacheserver.index import Index
from cacheserver.mirror import path_of
from cacheserver.selection import Selection
from tests.unit.house import FEW, FILES, PATIENCE_SECONDS, PAYER, TRACKING_URI, House, overwrite
from tests.unit.lost import LATER, LOSSES, MODEL, fill, garbage, gone, known, reopened


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[House]:
    """Two versions that share files, a selection of one, an alias and a pin."""
    house = fill(House(tmp_path / "store"))
    yield house
    with contextlib.suppress(sqlite3.ProgrammingError):  # a test has closed it
        house.close()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EACCES])
def test_a_blob_that_cannot_be_looked_at_is_notgone(
    filled: House, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The index is not made anew without it, which would have it removed: that is tried again, and then all is held."""
    before, digest = known(filled.root), min(filled.index.all_digests())
    filled.close()
    gone(filled.root)
    real = os.stat

    def refuse(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if isinstance(path, str) and path.endswith(digest[2:]):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kwargs)

    disk = Disk(str(filled.root), shared=None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(CacheError, match=f"{digest} cannot be looked at"):
            restoring.open_index(disk, TRACKING_URI)
    disk.close()
    filled.__init__(filled.root)  # type: ignore[misc]
    assert known(filled.root)["members"] == before["members"] and filled.blob(digest).exists()


def test_a_blob_of_a_wrong_size_is_kept_for_a_person(filled: House) -> None:
    """When an index is made anew: it goes to quarantine, as whatever else is wrong, and is not removed."""
    digest = min(filled.index.all_digests())
    filled.close()
    gone(filled.root)
    filled.blob(digest).chmod(0o644)
    filled.blob(digest).write_bytes(b"longer than it was")
    filled.__init__(filled.root)  # type: ignore[misc]
    filled.sweeper.tidy()
    assert digest not in filled.index.all_digests() and not filled.blob(digest).exists()
    kept = [path.read_bytes() for path in (filled.root / "quarantine").iterdir() if path.name.startswith(digest)]
    assert kept == [b"longer than it was"]


@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_held_is_held(tmp_path: Path, loss: str) -> None:
    """Names, versions, aliases, pins and accounts too; nothing is downloaded again, and all is hashed before it is
    given out."""
    house = fill(House(tmp_path / "store"))
    before, downloads = known(house.root), house.origin.downloads.copy()
    house = reopened(house, LOSSES[loss])
    try:
        assert known(house.root) == before
        house.origin.down = True
        for uri, files in ((MODEL, FILES), (LATER, FILES | FEW)):
            found = house.find(uri)
            assert found is not None and {k: v for k, v in house.content(found.held).items() if v is not None} == files
            assert all(row.xxh3 for row in house.tree(found.held).rows.values())
        assert house.cache.find(uris.parse(LATER), Selection.of(["d0/**"], []), view=True) is not None
        assert house.origin.downloads == downloads
        kept = [name for name in os.listdir(house.root / "quarantine") if name.endswith("index.db")]
        assert len(kept) == (loss in ("garbage", "first page"))
    finally:
        house.close()


@pytest.mark.parametrize("meddle", ["gone", "shorter", "other bytes"])
def test_bytes_that_went_with_the_index_are_not_believed(filled: House, meddle: str) -> None:
    """A blob is taken for what its name says only once it was hashed."""
    held = filled.find(MODEL)
    assert held is not None
    blob = filled.blob(filled.digest(held.held, "b/three"))

    def lose(root: Path) -> None:
        garbage(root)
        if meddle == "gone":
            blob.unlink()
        elif meddle == "shorter":
            os.truncate(blob, 1)
        else:
            overwrite(blob)

    house = reopened(filled, lose)
    try:
        assert house.find(MODEL) is None, "it lacks a file"
        brought = house.bring(MODEL)
        assert brought.origin_bytes == len(FILES["b/three"])
        assert house.content(brought.held) == FILES and house.find(LATER) is not None
    finally:
        house.close()


def test_a_tree_whose_manifest_went_too_is_fetched_again(filled: House) -> None:
    """And what nothing has a name for any more is removed from the disk, and no other file of somebody's."""
    held = filled.find(MODEL)
    assert held is not None
    tree, only_here = held.held.tree, filled.digest(held.held, "b/three")

    def lose(root: Path) -> None:
        garbage(root)
        (root / "manifests" / tree[:2] / tree[2:]).unlink()
        (root / "blobs" / tree[:2]).mkdir(exist_ok=True)
        (root / "blobs" / tree[:2] / "somebody's").write_bytes(b"")
        (root / "blobs" / tree[:2] / tree[2:]).write_bytes(b"a download that was broken off")

    house = reopened(filled, lose)
    try:
        assert house.index.held(MODEL, "") is None and house.find(LATER) is not None
        house.store.departures.tidy()
        assert not house.blob(tree).exists() and house.blob(only_here).exists(), "the other version has it too"
        assert (house.root / "blobs" / tree[:2] / "somebody's").exists()
        brought = house.bring(MODEL)
        assert brought.origin_bytes == sum(map(len, FILES.values())), "nothing says which blob is which file"
        assert house.content(brought.held) == FILES
    finally:
        house.close()


def test_a_page_that_is_damaged_while_it_serves(filled: House) -> None:
    """Who meets it hears that the index is made anew, and it is, without a restart; then all is as before."""
    before = known(filled.root)
    with filled.index._tables._lock:
        filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (filled.root / "index.db").stat().st_size
    with (filled.root / "index.db").open("r+b") as file:  # all but the first page, under the open connections
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with pytest.raises(CacheError, match="made anew from what is in the store: try again"):
        for connection in (filled.index._tables._reader, filled.index._tables._db):
            connection.execute("PRAGMA shrink_memory")
        filled.find(MODEL)
    assert filled.index.is_damaged
    assert restoring.mend(filled.index, filled.disk) and not filled.index.is_damaged
    assert known(filled.root) == before
    filled.origin.down = True
    assert filled.find(MODEL) is not None and filled.find(LATER) is not None
    assert not restoring.mend(filled.index, filled.disk), "nothing is left to do"


@pytest.mark.parametrize("loss", ["gone", "garbage", "older"])
def test_the_mirror_is_made_anew_of_the_index(filled: House, loss: str) -> None:
    """It has all that the mirror has; and the next loss is no loss either."""
    before = known(filled.root)
    mirror = Path(path_of(filled.disk.index_path))

    def lose(root: Path) -> None:
        if loss == "older":
            db = sqlite3.connect(mirror)
            db.execute("DELETE FROM mirrored_artifacts")
            db.execute("UPDATE mirror SET changes = 1")
            db.commit()
            db.close()
        else:
            mirror.unlink() if loss == "gone" else mirror.write_bytes(b"garbage" * 9000)

    house = reopened(filled, lose)
    assert known(house.root) == before
    house = reopened(house, gone)
    try:
        assert known(house.root) == before
    finally:
        house.close()


def test_a_log_that_is_lost(filled: House) -> None:
    """What the index had not taken over from its log when that went is put back from the mirror."""
    filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    third = filled.origin.run("cc")
    filled.origin.files[f"{third}/new"] = b"after the checkpoint"
    filled.bring("runs:/cc")
    filled.cache.record_uses()
    before = known(filled.root)
    image = (filled.root / "index.db").read_bytes()  # without what is in the log

    def lose(root: Path) -> None:
        (root / "index.db").write_bytes(image)

    house = reopened(filled, lose)
    try:
        assert known(house.root) == before
        house.origin.down = True
        found = house.find("runs:/cc")
        assert found is not None and house.content(found.held) == {"new": b"after the checkpoint"}
    finally:
        house.close()


def test_an_account_is_not_lost(filled: House) -> None:
    """Who has used up a quota has used it up still."""
    before = filled.index.ledger.of_user(PAYER.uid)
    house = reopened(filled, garbage)
    try:
        assert before and house.index.ledger.of_user(PAYER.uid) == before
    finally:
        house.close()


def test_a_store_of_an_older_release_gets_a_mirror(filled: House) -> None:
    """One that was written before there were mirrors is mirrored when it is opened."""
    before = known(filled.root)

    def older(root: Path) -> None:
        db = sqlite3.connect(root / "index.db")
        for table in ("publications", "mirrored", "scrub"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 3")
        db.commit()
        db.close()
        Path(path_of(str(root / "index.db"))).unlink()

    house = reopened(reopened(filled, older), gone)
    try:
        assert known(house.root) == before
    finally:
        house.close()


def test_a_disk_that_lets_nothing_be_moved(filled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old index stays open, whoever meets the damage is told so, and half a minute later it is tried again."""
    filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (filled.root / "index.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (filled.root / "index.db").stat().st_size)

    def dead(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    filled.index._tables.is_damaged = True
    with monkeypatch.context() as broken:
        broken.setattr("cacheserver.quarantine.os.rename", dead)
        with pytest.raises(CacheError):
            filled.store.mend_index()
    with pytest.raises(CacheError):
        filled.find(MODEL)
    assert not filled.store.mend_index(), "not yet"
    filled.ticks += 31
    assert filled.store.mend_index() and filled.find(MODEL) is not None


def test_both_gone_while_it_serves(filled: House) -> None:
    """Nothing has a name any more: all is fetched again, into the index that took their place."""
    filled.index._tables.is_damaged = True
    for path in (filled.disk.index_path, path_of(filled.disk.index_path)):
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
    assert filled.store.mend_index() and filled.find(MODEL) is None
    assert filled.content(filled.bring(MODEL).held) == FILES and filled.find(MODEL) is not None


def test_nobody_is_served_from_an_index_that_is_not_filled_yet(filled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks while it is made anew waits, and gets what is held: with the origin down nothing else can be had."""
    real, answers = restoring._put_back, list[object]()
    asking = threading.Thread(target=lambda: answers.append(filled.find(MODEL)))

    def put_back(index: Index, disk: Disk) -> None:
        asking.start()
        asking.join(0.3)  # long enough for an answer, where there is one
        real(index, disk)

    monkeypatch.setattr(restoring, "_put_back", put_back)
    filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    filled.index._tables.is_damaged = filled.origin.down = True
    garbage(filled.root)
    assert filled.store.mend_index()
    asking.join(PATIENCE_SECONDS)
    assert len(answers) == 1 and answers[0] is not None


def test_an_index_that_cannot_be_filled_says_nothing(filled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the names cannot be put back: until they are, nobody hears that something is not held."""
    before = known(filled.root)

    def full(*_: object) -> None:
        raise NoSpace("the disk is full.")

    filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    filled.index._tables.is_damaged = True
    garbage(filled.root)
    with monkeypatch.context() as broken:
        broken.setattr(restoring, "_put_back", full)
        with pytest.raises(NoSpace):
            filled.store.mend_index()
    with pytest.raises(CacheError, match="cannot be made anew now"):
        filled.find(MODEL)
    with pytest.raises(CacheError, match="cannot be made anew now"):
        filled.index.record_view("", exists=False)
    filled.ticks += 31
    assert filled.store.mend_index() and known(filled.root) == before
    assert filled.find(MODEL) is not None


def _both_gone(root: Path) -> None:
    gone(root)
    Path(path_of(str(root / "index.db"))).unlink()


def _files(house: House) -> set[str]:
    """The names of all blobs, manifests and views."""
    found = set(house.disk.digests("blobs")) | set(house.disk.digests("manifests"))
    return found | set(os.listdir(house.root / "views"))


@pytest.mark.parametrize("is_wanted", ["before it is tidied", "after that"])
def test_both_gone_leaves_no_files(filled: House, monkeypatch: pytest.MonkeyPatch, is_wanted: str) -> None:
    """What has no name any more is removed, in small steps; what is wanted again is fetched again, and stays."""
    monkeypatch.setattr(holdings, "LEAVING_STEP", 3)
    held = filled.find(LATER, view=True) or filled.bring(LATER)
    filled.store.view(held.held.tree)
    before = _files(filled)
    house = reopened(filled, _both_gone)
    try:
        assert house.find(LATER) is None and _files(house) == before
        if is_wanted == "before it is tidied":
            assert house.bring(MODEL).origin_bytes == sum(map(len, FILES.values()))
        house.sweeper.tidy()
        if is_wanted == "after that":
            assert _files(house) == set() and house.index.totals()["blob_count"] == 0
            house.bring(MODEL)
        brought = house.bring(MODEL)
        assert house.content(brought.held) == FILES and house.store.unsound(house.tree(brought.held)) == frozenset()
        assert _files(house) == set(house.tree(brought.held).rows) | {brought.held.tree}
        house.sweeper.tidy()
        assert house.content(house.bring(MODEL).held) == FILES
        assert house.index.holdings.leaving() == (Gone({}, {}), "")
    finally:
        house.close()


def test_both_gone_under_a_view(filled: House) -> None:
    """Who has a view of it keeps that until it is let go."""
    held = filled.bring(LATER).held
    view = Path(filled.store.view(held.tree))
    filled.leases.take(held.tree)
    filled.index._tables.is_damaged = True
    for path in (filled.disk.index_path, path_of(filled.disk.index_path)):
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
    assert filled.store.mend_index()
    filled.ticks += 1000.0
    filled.sweeper.tidy()
    assert (view / "top").read_bytes() == FILES["top"]
    filled.leases.give_back(held.tree)
    filled.sweeper.tidy()
    assert not view.exists() and _files(filled) == set()


def test_a_blob_that_cannot_be_looked_at_now_is_not_gone(filled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is short of something does not let go what it could not look at."""
    before, files = known(filled.root), _files(filled)
    filled.index._tables._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    filled.index._tables.is_damaged = True
    garbage(filled.root)

    def short(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as broken:
        broken.setattr("cacheserver.disk.os.stat", short)
        with pytest.raises(CacheError):
            filled.store.mend_index()
    filled.ticks += 31
    assert filled.store.mend_index() and known(filled.root) == before
    filled.sweeper.tidy()
    assert _files(filled) == files
