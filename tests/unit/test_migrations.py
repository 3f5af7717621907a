"""A store of an older release becomes one of this release, with what this release wants to know of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cacheserver.eviction import POLICIES
from cacheserver.index import Index
from cacheserver.schema import MIGRATIONS, statements
from cacheserver.words import Record, Standing
from tests.unit.rows import ORIGIN, blob, tree

TREES = {"s3://b/one": ("a", "both"), "s3://b/two": ("c", "both", "all"), "s3://b/three": ("all",)}
USED = {"s3://b/one": 300.0, "s3://b/two": 100.0, "s3://b/three": 200.0}


@pytest.fixture
def old(path: str) -> str:
    """A store's index as the release before evictions has written it."""
    db = sqlite3.connect(path)
    for migration in MIGRATIONS[:2]:
        for statement in statements(migration):
            db.execute(statement)
    db.execute("PRAGMA user_version = 2")
    db.execute("INSERT INTO origins VALUES (1, ?)", (ORIGIN,))
    for name in ("a", "both", "c", "all", "unheld"):
        db.execute("INSERT INTO blobs (digest, size, xxh3, inode, mtime_ns) VALUES (?, ?, ?, ?, ?)", blob(name))
    for uri, names in TREES.items():
        manifest = tree(*names)
        cursor = db.execute(
            "INSERT INTO trees (digest, file_count, size_bytes) VALUES (?, ?, ?)",
            (manifest.digest, len(names), manifest.size_bytes),
        )
        for name in names:
            db.execute(
                "INSERT INTO members SELECT ?, id FROM blobs WHERE digest = ?", (cursor.lastrowid, blob(name).digest)
            )
        db.execute(
            "INSERT INTO artifacts (origin, uri, selection, tree, file_name, standing, asked, fetched_at, used_at)"
            " VALUES (1, ?, '', ?, '', 2, 1, 50.0, ?)",
            (uri, cursor.lastrowid, USED[uri]),
        )
    db.commit()
    db.close()
    return path


def query(path: str, sql: str) -> list[Any]:
    """What another reader of the file sees."""
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_an_old_store_dumps_the_schema_of_a_new_one(old: str, tmp_path: Path) -> None:
    """To the letter: whoever reads the schema reads what every store has."""
    Index(old, ORIGIN).close()
    Index(str(tmp_path / "new.db"), ORIGIN).close()
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    assert query(old, schema) == query(str(tmp_path / "new.db"), schema)
    assert query(old, "PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_an_old_store_knows_who_holds_its_blobs(old: str) -> None:
    """As if they had been counted from the first day; and they are counted on from there."""
    index = Index(old, ORIGIN)
    try:
        counts = dict(query(old, "SELECT digest, holder_count FROM blobs"))
        expected = {"a": 1, "both": 2, "c": 1, "all": 2, "unheld": 0}
        assert counts == {blob(name).digest: count for name, count in expected.items()}
        gone = index.holdings.evict([tree("a", "both").digest], now=1e6, young_since=1e6)
        assert set(gone.blobs) == {blob("a").digest}
        index.record_tree(tree("c", "both"), [Record("s3://b/x", "", "", Standing.FINISHED, True)], (), 1e6)
        counts = dict(query(old, "SELECT digest, holder_count FROM blobs"))
        assert counts[blob("both").digest] == 2 and counts[blob("c").digest] == 2
        assert index.arrivals.drop(index.arrivals.unheld(), lambda key: False) == {blob("unheld").digest: len("unheld")}
    finally:
        index.close()


def test_an_old_store_ranks_its_trees_by_what_is_known_of_them(old: str) -> None:
    """When they were fetched and last used: nothing is young that came long ago, and the first to go is the first."""
    index = Index(old, ORIGIN)
    try:
        assert list(index.holdings.queue(0, 0, now=1e6, young_since=1e6)) == []
        while index.rankings.rank_some(POLICIES["lru"], 2):
            pass
        queue = [one.item.tree for one in index.holdings.queue(0, 0, now=1e6, young_since=1e6)]
        assert queue == [tree(*TREES[uri]).digest for uri in sorted(USED, key=lambda uri: USED[uri])]
        found = index.holdings.tree(queue[0], now=60.0, young_since=40.0)
        assert found is not None and (found.recorded_at, found.use_count, found.kept) == (
            50.0,
            1,
            "younger than the grace time",
        )
    finally:
        index.close()
