"""The store: files and index together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from artifactcache.errors import CacheError, Corrupted
from cacheserver import fsck
from cacheserver.index import MissingBlobs
from cacheserver.store import DESCRIPTORS_MAX
from cacheserver.words import Entry, Manifest, Progress, Record, Standing
from tests.unit.house import FEW, MANY, Shelf, blob_names, overwrite


def test_what_was_kept_is_held(shelf: Shelf) -> None:
    """All bytes by their paths, one blob for the same bytes, none for no bytes, and nothing left in staging."""
    files = {"a/one": b"1", "a/again": b"1", "two": b"22", "zero": b""}
    held = shelf.put({**files, "hollow/": b""})
    assert shelf.content(held) == {**files, "hollow/": None}
    assert (held.file_count, held.size_bytes) == (4, 4)
    assert sorted(shelf.index.all_digests()) == sorted(blake3(b).hexdigest() for b in (b"1", b"22"))
    assert shelf.staging() == [] and shelf.store.unsound(shelf.tree(held)) == frozenset()


def test_rows_appear_only_when_their_files_are_there(shelf: Shelf) -> None:
    """A tree with a blob that nobody kept is not recorded; its manifest is a file without a row."""
    manifest = Manifest.of([Entry(b"x", blake3(b"never kept").hexdigest(), 10)])
    with pytest.raises(MissingBlobs):
        shelf.store.commit(manifest, [Record("s3://b/p", "", "", Standing.FINISHED, True)], (), 1.0)
    assert shelf.index.held("s3://b/p", "") is None and shelf.index.totals()["tree_count"] == 0


def test_what_is_kept_twice_stays_the_inode_it_was(shelf: Shelf) -> None:
    """A download of bytes that are held changes nothing: links of jobs go on sharing the blob."""
    held = shelf.put({"x": b"1"})
    before = shelf.blob(shelf.digest(held, "x")).stat()
    shelf.put({"other name": b"1"}, "s3://bucket/other")
    after = shelf.blob(shelf.digest(held, "x")).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns) and shelf.staging() == []


def test_a_damaged_blob_that_arrives_again_is_replaced(shelf: Shelf) -> None:
    """That bytes have a row is no reason to skip them: the blob may be another by now."""
    held = shelf.put({"x": b"1"})
    shelf.damage(shelf.digest(held, "x"))
    again = shelf.put({"y": b"1"}, "s3://bucket/other")
    assert shelf.content(held) == {"x": b"1"} and shelf.content(again) == {"y": b"1"}
    assert shelf.store.unsound(shelf.tree(held)) == frozenset()


def _write(blob: Path) -> None:
    overwrite(blob)


def _append(blob: Path) -> None:
    blob.chmod(0o644)
    with blob.open("ab") as file:
        file.write(b"!")


def _remove(blob: Path) -> None:
    blob.unlink()


def _replace(blob: Path) -> None:
    blob.with_name("new").write_bytes(b"\0" * blob.stat().st_size)
    blob.with_name("new").rename(blob)


@pytest.mark.parametrize("meddle", [_write, _append, _remove, _replace])
def test_a_wrong_blob_is_found_and_put_aside(shelf: Shelf, meddle: Callable[[Path], None]) -> None:
    """Before it is handed out: its row is gone, its bytes are in quarantine, the other blobs stay."""
    held = shelf.put({"good": b"good", "bad": b"bad"})
    digest = shelf.digest(held, "bad")
    meddle(shelf.blob(digest))
    assert shelf.store.unsound(shelf.tree(held)) == {digest}
    assert shelf.index.all_digests() == [shelf.digest(held, "good")]
    assert not shelf.blob(digest).exists() and shelf.store.quarantine_count() == (meddle is not _remove)
    assert shelf.store.unsound(shelf.tree(held)) == {digest}
    shelf.put({"good": b"good", "bad": b"bad"})
    assert shelf.store.unsound(shelf.tree(held)) == frozenset()


def test_a_blob_that_was_only_touched_stays(shelf: Shelf) -> None:
    """Right bytes with another mtime, or in another inode, are hashed once, and believed again."""
    held = shelf.put({"x": b"right", "y": b"too"})
    touched, copied = shelf.blob(shelf.digest(held, "x")), shelf.blob(shelf.digest(held, "y"))
    os.utime(touched, ns=(0, 1))
    copied.with_name("new").write_bytes(b"too")
    copied.with_name("new").rename(copied)
    assert shelf.store.unsound(shelf.tree(held)) == frozenset()
    assert shelf.disk.suspects(shelf.index.tree_blobs(held.tree).values()) == []
    assert shelf.store.quarantine_count() == 0


def test_a_blob_that_came_back_for_one_tree_is_back_for_all(shelf: Shelf) -> None:
    """A tree that was looked at while a blob of it was missing is not remembered as incomplete."""
    one, other = shelf.put({"x": b"shared"}, "s3://b/1"), shelf.put({"y": b"shared", "z": b"z"}, "s3://b/2")
    shelf.damage(shelf.digest(one, "x"))
    assert shelf.store.unsound(shelf.tree(one)) and shelf.tree(other).missing
    shelf.put({"x": b"shared"}, "s3://b/1")
    shelf.put({"y": b"shared", "z": b"z"}, "s3://b/3")  # the same tree as the other's
    assert not shelf.tree(one).missing and not shelf.tree(other).missing


def test_a_manifest_that_is_wrong_is_no_tree(shelf: Shelf) -> None:
    """Nothing is handed out by a manifest that does not match its name, be it remembered as it was or not: a name in it
    that is another is right bytes under a wrong one. Whoever heals is told."""
    held, told = shelf.put({"x": b"1"}), list[tuple[str, str]]()
    shelf.store.verifier.damaged = told.extend
    shelf.tree(held)
    path = shelf.root / "manifests" / held.tree[:2] / held.tree[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b" x\n", b" y\n"))
    with pytest.raises(Corrupted, match="fetch again"):
        os.close(shelf.store.open_manifest(held.tree))
    assert told == [(held.uri, "")]
    assert shelf.store.tree(held.tree) is None
    for ask in (lambda: shelf.store.view(held.tree), lambda: shelf.store.open_blobs(held.tree, 0)):
        with pytest.raises(CacheError, match="fetch again"):
            ask()


def test_descriptors_come_in_the_manifests_order(shelf: Shelf) -> None:
    """Of the files that are not empty, a packet's worth from any place on, read-only."""
    held = shelf.put(MANY)
    filled = [e for e in shelf.tree(held).manifest.files if e.size]
    for first in (0, 1, DESCRIPTORS_MAX, len(filled) - 1, len(filled), len(filled) + 5):
        fds = shelf.store.open_blobs(held.tree, first)
        try:
            assert [os.pread(fd, 100, 0) for fd in fds] == [
                MANY[e.path.decode()] for e in filled[first : first + DESCRIPTORS_MAX]
            ]
        finally:
            for fd in fds:
                os.close(fd)


def test_descriptors_are_not_left_open_after_a_failure(shelf: Shelf) -> None:
    """A blob that is gone is an error of ours, and those opened before it are closed."""
    held = shelf.put(FEW)
    last = shelf.tree(held).filled[-1]
    assert not shelf.store.unsound(shelf.tree(held))  # a moment ago: it is not looked at again
    shelf.blob(last.digest).unlink()
    with pytest.raises(CacheError, match=last.digest):
        shelf.store.open_blobs(held.tree, 0)
    open_files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert [path for path in open_files if path.startswith(f"{shelf.root}/blobs/")] == []


def test_verify_finds_what_no_inode_shows(shelf: Shelf) -> None:
    """Bytes that changed behind an unchanged size and mtime are found, put aside, and named with their artifacts."""
    one = shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1")
    two = shelf.put({"z": b"bad"}, "s3://b/2")
    shelf.put({"y": b"y"}, "s3://b/3")
    digest = shelf.digest(one, "x")
    before = shelf.blob(digest).stat()
    shelf.damage(digest)
    os.utime(shelf.blob(digest), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shelf.store.unsound(shelf.tree(one)) == frozenset()  # a look at the inode cannot see it
    progress = Progress()
    found = shelf.store.verify(None, progress)
    assert (found.blobs_checked, found.bytes_checked) == (2, 4)
    assert found.corrupted == (digest,) and found.affected == ("s3://b/1", "s3://b/2")
    assert (progress.files_done, progress.files_total, progress.bytes_done, progress.bytes_total) == (2, 2, 4, 4)
    assert shelf.store.unsound(shelf.tree(two)) == {digest} and shelf.store.quarantine_count() == 1


def test_what_is_missing_is_wrong_until_it_is_fetched_again(shelf: Shelf) -> None:
    """Whoever verifies after the blob went into quarantine hears of it as well: all, one artifact, and fsck."""
    one = shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1")
    other = shelf.put({"y": b"y"}, "s3://b/2")
    digest = shelf.digest(one, "x")
    shelf.damage(digest)
    for held in (None, None, one):
        found = shelf.store.verify(held, Progress())
        assert (found.corrupted, found.affected) == ((digest,), ("s3://b/1",))
    assert shelf.store.verify(other, Progress()).corrupted == ()
    shelf.store.close()
    report = fsck.check(str(shelf.root))
    assert not report.sound and digest in "\n".join(report.lines()) and "s3://b/1" in "\n".join(report.lines())
    shelf.__init__(shelf.root)  # type: ignore[misc]
    one = shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1")
    for held in (None, one):
        assert shelf.store.verify(held, Progress()).corrupted == ()
    shelf.store.close()
    assert fsck.check(str(shelf.root)).sound
    shelf.__init__(shelf.root)  # type: ignore[misc]


def test_verify_of_one_artifact_leaves_the_others(shelf: Shelf) -> None:
    """Only its blobs are hashed."""
    one, two = shelf.put({"x": b"1"}, "s3://b/1"), shelf.put({"x": b"22"}, "s3://b/2")
    for held in (one, two):
        shelf.damage(shelf.digest(held, "x"))
    assert shelf.store.verify(one, Progress()).corrupted == (shelf.digest(one, "x"),)
    assert shelf.index.all_digests() == [blake3(b"22").hexdigest()]


def test_what_unfinished_downloads_left_goes_with_time(shelf: Shelf) -> None:
    """Row before unlink; a blob that a tree needs stays."""
    held = shelf.put({"x": b"1"})
    for name, content, at in (("x", b"1", 10.0), ("old", b"old", 10.0), ("new", b"new", 30.0)):
        path = shelf.store.stage()
        Path(path).write_bytes(content)
        shelf.store.keep({f"s3://b/{name}": shelf.store.measure(path)}, Standing.FINISHED, at)
    assert shelf.store.leftovers.expire(20.0) == 1
    assert sorted(blob_names(shelf.disk)) == sorted(shelf.index.all_digests())
    assert len(shelf.index.all_digests()) == 2 and shelf.content(held) == {"x": b"1"}


def test_fsck_mends_what_can_be_mended(shelf: Shelf) -> None:
    """Wrong bytes go to quarantine, files without rows are removed, a lost manifest is told; a daemon is in its way."""
    held, other = shelf.put({"x": b"1", "y": b"22"}, "s3://b/1"), shelf.put({"z": b"333"}, "s3://b/2")
    with pytest.raises(CacheError, match="Another daemon"):
        fsck.check(str(shelf.root))
    shelf.damage(shelf.digest(held, "x"))
    (shelf.root / "manifests" / other.tree[:2] / other.tree[2:]).unlink()
    stray = shelf.root / "blobs" / "ab" / ("c" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"left by a crash")
    shelf.store.close()
    report = fsck.check(str(shelf.root))
    assert not report.sound and report.strays == 1 and not stray.exists()
    assert report.verified.corrupted == (blake3(b"1").hexdigest(),) and report.manifests == ("s3://b/2",)
    text = "\n".join(report.lines())
    assert "s3://b/1" in text and "s3://b/2" in text and text.endswith("not sound")
    assert not fsck.check(str(shelf.root)).sound  # the manifest is still gone, and the blob
    shelf.__init__(shelf.root)  # type: ignore[misc]
    shelf.put({"x": b"1", "y": b"22"}, "s3://b/1")
    shelf.put({"z": b"333"}, "s3://b/2")
    shelf.store.close()
    assert fsck.check(str(shelf.root)).sound
    shelf.__init__(shelf.root)  # type: ignore[misc]


def test_a_verification_that_nobody_waits_for_ends(shelf: Shelf) -> None:
    """The next one need not wait until all of the store is read."""
    shelf.put({str(n): str(n).encode() for n in range(5)})
    progress = Progress(is_wanted=False)
    assert shelf.store.verify(None, progress).blobs_checked == 0
    assert shelf.store.verify(None, Progress()).blobs_checked == 5
