"""The shared tier as an attacker, a broken host or an unlucky one leaves it: what it costs others, and for how long."""

from __future__ import annotations

import os
import threading
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from cacheserver import publishing, tier, treerecords
from cacheserver.claims import Claim
from cacheserver.packing import BLOBS
from cacheserver.selection import Selection
from cacheserver.space import Amount, Limits
from cacheserver.tierstore import TierError
from cacheserver.treerecords import CLAIMS, TREES, NotARecord, TreeRecord
from cacheserver.words import Manifest, Standing
from tests.unit.house import House
from tests.unit.tiers import PATIENCE_SECONDS, Street, content, published, record_of
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


@pytest.mark.parametrize(
    "text",
    [
        b'{"etags": 0}' + b"\n" * (16 << 20),
        b'{"etags": [' + b"0," * (8 << 20) + b"0]}\n",
        b'{"etags": 16000000}' + b"\n" * (16 << 20),
        b'{"etags": 0}\n' + b"0" * (16 << 20) + b"\n",
        b'{"etags": 1}\n' + b"0" * (16 << 20) + b"\n",
    ],
    ids=["lines of a manifest", "a line of JSON", "entity tags", "a line of a manifest", "an entity tag"],
)
def test_a_small_object_does_not_become_a_large_one_in_memory(text: bytes) -> None:
    """Zlib makes 16 MiB of 16 KiB; each byte of these would be an object of a hundred."""
    data = b"artifactcache tree 1 -\n" + zlib.compress(text)
    tracemalloc.start()
    try:
        with pytest.raises(NotARecord, match="cannot be read"):
            TreeRecord.decode("v1/trees/aa/aa", data, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(text)


@pytest.mark.parametrize(
    ("tags", "left"),
    [
        (("", ""), ("", "")),
        (("\x85", "\u2028"), ("\x85", "\u2028")),
        (('"é"', "a\tb"), ('"é"', "")),
        (("a\nb", "x" * 5000), ("", "")),
    ],
)
def test_odd_entity_tags(street: Street, tags: tuple[str, str], left: tuple[str, str]) -> None:
    """One that no record may have is left out, and the others stay; and what is published so is not published again."""
    uri = street.files({"a": b"a", "b": b"b"})
    house = street.house()
    house.index.etags = lambda held: tags  # type: ignore[method-assign]
    house.bring(uri)
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing
    for _ in range(2):
        street.settle(house)
        assert record_of(street, uri).etags == left
        given.want(uri, "")
    counts = given.counts.counts()
    assert (counts[("published",)], counts[("refreshed",)]) == (1, 0)


def test_the_longest_selection_can_be_read_again() -> None:
    """As long as a client may make it, of characters of four bytes."""
    selection = Selection(tuple("\U0001f600" * 990 + str(number) for number in range(100)), ()).key
    names = tuple("runs:/" + "\U0001f600" * 4000 + str(number) for number in range(50))
    record = TreeRecord("http://t", "s3://b/m", selection, "", Standing.FINISHED, 1.0, Manifest(()), (), names)
    assert TreeRecord.decode(record.key, record.encode(None), None) == record
    with pytest.raises(NotARecord, match="bytes of names"):
        replace(record, versions=names * 10).encode(None)


def test_a_record_that_is_too_large_is_none(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes one; and one that is there is no reason not to ask for others."""
    published(street, {"x": b"x"}, "s3://bucket/there")
    uri = published(street)
    key = max(street.cupboard.objects(TREES), key=lambda found: found.size).key
    for module in (treerecords, tier, publishing):
        monkeypatch.setattr(module, "RECORD_BYTES_MAX", 1000)
    house = street.house()
    assert house.bring(uri).origin_bytes == SIZE
    assert house.bring("s3://bucket/there").origin_bytes == 0
    street.cupboard.delete([key])
    street.settle(house)
    assert not {key} & set(street.cupboard.keys()) and house.index.publications.waiting() == []


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


@pytest.mark.parametrize("entry", ["zero", "d0/0"])
def test_a_record_that_says_other_sizes_is_none(street: Street, entry: str) -> None:
    """Of a file without bytes, and of one that is held: no hash would show it."""
    uri = published(street)
    record = record_of(street, uri)
    entries = list(record.manifest.entries)
    number = next(n for n, one in enumerate(entries) if one.path == entry.encode())
    one = entries[number]
    entries[number] = one._replace(size=7) if one.size else one._replace(digest="ab" * 32)
    evil = TreeRecord(**{**record.__dict__, "manifest": Manifest(tuple(entries))})
    street.cupboard.put(record.key, evil.encode(None))
    house = street.house()
    house.bring(street.files(FILES, "s3://bucket/other"))
    held = house.bring(uri).held
    assert held.tree == record.manifest.digest and content(house, uri) == EXPECTED


def test_names_that_no_record_may_have_spoil_none(street: Street) -> None:
    """Neither is what has one published, nor does one that happens to have the same bytes get into a record."""
    root = street.origin.run("r")
    street.files({"a": b"1"}, f"{root}/plain")
    street.files({"a": b"1"}, f"{root}/od\nd")
    first, second = street.house(), street.house()
    first.bring("runs:/r/od\nd")
    first.bring("runs:/r/plain")
    street.settle(first)
    assert len(street.cupboard.keys(TREES)) == 1
    assert second.bring("runs:/r/plain").shared_bytes == 1


def test_what_is_brought_anew_while_it_fails_to_be_published_is_tried_at_once(street: Street) -> None:
    """Its claim is not kept for a quarter of an hour, while others wait."""
    uri = street.files(FILES)
    house = street.house()
    house.bring(uri)
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing
    claim = Claim("v1/claims/another", "host")

    def fail(what: str, key: str) -> None:
        if what == "has" and not tried:
            tried.append(key)
            given.want(uri, "", [claim])
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it breaks off")

    tried: list[str] = []
    street.cupboard.before = fail
    street.settle(house)
    assert tried and record_of(street, uri).manifest.size_bytes == SIZE


def test_an_old_record_is_read_once_by_who_waits(street: Street) -> None:
    """However long that takes: it may be large."""
    street.origin.tags = "listed"
    uri = published(street)
    first, second = street.house(), street.house()
    is_open = threading.Event()
    for house in (first, second):
        house.now += 7200
    street.origin.files[f"{uri}/large"] = os.urandom(1 << 20)

    def hold(uri: str) -> None:
        assert is_open.wait(PATIENCE_SECONDS)

    street.origin.before_download = hold
    one = first.start(uri)
    while not street.cupboard.keys(CLAIMS):
        assert not is_open.wait(0.01)
    decoded = []
    street.cupboard.received = lambda key, data: decoded.append(key) if key.startswith(TREES) else None
    other = second.start(uri)
    looks = street.cupboard.calls["get"]
    while street.cupboard.calls["get"] < looks + 20:
        assert not is_open.wait(0.01)
    is_open.set()
    one.future.result(PATIENCE_SECONDS)
    street.settle(first)
    other.future.result(PATIENCE_SECONDS)
    for house, flight in ((first, one), (second, other)):
        house.cache.leave(flight)
    assert len(decoded) <= 4


def test_what_has_come_of_a_pack_stays(street: Street) -> None:
    """Where the tier fails before the rest of it, each byte counts once."""
    files = {name: os.urandom(size << 10) for name, size in {"a": 100, "b": 300, "c": 100}.items()}
    uri = published(street, files)
    house = street.house()
    house.bring(street.files({"b": files["b"]}, "s3://bucket/other"))
    reads = iter(range(3))

    def fail(what: str, key: str) -> None:
        if what == "read" and next(reads):
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it breaks off")

    street.cupboard.before = fail
    found = house.bring(uri)
    assert (found.shared_bytes, found.origin_bytes) == (100 << 10, 400 << 10) and content(house, uri) == files
    assert not house.staging()
