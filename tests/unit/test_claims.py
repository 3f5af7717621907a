"""Claims: of hosts that want the same at once one asks the origin, and nobody waits for ever for another."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cacheserver.claims import CLAIM_BYTES_MAX, Claims
from cacheserver.tierstore import TierError
from cacheserver.treerecords import CLAIMS, claim_key
from tests.unit.house import TRACKING_URI
from tests.unit.tiers import PATIENCE_SECONDS, Street, content, published
from tests.unit.tiers import TIERED as FILES

SIZE = sum(map(len, FILES.values()))
EXPECTED = {path: None if path.endswith("/") else c for path, c in FILES.items()}
LARGE = FILES["large"]


@pytest.mark.parametrize("writes", ["conditional", "refused", "of no effect"])
def test_of_many_hosts_at_once_one_asks_the_origin(street: Street, writes: str) -> None:
    """With conditional writes, without, and where the object store takes no notice of conditions and says nothing: each
    file leaves the origin once, and all hosts have all of it."""
    street.cupboard.is_conditional = writes != "refused"
    street.cupboard.is_heedless = writes == "of no effect"
    uri = street.files(FILES)
    houses = [street.house() for _ in range(6)]
    for house in houses:
        assert house.sharing and house.sharing.publishing
        house.sharing.publishing.start()
    with ThreadPoolExecutor(len(houses)) as pool:
        found = list(pool.map(lambda house: house.bring(uri), houses))
    assert all(content(house, uri) == EXPECTED for house in houses)
    assert sum(one.origin_bytes for one in found) == SIZE and set(street.origin.downloads.values()) == {1}
    assert sum(one.shared_bytes for one in found) == 5 * SIZE


@pytest.mark.parametrize("writes", ["conditional", "refused", "of no effect"])
def test_who_has_died_with_a_claim_is_waited_for_only_so_long(street: Street, writes: str) -> None:
    """Then the next one brings it."""
    street.cupboard.is_conditional = writes != "refused"
    street.cupboard.is_heedless = writes == "of no effect"
    uri = street.files(FILES)
    dead, second = street.house(), street.house()
    dead.bring(uri)  # and does not come to publishing it
    assert len(street.cupboard.keys(CLAIMS)) == 1
    flight = second.start(uri)
    with pytest.raises(TimeoutError):
        flight.future.result(timeout=0.5)
    second.hurried = True
    assert flight.future.result(PATIENCE_SECONDS).origin_bytes == SIZE
    second.cache.leave(flight)
    street.settle(second)
    assert not street.cupboard.keys(CLAIMS)


def test_a_claim_that_is_renewed_is_waited_for(street: Street) -> None:
    """However long it takes by the clock of who waits."""
    uri = street.files(FILES)
    first, second = street.house(), street.house()
    first.bring(uri)
    flight = second.start(uri)
    second.hurried = True
    began = second.ticks
    assert first.sharing
    while second.ticks - began < 60:
        first.sharing.tier.renew()
        threading.Event().wait(0.02)
    assert not flight.future.done()
    street.settle(first)
    assert flight.future.result(PATIENCE_SECONDS).origin_bytes == 0
    second.cache.leave(flight)


def test_whoever_brings_it_and_fails_lets_others_try(street: Street) -> None:
    """His claim ends with his fetch."""
    uri = street.files(FILES)
    first, second = street.house(), street.house()
    street.origin.down = True
    with pytest.raises(Exception, match="down"):
        first.bring(uri)
    assert not street.cupboard.keys(CLAIMS)
    street.origin.down = False
    assert second.bring(uri).origin_bytes == SIZE


def test_what_is_too_large_for_a_claim_holds_nobody_up(street: Street) -> None:
    """Nor is the tier taken for broken: what is in it is read as ever."""
    uri = street.files(FILES)
    there = published(street, {"a": b"a"}, "s3://bucket/there")
    house = street.house()
    street.cupboard.put(claim_key(TRACKING_URI.rstrip("/"), uri, ""), b"x" * (CLAIM_BYTES_MAX + 1))
    assert house.bring(uri).origin_bytes == SIZE
    assert house.bring(there).origin_bytes == 0


def test_a_claim_that_is_released_while_it_is_renewed_does_not_come_back(street: Street) -> None:
    """Without conditional writes a renewal may come after the release."""
    street.cupboard.is_conditional = False
    claims = Claims(street.cupboard, "host", time.time, time.monotonic, lambda seconds: False)
    _, claim = claims.take("v1/claims/one", lambda: None, lambda: True)
    assert claim is not None

    street.cupboard.before = lambda what, key: claims.release(claim) if what == "put" else None
    claims.renew()
    assert not street.cupboard.keys(CLAIMS)


def test_a_claim_stays_where_its_proof_fails(street: Street) -> None:
    """The second write, which shows whether conditions count, gets no answer: the first one has."""
    claims = Claims(street.cupboard, "host", time.time, time.monotonic, lambda seconds: False)
    creates = 0

    def fail(what: str, key: str) -> None:
        nonlocal creates
        creates += what == "create"
        if what == "create" and creates == 2:
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it says nothing")

    street.cupboard.before = fail
    _, claim = claims.take("v1/claims/one", lambda: None, lambda: True)
    assert claim and claims.holds(claim)
