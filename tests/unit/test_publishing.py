"""What a host gives to the shared tier: all of it or no record, again after a restart, and nothing that is damaged."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from artifactcache.errors import NoSpace
from cacheserver import outgoing, publishing
from cacheserver.hashing import xxh3_of
from cacheserver.packing import BLOBS, PACKS
from cacheserver.publishing import Name
from cacheserver.tierstore import TierError
from cacheserver.treerecords import CLAIMS, CONDEMNED, TREES
from tests.rig.tier import lacking
from tests.rig.until import until
from tests.unit.house import House, overwrite
from tests.unit.tiers import TIERED as FILES
from tests.unit.tiers import Street, published, record_of

SIZE = sum(map(len, FILES.values()))
EXPECTED = {path: None if path.endswith("/") else c for path, c in FILES.items()}
LARGE = FILES["large"]


def test_what_was_to_be_published_is_published_after_a_restart(street: Street) -> None:
    """And what is there already is not written again."""
    uri = street.files(FILES)
    first = street.house()
    puts = 0

    def fail(what: str, key: str) -> None:
        nonlocal puts
        puts += what == "put"
        if what == "put" and puts > 2:
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: full")

    street.cupboard.before = fail
    first.bring(uri)
    street.settle(first)
    assert street.cupboard.keys(BLOBS) and not street.cupboard.keys(TREES)
    assert not street.cupboard.keys(CLAIMS), "nobody waits for who cannot publish"
    street.cupboard.before = lambda what, key: None
    there = set(street.cupboard.keys())
    first.close()
    street.houses.remove(first)
    written: list[str] = []
    street.cupboard.before = lambda what, key: written.append(key) if what == "put" else None
    again = House(first.root, origin=street.origin, tier=street.cupboard)
    street.houses.append(again)
    assert again.sharing and again.sharing.publishing
    again.sharing.publishing.load()
    street.settle(again)
    assert street.cupboard.keys(TREES) and not there & set(written) and not lacking(street.cupboard)
    assert again.index.publications.waiting() == []


def test_a_damaged_blob_is_given_to_nobody(street: Street) -> None:
    """It is found when it is read, put aside, and the tree is not published before it is right again."""
    uri = street.files(FILES)
    first = street.house()
    held = first.bring(uri).held
    for path in ("large", "d0/0"):
        overwrite(first.blob(first.digest(held, path)))
    written: list[str] = []
    street.cupboard.before = lambda what, key: written.append(key) if what == "put" else None
    street.settle(first)
    assert not any(key.startswith((TREES, BLOBS, PACKS)) for key in written)
    assert first.bring(uri).origin_bytes == len(LARGE) + len(FILES["d0/0"])
    street.settle(first)
    assert street.house().bring(uri).origin_bytes == 0 and not lacking(street.cupboard)


def test_what_is_condemned_is_not_counted_on(street: Street) -> None:
    """A tree whose blobs a sweep is about to remove is published when that is over."""
    uri = published(street)
    record, condemned = street.cupboard.keys(TREES)[0], street.cupboard.keys(BLOBS)
    street.cupboard.delete([record])
    street.cupboard.put(CONDEMNED, b'{"keys": ["%s"]}' % condemned[0].encode())
    second = street.house()
    second.now = time.time()  # the object store's clock says when the list was written
    assert second.bring(uri).origin_bytes == SIZE
    street.settle(second)
    assert not street.cupboard.keys(TREES)
    street.cupboard.delete([CONDEMNED, condemned[0]])
    second.ticks += 1000
    street.settle(second)
    assert street.cupboard.keys(TREES) and not lacking(street.cupboard)


def test_who_waits_for_a_small_tree_does_not_wait_for_a_large_one(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tree has bytes for hours: a small one is written meanwhile, and its claim given back."""
    monkeypatch.setattr(publishing, "LANES", (math.inf, SIZE - 1))
    street.files(FILES)
    small = street.files({"small": b"small"}, "s3://bucket/small")
    house, is_under_way, may_go_on = street.house(), threading.Event(), threading.Event()

    def hang(what: str, key: str) -> None:
        if what == "put" and key.startswith(BLOBS):
            is_under_way.set()
            assert may_go_on.wait(60)

    street.cupboard.before = hang
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing
    given.start()
    try:
        house.bring("s3://bucket/model")
        assert is_under_way.wait(60)
        house.bring(small)
        until(lambda: given.count() == 1, "only the large one waits")
        assert record_of(street, small).manifest.size_bytes == len(b"small")
        assert len(street.cupboard.keys(CLAIMS)) == 1
    finally:
        may_go_on.set()
    until(lambda: given.count() == 0, "none waits")
    assert len(street.cupboard.keys(TREES)) == 2 and not lacking(street.cupboard)


def test_a_full_disk_ends_no_publisher(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """That something was published cannot be written down: it is looked for again later, and others are published."""
    house, uri = street.house(), street.files(FILES)
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing
    house.bring(uri)
    with monkeypatch.context() as patch:
        patch.setattr(house.index.publications, "end", lambda *name: (_ for _ in ()).throw(NoSpace("full")))
        street.settle(house)
    assert given.trouble() == "full" and given.count() == 1 and house.index.publications.waiting()
    other = street.files({"x": b"x"}, "s3://bucket/other")
    house.bring(other)
    house.ticks += 1000
    street.settle(house)
    assert given.count() == 0 and not house.index.publications.waiting() and not given.trouble()
    assert len(street.cupboard.keys(TREES)) == 2


def test_what_fails_for_weeks_is_tried_still(street: Street) -> None:
    """After a thousand failures as after ten; nothing else that is published says meanwhile that all is well."""
    uri, house = street.files({"x": b"x"}), street.house()
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing
    house.bring(uri)
    given._waiting[Name(uri, "")].failures = 2000
    street.cupboard.before = _full
    street.settle(house)
    assert given.count() == 1 and given.trouble()
    given.want("s3://bucket/gone", "")
    street.settle(house)
    assert given.trouble(), "nothing was written since"
    street.cupboard.before = lambda what, key: None
    house.ticks += publishing.RETRY_SECONDS_MAX
    street.settle(house)
    assert given.count() == 0 and not given.trouble() and street.cupboard.keys(TREES)


def _full(what: str, key: str) -> None:
    if what == "put" and not key.startswith(CLAIMS):
        raise TierError("The shared tier s3://bucket/prefix cannot be used now: full")


def test_what_is_brought_anew_as_it_has_been_published_has_its_row(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another thread does between: what waits is what is written down."""
    uri, house = street.files({"x": b"x"}), street.house()
    assert house.sharing and house.sharing.publishing
    given, add = house.sharing.publishing, house.index.publications.add
    house.bring(uri)

    def published_meanwhile(*row: Any) -> None:
        add(*row)
        street.settle(house)

    monkeypatch.setattr(house.index.publications, "add", published_meanwhile)
    given.want(uri, "")
    assert given.count() == len(house.index.publications.waiting())


def test_a_stop_does_not_wait_until_a_blob_is_hashed(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a hundred gigabytes, say."""
    uri, house, hashed = street.files(FILES), street.house(), 0
    assert house.sharing and house.sharing.publishing
    given = house.sharing.publishing

    def stop(chunks: Iterable[memoryview]) -> str:
        nonlocal hashed
        hashed += 1
        given.stop()
        return xxh3_of(chunks)

    monkeypatch.setattr(outgoing, "xxh3_of", stop)
    house.bring(uri)
    street.settle(house)
    assert hashed == 1 and not street.cupboard.keys(BLOBS) and house.index.publications.waiting()


def test_no_upload_goes_on_when_its_lease_has_ended(street: Street) -> None:
    """One fails: those beside it come to their end first."""
    uri, house = street.files({str(n): bytes([n]) * (9 << 20) for n in range(3)}), street.house()
    assert house.sharing and house.sharing.publishing
    second, under_way = threading.Event(), 0
    lock, puts = threading.Lock(), 0

    def fail(what: str, key: str) -> None:
        nonlocal under_way, puts
        if what != "put" or not key.startswith(BLOBS):
            return
        with lock:
            puts += 1
            is_first = puts == 1
            under_way += 1
        try:
            if is_first:
                assert second.wait(60)
                raise TierError("The shared tier s3://bucket/prefix cannot be used now: it breaks off")
            second.set()
            time.sleep(0.2)  # longer than it takes to hear of the failure
        finally:
            with lock:
                under_way -= 1

    street.cupboard.before = fail
    house.bring(uri)
    assert house.sharing.publishing.publish_next()
    assert puts > 1 and not under_way
