"""How much is held: always what a count of the rows gives, and never a count of the rows."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cacheserver.index import Index, MissingBlobs
from cacheserver.words import Arrived, BlobRow, Entry, Manifest, Record, Standing
from tests.unit.house import FILES, ROOT, House
from tests.unit.rows import expire


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the index is."""
    return str(tmp_path / "index.db")


@pytest.fixture
def index(path: str) -> Iterator[Index]:
    """An empty index."""
    index = Index(path, "http://one.example")
    yield index
    index.close()


def counted(path: str) -> dict[str, int]:
    """The same numbers, from the rows."""
    db = sqlite3.connect(path)
    try:
        found = db.execute(
            "SELECT (SELECT count(*) FROM artifacts WHERE asked = 1),"
            " (SELECT coalesce(sum(t.size_bytes), 0) FROM artifacts a JOIN trees t ON t.id = a.tree WHERE a.asked = 1),"
            " (SELECT count(*) FROM trees), (SELECT count(*) FROM blobs), (SELECT coalesce(sum(size), 0) FROM blobs)"
        ).fetchone()
    finally:
        db.close()
    return dict(zip(("artifact_count", "artifact_bytes", "tree_count", "blob_count", "blob_bytes"), found, strict=True))


def blob(name: str, inode: int = 1) -> BlobRow:
    """A blob's row."""
    return BlobRow(blake3(name.encode()).hexdigest(), len(name), f"xxh3 of {name}", inode, 1)


def test_totals_are_the_sums_of_the_rows(path: str, index: Index, dice: random.Random) -> None:
    """After whatever the index can do, in any order, for what was asked for and what was not, done and broken off."""
    names = ["a", "bb", "ccc", "dddd", "eeeee"]
    for now in range(400):
        some = dice.sample(names, dice.randrange(1, 4))
        uri = f"s3://b/{dice.randrange(6)}"
        manifest = Manifest.of(Entry(n.encode(), blob(n).digest, len(n)) for n in some)
        match dice.randrange(6):
            case 0:
                rows = [blob(n, inode=now) for n in some]
                index.record_arrivals(
                    rows, {f"{uri}/{n}": Arrived(blob(n).digest, len(n)) for n in some}, Standing.FINISHED, now
                )
            case 1 | 2:
                try:
                    artifact = Record(uri, dice.choice(["", "x"]), "", Standing.FINISHED, dice.random() < 0.5)
                    index.record_tree(manifest, [artifact], [f"{uri}/{n}" for n in some], now)
                except MissingBlobs:
                    pass
            case 3:
                index.forget_blob(blob(some[0]).digest)
            case 4:
                expire(index, now - dice.randrange(30))
            case 5:
                index.record_uses({(uri, ""): now})
        assert index.totals() == counted(path)
    index.close()
    index.__init__(path, "http://other.example")  # type: ignore[misc]
    assert index.totals() == counted(path) and index.totals()["artifact_count"] > 0


def test_totals_take_the_same_work_however_much_is_held(index: Index) -> None:
    """Every download and every call for figures asks, and all hits wait meanwhile."""
    steps = []
    for count in (10, 3000):
        index.record_arrivals([blob(str(n)) for n in range(count)], {}, Standing.FINISHED, 1.0)
        seen = [0]

        def step(seen: list[int] = seen) -> None:
            seen[0] += 1

        index._tables._reader.conn.set_progress_handler(step, 1)
        assert index.totals()["blob_count"] == count
        index._tables._reader.conn.set_progress_handler(None, 1)
        steps.append(seen[0])
    assert steps[0] == steps[1] > 0


def test_a_store_that_was_used_knows_its_totals(house: House) -> None:
    """Through downloads, another tree for an artifact, quarantine, and what unfinished downloads left."""
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    held = house.bring(ROOT).held
    house.origin.files[f"{ROOT}/more"] = b"55555"
    house.bring(ROOT, refresh=True)
    assert house.index.totals() == counted(house.disk.index_path)
    house.damage(house.digest(held, "top"))
    assert house.find(ROOT) is None and house.store.quarantine_count() == 1
    path = house.store.stage()
    Path(path).write_bytes(b"left")
    house.store.keep({f"{ROOT}/left": house.store.measure(path)}, Standing.FINISHED, 1.0)
    assert house.index.totals() == counted(house.disk.index_path)
    assert house.store.leftovers.expire(house.now) == 1
    assert house.index.totals() == counted(house.disk.index_path) and house.index.totals()["blob_count"] == 4
