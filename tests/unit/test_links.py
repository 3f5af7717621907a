"""Linking into a folder of somebody: relative to descriptors, following no symlink."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError, Corrupted, InvalidRequest, ModeUnavailable
from cacheserver import links, probing
from cacheserver.links import link_tree
from cacheserver.words import Manifest
from tests.unit.house import PATIENCE_SECONDS, Shelf

ME = os.geteuid()
FILES = {"top": b"1", "a/one": b"11", "a/b/two": b"222", "a/empty": b"", "hollow/": b"", "same": b"1"}


def manifest_of(shelf: Shelf, files: dict[str, bytes]) -> Manifest:
    """The manifest of files that are in the store."""
    tree = shelf.store.tree(shelf.put(files).tree)
    assert tree is not None
    return tree.manifest


def destination(at: Path, manifest: Manifest) -> Path:
    """A folder with the tree's folders, as a client makes it."""
    at.mkdir()
    for folder in manifest.folders:
        (at / os.fsdecode(folder)).mkdir()
    return at


def link(
    shelf: Shelf, manifest: Manifest, folder: Path, owner: int = ME, pool: ThreadPoolExecutor | None = None
) -> int:
    """Links a tree into a folder."""

    def renew(digest: str) -> None:
        raise AssertionError(f"{digest} has not that many links")

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return link_tree(manifest, shelf.disk.blobs_fd, fd, owner, renew, pool)
    finally:
        os.close(fd)


def test_every_file_that_is_not_empty_becomes_a_link_to_its_blob(shelf: Shelf, tmp_path: Path) -> None:
    """The same inode, in its place; empty files are the client's to make."""
    manifest = manifest_of(shelf, FILES)
    to = destination(tmp_path / "to", manifest)
    assert link(shelf, manifest, to) == 4
    for entry in manifest.files:
        path = to / os.fsdecode(entry.path)
        assert path.exists() == bool(entry.size)
        if entry.size:
            assert path.stat().st_ino == shelf.blob(entry.digest).stat().st_ino
    assert (to / "top").stat().st_ino == (to / "same").stat().st_ino


def test_two_threads_link_the_same_as_one(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tree is shared out by folders: each file once, in its place."""
    monkeypatch.setattr(links, "PARALLEL_FILES_MIN", 1)
    manifest = manifest_of(shelf, {f"d{n % 7}/e{n % 3}/{n}": str(n).encode() for n in range(100)} | {"top": b"top"})
    to = destination(tmp_path / "to", manifest)
    with ThreadPoolExecutor(1) as pool:
        assert link(shelf, manifest, to, pool=pool) == 101
    assert {os.fsencode(p.relative_to(to)) for p in to.rglob("*") if p.is_file()} == {e.path for e in manifest.files}
    assert all((to / os.fsdecode(e.path)).samefile(shelf.blob(e.digest)) for e in manifest.files)


@pytest.mark.parametrize("swapped", ["a", "a/b"])
def test_a_folder_that_became_a_symlink_gets_nothing(shelf: Shelf, tmp_path: Path, swapped: str) -> None:
    """Wherever the symlink stands and wherever it leads, nothing is linked behind it."""
    manifest = manifest_of(shelf, {"a/one": b"1", "a/b/two": b"2"})
    to = destination(tmp_path / "to", manifest)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "b").mkdir(parents=True)
    (to / swapped).rename(to / "moved away")
    (to / swapped).symlink_to(elsewhere)
    with pytest.raises(InvalidRequest, match="cannot be entered"):
        link(shelf, manifest, to)
    assert sorted(p.name for p in elsewhere.rglob("*")) == ["b"]


def test_a_folder_that_is_not_there_or_is_a_file_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """The client has to have made the tree's folders."""
    manifest = manifest_of(shelf, {"a/one": b"1"})
    (tmp_path / "to").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be entered"):
        link(shelf, manifest, tmp_path / "to")
    (tmp_path / "to" / "a").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="cannot be entered"):
        link(shelf, manifest, tmp_path / "to")


def test_a_name_that_is_taken_is_refused_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    """A file or a symlink at a name is neither replaced nor followed."""
    manifest = manifest_of(shelf, {"x": b"1"})
    to, other = destination(tmp_path / "to", manifest), tmp_path / "other"
    (to / "x").symlink_to(other)
    with pytest.raises(InvalidRequest, match="cannot be linked"):
        link(shelf, manifest, to)
    assert (to / "x").is_symlink() and not other.exists()


def test_a_folder_of_somebody_else_gets_nothing(shelf: Shelf, tmp_path: Path) -> None:
    """Who asks must own the folder."""
    manifest = manifest_of(shelf, {"x": b"1"})
    to = destination(tmp_path / "to", manifest)
    with pytest.raises(InvalidRequest, match="does not belong"):
        link(shelf, manifest, to, owner=ME + 1)
    assert list(to.iterdir()) == []


@pytest.mark.skipif(ME != 0, reason="only root can give a folder to another user")
def test_a_folder_inside_that_is_somebody_elses_gets_nothing(shelf: Shelf, tmp_path: Path) -> None:
    """The owner is asked for at every step down: nobody's folder can be moved in."""
    manifest = manifest_of(shelf, {"a/b/two": b"2", "a/one": b"1"})
    to = destination(tmp_path / "to", manifest)
    os.chown(to / "a" / "b", 4242, 4242)
    with pytest.raises(InvalidRequest, match="does not belong"):
        link(shelf, manifest, to)
    assert list((to / "a" / "b").iterdir()) == []


def test_a_descriptor_of_no_folder_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """A file's descriptor is not linked into."""
    manifest = manifest_of(shelf, {"x": b"1"})
    (tmp_path / "file").write_bytes(b"")
    with (tmp_path / "file").open() as file, pytest.raises(InvalidRequest, match="not that of a folder"):
        link_tree(manifest, shelf.disk.blobs_fd, file.fileno(), ME, lambda digest: None)


def test_a_folder_on_another_filesystem_says_why_links_cannot_be_had(shelf: Shelf, tmp_path: Path) -> None:
    """The reason is in the message, and it is the error after which a client copies."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem at /dev/shm")
    manifest = manifest_of(shelf, {"x": b"1"})
    to = shm / f"artifactcache-test-{os.getpid()}"
    to.mkdir()
    try:
        with pytest.raises(ModeUnavailable, match="another filesystem"):
            link(shelf, manifest, to)
    finally:
        to.rmdir()


def test_errors_that_mean_try_another_way_have_words() -> None:
    """EMLINK is none of them: it is met with a fresh inode."""
    assert {errno.EXDEV, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP} <= links.NO_LINKS.keys()
    assert errno.EMLINK not in links.NO_LINKS and all(links.NO_LINKS.values())


def test_a_folder_that_is_gone_is_the_callers_to_make(shelf: Shelf, tmp_path: Path) -> None:
    """The kernel says the same of a blob that is gone: which of both it is decides whose move it is."""
    manifest = manifest_of(shelf, {"x": b"1"})
    to = destination(tmp_path / "to", manifest)
    fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        to.rmdir()
        with pytest.raises(InvalidRequest, match="cannot be linked"):
            link_tree(manifest, shelf.disk.blobs_fd, fd, ME, lambda digest: None)
        to.mkdir()
    finally:
        os.close(fd)
    shelf.blob(manifest.files[0].digest).unlink()
    with pytest.raises(Corrupted, match="fetch again"):
        link(shelf, manifest, to)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_probe_that_goes_before_it_is_linked(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """It is made anew; where it goes again, its own path is named, and no blob that nobody knows."""
    place, to, gone = shelf.root / "probe", tmp_path / "to", 0
    to.mkdir()

    def late(*given: Any) -> None:
        nonlocal gone
        if gone < times:
            gone += 1
            place.unlink()
        links.link_file(*given)

    monkeypatch.setattr(probing, "link_file", late)
    fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if times == 2:
            with pytest.raises(CacheError, match=f"^{place} was removed again and again"):
                shelf.store.probe.tried(fd, ME)
        else:
            probed = shelf.store.probe.tried(fd, ME)
            os.close(probed.descriptor)
            assert probed.linked_as == "probe" and (to / "probe").samefile(place)
    finally:
        os.close(fd)


def test_a_pool_that_is_busy_with_another_tree_holds_up_nobody(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has linked the own half does the other one as well, instead of waiting; an error in it is told."""
    monkeypatch.setattr(links, "PARALLEL_FILES_MIN", 2)
    manifest, busy = manifest_of(shelf, FILES), threading.Event()
    to = destination(tmp_path / "to", manifest)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as caller:
        try:
            pool.submit(busy.wait, PATIENCE_SECONDS)
            assert caller.submit(link, shelf, manifest, to, pool=pool).result(PATIENCE_SECONDS / 3) == 4
            with pytest.raises(InvalidRequest, match="cannot be linked"):
                caller.submit(link, shelf, manifest, to, pool=pool).result(PATIENCE_SECONDS / 3)
        finally:
            busy.set()
    assert (to / "top").read_bytes() == b"1" and (to / "a/b/two").read_bytes() == b"222"
