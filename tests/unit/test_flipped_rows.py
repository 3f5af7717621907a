"""A bit that flips in a row of the index and keeps SQLite's structure: found by whoever meets it, or by who looks."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from artifactcache.errors import CacheError
from cacheserver import assembly, restoring
from cacheserver.upkeep import ROUND_SECONDS, Upkeep
from tests.unit.healer import Healer
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, fsck_command

ROUNDS_OF_A_DAY = 5  # of the daemon's chores, as one test has them


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


def test_the_daemon_looks_a_day_after_its_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at it, when others want the processor: then it compares names only."""
    monkeypatch.setattr(assembly, "COMPARE_SECONDS", ROUNDS_OF_A_DAY * ROUND_SECONDS)
    house, enough = Healer(root), threading.Event()
    was_found: list[bool] = []

    def note() -> None:
        """What is done after the look, in each round."""
        was_found.append(house.index.is_damaged)
        if len(was_found) > ROUNDS_OF_A_DAY:
            enough.set()

    idle = SimpleNamespace(**dict.fromkeys(("look", "watch", "tidy", "refresh", "write", "note", "search"), int))
    others = dict.fromkeys(("sweeper", "retaining", "recorder", "warming", "overview", "ingesting", "meddling"), idle)
    parts = SimpleNamespace(
        **others, healing=idle, store=house.store, scrubber=SimpleNamespace(look=note), sharing=None
    )
    (thread,) = (each for each in assembly._upkeep(cast(Any, parts)) if each._thread.name == "scrub")
    monkeypatch.setattr(thread._stopping, "wait", lambda seconds: thread._stopping.is_set())  # rounds take no time
    try:
        thread.start()
        assert enough.wait(PATIENCE_SECONDS)
        assert was_found[: ROUNDS_OF_A_DAY + 1] == [False] * ROUNDS_OF_A_DAY + [True]
    finally:
        Upkeep.stop_all([thread], lambda seconds: seconds)
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
