"""The shared tier and quotas: what comes from there counts once, and nobody waits for somebody else's rate."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver import uris
from cacheserver.allowances import Allowance
from cacheserver.errands import Ask
from cacheserver.flights import Flight
from cacheserver.packing import BLOBS
from cacheserver.selection import Selection
from cacheserver.settings import QuotasConfig
from cacheserver.space import Amount
from cacheserver.words import Brought, Payer
from tests.unit.accounts import ALICE, BOB, name
from tests.unit.house import PATIENCE_SECONDS, House
from tests.unit.tiers import Street, published

RATE = 1 << 20


class Slow(House):
    """A house where a rate is waited for until the test says that it is paid."""

    def __init__(self, street: Street, allowance: Allowance) -> None:
        self.is_waiting, self.is_paid = threading.Event(), threading.Event()
        quotas = QuotasConfig(users={name(ALICE): allowance})
        super().__init__(street.folder / "slow", quotas=quotas, origin=street.origin, tier=street.cupboard)
        street.houses.append(self)

    def _sleep(self, seconds: float) -> None:
        self.is_waiting.set()
        self.is_paid.wait(PATIENCE_SECONDS)
        super()._sleep(seconds)

    def begin(self, who: Payer, uri: str, selection: Selection | None = None) -> Flight[Brought]:
        """Somebody fetches."""
        return self.cache.bring(uris.parse(uri), selection or Selection(), Ask.WHAT_IS_DUE, who)[0]

    def end(self, flight: Flight[Brought]) -> Brought:
        """What has come of it."""
        try:
            return flight.future.result(PATIENCE_SECONDS)
        finally:
            self.cache.leave(flight)


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    """Where hosts are that share a tier."""
    street = Street(tmp_path)
    yield street
    for house in street.houses:
        if isinstance(house, Slow):
            house.is_paid.set()
    street.close()


def test_what_the_tier_fails_to_give_counts_once(street: Street) -> None:
    """It comes from the origin then, and is no reason to refuse what is within the quota."""
    files = {"one": os.urandom(2 << 20), "two": os.urandom(2 << 20), "three": os.urandom(2 << 20)}
    uri = published(street, files)
    for key in street.cupboard.keys(BLOBS)[1:]:
        street.cupboard.spoil(key)
    house = Slow(street, Allowance(held=Amount(7 << 20)))
    found = house.end(house.begin(ALICE, uri))
    assert (found.origin_bytes, found.shared_bytes) == (4 << 20, 2 << 20)


def test_whose_rate_is_limited_keeps_nobody_from_the_tier(street: Street) -> None:
    """Neither threads nor memory that others need wait for it."""
    published(street, {"large": os.urandom(40 << 20)}, "s3://bucket/large")
    published(street, {"other": os.urandom(20 << 20)}, "s3://bucket/other")
    house = Slow(street, Allowance(rate=RATE))
    slow = house.begin(ALICE, "s3://bucket/large")
    assert house.is_waiting.wait(PATIENCE_SECONDS)
    assert house.end(house.begin(BOB, "s3://bucket/other")).shared_bytes == 20 << 20
    assert not slow.future.done()
    house.is_paid.set()
    assert house.end(slow).shared_bytes == 40 << 20


def test_no_other_host_waits_for_whose_rate_is_limited(street: Street) -> None:
    """He who brings it so slowly brings it for himself."""
    uri = street.files({str(n): os.urandom(1 << 20) for n in range(6)})
    house, other = Slow(street, Allowance(rate=RATE // 16)), street.house()
    slow = house.begin(ALICE, uri)
    assert house.is_waiting.wait(PATIENCE_SECONDS)
    assert other.bring(uri).origin_bytes
    assert not slow.future.done()
    house.is_paid.set()
    house.end(slow)


@pytest.mark.parametrize("chosen", [[], ["small"]])
def test_nobody_waits_here_for_whose_rate_is_limited(street: Street, chosen: list[str]) -> None:
    """Nor for all of what he takes from the tier, by another name."""
    root = street.origin.run("r")
    files = {"large": os.urandom(20 << 20), "small": b"small"}
    street.files(files, root)
    first = street.house()
    first.bring("runs:/r")
    street.settle(first)
    house = Slow(street, Allowance(rate=RATE))
    slow = house.begin(ALICE, "runs:/r")
    assert house.is_waiting.wait(PATIENCE_SECONDS)
    flight = house.begin(BOB, root, Selection.of(chosen, []))
    assert house.end(flight).shared_bytes == sum(len(files[path]) for path in chosen or files)
    house.is_paid.set()
    house.end(slow)
