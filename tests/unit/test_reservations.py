"""Space that is promised to downloads."""

from __future__ import annotations

import pytest

from artifactcache.errors import NoSpace
from cacheserver.reservations import Promise
from cacheserver.space import Amount, Limits
from cacheserver.words import Progress
from tests.unit.house import House


def test_what_went_on_is_not_counted_as_written_twice() -> None:
    """Of 100 bytes 50 were on the disk: when the file of 60 that they are part of is done, 40 are still to come."""
    progress = Progress()
    promise = Promise(100, 50, progress, 0, 0, 0)
    assert promise.unwritten() == 50
    progress.bytes_done, progress.bytes_found = 60, 50
    assert promise.unwritten() == 40
    progress.bytes_done = 100
    assert promise.unwritten() == 0


def test_two_promises_are_not_of_the_same_space(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What fits alone does not fit beside the other."""
    house = House(tmp_path_factory.mktemp("house") / "store", Limits(Amount(100), Amount(0)))
    try:
        reservations = house.cache._bringing._reservations
        with reservations.reserve("one", 60, Progress()):
            with pytest.raises(NoSpace), reservations.reserve("other", 41, Progress()):
                pass
            with reservations.reserve("third", 40, Progress()):
                pass
    finally:
        house.close()
