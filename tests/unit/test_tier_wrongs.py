"""The shared tier as an attacker, a broken host or an unlucky one leaves it: what it costs others, and for how long."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cacheserver import packing, publishing, tier
from cacheserver.packing import BLOBS, CLAIMS, TREES, TreeRecord
from cacheserver.space import Amount, Limits
from cacheserver.tierstore import TierError
from cacheserver.words import Standing
from tests.unit.house import House
from tests.unit.tiers import PATIENCE_SECONDS, Street, content, published
from tests.unit.tiers import TIERED as FILES

SIZE = sum(map(len, FILES.values()))
EXPECTED = {path: None if path.endswith("/") else c for path, c in FILES.items()}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_whichever_part_of_a_large_file_is_wrong_is_written_anew(street: Street, number: int) -> None:
    """The digest says only that one of them is: all are written by whoever has found that out."""
    uri = published(street)
    key = street.cupboard.keys(BLOBS)[number]
    right = street.cupboard.bytes_of(key)
    street.cupboard.spoil(key)
    second = street.house()
    assert second.bring(uri).origin_bytes and content(second, uri) == EXPECTED
    street.settle(second)
    assert street.cupboard.bytes_of(key) == right
    assert street.house().bring(uri).origin_bytes == 0


def test_what_the_tier_has_wrong_is_asked_for_once(street: Street) -> None:
    """A fetch that has found it out asks the origin, and not the tier again for as many bytes."""
    uri = published(street)
    street.cupboard.spoil(street.cupboard.keys(BLOBS)[0])
    read = street.cupboard.read_bytes
    second = street.house()
    assert second.bring(uri).origin_bytes == len(FILES["large"])
    assert street.cupboard.read_bytes - read <= SIZE


def test_a_tier_that_hangs_keeps_no_daemon_from_its_end(street: Street) -> None:
    """Its claims are given back if that is quick; else they end by themselves."""
    uri = street.files(FILES)
    first, second = street.house(), street.house()
    first.bring(uri)
    second.bring(street.files(FILES, "s3://bucket/other"))
    assert first.sharing and second.sharing and len(street.cupboard.keys(CLAIMS)) == 2
    second.sharing.close()
    assert len(street.cupboard.keys(CLAIMS)) == 1
    answered, has_ended = threading.Event(), threading.Event()
    found: list[bool] = []

    def hang(what: str, key: str) -> None:
        if what == "delete":
            found.append(has_ended.wait(PATIENCE_SECONDS))
            answered.set()

    street.cupboard.before = hang
    first.sharing.close()
    has_ended.set()
    assert answered.wait(PATIENCE_SECONDS) and found == [True]


def test_nobody_waits_for_a_claim_of_his_own_host(street: Street) -> None:
    """Whoever wants the same by another name shares its download, and does not wait until others can have it."""
    root = street.origin.run("r")
    street.files(FILES, root)
    house, is_at_the_gate, is_open, has_looked = street.house(), *(threading.Event() for _ in range(3))

    def hold(uri: str) -> None:
        is_at_the_gate.set()
        assert is_open.wait(PATIENCE_SECONDS)

    street.origin.before_download = hold
    first = house.start("runs:/r")
    assert is_at_the_gate.wait(PATIENCE_SECONDS)
    street.cupboard.before = lambda what, key: has_looked.set() if key.startswith(CLAIMS) else None
    second = house.start(root)
    assert has_looked.wait(PATIENCE_SECONDS)
    is_open.set()
    for flight in (first, second):
        flight.future.result(PATIENCE_SECONDS)  # and nothing is published meanwhile
        house.cache.leave(flight)


def test_a_tier_that_fails_just_after_the_claim_leaves_none(street: Street) -> None:
    """Nobody would give it back, and it would be renewed for ever."""
    uri, has_claimed = street.files(FILES), threading.Event()

    def fail(what: str, key: str) -> None:
        if what == "create":
            has_claimed.set()
        elif has_claimed.is_set() and key.startswith(TREES):
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it breaks off")

    street.cupboard.before = fail
    house = street.house()
    assert house.bring(uri).origin_bytes == SIZE
    assert has_claimed.is_set() and not street.cupboard.keys(CLAIMS)


def test_a_tier_that_takes_no_claims_is_read(street: Street) -> None:
    """One that is full, or may only be read, is none that does not answer."""
    published(street, {"x": b"x"}, "s3://bucket/there")
    uri = street.files(FILES)
    house = street.house()

    def refuse(what: str, key: str) -> None:
        if what in ("create", "put", "replace"):
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: HTTP 507")

    street.cupboard.before = refuse
    assert house.bring(uri).origin_bytes == SIZE
    assert house.bring("s3://bucket/there").origin_bytes == 0
    calls = street.cupboard.calls["create"]
    house.bring(street.files({"y": b"y"}, "s3://bucket/third"))
    assert street.cupboard.calls["create"] == calls, "it is tried again after a while only"


def test_what_has_changed_makes_room_for_what_the_tier_has_of_it(street: Street, tmp_path: Path) -> None:
    """As for what the origin has."""
    street.origin.tags = "listed"
    uri = street.files({"weights": os.urandom(3 << 20)})
    small = House(tmp_path / "small", Limits(Amount(4 << 20), Amount(0)), origin=street.origin, tier=street.cupboard)
    street.houses.append(small)
    small.bring(uri)
    assert small.sharing
    small.sharing.tier.close()  # gives its claim back, and publishes nothing
    published(street, {"weights": os.urandom(3 << 20)}, uri)
    small.now += 7200
    small.ticks += 7200
    assert small.bring(uri).shared_bytes == 3 << 20
    assert not small.index.arrivals.at_or_below(uri), "what has come is part of a tree"


def test_a_record_that_is_too_large_is_none(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes one; and one that is there is no reason not to ask for others."""
    published(street, {"x": b"x"}, "s3://bucket/there")
    uri = published(street)
    key = max(street.cupboard.objects(TREES), key=lambda found: found.size).key
    for module in (packing, tier, publishing):
        monkeypatch.setattr(module, "RECORD_BYTES_MAX", 1000)
    house = street.house()
    assert house.bring(uri).origin_bytes == SIZE
    assert house.bring("s3://bucket/there").origin_bytes == 0
    street.cupboard.delete([key])
    street.settle(house)
    assert not {key} & set(street.cupboard.keys()) and house.index.publications.waiting() == []


def record_of(street: Street, uri: str) -> TreeRecord:
    """What the tier says of a location."""
    found = (TreeRecord.decode(key, street.cupboard.bytes_of(key), None) for key in street.cupboard.keys(TREES))
    return next(record for record in found if record.uri == uri)


def test_a_host_whose_clock_is_ahead_spoils_no_record(street: Street) -> None:
    """What it writes is not recent for anybody, and the next one writes when the origin was seen indeed."""
    ahead, second = street.house(), street.house()
    ahead.now += 86_400
    uri = street.files(FILES)
    ahead.bring(uri)
    street.settle(ahead)
    second.bring(uri)
    street.settle(second)
    assert record_of(street, uri).checked_at == second.now
    listed = street.origin.listings[uri]
    assert street.house().bring(uri).origin_bytes == 0 and street.origin.listings[uri] == listed


def test_what_was_seen_later_stays(street: Street) -> None:
    """Who has been slow to publish does not take back what others have seen since; nor what they knew of the origin."""
    slow, fast = street.house(), street.house()
    root = street.origin.run("r")
    street.files({"weights": b"old"}, root)
    slow.bring(root)
    assert slow.sharing
    slow.sharing.tier.close()
    street.files({"weights": b"newer"}, root)
    slow.now += 600
    fast.now += 600
    fast.bring("runs:/r")
    street.settle(fast)
    before = record_of(street, root)
    street.settle(slow)
    assert record_of(street, root) == before and before.standing is Standing.FINISHED
    third = street.house()
    third.now += 7200
    third.bring(root)  # a bare URI says nothing of that
    street.settle(third)
    after = record_of(street, root)
    assert (after.standing, after.checked_at) == (Standing.FINISHED, third.now)
