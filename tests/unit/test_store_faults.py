"""What goes wrong inside the store while it is used: blobs that go, links that run out, rows that are not theirs."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifactcache.errors import CacheError, Corrupted
from cacheserver.store import WATCHED_SECONDS
from cacheserver.words import Progress, Standing
from tests.unit.house import FEW, PATIENCE_SECONDS, Shelf, blob_names

EXT4_LINKS_MAX = 65_000


class Interrupted(Progress):
    """Does something when the first file has been looked at."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self._then = then

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "files_done" and value == 1:
            self._then()


def test_what_goes_while_it_is_verified_is_not_corrupted(shelf: Shelf) -> None:
    """A blob that was dropped, or found wrong by somebody else, since its row was read is nobody's damage here."""
    for n in range(3):
        path = shelf.store.stage()
        Path(path).write_bytes(str(n).encode())
        shelf.store.keep({f"s3://b/{n}": shelf.store.measure(path)}, Standing.FINISHED, 1.0)
    found = shelf.store.verify(None, Interrupted(lambda: shelf.store.leftovers.expire(2.0)))
    assert shelf.index.all_digests() == [] and shelf.store.quarantine_count() == 0
    assert (found.corrupted, found.affected) == ((), ())


CHANGED = "changed in the store while it was handed out: fetch again"


@pytest.mark.parametrize("verb", ["link", "view", "open_blobs"])
def test_a_blob_that_goes_between_the_look_and_the_hand_over_is_corrupted(
    shelf: Shelf, tmp_path: Path, verb: str
) -> None:
    """The caller hears that fetching again helps, and nothing half-made stays."""
    held = shelf.put({"x": b"1", "y": b"22"})
    shelf.damage(shelf.digest(held, "y"))
    assert shelf.store.verify(None, Progress()).corrupted
    (tmp_path / "to").mkdir()
    fd = os.open(tmp_path / "to", os.O_RDONLY)
    try:
        with pytest.raises(Corrupted, match=CHANGED):
            if verb == "link":
                shelf.store.link(held.tree, fd, os.geteuid())
            elif verb == "view":
                shelf.store.view(held.tree)
            else:
                shelf.store.open_blobs(held.tree, 0)
    finally:
        os.close(fd)
    assert shelf.staging() == []


@pytest.mark.parametrize("verb", ["link", "open_blobs"])
def test_what_is_handed_out_long_after_the_fetch_is_looked_at_again(shelf: Shelf, tmp_path: Path, verb: str) -> None:
    """A lease may be hours old: a blob that changed since is Corrupted and in quarantine, and the client has nothing.

    Right after the fetch, which has just looked, nobody pays for a second look.
    """
    held = shelf.put({"x": b"1", "y": b"22"})
    folder = tmp_path / "to"
    folder.mkdir()

    def hand_out() -> None:
        fd = os.open(folder, os.O_RDONLY)
        try:
            if verb == "link":
                shelf.store.link(held.tree, fd, os.geteuid())
            else:
                for blob in shelf.store.open_blobs(held.tree, 0):
                    os.close(blob)
        finally:
            os.close(fd)

    assert not shelf.store.unsound(shelf.tree(held))
    shelf.damage(shelf.digest(held, "y"))
    hand_out()
    shutil.rmtree(folder)
    folder.mkdir()
    shelf.ticks += WATCHED_SECONDS
    with pytest.raises(Corrupted, match=CHANGED):
        hand_out()
    assert list(folder.iterdir()) == [] and shelf.store.quarantine_count() == 1
    held = shelf.put({"x": b"1", "y": b"22"})
    hand_out()


def test_a_manifest_that_goes_before_it_is_handed_over_is_corrupted(shelf: Shelf) -> None:
    """Whichever way it is asked for."""
    held = shelf.put({"x": b"1"})
    (shelf.root / "manifests" / held.tree[:2] / held.tree[2:]).unlink()
    shelf.store.close()
    shelf.__init__(shelf.root)  # type: ignore[misc] # another daemon, which has not read it yet
    asks: list[Callable[[], object]] = [
        lambda: shelf.store.open_manifest(held.tree),
        lambda: shelf.store.open_blobs(held.tree, 0),
        lambda: shelf.store.view(held.tree),
        lambda: shelf.store.link(held.tree, -1, os.geteuid()),
    ]
    for ask in asks:
        with pytest.raises(Corrupted, match=CHANGED):
            ask()


# -- the limit of links -----------------------------------------------------------------------------------------------


def test_a_blob_with_all_its_links_gets_a_second_inode(shelf: Shelf, tmp_path: Path) -> None:
    """The 65,001st job on ext4 has its hard link as well; the others keep theirs."""
    held = shelf.put({"x": b"popular"})
    blob = shelf.blob(shelf.digest(held, "x"))
    (tmp_path / "jobs").mkdir()
    try:
        for n in range(EXT4_LINKS_MAX):
            os.link(blob, tmp_path / "jobs" / str(n))
    except OSError as error:
        assert error.errno == errno.EMLINK
    else:
        pytest.skip("this filesystem allows more links than ext4")
    (tmp_path / "to").mkdir()
    fd = os.open(tmp_path / "to", os.O_RDONLY)
    try:
        assert shelf.store.link(held.tree, fd, os.geteuid()) == 1
    finally:
        os.close(fd)
    assert (tmp_path / "to/x").read_bytes() == b"popular" and (tmp_path / "to/x").samefile(blob)
    assert not (tmp_path / "jobs/0").samefile(blob) and shelf.store.unsound(shelf.tree(held)) == frozenset()
    assert shelf.staging() == []


@pytest.mark.parametrize("meanwhile", ["nothing", "dropped"])
def test_a_second_inode_is_copied_without_the_lock(shelf: Shelf, meanwhile: str) -> None:
    """However large the blob, others add and drop blobs meanwhile; one that was dropped does not come back."""
    held = shelf.put({"x": b"large" * 1000})
    digest = shelf.digest(held, "x")
    before = shelf.blob(digest).stat().st_ino
    with ThreadPoolExecutor(1) as pool:
        with shelf.store._blobs_lock:
            renewed = pool.submit(shelf.store._renew, digest)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not any(p.stat().st_mode & 0o777 == 0o444 for p in (shelf.root / "staging").iterdir()):
                assert time.monotonic() < deadline, "the copy waits for the lock"
            if meanwhile == "dropped":
                shelf.index.forget_blob(digest)
                shelf.blob(digest).unlink()
        renewed.result(PATIENCE_SECONDS)
    assert shelf.staging() == []
    if meanwhile == "dropped":
        assert shelf.index.all_digests() == list(blob_names(shelf.disk)) == []
    else:
        assert shelf.blob(digest).stat().st_ino != before
        assert shelf.disk.suspects(shelf.index.blobs([digest]).values()) == []


def test_no_second_inode_is_made_of_wrong_bytes(shelf: Shelf) -> None:
    """What changed unseen is not given a clean row: it goes to quarantine, and fetching again helps."""
    held = shelf.put({"x": b"popular"})
    digest = shelf.digest(held, "x")
    shelf.damage(digest)
    with pytest.raises(Corrupted, match=CHANGED):
        shelf.store._renew(digest)
    assert shelf.store.quarantine_count() == 1 and shelf.index.all_digests() == [] and shelf.staging() == []
    with pytest.raises(Corrupted, match=CHANGED):
        shelf.store._renew(digest)


def test_manifests_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their entries: the one that was asked for longest ago is read again."""
    monkeypatch.setattr("cacheserver.store.CACHED_ENTRIES_MAX", 4)
    shelf = Shelf(tmp_path / "store")
    first, second, third = (shelf.put({f"{n}": b"x", f"{n}{n}": b"x"}, f"s3://b/{n}") for n in range(3))
    trees = [shelf.tree(first), shelf.tree(second)]
    assert [shelf.tree(first), shelf.tree(second)] == trees and shelf.tree(first) is trees[0]
    shelf.tree(third)
    assert shelf.tree(first) is trees[0] and shelf.tree(second) is not trees[1]
    shelf.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_told_in_words(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whoever fetches reads that it is the store's disk, and whose move it is; nothing stays in staging."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(CacheError, match=r"store's disk does not work: .+ Its administrator"):
            shelf.put({"a": b"1"})
    assert shelf.staging() == []
    shelf.put({"a": b"1"})


# -- what the daemon runs out of --------------------------------------------------------------------------------------


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing more can be opened by this process; what is open works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SHORT = "short of open files"


def test_a_daemon_without_descriptors_condemns_no_blob(shelf: Shelf) -> None:
    """A blob that cannot be opened for want of a descriptor is not wrong: no row goes, nothing enters quarantine."""
    held = shelf.put(FEW)
    for digest in shelf.index.all_digests():
        os.utime(shelf.blob(digest), ns=(0, 1))  # each has to be hashed before it is handed out
    tree, all_digests = shelf.tree(held), shelf.index.all_digests()
    for ask in (lambda: shelf.store.verify(None, Progress()), lambda: shelf.store.unsound(tree)):
        with no_descriptors(), pytest.raises(CacheError, match=SHORT):
            ask()
    assert shelf.index.all_digests() == all_digests and shelf.store.quarantine_count() == 0
    assert shelf.store.verify(None, Progress()).corrupted == () and not shelf.store.unsound(shelf.tree(held))


def test_a_daemon_without_descriptors_loses_no_artifact_and_no_view(shelf: Shelf) -> None:
    """A manifest or a view that cannot be opened is not gone: who asks hears why, and finds it a moment later."""
    held = shelf.put(FEW)
    shelf.store.view(held.tree)
    shelf.store.close()
    shelf.__init__(shelf.root)  # type: ignore[misc] # another daemon, which has not read it yet
    with no_descriptors(), pytest.raises(CacheError, match=SHORT):
        shelf.store.tree(held.tree)
    shelf.tree(held)
    with no_descriptors(), pytest.raises(CacheError, match=SHORT):
        shelf.store.view_is_sound(held.tree)
    assert shelf.index.has_view(held.tree) and shelf.store.view_is_sound(held.tree)
    with no_descriptors(), pytest.raises(CacheError, match=SHORT):
        shelf.store.open_blobs(held.tree, 0)
