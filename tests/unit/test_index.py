"""The index, on a real SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver.database import IndexDamaged
from cacheserver.index import Index, MissingBlobs
from cacheserver.schema import MIGRATIONS
from cacheserver.words import Entry, Manifest, Record, Resolved, Standing
from tests.unit.house import PATIENCE_SECONDS
from tests.unit.rows import ORIGIN, arrived, blob, expire, record, tree

EMPTY_DIGEST = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # BLAKE3 of nothing


def test_what_was_recorded_is_held(index: Index) -> None:
    """An artifact comes back with its tree, its counts and its times; other selections and URIs are not held."""
    manifest = record(index, "s3://b/p", "x", "yy", standing=Standing.OPEN, now=7.5)
    held = index.held("s3://b/p", "")
    assert held is not None
    assert (held.uri, held.selection, held.tree, held.file_name) == ("s3://b/p", "", manifest.digest, "")
    assert (held.file_count, held.size_bytes, held.standing) == (2, 3, Standing.OPEN)
    assert (held.fetched_at, held.used_at) == (7.5, 7.5)
    assert index.held("s3://b/p", '[["x"], []]') is None and index.held("s3://b", "") is None
    assert index.tree_blobs(manifest.digest) == {blob(n).digest: blob(n) for n in ("x", "yy")}
    assert index.blobs([blob("x").digest, "not held"]) == {blob("x").digest: blob("x")}
    assert index.all_trees() == [("s3://b/p", manifest.digest)]


def test_a_tree_appears_whole_or_not_at_all(index: Index) -> None:
    """Where one blob is missing nothing of the tree is recorded, not even its name, and the arrivals stay."""
    index.record_arrivals([blob("x")], {"s3://b/p/x": arrived("x")}, Standing.FINISHED, 1.0)
    with pytest.raises(MissingBlobs):
        index.record_tree(tree("x", "gone"), [Record("s3://b/p", "", "", Standing.FINISHED, True)], ["s3://b/p/x"], 2.0)
    assert index.held("s3://b/p", "") is None
    assert index.tree_blobs(tree("x", "gone").digest) == {}
    assert index.totals()["tree_count"] == 0
    assert index.arrivals.at_or_below("s3://b/p") == {"s3://b/p/x": (arrived("x"), Standing.FINISHED, 1.0)}


def test_a_failure_in_the_middle_leaves_nothing(index: Index) -> None:
    """Rows of one call appear together: an artifact that cannot be written takes its tree with it."""
    index.record_arrivals([blob("x")], {}, Standing.FINISHED, 1.0)
    broken = [Record("s3://b/p", "", "", Standing.FINISHED, True), Record("s3://b/q", "", None, Standing.OPEN, True)]  # type: ignore[arg-type]
    with pytest.raises(IndexDamaged):
        index.record_tree(tree("x"), broken, (), 2.0)
    assert index.held("s3://b/p", "") is None and index.totals()["tree_count"] == 0


def test_empty_files_and_folders_need_no_blob(index: Index) -> None:
    """A tree without bytes is recorded without any."""
    manifest = Manifest.of([Entry(b"empty", EMPTY_DIGEST, 0), Entry(b"folder/", "-", 0)])
    index.record_tree(manifest, [Record("s3://b/p", "", "", Standing.FINISHED, True)], (), 1.0)
    index.record_tree(Manifest.of([]), [Record("s3://b/none", "", "", Standing.FINISHED, True)], (), 1.0)
    held, none = index.held("s3://b/p", ""), index.held("s3://b/none", "")
    assert held is not None and held.file_count == 1 and held.size_bytes == 0
    assert none is not None and none.file_count == 0


def test_recording_again_keeps_what_is_known_of_uses(index: Index) -> None:
    """A newer tree takes the artifact's place; when it was used and that a client asked for it are not forgotten."""
    record(index, "s3://b/p", "x", now=1.0)
    index.record_uses({("s3://b/p", ""): 50.0, ("s3://b/none", ""): 60.0})
    newer = record(index, "s3://b/p", "y", asked=False, now=9.0)
    held = index.held("s3://b/p", "")
    assert held is not None and (held.tree, held.fetched_at, held.used_at) == (newer.digest, 9.0, 50.0)
    assert [h.uri for h in index.asked()] == ["s3://b/p"]
    index.record_uses({("s3://b/p", ""): 40.0})  # told late
    again = index.held("s3://b/p", "")
    assert again is not None and again.used_at == 50.0


def test_only_what_clients_asked_for_is_listed(index: Index) -> None:
    """The location behind an artifact serves other artifacts, and is no entry of its own."""
    record(index, "runs:/r/b", "x")
    record(index, "runs:/r/a", "x")
    record(index, "s3://b/r/b", "x", asked=False)
    assert [h.uri for h in index.asked()] == ["runs:/r/a", "runs:/r/b"]
    assert index.holders([blob("x").digest]) == [("runs:/r/a", ""), ("runs:/r/b", "")]
    assert index.totals() == {
        "artifact_count": 2,
        "artifact_bytes": 2,
        "tree_count": 1,
        "blob_count": 1,
        "blob_bytes": 1,
    }


def test_above_and_below_are_by_folder_not_by_letters(index: Index) -> None:
    """A neighbour whose name only begins alike is neither above nor below."""
    for uri in ("s3://b/p", "s3://b/p/q", "s3://b/p/q/r", "s3://b/p0", "s3://b/p-q", "s3://b/p.q", "s3://b", "s3://bb"):
        record(index, uri, "x")
    assert [h.uri for h in index.above("s3://b/p/q")] == ["s3://b", "s3://b/p", "s3://b/p/q"]
    assert [h.uri for h in index.above("s3://b/p/q/none")] == ["s3://b", "s3://b/p", "s3://b/p/q"]
    assert sorted(h.uri for h in index.at_or_below("s3://b/p")) == ["s3://b/p", "s3://b/p/q", "s3://b/p/q/r"]
    index.record_arrivals(
        [blob("x")], {f"s3://b/{n}": arrived("x") for n in ("f/1", "f", "f1", "f-/2")}, Standing.FINISHED, 1.0
    )
    assert sorted(index.arrivals.at_or_below("s3://b/f")) == ["s3://b/f", "s3://b/f/1"]


def test_a_very_deep_uri_is_asked_for_at_once(index: Index) -> None:
    """More parents than SQLite takes variables, and more digests, are no error."""
    assert index.above("s3://b/" + "d/" * 2000 + "x") == []
    many = [blob(str(n)) for n in range(2500)]
    index.record_arrivals(many, {}, Standing.FINISHED, 1.0)
    assert len(index.blobs([b.digest for b in many])) == 2500
    index.record_tree(
        tree(*(str(n) for n in range(2500))), [Record("s3://b/p", "", "", Standing.FINISHED, True)], (), 1.0
    )
    assert index.holders([b.digest for b in many]) == [("s3://b/p", "")]


def test_a_blob_that_is_forgotten_says_which_trees_lack_it(index: Index) -> None:
    """Its row, its arrivals and its memberships go in one step; the trees stay, incomplete, until it is back."""
    one, other = record(index, "s3://b/1", "x", "y"), record(index, "s3://b/2", "x")
    record(index, "s3://b/3", "z")
    index.record_arrivals([], {"s3://b/f": arrived("x")}, Standing.FINISHED, 1.0)
    assert sorted(index.forget_blob(blob("x").digest)) == sorted([one.digest, other.digest])
    assert set(index.tree_blobs(one.digest)) == {blob("y").digest} and index.tree_blobs(other.digest) == {}
    assert index.arrivals.at_or_below("s3://b/f") == {} and blob("x").digest not in index.blobs([blob("x").digest])
    assert index.forget_blob(blob("x").digest) == []
    record(index, "s3://b/1", "x", "y")
    assert set(index.tree_blobs(one.digest)) == {blob("x").digest, blob("y").digest}
    assert index.tree_blobs(other.digest) == {}  # only who records it again has it again


def test_a_blobs_inode_may_become_another(index: Index) -> None:
    """The bytes of a blob are what they are; where they lie may change."""
    record(index, "s3://b/p", "x")
    index.record_blob(blob("x", inode=77))
    assert index.blobs([blob("x").digest])[blob("x").digest].inode == 77
    assert index.totals()["blob_count"] == 1


def test_arrivals_end_with_their_tree_or_with_time(index: Index) -> None:
    """What belongs to a tree is kept when its arrival ends; what belongs to nothing is given back to be unlinked."""
    uris = {f"s3://b/p/{n}": arrived(n) for n in "xyz"}
    index.record_arrivals([blob(n) for n in "xyz"], uris, Standing.FINISHED, 10.0)
    index.record_arrivals([], {"s3://b/other/z": arrived("z")}, Standing.FINISHED, 30.0)
    index.record_tree(tree("x"), [Record("s3://b/p/x", "", "x", Standing.FINISHED, True)], ["s3://b/p/x"], 11.0)
    assert set(index.arrivals.at_or_below("s3://b/p")) == {"s3://b/p/y", "s3://b/p/z"}
    assert list(expire(index, 10.0)) == []  # none is older
    assert list(expire(index, 20.0)) == [blob("y").digest]  # x has a tree, z has come again since
    assert index.arrivals.at_or_below("s3://b") == {"s3://b/other/z": (arrived("z"), Standing.FINISHED, 30.0)}
    assert sorted(index.all_digests()) == sorted([blob("x").digest, blob("z").digest])
    assert list(expire(index, 99.0)) == [blob("z").digest]


def test_a_walk_over_all_blobs_meets_each_once(index: Index) -> None:
    """In batches, by digest."""
    index.record_arrivals([blob(str(n)) for n in range(25)], {}, Standing.FINISHED, 1.0)
    seen: list[str] = []
    while rows := index.some_blobs(seen[-1] if seen else "", 10):
        seen += [row.digest for row in rows]
    assert seen == sorted(index.all_digests()) and len(seen) == 25


def test_a_view_is_remembered(index: Index) -> None:
    """Whether a tree has a view survives; an unknown tree has none."""
    manifest = record(index, "s3://b/p", "x")
    assert not index.has_view(manifest.digest) and not index.has_view("unknown")
    index.record_view(manifest.digest, exists=True)
    assert index.has_view(manifest.digest)
    record(index, "s3://b/q", "x")  # the same tree again
    assert index.has_view(manifest.digest)
    index.record_view(manifest.digest, exists=False)
    assert not index.has_view(manifest.digest)


def test_one_store_keeps_origins_apart(path: str, index: Index) -> None:
    """Two tracking servers may have the same run ID: neither is answered with the other's artifact."""
    record(index, "runs:/r", "x")
    index.versions.record(Resolved("runs:/r", "s3://b/r", (), True), 1.0)
    index.record_arrivals([], {"s3://b/f": arrived("x")}, Standing.FINISHED, 1.0)
    other = Index(path, "http://other.example")
    try:
        assert other.held("runs:/r", "") is None and other.versions.resolved("runs:/r") is None and other.asked() == []
        assert (
            other.above("runs:/r") == other.at_or_below("runs:/r") == [] and other.arrivals.at_or_below("s3://b") == {}
        )
        assert set(other.blobs([blob("x").digest])) == {blob("x").digest}  # bytes are bytes, whoever brought them
    finally:
        other.close()


def test_a_store_that_is_opened_again_has_it_all(path: str) -> None:
    """What was recorded is there after a restart."""
    index = Index(path, ORIGIN)
    record(index, "s3://b/p", "x")
    held = index.held("s3://b/p", "")
    index.close()
    again = Index(path, ORIGIN)
    assert again.held("s3://b/p", "") == held is not None
    again.close()


def test_threads_share_an_index(index: Index) -> None:
    """Many threads record and read at once; nothing is lost and nothing fails."""

    def work(n: int) -> None:
        for step in range(10):
            record(index, f"s3://b/{n}/{step}", f"{n}", f"{step}")
            assert index.held(f"s3://b/{n}/{step}", "") is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(index.asked()) == 80 and index.totals()["blob_count"] == 10


def test_a_hit_waits_for_no_writer(index: Index) -> None:
    """While a transaction is open, others read what was committed before it; its own thread reads what it has done."""
    before = record(index, "s3://b/p", "x")
    written, read = threading.Event(), threading.Event()

    def write() -> bool:
        with index._tables.transaction():
            index._tables.do("DELETE FROM artifacts")
            seen = index.held("s3://b/p", "") is None
            written.set()
            assert read.wait(PATIENCE_SECONDS)
        return seen

    def ask() -> tuple[bool, bool, bool, int]:
        held = index.held("s3://b/p", "") is not None and bool(index.above("s3://b/p/below"))
        blobs = bool(index.blobs([blob("x").digest])) and bool(index.tree_blobs(before.digest))
        return held, blobs, index.has_view(before.digest), index.totals()["artifact_count"]

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        assert written.wait(PATIENCE_SECONDS)
        asked = pool.submit(ask)
        try:
            assert asked.result(PATIENCE_SECONDS) == (True, True, False, 1)
            assert not writing.done()
        finally:
            read.set()
        assert writing.result(PATIENCE_SECONDS)
    assert index.held("s3://b/p", "") is None


def test_who_only_reads_cannot_write(index: Index) -> None:
    """A statement that changes something is refused outside of a transaction."""
    with pytest.raises(CacheError, match="SQLITE_READONLY"):
        index._tables.all("DELETE FROM artifacts")


def test_a_newer_schema_is_refused_in_words_and_not_touched(path: str) -> None:
    """An older release says which schema it found and what to do, and leaves the store as it is."""
    Index(path, ORIGIN).close()
    newer = len(MIGRATIONS) + 1
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {newer}")
        db.execute("CREATE TABLE of_the_newer_one (a TEXT)")
    db.close()
    before = _dump(path)
    with pytest.raises(CacheError, match=f"newer release .schema {newer}, this one knows {len(MIGRATIONS)}") as refused:
        Index(path, ORIGIN)
    assert path in str(refused.value)
    assert _dump(path) == before


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_a_store_of_any_earlier_release_becomes_one_of_this(tmp_path: Path, version: int) -> None:
    """The text of a migrated database is that of a fresh one."""
    fresh, old = str(tmp_path / "fresh.db"), str(tmp_path / "old.db")
    Index(fresh, ORIGIN).close()
    db = sqlite3.connect(old)
    for migration in MIGRATIONS[:version]:
        db.executescript(migration)
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    Index(old, ORIGIN).close()
    assert _dump(old) == _dump(fresh)
    Index(old, ORIGIN).close()  # and once more: there is nothing left to do
    assert _dump(old) == _dump(fresh)


def test_a_migration_that_fails_leaves_the_store_as_it_was(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All migrations are one transaction, their statements one by one inside it."""
    Index(path, ORIGIN).close()
    before = _dump(path)
    second = "CREATE TABLE more (a TEXT);  -- a semicolon; in a comment\nCREATE TABLE origins (a TEXT);\n"
    monkeypatch.setattr("cacheserver.database.MIGRATIONS", (*MIGRATIONS, second))
    with pytest.raises(CacheError, match="already exists"):
        Index(path, ORIGIN)
    assert _dump(path) == before


def test_the_schema_holds_its_rows_to_each_other(path: str, index: Index) -> None:
    """No row speaks of a blob or a tree that has no row: the database itself refuses it."""
    manifest = record(index, "s3://b/p", "x")
    db = sqlite3.connect(path)
    db.execute("PRAGMA foreign_keys = ON")
    for statement in ("DELETE FROM blobs", "DELETE FROM trees", "INSERT INTO members (tree, blob) VALUES (1, 99)"):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(statement)
    db.close()
    assert index.tree_blobs(manifest.digest)


def _dump(path: str) -> list[str]:
    db = sqlite3.connect(path)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        return [f"version {version}", *db.iterdump()]
    finally:
        db.close()


def test_a_blob_that_was_dropped_meanwhile_gets_no_row(index: Index) -> None:
    """A look at its inode that comes too late says nothing of what is held."""
    index.record_arrivals([blob("x")], {}, Standing.FINISHED, 1.0)
    index.forget_blob(blob("x").digest)
    index.record_blob(blob("x", inode=77))
    assert index.all_digests() == [] and index.totals()["blob_count"] == 0


@pytest.mark.parametrize(
    "damage", [b"this is no database, whatever its name says " * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_an_index_that_is_damaged_is_refused_with_words(tmp_path: Path, damage: bytes) -> None:
    """Who reads the log reads which file it is, and what becomes of it."""
    (tmp_path / "index.db").write_bytes(damage)
    with pytest.raises(IndexDamaged, match=r"index\.db is damaged \(.+\)\. It is made anew"):
        Index(str(tmp_path / "index.db"), "http://origin.example")


def test_an_index_that_is_only_out_of_reach_is_not_to_be_moved_away(tmp_path: Path) -> None:
    """Whoever parted with it would lose what it knows: words say what SQLite said, and to leave it where it is."""
    (tmp_path / "index.db").mkdir()
    with pytest.raises(CacheError, match=r"index\.db cannot be used: .+SQLITE_CANTOPEN.+Leave it") as refused:
        Index(str(tmp_path / "index.db"), "http://origin.example")
    assert not isinstance(refused.value, IndexDamaged)
