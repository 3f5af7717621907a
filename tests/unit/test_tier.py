"""The shared tier: what other hosts have brought, what is believed of it, and what happens where it fails."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace
from cacheserver import packing
from cacheserver.packing import BLOBS, PACKS, Large, Pack, layout
from cacheserver.selection import Selection
from cacheserver.tierstore import TierError
from cacheserver.treerecords import CLAIMS, TREES, TreeRecord
from cacheserver.words import Manifest
from tests.rig.tier import lacking
from tests.unit.house import House, Shelf
from tests.unit.tiers import TIERED as FILES
from tests.unit.tiers import Street, content, published

LARGE = FILES["large"]
SIZE = sum(map(len, FILES.values()))


EXPECTED = {path.rstrip("/") + "/" * path.endswith("/"): None if path.endswith("/") else c for path, c in FILES.items()}


def test_the_origin_is_asked_for_nothing_that_another_host_was_told(street: Street) -> None:
    """Neither for a listing nor for a byte; the record is there last, and names what is there."""
    uri = published(street)
    downloads, listings = street.origin.downloads.total(), street.origin.listings.total()
    found = street.house().bring(uri)
    assert (found.origin_bytes, found.shared_bytes, found.transport) == (0, SIZE, "shared")
    assert content(street.houses[1], uri) == EXPECTED
    assert (street.origin.downloads.total(), street.origin.listings.total()) == (downloads, listings)
    assert not lacking(street.cupboard) and not street.cupboard.keys(CLAIMS)
    assert len(street.cupboard.keys(PACKS)) == 1 and len(street.cupboard.keys(BLOBS)) == 3
    assert not street.houses[1].staging()


def test_only_what_is_not_held_travels(street: Street) -> None:
    """A fine-tune that has nine tenths of its bytes in common with what a host holds takes the rest; both ways."""
    base = {f"layer{n}": os.urandom(2 << 20) for n in range(10)} | {f"t/{n}": os.urandom(4096) for n in range(500)}
    tuned = base | {"layer9": os.urandom(2 << 20)} | {f"t/{n}": os.urandom(4096) for n in range(450, 500)}
    uri = published(street, base)
    second = street.house()
    second.bring(uri)
    written = street.cupboard.written_bytes
    fine = street.files(tuned, "s3://bucket/tuned")
    street.houses[0].bring(fine)
    street.settle(street.houses[0])
    size = sum(map(len, tuned.values()))
    assert street.cupboard.written_bytes - written <= 0.2 * size, "whole packs, but not all of them"
    read = street.cupboard.read_bytes
    found = second.bring(fine)
    assert found.origin_bytes == 0 and found.shared_bytes == (2 << 20) + 50 * 4096
    assert street.cupboard.read_bytes - read <= 0.11 * size


@pytest.mark.parametrize("below", [BLOBS, PACKS])
@pytest.mark.parametrize("how", ["wrong", "gone", "short"])
def test_what_is_wrong_in_the_tier_comes_from_the_origin(street: Street, below: str, how: str) -> None:
    """Whatever of it is right does not; and who has found that out writes right bytes there."""
    uri = published(street)
    key = street.cupboard.keys(below)[0]
    right = street.cupboard.bytes_of(key)
    if how == "wrong":
        street.cupboard.spoil(key)
    elif how == "gone":
        street.cupboard.delete([key])
    else:
        street.cupboard.put(key, right[:-1])
    second = street.house()
    found = second.bring(uri)
    assert content(second, uri) == EXPECTED and not second.staging()
    assert 0 < found.origin_bytes < SIZE and found.origin_bytes + found.shared_bytes == SIZE
    assert found.transport == "file+shared"
    street.settle(second)
    assert street.cupboard.bytes_of(key) == right and not lacking(street.cupboard)
    assert street.house().bring(uri).origin_bytes == 0


def evil(record: TreeRecord, text: bytes) -> bytes:
    """A record with another manifest, which knows how its own is named."""
    manifest = Manifest.decode(text)
    return TreeRecord(**{**record.__dict__, "manifest": manifest, "etags": ()}).encode(None)


DIGEST = b"ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        DIGEST + b" 1 ../../escaped\n",
        DIGEST + b" 1 /etc/cron.d/x\n",
        DIGEST + b" 1 a\x00b\n",
        DIGEST + b" 1 a\n" + DIGEST + b" 1 a\n",
        DIGEST + b" 1 a\n" + DIGEST + b" 1 a/b\n",
        DIGEST + b" 1 b\n" + DIGEST + b" 1 a\n",
        DIGEST.upper() + b" 1 a\n",
        b"../x" + DIGEST[4:] + b" 1 a\n",
        b"- 5 a/\n",
        b"- 0 a\n",
        DIGEST + b" 1 a\n- 0 a/\n",
    ],
)
def test_an_evil_record_is_none(street: Street, text: bytes) -> None:
    """Paths that climb, names twice, digests that are paths: the origin is asked, and nothing is written outside."""
    uri = published(street)
    key = street.cupboard.keys(TREES)[0]
    record = TreeRecord.decode(key, street.cupboard.bytes_of(key), None)
    street.cupboard.put(key, evil(record, text))
    second = street.house()
    assert second.bring(uri).origin_bytes == SIZE and content(second, uri) == EXPECTED
    street.settle(second)
    assert TreeRecord.decode(key, street.cupboard.bytes_of(key), None).manifest == record.manifest


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"nonsense", b"artifactcache tree 1 -\n", b"artifactcache tree 1 -\n{}\n", os.urandom(100_000)),
        *(b"artifactcache tree 1 -\n" + zlib.compress(text) for text in (b"", b"{}\n", b"[[[[\n", b"[" * 10**6)),
        b"artifactcache tree 1 -\n" + zlib.compress(b"{}\n") + b"more",
        b"artifactcache tree 1 -\n" + zlib.compress(b"{}\n" * 100)[:-5],
    ],
)
def test_nonsense_is_no_record(street: Street, data: bytes) -> None:
    """Whatever stands there."""
    uri = published(street)
    key = street.cupboard.keys(TREES)[0]
    street.cupboard.put(key, data)
    assert street.house().bring(uri).origin_bytes == SIZE


def test_a_record_of_another_artifact_is_none(street: Street) -> None:
    """Also one that is right, under the name of another."""
    uri, other = published(street), published(street, {"other": b"other"}, "s3://bucket/other")
    keys = {TreeRecord.decode(k, street.cupboard.bytes_of(k), None).uri: k for k in street.cupboard.keys(TREES)}
    street.cupboard.put(keys[uri], street.cupboard.bytes_of(keys[other]))
    assert content_after(street.house(), uri) == EXPECTED


def content_after(house: House, uri: str) -> dict[str, bytes | None]:
    """What a house holds of something after it has fetched it."""
    house.bring(uri)
    return content(house, uri)


def test_only_who_has_the_key_is_believed(street: Street, tmp_path: Path) -> None:
    """A record that was written without it, or with another, is none; one that was written with it is."""
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(os.urandom(32))
        (tmp_path / name).chmod(0o600)
    ours, theirs = (street.house(key_file=str(tmp_path / name)) for name in ("ours", "theirs"))
    uri = street.files(FILES)
    theirs.bring(uri)
    street.settle(theirs)
    assert ours.bring(uri).origin_bytes == SIZE
    street.settle(ours)
    assert street.house(key_file=str(tmp_path / "ours")).bring(uri).origin_bytes == 0


def test_what_is_not_recent_is_listed_again_and_only_what_has_changed_comes_from_the_origin(street: Street) -> None:
    """By size, or by entity tag; and the record says so to the others then."""
    street.origin.tags = "listed"
    uri = published(street)
    street.origin.files[f"{uri}/d0/0"] = b"FILE 0" * 50
    street.house()
    for house in street.houses:
        house.now += 7200
    second = street.houses[1]
    found = second.bring(uri)
    assert found.origin_bytes == 300 and found.shared_bytes == SIZE - 300
    assert content(second, uri) == EXPECTED | {"d0/0": b"FILE 0" * 50}
    street.settle(second)
    third = street.house()
    third.now += 7200
    assert third.bring(uri).origin_bytes == 0 and content(third, uri)["d0/0"] == b"FILE 0" * 50


def test_without_tags_an_old_record_of_something_unfinished_proves_nothing(street: Street) -> None:
    """A bare URI's record is no evidence for a run that has finished since."""
    root = street.origin.run("r")
    uri = published(street, {"weights": b"not yet final"}, root)
    street.origin.files[f"{root}/weights"] = b"really final!"
    second = street.house()
    assert second.bring("runs:/r").origin_bytes == 13 and content(second, "runs:/r") == {"weights": b"really final!"}
    assert street.houses[0].bring(uri).origin_bytes == 0


def test_a_run_that_is_running_is_listed_and_not_published(street: Street) -> None:
    """By every host, each time."""
    root = street.origin.run("r", settled=False)
    street.files({"checkpoint": b"1"}, root)
    first, second = street.house(), street.house()
    first.bring("runs:/r")
    street.settle(first)
    assert not street.cupboard.keys()
    street.origin.files[f"{root}/checkpoint"] = b"22"
    assert second.bring("runs:/r").origin_bytes == 2


def test_a_selection_is_taken_from_the_whole_or_published_by_itself(street: Street) -> None:
    """Of the whole only what is wanted travels; a selection that nobody has the whole of has a record of its own."""
    chosen = Selection.of(["d0/**"], [])
    size = sum(len(c) for path, c in FILES.items() if path.startswith("d0/"))
    uri = street.files(FILES)
    first, second = street.house(), street.house()
    first.bring(uri, chosen)
    street.settle(first)
    found = second.bring(uri, chosen)
    assert (found.origin_bytes, found.shared_bytes) == (0, size)
    first.bring(uri)
    street.settle(first)
    found = street.house().bring(uri, chosen)
    assert (found.origin_bytes, found.shared_bytes) == (0, size)
    assert second.bring(uri).shared_bytes == SIZE - size


def test_a_tier_that_is_away_is_asked_once(street: Street) -> None:
    """The origin gives it, and others do not wait for the tier, until the pause is over."""
    uri = published(street)
    street.cupboard.is_down = True
    second = street.house()
    calls = street.cupboard.calls.total()
    assert second.bring(uri).origin_bytes == SIZE
    street.files({"x": b"x"}, "s3://bucket/other")
    second.bring("s3://bucket/other")
    assert street.cupboard.calls.total() == calls + 1 and second.sharing and "down" in second.sharing.tier.trouble()
    street.cupboard.is_down = False
    second.ticks += 31
    third = street.house()
    assert third.bring(uri).origin_bytes == 0
    street.files({"y": b"y"}, "s3://bucket/third")
    second.bring("s3://bucket/third")
    assert second.sharing.tier.trouble() == ""


def test_a_tier_that_fails_in_the_middle_costs_only_the_rest(street: Street) -> None:
    """What has come from it stays."""
    files = {f"layer{n}": os.urandom(2 << 20) for n in range(6)}
    uri = published(street, files)
    reads = 0

    def fail(what: str, key: str) -> None:
        nonlocal reads
        reads += what == "read"
        if reads > 3:
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it breaks off")

    street.cupboard.before = fail
    second = street.house()
    found = second.bring(uri)
    assert found.origin_bytes + found.shared_bytes == 12 << 20 and found.shared_bytes >= 3 * (2 << 20)
    assert content(second, uri) == files and not second.staging()


def test_who_may_only_read_writes_nothing(street: Street) -> None:
    """No claim, no record."""
    uri = street.files(FILES)
    reader = street.house(read_only=True)
    assert reader.bring(uri).origin_bytes == SIZE and not street.cupboard.keys()
    published(street, {"x": b"x"}, "s3://bucket/other")
    assert reader.bring("s3://bucket/other").shared_bytes == 1
    assert street.cupboard.calls["put"] == 2 and street.cupboard.calls["create"] == 2, "the other house's"


@pytest.mark.parametrize(
    "uri", ["file:///srv/model", "http://elsewhere.example/model", "ftp://h/model", "s3://key@bucket/model"]
)
def test_what_is_another_thing_on_each_host_is_not_shared(street: Street, uri: str) -> None:
    """Nor what would tell a secret."""
    published(street, {"x": b"x"}, uri)
    assert not street.cupboard.keys() and not street.cupboard.calls.total()


def test_trees_that_are_too_large_are_not_published(street: Street) -> None:
    """Nor taken."""
    first, second = street.house(tree_max=packing_amount(SIZE - 1)), street.house()
    uri = street.files(FILES)
    first.bring(uri)
    street.settle(first)
    assert not street.cupboard.keys()
    second.bring(uri)
    street.settle(second)
    third = street.house(tree_max=packing_amount(SIZE - 1))
    assert third.bring(uri).origin_bytes == SIZE


def packing_amount(size: int) -> object:
    """As the configuration has it."""
    from cacheserver.space import Amount

    return Amount(size)


def test_a_store_without_room_asks_the_tier_for_nothing(street: Street, tmp_path: Path) -> None:
    """NoSpace comes before the first byte, from wherever that would have come."""
    from cacheserver.space import Amount, Limits

    uri = published(street)
    small = House(tmp_path / "small", Limits(Amount(1000), Amount(0)), origin=street.origin, tier=street.cupboard)
    street.houses.append(small)
    with pytest.raises(NoSpace):
        small.bring(uri)
    assert street.cupboard.calls["read"] == 0


def test_a_layout_has_every_blob_once(tmp_path: Path) -> None:
    """Whatever the tree: small ones packed within the limits, large ones cut; and what changes little changes few."""
    shelf = Shelf(tmp_path / "shelf")
    files = {f"f{n:05}": os.urandom(200 + n % 50) for n in range(6000)} | {"twice": b"t", "again/twice": b"t"}
    one = shelf.tree(shelf.put(files)).manifest
    pieces = layout(one)
    found = [blob for piece in pieces for blob in ([piece.blob] if isinstance(piece, Large) else piece.blobs)]
    assert sorted(found) == sorted({(e.digest, e.size) for e in one.files})
    packs = [piece for piece in pieces if isinstance(piece, Pack)]
    assert all(len(pack.blobs) <= packing.PACK_BLOBS_MAX and pack.size < packing.PACK_BYTES_MAX * 1.1 for pack in packs)
    shelf.close()
