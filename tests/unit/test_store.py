"""The store: files and index together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver import fsck
from cacheserver.index import MissingBlobs
from cacheserver.store import ALWAYS_CHECKED_FILES_MAX, DESCRIPTORS_MAX, WATCHED_SECONDS, Tree
from cacheserver.words import Entry, Held, Manifest, Progress
from tests.unit.house import Shelf, overwrite

FEW = {f"d{n % 2}/{n}": f"file {n}".encode() for n in range(5)} | {"zero": b""}
MANY = {f"d{n % 3}/{n}": f"file {n}".encode() for n in range(300)} | {"zero": b"", "d0/none": b"", "hollow/": b""}
assert len(FEW) < ALWAYS_CHECKED_FILES_MAX < len(MANY)
BOTH = pytest.mark.parametrize("files", [FEW, MANY], ids=["looked at", "watched"])


def tree_of(shelf: Shelf, held: Held) -> Tree:
    """The tree of an artifact that is held."""
    tree = shelf.store.tree(held.tree)
    assert tree is not None
    return tree


def test_what_was_kept_is_held(shelf: Shelf) -> None:
    """All bytes by their paths, one blob for the same bytes, none for no bytes, and nothing left in staging."""
    files = {"a/one": b"1", "a/again": b"1", "two": b"22", "zero": b""}
    held = shelf.put({**files, "hollow/": b""})
    assert shelf.content(held) == {**files, "hollow/": None}
    assert (held.file_count, held.size_bytes) == (4, 4)
    assert sorted(shelf.index.all_digests()) == sorted(blake3(b).hexdigest() for b in (b"1", b"22"))
    assert shelf.staging() == [] and shelf.store.unsound(tree_of(shelf, held)) == frozenset()


def test_rows_appear_only_when_their_files_are_there(shelf: Shelf) -> None:
    """A tree with a blob that nobody kept is not recorded; its manifest is a file without a row."""
    manifest = Manifest.of([Entry(b"x", blake3(b"never kept").hexdigest(), 10)])
    with pytest.raises(MissingBlobs):
        shelf.store.commit(manifest, [("s3://b/p", "", "", True, True)], (), 1.0)
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
    assert shelf.store.unsound(tree_of(shelf, held)) == frozenset()


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
    assert shelf.store.unsound(tree_of(shelf, held)) == {digest}
    assert shelf.index.all_digests() == [shelf.digest(held, "good")]
    assert not shelf.blob(digest).exists() and shelf.store.quarantine_count() == (meddle is not _remove)
    assert shelf.store.unsound(tree_of(shelf, held)) == {digest}
    shelf.put({"good": b"good", "bad": b"bad"})
    assert shelf.store.unsound(tree_of(shelf, held)) == frozenset()


def test_a_blob_that_was_only_touched_stays(shelf: Shelf) -> None:
    """Right bytes with another mtime, or in another inode, are hashed once, and believed again."""
    held = shelf.put({"x": b"right", "y": b"too"})
    touched, copied = shelf.blob(shelf.digest(held, "x")), shelf.blob(shelf.digest(held, "y"))
    os.utime(touched, ns=(0, 1))
    copied.with_name("new").write_bytes(b"too")
    copied.with_name("new").rename(copied)
    assert shelf.store.unsound(tree_of(shelf, held)) == frozenset()
    assert shelf.disk.suspects(shelf.index.tree_blobs(held.tree).values()) == []
    assert shelf.store.quarantine_count() == 0


def test_a_blob_that_came_back_for_one_tree_is_back_for_all(shelf: Shelf) -> None:
    """A tree that was looked at while a blob of it was missing is not remembered as incomplete."""
    one, other = shelf.put({"x": b"shared"}, "s3://b/1"), shelf.put({"y": b"shared", "z": b"z"}, "s3://b/2")
    shelf.damage(shelf.digest(one, "x"))
    assert shelf.store.unsound(tree_of(shelf, one)) and tree_of(shelf, other).missing
    shelf.put({"x": b"shared"}, "s3://b/1")
    shelf.put({"y": b"shared", "z": b"z"}, "s3://b/3")  # the same tree as the other's
    assert not tree_of(shelf, one).missing and not tree_of(shelf, other).missing


def test_a_manifest_that_is_wrong_is_no_tree(shelf: Shelf) -> None:
    """Nothing is handed out by a manifest that does not match its name."""
    held = shelf.put({"x": b"1"})
    path = shelf.root / "manifests" / held.tree[:2] / held.tree[2:]
    path.chmod(0o644)
    path.write_bytes(b"")
    shelf.store.close()
    shelf.__init__(shelf.root)  # type: ignore[misc] # another daemon, which has not read it yet
    assert shelf.store.tree(held.tree) is None
    for ask in (lambda: shelf.store.view(held.tree), lambda: shelf.store.open_blobs(held.tree, 0)):
        with pytest.raises(CacheError, match="fetch again"):
            ask()


# -- views ------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_view_is_the_tree(shelf: Shelf, files: dict[str, bytes]) -> None:
    """Every file is its blob's inode, empty files and folders are there, nothing can be written, and it stays."""
    held = shelf.put(files)
    assert not shelf.store.view_is_sound(held.tree)
    view = Path(shelf.store.view(held.tree))
    assert view == shelf.root / "views" / held.tree
    assert {str(p.relative_to(view)) for p in view.rglob("*") if p.is_file()} == {f for f in files if f[-1] != "/"}
    assert all((view / f).is_dir() for f in files if f.endswith("/"))
    for path in view.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444)
        if path.is_file() and path.stat().st_size:
            assert path.samefile(shelf.blob(blake3(path.read_bytes()).hexdigest()))
    inode = view.stat().st_ino
    assert shelf.store.view_is_sound(held.tree) and shelf.store.view_is_sound(held.tree)
    assert Path(shelf.store.view(held.tree)).stat().st_ino == inode and shelf.staging() == []


def _through_the_blob(shelf: Shelf, view: Path, name: str) -> None:
    overwrite(shelf.blob(blake3((view / name).read_bytes()).hexdigest()))


def _through_the_view(shelf: Shelf, view: Path, name: str) -> None:
    overwrite(view / name)


def _deleted(shelf: Shelf, view: Path, name: str) -> None:
    (view / name).parent.chmod(0o755)
    (view / name).unlink()


def _replaced(shelf: Shelf, view: Path, name: str) -> None:
    content = (view / name).read_bytes()
    _deleted(shelf, view, name)
    (view / name).write_bytes(content[::-1])


def _as_a_symlink(shelf: Shelf, view: Path, name: str) -> None:
    target = shelf.blob(blake3((view / name).read_bytes()).hexdigest())
    _deleted(shelf, view, name)
    (view / name).symlink_to(target)


def _folder_moved(shelf: Shelf, view: Path, name: str) -> None:
    view.chmod(0o755)
    (view / name).parent.chmod(0o755)
    (view / name).parent.rename(view / "moved")


def _view_moved(shelf: Shelf, view: Path, name: str) -> None:
    view.chmod(0o755)
    view.rename(view.with_name("moved"))


MEDDLINGS = [_through_the_blob, _through_the_view, _deleted, _replaced, _as_a_symlink, _folder_moved, _view_moved]


@BOTH
@pytest.mark.parametrize("meddle", MEDDLINGS)
def test_a_view_that_somebody_meddled_with_is_not_sound(
    shelf: Shelf, files: dict[str, bytes], meddle: Callable[[Shelf, Path, str], None]
) -> None:
    """At once, be it looked at each time or watched; afterwards it is built again, or its blob brought again."""
    held = shelf.put(files)
    view = Path(shelf.store.view(held.tree))
    assert shelf.store.view_is_sound(held.tree) and shelf.store.view_is_sound(held.tree)
    meddle(shelf, view, "d1/1")
    assert not shelf.store.view_is_sound(held.tree)
    if shelf.store.unsound(tree_of(shelf, held)):
        assert meddle in (_through_the_blob, _through_the_view)
        held = shelf.put(files)
    view = Path(shelf.store.view(held.tree))
    assert (view / "d1/1").read_bytes() == b"file 1" and not (view / "d1/1").is_symlink()
    assert shelf.store.view_is_sound(held.tree) and shelf.staging() == []


@BOTH
@pytest.mark.parametrize("name", ["zero"])
def test_an_empty_file_of_a_view_stays_empty(shelf: Shelf, files: dict[str, bytes], name: str) -> None:
    """It has no blob, and is looked after all the same: written into, or gone, it makes the view unsound."""
    held = shelf.put(files)
    view = Path(shelf.store.view(held.tree))
    assert shelf.store.view_is_sound(held.tree)
    (view / name).chmod(0o644)
    (view / name).write_bytes(b"no longer empty")
    assert not shelf.store.view_is_sound(held.tree)
    assert Path(shelf.store.view(held.tree), name).read_bytes() == b""
    assert shelf.store.view_is_sound(held.tree)
    _deleted(shelf, view, name)
    assert not shelf.store.view_is_sound(held.tree)


def test_a_view_is_exchanged_in_one_step(shelf: Shelf) -> None:
    """Who has the old one open keeps it; the path is never missing; the old one is removed."""
    held = shelf.put(FEW)
    view = Path(shelf.store.view(held.tree))
    _replaced(shelf, view, "d1/1")
    with (view / "d0/0").open("rb") as reading:
        assert not shelf.store.view_is_sound(held.tree)
        old = view.stat().st_ino
        shelf.store.view(held.tree)
        assert view.stat().st_ino != old and view.stat().st_mode & 0o777 == 0o555
        assert reading.read() == b"file 0"
    assert shelf.staging() == []


def test_a_write_that_no_watch_sees_is_found_in_time(shelf: Shelf, tmp_path: Path) -> None:
    """Through a job's hard link elsewhere: found when the view is next looked at file by file."""
    held = shelf.put(MANY)
    shelf.store.view(held.tree)
    os.link(shelf.blob(shelf.digest(held, "d1/1")), tmp_path / "job")
    assert shelf.store.view_is_sound(held.tree)
    overwrite(tmp_path / "job")
    shelf.ticks += WATCHED_SECONDS
    assert not shelf.store.view_is_sound(held.tree)


def test_a_quarantined_blob_takes_the_views_with_it(shelf: Shelf) -> None:
    """No view that has a wrong blob is taken for complete, whichever artifact it was found by."""
    one, other = shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1"), shelf.put({"z": b"bad"}, "s3://b/2")
    unhurt = shelf.put({"y": b"y"}, "s3://b/3")
    for held in (one, other, unhurt):
        shelf.store.view(held.tree)
    shelf.damage(shelf.digest(one, "x"))
    assert shelf.store.unsound(tree_of(shelf, one))
    assert not shelf.store.view_is_sound(one.tree) and not shelf.store.view_is_sound(other.tree)
    assert shelf.store.view_is_sound(unhurt.tree)


def test_a_blob_that_moved_to_a_fresh_inode_moves_in_its_views(shelf: Shelf) -> None:
    """The view of the old inode is built again, and is the same bytes."""
    held = shelf.put(FEW)
    view = Path(shelf.store.view(held.tree))
    digest = shelf.digest(held, "d1/1")
    shelf.index.record_blob(shelf.disk.fresh_inode(shelf.index.blobs([digest])[digest]))
    shelf.store.close()
    shelf.__init__(shelf.root)  # type: ignore[misc]
    assert not shelf.store.view_is_sound(held.tree)
    assert Path(shelf.store.view(held.tree)) == view and (view / "d1/1").samefile(shelf.blob(digest))


def test_views_survive_a_restart(shelf: Shelf) -> None:
    """A store that is opened again has its views, and finds what happened to them meanwhile."""
    held, other = shelf.put(MANY), shelf.put(FEW, "s3://bucket/few")
    for one in (held, other):
        shelf.store.view(one.tree)
    shelf.store.close()
    overwrite(shelf.root / "views" / other.tree / "d1/1")
    shelf.__init__(shelf.root)  # type: ignore[misc]
    assert not shelf.store.view_is_sound(other.tree)
    _deleted(shelf, shelf.root / "views" / held.tree, "d2/2")
    assert not shelf.store.view_is_sound(held.tree)


# -- handing out and looking after ------------------------------------------------------------------------------------


def test_descriptors_come_in_the_manifests_order(shelf: Shelf) -> None:
    """Of the files that are not empty, a packet's worth from any place on, read-only."""
    held = shelf.put(MANY)
    filled = [e for e in tree_of(shelf, held).manifest.files if e.size]
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
    last = tree_of(shelf, held).filled[-1]
    shelf.blob(last.digest).unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CacheError, match=last.digest):
        shelf.store.open_blobs(held.tree, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_verify_finds_what_no_inode_shows(shelf: Shelf) -> None:
    """Bytes that changed behind an unchanged size and mtime are found, put aside, and named with their artifacts."""
    one = shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1")
    two = shelf.put({"z": b"bad"}, "s3://b/2")
    shelf.put({"y": b"y"}, "s3://b/3")
    digest = shelf.digest(one, "x")
    before = shelf.blob(digest).stat()
    shelf.damage(digest)
    os.utime(shelf.blob(digest), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shelf.store.unsound(tree_of(shelf, one)) == frozenset()  # a look at the inode cannot see it
    progress = Progress()
    found = shelf.store.verify(None, progress)
    assert (found.blobs_checked, found.bytes_checked) == (2, 4)
    assert found.corrupted == (digest,) and found.affected == ("s3://b/1", "s3://b/2")
    assert (progress.files_done, progress.files_total, progress.bytes_done, progress.bytes_total) == (2, 2, 4, 4)
    assert shelf.store.unsound(tree_of(shelf, two)) == {digest} and shelf.store.quarantine_count() == 1
    assert shelf.store.verify(None, Progress()).corrupted == ()


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
        shelf.store.keep({f"s3://b/{name}": shelf.store.measure(path)}, at)
    assert shelf.store.drop_arrivals(20.0) == 1
    assert sorted(shelf.disk.blob_names()) == sorted(shelf.index.all_digests())
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
    assert not fsck.check(str(shelf.root)).sound  # the manifest is still gone
    shelf.__init__(shelf.root)  # type: ignore[misc]
    shelf.put({"z": b"333"}, "s3://b/2")
    shelf.store.close()
    assert fsck.check(str(shelf.root)).sound
    shelf.__init__(shelf.root)  # type: ignore[misc]
