"""What is kept warm: here before anybody asks, and following its alias, over an origin that obeys the test."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import OriginUnavailable
from cacheserver.selection import Selection
from cacheserver.warming import RETRY_SECONDS, Warm
from tests.unit.house import House
from tests.unit.keeping import CANARY, CHAMPION, EVERY, house_of_versions, later, look, move, pinned, warming
from tests.unit.sweeping import ALL


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """What is kept warm is a model of three versions."""
    house = house_of_versions(tmp_path)
    yield house
    house.close()


def survivors(house: House) -> set[str]:
    """The numbers of the versions that are left when all goes that may."""
    later(house, 20.0)  # what has just been brought is about to be leased
    house.sweeper.sweep(free_bytes=ALL)
    return {one.uri[-1] for one in house.index.asked()}


def test_it_is_here_before_anybody_asks(house: House) -> None:
    """And whoever asks is served without a byte of the origin; it is not evicted."""
    look(warming(house, CHAMPION))
    downloads = house.origin.downloads.total()
    assert downloads == 2 and survivors(house) == {"1"}
    found = house.find("models:/m/1")
    assert found is not None and house.content(found.held)["weights.onnx"] == b"1" * 100
    assert house.bring("models:/m/1").origin_bytes == 0 and house.origin.downloads.total() == downloads


def test_it_follows_the_alias(house: House) -> None:
    """The old one may go when the new one is here, and not a moment before."""
    keeper = warming(house, CHAMPION)
    look(keeper)
    move(house, CHAMPION, "2")
    seen = []
    house.origin.before_download = lambda uri: seen.append(pinned(house))
    house.origin.after_download = lambda uri: seen.append(pinned(house))
    later(house, EVERY)
    look(keeper)
    assert seen and all(kept == {"1"} for kept in seen)
    assert pinned(house) == {"2"} and survivors(house) == {"2"}


def test_what_cannot_be_had_takes_nothing_away(house: House) -> None:
    """Whether the new one cannot be downloaded, the alias is gone, or nobody answers: what there is stays."""
    keeper = warming(house, CHAMPION)
    look(keeper)

    def fail(uri: str) -> None:
        raise OriginUnavailable("it broke off")

    move(house, CHAMPION, "2")
    house.origin.before_download = fail
    for _ in range(3):
        later(house, EVERY)
        look(keeper)
    assert pinned(house) == {"1"}
    del house.origin.aliases[CHAMPION]
    later(house, EVERY)
    look(keeper)
    assert pinned(house) == {"1"}
    house.origin.down = True
    later(house, EVERY)
    look(keeper)
    assert pinned(house) == {"1"} and survivors(house) == {"1"}
    house.origin.down, house.origin.before_download = False, lambda uri: None
    move(house, CHAMPION, "2")
    later(house, EVERY)
    look(keeper)
    assert survivors(house) == {"2"}


def test_each_is_looked_at_when_its_time_has_come(house: House) -> None:
    """At once when the daemon starts, and then every so often; a look before that asks nothing."""
    seldom, often = Warm(CHAMPION, 1000.0, Selection()), Warm(CANARY, 10.0, Selection())
    keeper = warming(house, seldom, often)
    look(keeper)
    asked = house.origin.alias_count
    assert asked == 2
    for _ in range(9):
        later(house, 1.0)
        look(keeper)
    assert house.origin.alias_count == asked
    later(house, 1.0)
    look(keeper)
    assert house.origin.alias_count == asked + 1
    for _ in range(99):
        later(house, 10.0)
        look(keeper)
    assert house.origin.alias_count == asked + 1 + 99 + 1


@pytest.mark.parametrize("every", [10.0, 100_000.0])
def test_a_failure_is_told_once_and_tried_again_soon(
    house: House, every: float, caplog: pytest.LogCaptureFixture
) -> None:
    """After a minute, or sooner where it is looked at more often; one that comes after a success is told again."""
    keeper = warming(house, Warm(CHAMPION, every, Selection()))
    house.origin.down = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            look(keeper)
            later(house, min(every, RETRY_SECONDS))
        assert caplog.text.count("cannot be kept warm") == 1 and CHAMPION in caplog.text
        house.origin.down = False
        look(keeper)
        assert pinned(house) == {"1"}
        del house.origin.aliases[CHAMPION]
        later(house, every)
        look(keeper)
    assert caplog.text.count("cannot be kept warm") == 2


def test_one_that_fails_keeps_no_other_waiting(house: House) -> None:
    """In whatever order they stand, and whatever it fails of."""
    keeper = warming(house, "models:/none@champion", "models:/none/1", CHAMPION)
    look(keeper)
    assert pinned(house) == {"1"}


def test_an_error_that_nobody_expects_keeps_no_other_waiting(house: House) -> None:
    """The next ones have their turn, this time or the next."""
    keeper = warming(house, "s3://bucket/odd", CHAMPION)
    house.origin.files["s3://bucket/odd/f"] = b"f"

    def fail(uri: str) -> None:
        if "odd" in uri:
            raise RuntimeError("whatever it is")

    house.origin.before_download = fail
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            look(keeper)
        later(house, EVERY)
    assert pinned(house) == {"1"}


def test_two_that_stand_for_one_version_keep_it_each(house: House) -> None:
    """Where one of them moves on, or is taken out of the configuration, the other keeps it all the same."""
    keeper = warming(house, Warm(CHAMPION, 10_000.0, Selection()), Warm(CANARY, 10.0, Selection()))
    look(keeper)
    move(house, CANARY, "2")
    later(house, 10.0)
    look(keeper)
    assert pinned(house) == {"1", "2"} and survivors(house) == {"1", "2"}
    move(house, CANARY, "1")
    later(house, 10.0)
    look(keeper)
    assert pinned(house) == {"1"}
    warming(house, CHAMPION)
    assert pinned(house) == {"1"}


def test_what_is_not_in_the_configuration_any_more_is_not_kept(house: House) -> None:
    """From the next start on; operators' pins are no matter of it."""
    look(warming(house, CHAMPION, "models:/m/2", "models:/m/3"))
    house.index.pins.pin("models:/m/3", "", owner=0, asked="models:/m/3", now=house.now)
    assert pinned(house) == {"1", "2", "3"}
    warming(house, CHAMPION)
    assert pinned(house) == {"1", "3"} and survivors(house) == {"1", "3"}
    warming(house)
    assert survivors(house) == {"3"}


def test_only_the_wanted_files_are_fetched(house: House) -> None:
    """By the patterns of the configuration; other patterns are another artifact, which takes the old one's place."""
    look(warming(house, Warm(CHAMPION, EVERY, Selection.of(["*.onnx"], []))))
    assert list(house.origin.downloads) == ["s3://bucket/m/1/weights.onnx"]
    keeper = warming(house, Warm(CHAMPION, EVERY, Selection.of([], ["*.onnx"])))
    look(keeper)
    keys = {selection for _, selection in house.index.pins.untils(house.now)}
    assert keys == {Selection.of([], ["*.onnx"]).key}
    later(house, 20.0)
    house.sweeper.sweep(free_bytes=ALL)
    assert [held.selection for held in house.index.asked()] == [Selection.of([], ["*.onnx"]).key]


def test_a_daemon_that_starts_again_keeps_what_there_is(house: House) -> None:
    """Without another download, and also while nobody answers."""
    look(warming(house, CHAMPION))
    downloads = house.origin.downloads.total()
    house.origin.down = True
    keeper = warming(house, CHAMPION)
    assert pinned(house) == {"1"}
    look(keeper)
    assert survivors(house) == {"1"} and house.origin.downloads.total() == downloads


def test_what_somebody_is_bringing_is_not_brought_twice(house: House) -> None:
    """It waits for that, and keeps it."""
    flights = []
    house.origin.before_download = lambda uri: flights.append(house.start("models:/m/1"))
    look(warming(house, CHAMPION))
    assert set(house.origin.downloads.values()) == {1} and pinned(house) == {"1"}
    for flight in flights:
        house.cache.leave(flight)


def test_what_is_fixed_is_kept_too(house: House) -> None:
    """A version, a run or a bare URI has no alias to follow; it is fetched once."""
    house.origin.files["s3://bucket/bare/f"] = b"f"
    root = house.origin.run("4")
    house.origin.files[f"{root}/f"] = b"g"
    keeper = warming(house, "models:/m/2", "runs:/4", "s3://bucket/bare")
    for _ in range(3):
        look(keeper)
        later(house, EVERY)
    assert pinned(house) == {"2", "4", "e"} and survivors(house) == {"2", "4", "e"}
    assert set(house.origin.downloads.values()) == {1} and house.origin.alias_count == 0
