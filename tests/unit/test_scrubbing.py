"""The scrub finds what nobody has asked for, goes on where it was, and what it finds is fetched again."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cacheserver import hashing, scrubbing
from cacheserver.healing import RETRY_SECONDS
from cacheserver.pace import Pace
from cacheserver.scrubbing import Scrubber
from cacheserver.words import BlobRow, Entry, Manifest
from tests.unit.healer import Healer
from tests.unit.house import FILES, MANY, ROOT, House, overwrite

DAY = 86_400.0


class Watched(Healer):
    """A house that is scrubbed, and heals."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.slept = 0.0
        self.scrubber = self.a_scrubber()

    def a_scrubber(self) -> Scrubber:
        """As the daemon has one; its clocks stand still, but for what the pace waits."""
        pace = Pace(1 << 20, lambda: self.ticks, self._nap)
        return Scrubber(self.store, 7 * DAY, pace, lambda: self.now)

    def _nap(self, seconds: float) -> None:
        self.slept += seconds
        self.ticks += seconds


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Watched]:
    """With one artifact of a few files."""
    house = Watched(tmp_path / "store")
    house.fill()
    yield house
    house.close()


def rot(house: House, digest: str) -> None:
    """As a bad disk does it: size and time stay what they are."""
    path, before = house.blob(digest), house.blob(digest).stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_has_rotted_is_found_and_fetched_again(house: Watched) -> None:
    """Nobody has asked: the scrub finds it, and right bytes are here before somebody does."""
    held = house.bring(ROOT).held
    wrong = house.digest(held, "b/three")
    rot(house, wrong)
    assert house.find(ROOT) is not None, "its inode shows nothing"
    house.scrubber.look()
    last = house.index.scrubs.last()
    assert (last.wrong_count, last.blob_count) == (1, 4) and house.store.quarantine_count() == 1
    assert house.healing.count() == 1
    house.heal()
    assert house.healing.count() == 0 and house.origin.downloads[f"{ROOT}/b/three"] == 2
    house.origin.down = True
    found = house.find(ROOT)
    assert found is not None and house.content(found.held) == FILES


def test_what_cannot_be_had_is_told_once_and_tried_again(house: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """It stays in quarantine; the origin is asked again after a while, and longer each time."""
    rot(house, house.digest(house.bring(ROOT).held, "top"))
    house.origin.down = True
    house.scrubber.look()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            house.heal()
            house.ticks += RETRY_SECONDS
    told = [message for message in caplog.messages if "cannot be had now" in message]
    assert len(told) == 1 and "tried again" in told[0] and house.healing.count() == 1
    house.origin.down = False
    house.heal()
    assert house.healing.count() == 1, "its time has not come: the second wait is longer"
    house.ticks += 2 * RETRY_SECONDS
    house.heal()
    assert house.healing.count() == 0 and house.find(ROOT) is not None


def test_a_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each blob is looked at once, however often the daemon is stopped; the next pass begins a week later."""
    monkeypatch.setattr(scrubbing, "STEP_BLOBS", 7)
    house = Watched(tmp_path / "store")
    house.origin.files = {f"{ROOT}/{name}": content for name, content in MANY.items()}
    house.bring(ROOT)
    looked: list[str] = []
    recheck = house.disk.recheck

    def look(row: BlobRow, spend: Callable[[int], None] | None = None) -> BlobRow | None:
        looked.append(row.digest)
        return recheck(row, spend)

    monkeypatch.setattr(house.disk, "recheck", look)
    blobs = house.index.totals()["blob_count"]
    while len(looked) < blobs:
        before = len(looked)
        house.scrubber = house.a_scrubber()

        def stop_soon(count: int, scrubber: Scrubber = house.scrubber, until: int = before + 20) -> None:
            if len(looked) >= until:
                scrubber.stop()

        monkeypatch.setattr(house.scrubber, "_spend", stop_soon)
        house.scrubber.look()
        assert len(looked) > before
    house.a_scrubber().look()
    assert looked == sorted(looked) and len(looked) == blobs == len(set(looked))
    last = house.index.scrubs.last()
    assert not last.is_under_way and last.blob_count == blobs
    house.a_scrubber().look()
    house.now += 7 * DAY - 60
    house.a_scrubber().look()
    assert len(looked) == blobs
    house.now += 120
    while len(looked) < 2 * blobs:  # five seconds' worth at a time
        house.a_scrubber().look()
    assert looked[blobs:] == looked[:blobs] and house.index.scrubs.last().began_at == house.now
    house.close()


def test_the_pace_is_kept(tmp_path: Path) -> None:
    """A small file counts as 64 KiB, a large one as what it is: 1 MiB a second here."""
    house = Watched(tmp_path / "store")
    house.origin.files = {f"{ROOT}/{n}": os.urandom(100) for n in range(32)} | {f"{ROOT}/large": os.urandom(3 << 20)}
    house.bring(ROOT)
    while house.index.scrubs.last().ended_at == 0:
        house.scrubber.look()
    assert house.slept == pytest.approx(32 / 16 + 3 - 1, abs=0.2), "the first second's worth may come at once"
    house.close()


def test_a_clock_that_was_set_back_stops_no_scrub(house: Watched) -> None:
    """A last pass that is yet to come says nothing."""
    house.scrubber.look()
    house.now -= 400 * DAY
    house.scrubber.look()
    assert house.index.scrubs.last().began_at == house.now


def direct_reads_say(number: int, monkeypatch: pytest.MonkeyPatch, *, when: str = "read") -> None:
    """What reading directly, or asking for it when a file is opened, says; reading the usual way works."""
    real, direct = fcntl.fcntl, set[int]()

    def without(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            if when == "open":
                raise OSError(number, os.strerror(number))
            direct.add(fd)
        elif command == fcntl.F_SETFL:
            direct.discard(fd)
        return int(real(fd, command, value))

    class Stubborn(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            if self.fileno() in direct:
                raise OSError(number, os.strerror(number))
            return super().readinto(buffer)

    monkeypatch.setattr("cacheserver.hashing.fcntl.fcntl", without)
    monkeypatch.setattr("cacheserver.disk.io.FileIO", Stubborn)


def test_what_the_disk_has_lost_is_found_though_the_kernel_remembers_it(
    house: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that dies says EIO, and that is what it is: it is not asked in another way until it seems fine."""
    with monkeypatch.context() as patch:
        direct_reads_say(errno.EIO, patch)
        house.scrubber.look()
    assert house.index.scrubs.last().wrong_count == 5 and house.store.quarantine_count() == 4, "and the manifest"
    house.heal()
    assert house.content(house.bring(ROOT).held) == FILES


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("refuses", ["open", "read"])
def test_a_filesystem_without_direct_reads(
    house: Watched, monkeypatch: pytest.MonkeyPatch, refuses: str, number: int
) -> None:
    """It is read the usual way; nothing is taken for lost, and what is wrong is found all the same."""
    direct_reads_say(number, monkeypatch, when=refuses)
    rot(house, house.digest(house.bring(ROOT).held, "top"))
    house.scrubber.look()
    assert house.index.scrubs.last().wrong_count == 1 and house.store.quarantine_count() == 1


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each piece is that is read from now on."""
    read, pieces = hashing._read, list[int]()

    def counting(file: io.FileIO, view: memoryview) -> int:
        pieces.append(read(file, view))
        return pieces[-1]

    monkeypatch.setattr(hashing, "_read", counting)
    return pieces


def comes_first(name: str, content: bytes) -> bool:
    """Whether a blob comes before the manifest of a tree that is this one file."""
    digest = blake3(content).hexdigest()
    return digest < Manifest.of([Entry(name.encode(), digest, len(content))]).digest


def test_a_stop_ends_it_in_the_middle_of_a_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the piece that is being read, however much of the blob is left. A pass whose first blob it was is not over:
    the next daemon begins with that blob."""
    house = Watched(tmp_path / "store")
    contents = (bytes([n]) * (8 << 20) for n in range(256))
    house.origin.files = {f"{ROOT}/large": next(content for content in contents if comes_first("large", content))}
    house.bring(ROOT)
    pieces = count_reads(monkeypatch)
    monkeypatch.setattr(house, "_nap", lambda seconds: house.scrubber.stop())
    monkeypatch.setattr("cacheserver.scrubbing.Pace.spend", lambda pace, count: pace._sleep(1.0))
    with caplog.at_level(logging.INFO):
        house.scrubber = house.a_scrubber()
        house.scrubber.look()
    assert sum(pieces) <= 1 << 20, "it was read on"
    last = house.index.scrubs.last()
    assert last.is_under_way and last.blob_count == 0 and "all is looked at" not in caplog.text
    monkeypatch.setattr("cacheserver.scrubbing.Pace.spend", lambda pace, count: None)
    house.a_scrubber().look()
    assert not house.index.scrubs.last().is_under_way and house.index.scrubs.last().blob_count == 1
    house.close()


def test_how_far_it_is_is_noted_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the blobs: who is killed after that reads no blob twice that was read to its end."""
    house = Watched(tmp_path / "store")
    house.origin.files = {f"{ROOT}/{n}": os.urandom(3 << 20) for n in range(6)}
    house.bring(ROOT)
    house.scrubber.look()
    last = house.index.scrubs.last()
    assert last.is_under_way and last.blob_count in (2, 3) and house.slept <= scrubbing.LOOK_SECONDS + 3
    pieces = count_reads(monkeypatch)
    while house.index.scrubs.last().is_under_way:
        house.a_scrubber().look()
    assert sum(pieces) < (6 - last.blob_count) * (3 << 20) + (64 << 10), "more than was left, and a manifest"
    house.close()
