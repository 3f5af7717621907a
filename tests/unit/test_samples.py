"""A store of each release before this one, as it was left: it opens, becomes one of this release, and serves.

The samples were made by those releases' own daemons and clients: three artifacts below `file:///tmp/samples/origin`, of
one a selection too, a view of each; the third has a pin. `schema-N.tar.xz` is the first whose index has schema N.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError
from cacheserver import database, uris
from cacheserver.database import Tables
from cacheserver.schema import MIGRATIONS
from cacheserver.selection import Selection
from cacheserver.words import Progress
from tests.unit.house import Shelf, fsck_command

SAMPLES = Path(__file__).parent.parent / "samples"
ORIGIN = "http://127.0.0.1:9"
AT = "file:///tmp/samples/origin"
DATA = Selection.of(["data/**"], [])
MODEL = {"MLmodel": b"flavors: {}\n", "data/weights": b"weights of the first\n", "empty": b""}
OTHER = {"MLmodel": b"flavors: {}\n", "more": b"something else\n"}
HELD = {
    ("model", ""): MODEL,
    ("model", DATA.key): {"data/weights": MODEL["data/weights"]},
    ("other", ""): OTHER,
    ("other/more", ""): {"more": OTHER["more"]},
}


@pytest.fixture(params=range(1, len(MIGRATIONS)), ids=lambda number: f"schema {number}")
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a store that nobody has opened since."""
    with tarfile.open(SAMPLES / f"schema-{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "store"


@pytest.fixture
def opened(sample: Path) -> Iterator[Shelf]:
    """It, opened."""
    shelf = Shelf(sample, tracking_uri=ORIGIN)
    yield shelf
    with contextlib.suppress(sqlite3.ProgrammingError):  # a test has closed it
        shelf.close()


def test_there_is_one_of_each() -> None:
    """Who writes a migration keeps a store from before it."""
    assert {f.name for f in SAMPLES.iterdir()} >= {f"schema-{n}.tar.xz" for n in range(1, len(MIGRATIONS))}


def test_all_that_was_held_is_held(opened: Shelf) -> None:
    """Every artifact with every byte, whatever the release did not know; and it can be handed out as a view."""
    assert {(one.uri, one.selection) for one in opened.index.asked()} == {(f"{AT}/{u}", s) for u, s in HELD}
    for (uri, selection), files in HELD.items():
        held = opened.index.held(uris.parse(f"{AT}/{uri}").uri, selection)
        assert held is not None and held.fetched_at > 1.7e9 and not opened.store.unsound(opened.tree(held))
        assert opened.content(held) == files
        view = Path(opened.store.view(held.tree))
        assert {str(p.relative_to(view)): p.read_bytes() for p in view.rglob("*") if p.is_file()} == files
    assert opened.store.verify(None, Progress()).corrupted == ()


def test_its_rows_are_those_of_a_new_one(opened: Shelf, tmp_path: Path) -> None:
    """Table by table: the same tables, columns, triggers and indexes, and the same rows but for times and inodes."""
    new = Shelf(tmp_path / "new", tracking_uri=ORIGIN)
    for (uri, selection), files in HELD.items():
        new.put(files, f"{AT}/{uri}", selection)
    new.close()
    opened.close()
    assert _schema(opened.root) == _schema(new.root)
    assert _rows(opened.root) == _rows(new.root)


def test_a_migration_happens_as_a_whole_or_not_at_all(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails at its last statement leaves the store as it was; the next daemon makes it one of its own."""
    before = _schema(sample)
    with monkeypatch.context() as failing:
        failing.setattr(database, "MIGRATIONS", (*MIGRATIONS[:-1], MIGRATIONS[-1] + "INSERT INTO nowhere VALUES (1);"))
        with pytest.raises(CacheError, match="nowhere"):
            Tables(str(sample / "index.db"))
    assert _schema(sample) == before
    Shelf(sample, tracking_uri=ORIGIN).close()
    assert _schema(sample) != before


def test_it_is_sound(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check of a whole store finds nothing to mend, and nothing that it does not know."""
    assert fsck_command(sample) == 0
    assert capsys.readouterr().out.endswith("sound\n")


def _schema(root: Path) -> list[Any]:
    with closing(sqlite3.connect(root / "index.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")]
        columns = [(table, *row[1:]) for table in tables for row in db.execute(f"PRAGMA table_info({table})")]
        rest = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE type != 'table' ORDER BY 1, 2").fetchall()
        return [db.execute("PRAGMA user_version").fetchone(), sorted(columns), rest]


def _rows(root: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(root / "index.db")) as db:
        return {
            "blobs": sorted(db.execute("SELECT digest, size, xxh3 FROM blobs")),
            "holders": sorted(db.execute("SELECT digest FROM blobs WHERE holder_count > 0")),
            "artifacts": sorted(
                db.execute("SELECT uri, tree.digest FROM artifacts a JOIN trees tree ON tree.id = a.tree WHERE a.asked")
            ),
            "members": sorted(
                db.execute(
                    "SELECT t.digest, b.digest FROM members m JOIN trees t ON t.id = m.tree"
                    " JOIN blobs b ON b.id = m.blob"
                )
            ),
            "origins": db.execute("SELECT tracking_uri FROM origins").fetchall(),
        }
