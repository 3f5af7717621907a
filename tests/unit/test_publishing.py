"""What a host gives to the shared tier: all of it or no record, again after a restart, and nothing that is damaged."""

from __future__ import annotations

import time

from cacheserver import packing
from cacheserver.packing import BLOBS, CLAIMS, TREES
from cacheserver.tierstore import TierError
from tests.unit.house import House, overwrite
from tests.unit.tiers import TIERED as FILES
from tests.unit.tiers import Street, published

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
    assert street.cupboard.keys(TREES) and not there & set(written) and not street.cupboard.lacking()
    assert again.index.publications.waiting() == []


def test_a_damaged_blob_is_given_to_nobody(street: Street) -> None:
    """It is found when it is read, put aside, and the tree is not published before it is right again."""
    uri = street.files(FILES)
    first = street.house()
    held = first.bring(uri).held
    for path in ("large", "d0/0"):
        overwrite(first.blob(first.digest(held, path)))
    street.settle(first)
    assert not street.cupboard.keys(TREES)
    assert not street.cupboard.keys(BLOBS), "its parts are removed again"
    assert first.bring(uri).origin_bytes == len(LARGE) + len(FILES["d0/0"])
    street.settle(first)
    assert street.house().bring(uri).origin_bytes == 0 and not street.cupboard.lacking()


def test_what_is_condemned_is_not_counted_on(street: Street) -> None:
    """A tree whose blobs a sweep is about to remove is published when that is over."""
    uri = published(street)
    record, condemned = street.cupboard.keys(TREES)[0], street.cupboard.keys(BLOBS)
    street.cupboard.delete([record])
    street.cupboard.put(packing.CONDEMNED, b'{"keys": ["%s"]}' % condemned[0].encode())
    second = street.house()
    second.now = time.time()  # the object store's clock says when the list was written
    assert second.bring(uri).origin_bytes == SIZE
    street.settle(second)
    assert not street.cupboard.keys(TREES)
    street.cupboard.delete([packing.CONDEMNED, condemned[0]])
    second.ticks += 1000
    street.settle(second)
    assert street.cupboard.keys(TREES) and not street.cupboard.lacking()
