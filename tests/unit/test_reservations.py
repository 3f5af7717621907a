"""Space that is promised to downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactcache.errors import NoSpace
from cacheserver.reservations import FILE_BYTES, Promise
from cacheserver.space import Amount, Limits
from cacheserver.words import Progress
from tests.unit.house import House


def test_what_went_on_is_not_counted_as_written_twice() -> None:
    """Of 100 bytes 50 were on the disk: when the file of 60 that they are part of is done, 40 are still to come."""
    progress = Progress()
    promise = Promise(100, 50, 0, progress, 0, 0, 0, 0)
    assert promise.unwritten(0) == 50
    progress.bytes_done, progress.bytes_found = 60, 50
    assert promise.unwritten(0) == 40
    progress.bytes_done = 100
    assert promise.unwritten(0) == 0


def test_what_is_half_written_is_on_the_disk_already() -> None:
    """Of one file of 100 bytes 90 are there: 10 are still to come, as they are where 50 of these were there before."""
    progress = Progress()
    assert Promise(100, 0, 0, progress, 0, 0, 0, 0).unwritten(90) == 10
    assert Promise(100, 50, 0, progress, 0, 0, 0, 0).unwritten(90) == 10
    assert Promise(100, 50, 0, progress, 0, 0, 0, 0).unwritten(30) == 50, "the beginning of another file waits"


def test_a_file_costs_a_block_until_it_is_done() -> None:
    """A thousand files of a byte take a thousand blocks of the disk: that is promised, less for each that is there."""
    progress = Progress()
    promise = Promise(1000, 0, 1000, progress, 0, 0, 0, 0)
    assert promise.unwritten(0) == 1000 * (1 + FILE_BYTES) and promise.coming() == 1000
    progress.bytes_done = progress.files_done = 400
    assert promise.unwritten(0) == 600 * (1 + FILE_BYTES)


def test_two_promises_are_not_of_the_same_space(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What fits alone does not fit beside the other."""
    house = House(tmp_path_factory.mktemp("house") / "store", Limits(Amount(100), Amount(0)))
    try:
        with house.sweeper.room("one", 60, 1, Progress()):
            with pytest.raises(NoSpace, match="other"), house.sweeper.room("other", 41, 1, Progress()):
                pass
            with house.sweeper.room("third", 40, 1, Progress()):
                pass
        with house.sweeper.room("alone", 100, 1, Progress()):
            pass
    finally:
        house.close()


def test_a_download_that_is_half_written_makes_nobody_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The disk shows what is written of it; that is not promised a second time."""
    house = House(tmp_path_factory.mktemp("house") / "store", Limits(Amount(10**9), Amount(0)))
    progress = Progress()
    try:
        with house.sweeper.room("one", 1000, 1, progress):
            assert house.reservations.fill().unwritten == 1000 + FILE_BYTES
            path = house.store.stage()
            progress.active[path] = 1000
            with open(path, "wb") as file:
                file.write(bytes(900))
            assert house.reservations.fill().unwritten == 100 + FILE_BYTES
    finally:
        house.close()


def test_a_beginning_that_goes_on_is_on_the_disk_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An earlier attempt has left 600 of 1000 bytes: they are not promised while they wait, nor while the file goes on
    from them, nor given back when it is done; what another download of its own still has to write is."""
    house = House(tmp_path_factory.mktemp("house") / "store", Limits(Amount(10**9), Amount(0)))
    progress = Progress(bytes_done=70, bytes_found=50, bytes_kept=70, files_done=1)  # of a part before this one
    path = Path(house.store.stage())
    path.write_bytes(bytes(600))

    def unwritten() -> int:
        return house.reservations.fill().unwritten

    try:
        with house.sweeper.room("other", 20, 0, Progress()), house.sweeper.room("one", 1300, 0, progress, written=600):
            assert unwritten() == 20 + 700
            progress.active[str(path)] = 1000
            assert unwritten() == 20 + 700
            path.write_bytes(bytes(900))
            assert unwritten() == 20 + 400
            del progress.active[str(path)]
            progress.bytes_done, progress.bytes_found = 70 + 1000, 50 + 600
            assert unwritten() == 20 + 300
        assert unwritten() == 0
    finally:
        house.close()
