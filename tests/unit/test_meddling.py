"""What somebody else does in blobs/ and manifests/ is noticed, whoever asks for it, and healed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

from artifactcache.errors import CacheError
from cacheserver.folderevents import FolderEvents, _Folder
from cacheserver.meddling import Meddling
from cacheserver.words import BlobRow, Held
from tests.rig.until import until
from tests.unit.healer import Healer
from tests.unit.house import FILES, ROOT, overwrite

_NONE, _CREATED = WatchDescriptor(-1), Mask(InotifyConstants.IN_CREATE | InotifyConstants.IN_ISDIR)
_HELD_OPEN: list[int] = []  # descriptors that one test closes


class Guarded(Healer):
    """A house whose folders are watched."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meddling = Meddling(self.disk, self.index, self.store.verifier, self._lost)
        self.meddling.start()

    def _lost(self, trees: list[str]) -> None:
        self.store.lost_manifests(trees)
        self.healing.want(self.index.names_of(trees))

    def close(self) -> None:
        self.meddling.stop()
        super().close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Guarded]:
    """With one artifact."""
    house = Guarded(tmp_path / "store")
    house.fill()
    yield house
    house.close()


def _replace(path: Path) -> None:
    other = path.parent.parent.parent / "other"
    other.write_bytes(b"!" * path.stat().st_size)
    other.rename(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _truncate(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(1)


def _write_and_hide(path: Path) -> None:
    """As `cp -p` into the same file does: neither size nor time tells of it."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"!" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


MEDDLING: dict[str, Callable[[Path], object]] = {
    "written": overwrite,
    "written, its time put back": _write_and_hide,
    "removed": Path.unlink,
    "replaced": _replace,
    "shortened": _truncate,
    "moved away": lambda path: path.rename(path.with_name("away")),
    "its folder removed": lambda path: shutil.rmtree(path.parent),
    "a folder": _folder,
    "a pipe": _pipe,
}


@pytest.mark.parametrize("how", MEDDLING)
def test_a_blob_is_put_right_before_anybody_asks(house: Guarded, how: str) -> None:
    """Whoever did it: the events say where to look, and what is wrong is fetched again."""
    held = house.bring(ROOT).held
    MEDDLING[how](house.blob(house.digest(held, "b/three")))
    _heal(house)
    house.origin.down = True
    found = house.find(ROOT)
    assert found is not None and house.content(found.held) == FILES
    assert house.origin.downloads[f"{ROOT}/b/three"] == 2


@pytest.mark.parametrize("how", ["written", "written, its time put back", "removed", "replaced"])
def test_a_manifest_is_put_right(house: Guarded, how: str) -> None:
    """It is what says which bytes are which file."""
    held = house.bring(ROOT).held
    MEDDLING[how](house.root / "manifests" / held.tree[:2] / held.tree[2:])
    _heal(house)
    house.origin.down = True
    found = house.find(ROOT)
    assert found is not None and house.content(found.held) == FILES


def test_what_the_daemon_does_itself_is_no_meddling(house: Guarded) -> None:
    """It brings, links, gives second inodes, evicts; nothing of that is taken for damage."""
    held = house.bring(ROOT).held
    house.store.view(held.tree)
    house.store._renew(house.digest(held, "top"))
    house.origin.files[f"{ROOT}/new"] = b"more"
    house.bring(ROOT, refresh=True)
    house.now, house.ticks = house.now + 1e6, house.ticks + 1e6
    house.sweeper.sweep(free_bytes=2**40)
    assert house.index.totals()["blob_count"] == 0
    (house.root / "blobs" / "last").mkdir()
    until(lambda: str(house.root / "blobs" / "last") in house.meddling.events._noted, "the last event to come")
    house.meddling.look()
    assert house.healing.count() == 0 and house.store.quarantine_count() == 0


def _renamed_over(folder: Path) -> None:
    """An empty one is there by then."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    folder.mkdir()
    other.rename(folder)


def _made_anew_while_open(folder: Path) -> None:
    """The old one tells of its end only when nobody has it open any more: when this test has ended."""
    _HELD_OPEN.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    folder.mkdir()
    for file in other.iterdir():
        file.rename(folder / file.name)
    other.rmdir()


def _put_back(folder: Path) -> None:
    """As somebody does who restores it: the same inode comes to its name from beside it."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    other.rename(folder)


def _lost(folder: Path) -> None:
    """And of all that the kernel tells nothing."""
    folder.rename(folder.parent.parent / "other")
    shutil.copytree(folder.parent.parent / "other", folder)


@pytest.mark.parametrize("replace", [_renamed_over, _made_anew_while_open, _put_back, _lost])
def test_a_folder_that_was_replaced_is_watched(house: Guarded, replace: Callable[[Path], None]) -> None:
    """Whichever way: what somebody removes in the new one is noticed."""
    held = house.bring(ROOT).held
    blob = house.blob(house.digest(held, "top"))
    house.meddling.look()
    events = house.meddling.events
    if replace is _lost:
        with events._lock:  # nobody reads what is told
            replace(blob.parent)
        until(lambda: str(blob.parent) in events._noted, "the events to come")
        events._noted.clear()
        events._watched[str(blob.parent)] = (WatchDescriptor(9999), _Folder(str(blob.parent), False, events))
        InotifyFD.handle_event(
            cast(InotifyFD, events._inotify), InotifyEvent(_NONE, Mask(InotifyConstants.IN_Q_OVERFLOW), 0, b"")
        )
    else:
        replace(blob.parent)
    last = blob.parent.parent / "last"
    last.mkdir()
    until(lambda: str(last) in events._noted, "the last event to come")
    house.meddling.look()  # the bytes are the same, and another inode's
    assert house.healing.count() == 0
    blob.unlink()
    _heal(house)
    while _HELD_OPEN:
        os.close(_HELD_OPEN.pop())
    assert house.content(held) == FILES


def test_watches_that_run_out_later_are_told_of_and_asked_for_again(
    house: Guarded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a store that was empty at the start, say: its folders come one by one."""

    def full(self: object, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(InotifyFD, "add_callback", full)
        house.origin.files["s3://bucket/more/x"] = b"more"
        held = house.bring("s3://bucket/more").held
        blob = house.blob(house.digest(held, "x"))
        until(lambda: house.meddling.events.is_short, "no more to be had")
        house.meddling.look()
        house.meddling.look()
    assert len([message for message in caplog.messages if "max_user_watches" in message]) == 1
    house.meddling.look()
    assert not house.meddling.events.is_short
    blob.unlink()
    _heal(house)


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_what_happens_in_a_folder_before_it_is_watched_is_looked_for(house: Guarded, kind: str) -> None:
    """The kernel tells nothing of what is removed there until then; that the folder is there, it tells."""
    held = house.bring(ROOT).held
    house.meddling.stop()
    house.meddling.look()
    digest = held.tree if kind == "manifests" else house.digest(held, "top")
    (house.root / kind / digest[:2] / digest[2:]).unlink()
    house.meddling.look()
    assert house.healing.count() == 0
    folder = house.root / kind / digest[:2]
    house.meddling.events.told(
        _Folder(str(folder.parent), True, house.meddling.events),
        InotifyEvent(_NONE, _CREATED, 0, os.fsencode(folder.name)),
    )
    _heal(house)
    assert house.content(held) == FILES


def test_more_than_can_be_noted_has_all_looked_at(house: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of events costs a look at every blob, and hides nothing."""
    monkeypatch.setattr("cacheserver.folderevents.NOTED_MAX", 1)
    held: Held = house.bring(ROOT).held
    house.meddling.events.take()
    for name in ("top", "a/one"):
        os.unlink(house.blob(house.digest(held, name)))
    until(lambda: house.meddling.events._is_much, lambda: "more events than can be noted")
    house.meddling.look()
    assert house.healing.count() == 1
    assert set(house.tree(held).missing) == {house.digest(held, "top"), house.digest(held, "a/one")}


def test_a_queue_that_runs_over_hides_nothing(house: Guarded) -> None:
    """The kernel lets go events where nobody reads them in time: then all is looked at."""
    held = house.bring(ROOT).held
    house.meddling.events.close()  # nothing is told of what happens now
    house.meddling.look()
    os.unlink(house.blob(house.digest(held, "top")))
    (house.root / "manifests" / held.tree[:2] / held.tree[2:]).unlink()
    house.meddling.look()
    assert house.healing.count() == 0
    house.meddling.events.lose()
    _heal(house)
    assert house.content(house.bring(ROOT).held) == FILES


def test_a_queue_of_others_that_runs_over_says_nothing_of_the_store(
    house: Guarded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That of the folders that are ingested, which whoever may write there can fill: not all of the store is looked at
    for it."""
    queued_max = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    others, folder, is_lost = FolderEvents(lambda path: path), tmp_path / "noise", False
    folder.mkdir()

    def lost() -> bool:
        nonlocal is_lost
        is_lost = is_lost or others.take()[1]
        return is_lost

    try:
        others.watch(str(folder))
        with others._lock:  # nobody reads the kernel's queue
            for number in range(queued_max):
                (folder / f"{number}").mkdir()
                (folder / f"{number}").rmdir()
        until(lost, "events to be lost")
    finally:
        others.close()
    house.meddling.look()
    assert "all of it is looked at" not in caplog.text and "overflowed" not in caplog.text


def test_what_could_not_be_looked_at_is_looked_at_again(house: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rest at once: no descriptor left is no reason to forget of what was told."""
    held = house.bring(ROOT).held
    first, second = (house.digest(held, name) for name in ("top", "b/three"))
    for digest in (first, second):
        overwrite(house.blob(digest))
    recheck = house.disk.recheck

    def short(row: BlobRow) -> BlobRow | None:
        if row.digest == first:
            raise CacheError("no descriptor left")
        return recheck(row)

    monkeypatch.setattr(house.disk, "recheck", short)

    def is_second_found() -> bool:
        with contextlib.suppress(CacheError):
            house.meddling.look()
        return house.store.quarantine_count() == 1

    until(is_second_found, lambda: "the other one to be found")
    with pytest.raises(CacheError, match="no descriptor"):
        house.meddling.look()
    monkeypatch.undo()
    house.meddling.look()
    assert house.store.quarantine_count() == 2


def test_folders_that_cannot_be_watched_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon serves all the same."""

    def full(self: object, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(InotifyFD, "add_callback", full)
    house = Guarded(tmp_path / "store")
    house.meddling.look()
    house.close()
    assert any("max_user_watches" in message for message in caplog.messages)


def _heal(house: Guarded) -> None:
    def noticed() -> bool:
        house.meddling.look()
        return house.healing.count() > 0

    until(noticed, lambda: "the meddling to be noticed")
    house.heal()
    assert house.healing.count() == 0
