"""The mirror of names: whatever becomes of it, the index beside it is sound, and has all that it has."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError
from cacheserver import fsck, restoring, uris
from cacheserver.database import IndexDamaged
from cacheserver.holdings import Gone
from cacheserver.mirror import TABLES, path_of
from tests.unit.house import FEW, FILES, House
from tests.unit.lost import LATER, MODEL, fill, known

PAGE_BYTES = 4096


def _mirror_of(root: Path) -> Path:
    return Path(path_of(str(root / "index.db")))


def _behind(root: Path) -> None:
    """The mirror has missed the last change."""
    with contextlib.closing(sqlite3.connect(_mirror_of(root))) as db:
        db.execute("UPDATE mirror SET changes = changes - 1")
        db.commit()


def _is_sound(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return bool(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok")


def _mirrored(root: Path) -> dict[str, list[Any]]:
    """What the mirror has, in the words of `known`."""
    with contextlib.closing(sqlite3.connect(_mirror_of(root))) as db:
        return {
            name: sorted(db.execute(f"SELECT {', '.join(table.columns)} FROM mirrored_{name}"), key=repr)
            for name, table in TABLES.items()
        }


class Pages:
    """A store that is closed, of whose mirror one page after the other is damaged, each time in a copy."""

    def __init__(self, house: House) -> None:
        self.before, self.origin = known(house.root), house.origin
        house.close()
        self._house, self._copies = house, itertools.count()
        self.count = _mirror_of(house.root).stat().st_size // PAGE_BYTES

    def damaged(self, page: int, *, is_behind: bool) -> Path:
        """A copy of the store whose mirror has a damaged page."""
        root = self._house.root.parent / f"copy-{next(self._copies)}"
        shutil.copytree(self._house.root, root, symlinks=True)
        if is_behind:
            _behind(root)
        with _mirror_of(root).open("r+b") as file:
            file.seek(page * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)
        return root

    def assert_mended(self, root: Path, what: object) -> None:
        """The index is the same one, and has everything; the mirror is a mirror again."""
        now = known(root)
        assert now == self.before, what
        assert _is_sound(_mirror_of(root)) and _mirrored(root) == {name: now[name] for name in TABLES}, what
        kept = sorted(name.partition("-")[2] for name in os.listdir(root / "quarantine"))
        assert [name for name in kept if name.endswith(".db")] == ["index.names.db"], what


@pytest.mark.parametrize("is_behind", [False, True], ids=["in step", "behind"])
@pytest.mark.parametrize("how", ["start", "fsck"])
def test_any_page_of_the_mirror(tmp_path: Path, is_behind: bool, how: str) -> None:
    """Whichever is damaged, the index is sound and stays; a mirror that was made anew takes the mirror's place. At a
    start, as soon as something reads the page; by fsck, at once."""
    pages = Pages(fill(House(tmp_path / "store")))
    assert pages.count > 5
    for page in range(pages.count):
        root = pages.damaged(page, is_behind=is_behind)
        if how == "fsck":
            assert fsck.check(str(root)).sound
        else:
            house = House(root)
            assert house.index.held(MODEL, "") is not None
            restoring.mend(house.index, house.disk)  # as where a change meets the page
            house.close()
        pages.assert_mended(root, f"page {page + 1} of {pages.count}")


def test_any_page_of_the_mirror_while_it_serves(tmp_path: Path) -> None:
    """Whoever changes what is on the page is told to try again, and then it works; nobody else hears of it."""
    pages = Pages(fill(House(tmp_path / "store")))
    for page in range(pages.count):
        root = pages.damaged(0, is_behind=False)
        shutil.copy(_mirror_of(tmp_path / "store"), _mirror_of(root))
        house = House(root)
        with _mirror_of(root).open("r+b") as file:
            file.seek(page * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)
        house.index._tables._db.execute("PRAGMA shrink_memory")
        with contextlib.suppress(IndexDamaged):
            house.index.pins.pin(LATER, "", owner=7, asked=LATER, now=house.now, seconds=9.0)
        assert house.index.held(MODEL, "") is not None
        restoring.mend(house.index, house.disk)
        house.index.pins.unpin([LATER], "", house.now)
        house.index.pins.pin(LATER, "", owner=7, asked=LATER, now=house.now, seconds=9.0)
        house.index.pins.unpin([LATER], "", house.now)
        house.close()
        pages.assert_mended(root, f"page {page + 1} of {pages.count}")


@contextlib.contextmanager
def _no_room_for_the_mirror(house: House) -> Iterator[None]:
    """The log of the index can grow, and that of the mirror cannot: no file of this process may become so large."""
    tables = house.index._tables
    tables._db.execute("PRAGMA names.wal_autocheckpoint = 0")
    tables._db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
    for number in range(20):
        tables._db.execute("UPDATE names.mirror SET changes = changes")
        tables._db.execute("UPDATE names.mirrored_pins SET pinned_at = pinned_at + ?", (number,))
    tables._db.execute("UPDATE names.mirrored_pins SET pinned_at = pinned_at - 190")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = Path(f"{_mirror_of(house.root)}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_commit_that_fails_for_the_mirror_only(tmp_path: Path) -> None:
    """The index has what was committed, and says so: files of rows that are gone go. The mirror is made anew."""
    house = fill(House(tmp_path / "store"))
    held = house.index.held(LATER, "")
    assert held is not None
    with _no_room_for_the_mirror(house):
        assert house.index.pins.pin(LATER, "", owner=9, asked=LATER, now=house.now, seconds=9.0)
        house.index.pins.unpin([LATER], "", house.now)
        gone = house.store.departures.evict([held.tree], now=house.now, young_since=house.now)
        assert list(gone.trees) == [held.tree] and not house.disk.has_manifest(held.tree)
        assert house.index.held(LATER, "") is None and house.index.holdings.leaving() == (Gone({}, {}), "")
    assert house.index.is_behind and _mirrored(house.root) != known(house.root)
    house.store.mend_index()
    assert not house.index.is_behind
    now = known(house.root)
    assert _mirrored(house.root) == {name: now[name] for name in TABLES}
    house.close()


def test_a_commit_that_fails_for_both(tmp_path: Path) -> None:
    """Then nothing has happened, and that is said."""
    house = fill(House(tmp_path / "store"))
    before = known(house.root)
    house.index._tables._db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(CacheError):
            house.index.pins.unpin([MODEL], "", house.now)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not house.index.is_behind and known(house.root) == before
    house.close()


ROT = {
    "another tree": "UPDATE artifacts SET tree = (SELECT max(id) FROM trees) WHERE uri = '{}'",
    "another version": "UPDATE aliases SET version = '3'",
    "another root": "UPDATE versions SET root = root || 'x' WHERE version = 'models:/resnet/3'",
    "the mirror's tree": "UPDATE mirrored_artifacts SET tree = (SELECT max(tree) FROM mirrored_artifacts)"
    " WHERE uri = '{}'",
}


@pytest.mark.parametrize("rot", ROT)
@pytest.mark.parametrize("who", ["daemon", "fsck"])
def test_rot_that_keeps_the_structure(tmp_path: Path, rot: str, who: str) -> None:
    """A name that stands for something else in one of the two files is believed in neither: the origin is asked."""
    house = fill(House(tmp_path / "store"))
    tracking, before = house.origin, known(house.root)
    held = house.index.held(MODEL, "")
    assert held is not None and restoring.compare(house.index) == []
    uri = MODEL if held.tree != max(before["trees"])[0] else LATER
    house.close()
    path = _mirror_of(house.root) if "mirror" in rot else house.root / "index.db"
    with contextlib.closing(sqlite3.connect(path)) as db:  # as a bit that flips: no trigger of the daemon's sees it
        db.execute(ROT[rot].format(uri))
        db.commit()
    if who == "fsck":
        fsck.check(str(house.root))
    house = House(house.root, origin=tracking)
    assert who == "fsck" or len(restoring.compare(house.index)) == 1
    assert restoring.compare(house.index) == []
    for name in (MODEL, LATER):
        brought = house.bring(name)
        files = {k: v for k, v in house.content(brought.held).items() if v is not None}
        assert files == (FILES if name == MODEL else FILES | FEW)
    assert house.cache.version_of(uris.parse("models:/resnet@champion")).artifact.base == LATER
    assert known(house.root)["pins"] == before["pins"]
    house.close()
