"""Quotas for downloads at a time and for their rate: whose they are, who waits, and who does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import QuotaExceeded
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.downloads import DOWNLOADS_MAX, WINDOW_PACED
from tests.unit.accounts import ALICE, BOB, CAROL, TEAM, Homes, fetch, give, in_team, name, start
from tests.unit.house import PATIENCE_SECONDS, House
from tests.unit.sweeping import offer


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Homes]:
    """Where houses with quotas are."""
    homes = Homes(tmp_path)
    yield homes
    for house in homes.houses:
        house.close()


class Held:
    """Downloads that do not go on before the test lets them."""

    def __init__(self, house: House, *uris: str) -> None:
        self._house = house
        self._files = {f"{uri}/data" for uri in uris}
        self._reached = threading.Semaphore(0)
        self._opened = threading.Event()
        house.origin.before_download = self._hold

    def _hold(self, uri: str) -> None:
        if uri in self._files:
            self._reached.release()
            assert self._opened.wait(PATIENCE_SECONDS)

    def wait(self) -> None:
        """Until one more has begun."""
        assert self._reached.acquire(timeout=PATIENCE_SECONDS)

    def go(self) -> None:
        """Lets all go on."""
        self._opened.set()


# -- downloads at a time ----------------------------------------------------------------------------------------------


def test_so_many_at_a_time(homes: Homes) -> None:
    """One more is refused, and says how many there are and which key grants them; others' are no matter."""
    house = homes.house({name(ALICE): Allowance(downloads=2)})
    uris = [offer(house, which, 5) for which in "abcd"]
    gate = Held(house, *uris[:2])
    flights = []
    for uri in uris[:2]:
        flights.append(start(house, uri, ALICE))
        gate.wait()
    with pytest.raises(QuotaExceeded, match=rf"has 2 downloads under way.*\[quotas\.user\.{ALICE.uid}\] downloads"):
        fetch(house, uris[2], ALICE)
    fetch(house, uris[2], BOB)
    assert fetch(house, uris[2], ALICE).origin_bytes == 0  # a hit is no download
    gate.go()
    for flight in flights:
        flight.future.result(timeout=PATIENCE_SECONDS)
    assert fetch(house, uris[3], ALICE).origin_bytes == 5


def test_joining_is_no_download_of_ones_own(homes: Homes) -> None:
    """Who waits for what somebody else is bringing has none, and may begin as many as ever."""
    house = homes.house({EVERYBODY: Allowance(downloads=1)})
    uri, other = offer(house, "a", 5), offer(house, "b", 5)
    gate = Held(house, uri)
    first = start(house, uri, ALICE)
    gate.wait()
    assert start(house, uri, BOB) is first
    assert start(house, uri, ALICE) is first
    fetch(house, other, BOB)
    with pytest.raises(QuotaExceeded):
        give(house, "c", 5, ALICE)
    gate.go()
    first.future.result(timeout=PATIENCE_SECONDS)
    fetch(house, "s3://bucket/c", BOB)


def test_members_of_a_group_share_their_downloads(homes: Homes) -> None:
    """Whoever of them begins, the next of them waits; who is no member does not."""
    house = homes.house(groups={TEAM.gr_name: Allowance(downloads=1)})
    uri, other = offer(house, "a", 5), offer(house, "b", 5)
    gate = Held(house, uri)
    flight = start(house, uri, in_team(ALICE))
    gate.wait()
    with pytest.raises(QuotaExceeded, match=rf"The group {TEAM.gr_name} has 1 download.*\[quotas\.group\."):
        fetch(house, other, in_team(BOB))
    fetch(house, other, CAROL)
    gate.go()
    flight.future.result(timeout=PATIENCE_SECONDS)


def test_what_is_refused_takes_no_place(homes: Homes) -> None:
    """Where a user's own quota refuses, the group's has not one less."""
    house = homes.house({name(ALICE): Allowance(downloads=1)}, {TEAM.gr_name: Allowance(downloads=2)})
    uri = offer(house, "a", 5)
    gate = Held(house, uri)
    start(house, uri, in_team(ALICE))
    gate.wait()
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="The user"):
            give(house, "b", 5, in_team(ALICE))
    assert fetch(house, "s3://bucket/b", in_team(BOB)).origin_bytes == 5
    gate.go()


def test_one_after_the_other_is_one_at_a_time(homes: Homes) -> None:
    """A download is over before its caller hears of it, so that the next may begin at once."""
    house = homes.house({name(ALICE): Allowance(downloads=1)})
    for number in range(100):
        give(house, str(number), 5, ALICE)


# -- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_holds_over_files_and_artifacts(homes: Homes) -> None:
    """All that comes for one user together takes as long as the rate says, whatever it is made of."""
    house = homes.house({name(ALICE): Allowance(rate=100)})
    for number in range(10):
        house.origin.files[f"s3://bucket/many/{number}"] = bytes([number]) * 50
    began = house.ticks
    fetch(house, "s3://bucket/many", ALICE)
    house.origin.files["s3://bucket/one/f"] = b"f" * 700
    fetch(house, "s3://bucket/one", ALICE)
    assert 1200 / 100 - 1 <= house.ticks - began <= 1200 / 100 + 1


def test_the_slower_of_two_rates_holds(homes: Homes) -> None:
    """A user's own and that of a group; members share the latter."""
    house = homes.house({name(ALICE): Allowance(rate=1000)}, {TEAM.gr_name: Allowance(rate=100)})
    house.origin.files = {f"s3://bucket/{which}/f": which.encode() * 500 for which in "abc"}
    began = house.ticks
    fetch(house, "s3://bucket/a", in_team(ALICE))
    fetch(house, "s3://bucket/b", in_team(BOB))
    assert 9 <= house.ticks - began <= 11
    began = house.ticks
    fetch(house, "s3://bucket/c", CAROL)
    assert house.ticks == began


def test_who_has_no_rate_waits_for_nothing(homes: Homes) -> None:
    """Nobody's clock moves for a user without a rate, nor for a hit."""
    house = homes.house({EVERYBODY: Allowance(rate=1), name(BOB): Allowance()})
    house.origin.files["s3://bucket/a/f"] = b"f" * 5000
    began = house.ticks
    fetch(house, "s3://bucket/a", BOB)
    fetch(house, "s3://bucket/a", ALICE)
    assert house.ticks == began


class Waiting(House):
    """A house whose clock stands still: who has to wait does so until the test ends it."""

    waits = threading.Semaphore(0)
    over = threading.Event()

    def _sleep(self, seconds: float) -> None:
        self.waits.release()
        assert self.over.wait(PATIENCE_SECONDS)
        super()._sleep(seconds)


def test_who_has_to_wait_keeps_nobody_else_waiting(homes: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many downloads of one user wait for their rate, there are threads for everybody else's."""
    monkeypatch.setattr(Waiting, "waits", threading.Semaphore(0))
    monkeypatch.setattr(Waiting, "over", threading.Event())
    house = homes.house({name(ALICE): Allowance(rate=1)}, kind=Waiting)
    count = DOWNLOADS_MAX // WINDOW_PACED + 1
    for number in range(count):
        for part in range(WINDOW_PACED):
            house.origin.files[f"s3://bucket/slow-{number}/{part}"] = f"{number:05}{part:05}".encode()
    flights = [start(house, f"s3://bucket/slow-{number}", ALICE) for number in range(count)]
    try:
        while Waiting.waits.acquire(timeout=1.0):  # all of hers that can have a thread have one
            pass
        house.origin.files["s3://bucket/quick/f"] = b"f"
        flight = start(house, "s3://bucket/quick", BOB)
        assert flight.future.result(timeout=PATIENCE_SECONDS / 3).origin_bytes == 1
    finally:
        Waiting.over.set()
    for one in flights:
        one.future.result(timeout=PATIENCE_SECONDS)
