"""A bit that flips in a row of the index and keeps SQLite's structure: found by whoever meets it, or by who looks."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver import restoring
from tests.unit.healer import Healer
from tests.unit.house import FILES, ROOT, fsck_command


def _flip(root: Path, table: str) -> None:
    """A letter of a digest becomes another one where its row is; the entry of SQLite's index that leads there stays."""
    index = root / "index.db"
    with contextlib.closing(sqlite3.connect(index)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (digest,) = db.execute(f"SELECT digest FROM {table} ORDER BY id LIMIT 1").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(index.read_bytes())
    at = data.index(digest.encode(), (page - 1) * page_bytes, page * page_bytes)
    data[at + 5] ^= 0x01
    index.write_bytes(data)


@pytest.fixture(params=["blobs", "trees"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store with one artifact, and a bit flipped."""
    house = Healer(tmp_path / "store")
    house.fill()
    house.close()
    _flip(tmp_path / "store", request.param)
    return tmp_path / "store"


def _is_served(house: Healer) -> bool:
    found = house.find(ROOT) or house.bring(ROOT)
    return house.content(found.held) == FILES


def test_whoever_meets_it_has_it_mended(root: Path) -> None:
    """He is told to try again, and then has what he asked for."""
    house = Healer(root)
    try:
        house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
        with pytest.raises(CacheError, match=r"[Tt]ry again in a moment"):
            _is_served(house)
        assert house.store.mend_index()
        assert _is_served(house)
    finally:
        house.close()


def test_who_looks_through_the_index_finds_it(root: Path) -> None:
    """Before anybody asks; what is sound is left alone."""
    house = Healer(root)
    try:
        restoring.look_through(house.index)
        assert house.index.is_damaged and house.store.mend_index()
        restoring.look_through(house.index)
        assert not house.index.is_damaged
        house.origin.down = True
        assert _is_served(house)
    finally:
        house.close()


def test_fsck_finds_it(root: Path) -> None:
    """And makes the index anew: the next daemon serves what was held."""
    fsck_command(root)
    house = Healer(root)
    try:
        house.origin.down = True
        assert _is_served(house)
    finally:
        house.close()
