"""Damage that SQLite tells in other words than "malformed": the index is made anew all the same."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver import restoring
from cacheserver.mirror import path_of
from cacheserver.schema import MIGRATIONS, schema_after, statements
from tests.unit.house import House
from tests.unit.lost import LATER, MODEL, fill, known, reopened

SCHEMA = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET "
DAMAGES: dict[str, str | tuple[int, bytes]] = {
    "no such table": SCHEMA + "name = 'aliasez', tbl_name = 'aliasez',"
    " sql = replace(sql, 'TABLE aliases', 'TABLE aliasez') WHERE name = 'aliases'",
    "no such column": SCHEMA + "sql = replace(sql, 'file_name', 'file_nbme') WHERE name = 'artifacts'",
    "text that is none": "UPDATE artifacts SET file_name = CAST(x'ff' AS TEXT)",
    "a name that is no text": SCHEMA + "sql = CAST(x'ff' || sql AS TEXT), name = CAST(x'ff' || name AS TEXT)"
    " WHERE name = 'pins'",
    "a larger number": "PRAGMA user_version = 68",
    "a smaller number": "PRAGMA user_version = 0",
    "a write version": (18, b"\x03"),
    "a schema format": (44, b"\x00\x00\x00\x44"),
}
OF_THE_MIRROR: dict[str, str | tuple[int, bytes]] = {
    "no such column": SCHEMA + "sql = replace(sql, 'pinned_at', 'pinned_bt') WHERE name = 'mirrored_pins'",
    "a write version": (18, b"\x03"),
    "a schema format": (44, b"\x00\x00\x00\x44"),
}


def _damage(path: Path, how: str | tuple[int, bytes]) -> None:
    if isinstance(how, tuple):
        with path.open("r+b") as file:
            file.seek(how[0])
            file.write(how[1])
        return
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(how)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _use(house: House) -> None:
    """What meets the damage, where a start has not."""
    for _ in range(2):
        try:
            house.index.held(MODEL, "")
            house.index.pins.pin(LATER, "", owner=7, asked=LATER, now=house.now, seconds=9.0)
            house.index.pins.unpin([LATER], "", house.now)
            return
        except CacheError:
            assert house.index.is_damaged and restoring.mend(house.index, house.disk)
    raise AssertionError("it was not mended")


@pytest.mark.parametrize("how", DAMAGES)
def test_an_index_in_other_words(tmp_path: Path, how: str) -> None:
    """It is put aside, and nothing is lost."""
    house = fill(House(tmp_path / "store"))
    before = known(house.root)
    house = reopened(house, lambda root: _damage(root / "index.db", DAMAGES[how]))
    try:
        _use(house)
        pins = known(house.root).pop("pins")
        now = known(house.root) | {"pins": [row for row in pins if row[3] != 7]}
        assert {name: now[name] for name in before} == before
        assert [path for path in (house.root / "quarantine").iterdir() if path.name.endswith("index.db")]
    finally:
        house.close()


@pytest.mark.parametrize("how", OF_THE_MIRROR)
def test_a_mirror_in_other_words(tmp_path: Path, how: str) -> None:
    """The index stays."""
    house = fill(House(tmp_path / "store"))
    before = known(house.root)
    house = reopened(house, lambda root: _damage(Path(path_of(str(root / "index.db"))), OF_THE_MIRROR[how]))
    try:
        _use(house)
        assert known(house.root)["artifacts"] == before["artifacts"]
        assert not [path for path in (house.root / "quarantine").iterdir() if path.name.endswith("index.db")]
    finally:
        house.close()


def test_each_migration_changes_the_schema() -> None:
    """By that a number that has rotted is told from one of another release."""
    done = [list(itertools.chain.from_iterable(map(statements, MIGRATIONS[:n]))) for n in range(len(MIGRATIONS) + 1)]
    assert len({frozenset(schema_after(one)) for one in done}) == len(done)
