"""Views: read-only folders of the store that are right whenever they are handed out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from cacheserver.store import ALWAYS_CHECKED_FILES_MAX, WATCHED_SECONDS
from tests.unit.house import FEW, MANY, PATIENCE_SECONDS, Shelf, overwrite

assert len(FEW) < ALWAYS_CHECKED_FILES_MAX < len(MANY)
BOTH = pytest.mark.parametrize("files", [FEW, MANY], ids=["looked at", "watched"])


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
    if shelf.store.unsound(shelf.tree(held)):
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


def test_a_view_is_never_missing_while_it_is_exchanged(shelf: Shelf) -> None:
    """Whoever comes to its path at any moment finds one."""
    held = shelf.put({"x": b"right"})
    view, stop, looks, missing = Path(shelf.store.view(held.tree)), threading.Event(), [0], [0]

    def look() -> None:
        while not stop.is_set():
            looks[0] += 1
            missing[0] += not view.exists()

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(30):
        shelf.index.record_view(held.tree, exists=False)
        shelf.store.view(held.tree)
    stop.set()
    looker.join()
    assert missing == [0] and looks[0] > 0


def test_one_view_in_the_making_holds_up_no_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many files takes its time; others are built meanwhile, and who wants the same one gets it once."""
    slow, quick = shelf.put({"slow/x": b"1"}, "s3://b/1"), shelf.put({"quick/x": b"1"}, "s3://b/2")
    begun, go_on, built, mkdir = threading.Event(), threading.Event(), [], os.mkdir

    def hold(path: str | bytes, *arguments: int) -> None:
        if os.path.basename(os.fsencode(path)) == b"slow":
            built.append(path)
            begun.set()
            assert go_on.wait(PATIENCE_SECONDS)
        mkdir(path, *arguments)

    monkeypatch.setattr(os, "mkdir", hold)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shelf.store.view, slow.tree)
        try:
            assert begun.wait(PATIENCE_SECONDS)
            again = pool.submit(shelf.store.view, slow.tree)
            view = Path(pool.submit(shelf.store.view, quick.tree).result(PATIENCE_SECONDS))
            assert (view / "quick/x").read_bytes() == b"1" and not first.done() and not again.done()
        finally:
            go_on.set()
        assert first.result(PATIENCE_SECONDS) == again.result(PATIENCE_SECONDS)
    assert len(built) == 1 and len(shelf.store._building) == 0


def test_a_view_of_many_empty_files_is_watched(shelf: Shelf, tmp_path: Path) -> None:
    """Files without bytes cost a look as well. What no watch sees is found in time, as with those that have some."""
    held = shelf.put({str(n): b"" for n in range(ALWAYS_CHECKED_FILES_MAX + 1)})
    view = Path(shelf.store.view(held.tree))
    os.link(view / "0", tmp_path / "job")
    assert shelf.store.view_is_sound(held.tree)
    (tmp_path / "job").chmod(0o644)
    (tmp_path / "job").write_bytes(b"no longer empty")
    assert shelf.store.view_is_sound(held.tree)  # nobody has looked at the file
    shelf.ticks += WATCHED_SECONDS
    assert not shelf.store.view_is_sound(held.tree)


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
    assert shelf.store.unsound(shelf.tree(one))
    shelf.put({"x": b"bad", "y": b"y"}, "s3://b/1")
    shelf.put({"z": b"bad"}, "s3://b/2")
    assert Path(shelf.store.view(one.tree), "x").read_bytes() == b"bad"
    assert Path(shelf.store.view(other.tree), "z").read_bytes() == b"bad"
    assert shelf.store.view_is_sound(unhurt.tree)


def test_a_blob_that_moved_to_a_fresh_inode_leaves_its_views_as_they_are(shelf: Shelf) -> None:
    """A view of the old inode is sound as long as its bytes are right, and not when they are not."""
    held = shelf.put(FEW)
    view = Path(shelf.store.view(held.tree))
    digest = shelf.digest(held, "d1/1")
    shelf.store._renew(digest)
    shelf.store.close()
    shelf.__init__(shelf.root)  # type: ignore[misc]
    assert shelf.store.view_is_sound(held.tree) and not (view / "d1/1").samefile(shelf.blob(digest))
    overwrite(view / "d1/1")
    assert not shelf.store.view_is_sound(held.tree)
    assert Path(shelf.store.view(held.tree)) == view and (view / "d1/1").samefile(shelf.blob(digest))


@pytest.mark.parametrize("folder", ["", "d1"])
def test_a_name_too_many_in_a_view_is_noticed(shelf: Shelf, folder: str) -> None:
    """A view that root has written into is built again, without what is not the artifact's."""
    held = shelf.put(FEW)
    view = Path(shelf.store.view(held.tree))
    (view / folder).chmod(0o755)
    (view / folder / "__pycache__").mkdir()
    assert not shelf.store.view_is_sound(held.tree)
    assert Path(shelf.store.view(held.tree)) == view and not (view / folder / "__pycache__").exists()


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


def _bytes_read() -> int:
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_a_second_inode_is_hashed_once(shelf: Shelf) -> None:
    """Not at each look, for a view of few files is looked at each time; but again when it looks otherwise."""
    size = 4 << 20
    held = shelf.put({"x": os.urandom(size)})
    view, digest = Path(shelf.store.view(held.tree)), shelf.digest(held, "x")
    shelf.store._renew(digest)
    assert not (view / "x").samefile(shelf.blob(digest))
    read = []
    for _ in range(4):
        before = _bytes_read()
        assert shelf.store.view_is_sound(held.tree)
        read.append(_bytes_read() - before >= size)
    assert read == [True, False, False, False]
    overwrite(view / "x")
    assert not shelf.store.view_is_sound(held.tree)


@pytest.mark.parametrize("stand_in", ["file", "symlink"])
def test_an_empty_folder_of_a_view_stays_a_folder(shelf: Shelf, tmp_path: Path, stand_in: str) -> None:
    """Nothing else of the same name is taken for it."""
    held = shelf.put({"x": b"1", "hollow/": b"", "d/hollow/": b""})
    for name in ("hollow", "d/hollow"):
        view = Path(shelf.store.view(held.tree))
        assert shelf.store.view_is_sound(held.tree)
        (view / name).parent.chmod(0o755)
        (view / name).rmdir()
        if stand_in == "file":
            (view / name).touch()
        else:
            (view / name).symlink_to(shelf.root / "staging")
        assert not shelf.store.view_is_sound(held.tree)
        assert Path(shelf.store.view(held.tree), name).is_dir() and not (view / name).is_symlink()
