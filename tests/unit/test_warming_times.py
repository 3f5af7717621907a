"""What is kept warm by times of the week: each brings one look, whatever sleeps, fails or jumps meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.assembly import _ahead
from cacheserver.errands import Freshness
from cacheserver.schedules import read
from cacheserver.selection import Selection
from cacheserver.warming import RETRY_SECONDS, Warm, Warming
from tests.unit.house import House
from tests.unit.keeping import CHAMPION, EVERY, house_of_versions, later, look, move, pinned, warming

HOUR, DAY = 3600.0, 86_400.0
MIDNIGHT = 20_000 * DAY  # of a day from which the clock of these tests begins; UTC is local time


def at(*texts: str) -> Warm:
    """The champion, looked at at these times."""
    return Warm(CHAMPION, math.inf, Selection(), read(texts))


def seen(house: House, keeper: Warming) -> int:
    """How often the origin is asked by the looks of one moment."""
    before = house.origin.alias_count
    for _ in range(3):
        look(keeper)
    return house.origin.alias_count - before


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """What is kept warm is a model of three versions."""
    house = house_of_versions(tmp_path)
    yield house
    house.close()


@pytest.fixture
def noon(house: House) -> House:
    """The house at noon, when the champion was looked at already."""
    house.now = MIDNIGHT + 12 * HOUR
    look(warming(house, at("06:30")))
    assert pinned(house) == {"1"}
    later(house, 1.0)
    return house


def test_what_is_not_here_waits_for_no_time(house: House) -> None:
    """It is fetched when the daemon starts, and looked at again when its time has come, once."""
    house.now = MIDNIGHT + 12 * HOUR
    keeper = warming(house, at("06:30"))
    assert seen(house, keeper) == 1 and pinned(house) == {"1"}
    move(house, CHAMPION, "2")
    for _ in range(18):
        later(house, HOUR)
        assert seen(house, keeper) == 0
    later(house, HOUR / 2)
    assert seen(house, keeper) == 1 and pinned(house) == {"2"}
    later(house, 23 * HOUR)
    assert seen(house, keeper) == 0
    later(house, HOUR)
    assert seen(house, keeper) == 1


def test_a_start_is_no_time(noon: House) -> None:
    """What was looked at before the restart is not looked at because of it."""
    for _ in range(3):
        assert seen(noon, warming(noon, at("06:30"))) == 0
        later(noon, HOUR)


def test_times_that_were_slept_through_are_made_up_for_by_one_look(noon: House) -> None:
    """By a daemon that did not run, and by a host that slept, whose clock of ticks has slept too."""
    later(noon, 3 * DAY)
    keeper = warming(noon, at("06:30", "11:00"))
    assert seen(noon, keeper) == 1
    noon.now += 3 * DAY
    assert seen(noon, keeper) == 1
    later(noon, 18 * HOUR)
    assert seen(noon, keeper) == 0  # 06:00


def test_a_clock_that_is_put_back_brings_nothing_again(noon: House) -> None:
    """Neither while the daemon runs nor over its restart; the day after it goes on as ever."""
    later(noon, 18.5 * HOUR)
    keeper = warming(noon, at("06:30"))
    assert seen(noon, keeper) == 1
    noon.now -= 2 * HOUR
    for _ in range(4):
        later(noon, HOUR)
        assert seen(noon, keeper) == 0 and seen(noon, warming(noon, at("06:30"))) == 0
    later(noon, 22 * HOUR)
    assert seen(noon, keeper) == 1


def test_a_clock_that_was_far_ahead_is_not_waited_for(noon: House) -> None:
    """A look of next year, by a clock that was wrong, keeps none of this year from being taken."""
    keeper = warming(noon, at("06:30"))
    noon.now += 365 * DAY
    assert seen(noon, keeper) == 1
    noon.now -= 365 * DAY
    for one in (keeper, warming(noon, at("06:30"))):
        assert seen(noon, one) == 0
    later(noon, 18.5 * HOUR)
    assert seen(noon, keeper) == 1


def test_a_time_counts_when_the_origin_has_answered(noon: House) -> None:
    """Until then it is asked each minute, over restarts too: the next time may be a week away; what there is stays."""
    keeper = warming(noon, at("Mon..Sun 06:30"))
    later(noon, 18.5 * HOUR)
    move(noon, CHAMPION, "2")
    noon.origin.down = True
    for _ in range(3):
        look(keeper)
        assert pinned(noon) == {"1"}
        later(noon, RETRY_SECONDS)
    keeper = warming(noon, at("Mon..Sun 06:30"))
    look(keeper)
    noon.origin.down = False
    assert seen(noon, keeper) == 0  # the minute is not over
    later(noon, RETRY_SECONDS)
    assert seen(noon, keeper) == 1 and pinned(noon) == {"2"}
    later(noon, RETRY_SECONDS)
    assert seen(noon, keeper) == 0


@pytest.mark.parametrize("again", [False, True])
def test_a_stale_answer_is_no_look(house: House, again: bool) -> None:
    """Nor of what has no alias: it is asked again until the origin says how it stands, over a restart too."""
    house.now = MIDNIGHT + 12 * HOUR
    root = house.origin.run("4")
    house.origin.files[f"{root}/f"] = b"g"
    keeper = warming(house, Warm("runs:/4", math.inf, Selection(), read(["06:30"])))
    look(keeper)
    later(house, 19 * HOUR)
    house.origin.files[f"{root}/g"] = b"h"
    house.origin.down = True
    look(keeper)
    assert house.index.pins.untils(house.now)
    house.origin.down = False
    later(house, RETRY_SECONDS)
    look(warming(house, *keeper._due) if again else keeper)
    found = house.find("runs:/4")
    assert found is not None and set(house.content(found.held)) == {"f", "g"}


def test_a_time_asks_whatever_is_remembered_of_the_alias(noon: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one look where `every` has many."""
    monkeypatch.setattr(noon.cache, "_freshness", Freshness(relist_after=3600.0, alias_ttl=100 * DAY, stale_after=1.0))
    keeper = warming(noon, at("06:30"))
    for number in "23":
        move(noon, CHAMPION, number)
        later(noon, DAY)
        assert seen(noon, keeper) == 1 and pinned(noon) == {number}


def test_a_download_that_outlasts_a_time_is_looked_at_again(noon: House) -> None:
    """A look counts from its beginning: what has changed since is noticed, also by a daemon that starts after it."""
    keeper = warming(noon, at("06:30", "07:00"))
    later(noon, 18.5 * HOUR)
    move(noon, CHAMPION, "2")
    noon.origin.before_download = lambda uri: later(noon, HOUR / 2)
    look(keeper)
    noon.origin.before_download = lambda uri: None
    move(noon, CHAMPION, "3")
    assert seen(noon, warming(noon, at("06:30", "07:00"))) == 1 and pinned(noon) == {"3"}


def test_another_schedule_counts_from_the_last_look(noon: House) -> None:
    """While the daemon serves: what has come since then is looked at, what had come before is not."""
    keeper = warming(noon, at("06:30"))
    assert seen(noon, keeper) == 0
    keeper.become([at("11:00")])
    assert seen(noon, keeper) == 0
    later(noon, HOUR)
    keeper.become([at("06:30", "12:30")])
    assert seen(noon, keeper) == 1
    keeper.become([Warm(CHAMPION, EVERY, Selection())])
    assert seen(noon, keeper) == 1
    keeper.become([at("12:30")])
    assert seen(noon, keeper) == 0 and pinned(noon) == {"1"}


def test_local_time_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summer time too, as the C library knows it."""
    monkeypatch.setenv("TZ", "XST-5:30XDT,M3.5.0,M10.5.0")
    time.tzset()
    try:
        assert (_ahead(1_768_000_000.0), _ahead(1_783_000_000.0)) == (5.5 * HOUR, 6.5 * HOUR)  # January and July, 2026
    finally:
        monkeypatch.undo()
        time.tzset()
