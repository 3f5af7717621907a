"""What the index knows of trees for eviction: ranks, what keeps them, and what goes with them."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterable

import pytest

from cacheserver import holdings as room
from cacheserver.eviction import POLICIES, Usage
from cacheserver.holdings import CHUNK_TREES, PINNED, RULED, YOUNG
from cacheserver.index import Index, MissingBlobs
from cacheserver.retention import Verdict
from cacheserver.words import Standing
from tests.unit.rows import arrived, blob, expire, record, tree

LRU, GDSF, S3 = POLICIES["lru"], POLICIES["gdsf"], POLICIES["s3-fifo"]
NOW, OLD = 1_000_000.0, 100.0  # seconds since the epoch: most trees here are old


def uri(name: str) -> str:
    """Where a tree of one file comes from."""
    return f"s3://b/{name}"


def brought(index: Index, *names: str, at: float = OLD, policy: str = "lru") -> str:
    """A tree of files that was brought at a time, by the name of its first. Returns its digest."""
    digest = record(index, uri(names[0]), *names, now=at).digest
    index.rankings.arrived(digest, POLICIES[policy], seconds=1.0, fetched_bytes=100, now=at)
    return digest


def queue(index: Index, level: int = 0, number: int = 0, *, now: float = NOW, grace: float = 0.0) -> list[str]:
    """The trees of a queue, in order."""
    return [one.item.tree for one in index.holdings.queue(level, number, now=now, young_since=now - grace)]


def kept(index: Index, digest: str, *, now: float = NOW, grace: float = 0.0) -> str:
    """Why a tree must stay."""
    found = index.holdings.tree(digest, now=now, young_since=now - grace)
    assert found is not None
    return found.kept


def evict(index: Index, trees: Iterable[str], *, now: float = NOW, grace: float = 0.0) -> tuple[set[str], set[str]]:
    """The trees and blobs that an eviction of these has really removed."""
    gone = index.holdings.evict(list(trees), now=now, young_since=now - grace)
    return set(gone.trees), set(gone.blobs)


def query(path: str, sql: str) -> list[tuple[object, ...]]:
    """What another reader of the file sees."""
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_a_queue_is_in_the_order_of_ranks(index: Index) -> None:
    """The lowest first, whatever came first; a use gives another rank; priorities make queues of their own."""
    times = [500.0, 100.0, 300.0, 200.0, 400.0]
    trees = {at: brought(index, f"tree {at}", at=at) for at in times}
    assert queue(index) == [trees[at] for at in sorted(times)]
    index.rankings.used({trees[100.0]: (1, 600.0), trees[300.0]: (3, 700.0)}, LRU)
    order = [trees[at] for at in (200.0, 400.0, 500.0, 100.0, 300.0)]
    assert queue(index) == order and index.holdings.levels() == [0]
    index.rulings.record({trees[200.0]: Verdict(priority=2), trees[400.0]: Verdict(priority=-3)})
    assert index.holdings.levels() == [-3, 0, 2]
    assert [queue(index, level) for level in (-3, 0, 2)] == [[order[1]], order[2:], [order[0]]]
    for place, digest in enumerate([order[1], *order[2:], order[0]]):
        found = index.holdings.tree(digest, now=NOW, young_since=NOW)
        assert found is not None and index.holdings.place(found) == (place, 5)


def test_a_policy_of_two_queues_has_both(index: Index) -> None:
    """Each in its order, with the bytes in each; a plan's own moves are remembered."""
    first, second, third = (
        brought(index, name * 9, at=at, policy="s3-fifo") for name, at in zip("abc", (1, 2, 3), strict=True)
    )
    assert (queue(index), queue(index, 0, 1)) == ([first, second, third], [])
    assert index.holdings.queued_bytes(2) == [27.0, 0.0]
    index.rankings.moved({first: Usage(1, 7.0, 2, 1.0), third: Usage(1, 6.0, 0, 1.0)})
    assert (queue(index), queue(index, 0, 1)) == ([second], [third, first])
    assert index.holdings.queued_bytes(2) == [9.0, 18.0]
    assert next(index.holdings.queue(0, 1, now=NOW, young_since=NOW)).item.usage == Usage(1, 6.0, 0, 1.0)


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "of one rank"])
def test_a_long_queue_is_read_to_its_end(index: Index, dice: random.Random, ties: bool) -> None:
    """In chunks, each tree once and none left out, also of one rank, and also where those that were read go."""
    count = 2 * CHUNK_TREES + 10
    trees = [brought(index, f"tree {n}") for n in range(count)]
    ranks = [5.0] * count if ties else dice.sample(range(10**6), count)
    index.rankings.moved({one: Usage(0, rank) for one, rank in zip(trees, ranks, strict=True)})
    expected = [one for _, _, one in sorted(zip(ranks, range(count), trees, strict=True))]
    assert queue(index) == expected
    read = []
    for number, one in enumerate(index.holdings.queue(0, 0, now=NOW, young_since=NOW)):
        read.append(one.item.tree)
        if number % 100 == 99:
            evict(index, read[-100:])
    assert read == expected


def test_the_young_stay(index: Index) -> None:
    """For the grace time, to the second. What came at a time that is yet to come came before the clock was set back,
    nobody knows when."""
    digest = brought(index, "x", at=1000.0)
    assert kept(index, digest, now=1000.0, grace=60.0) == YOUNG
    assert kept(index, digest, now=1059.9, grace=60.0) == YOUNG
    assert kept(index, digest, now=1060.0, grace=60.0) == ""
    assert kept(index, digest, now=999.0, grace=60.0) == ""
    assert evict(index, [digest], now=1059.0, grace=60.0) == (set(), set())
    assert evict(index, [digest], now=1060.0, grace=60.0)[0] == {digest}


def test_bringing_bytes_makes_young_again(index: Index) -> None:
    """And finding all of it there does not: a job that asks every minute would keep it for ever."""
    digest = brought(index, "x", at=1000.0)
    index.rankings.arrived(digest, LRU, seconds=1.0, fetched_bytes=0, now=2000.0)
    assert kept(index, digest, now=2001.0, grace=60.0) == ""
    index.rankings.arrived(digest, LRU, seconds=1.0, fetched_bytes=9, now=3000.0)
    assert kept(index, digest, now=3001.0, grace=60.0) == YOUNG


def test_what_a_rule_keeps_stays(index: Index) -> None:
    """Until then, to the second; or for ever."""
    digest = brought(index, "x")
    index.rulings.record({digest: Verdict(kept_until=NOW + 10)})
    assert kept(index, digest, now=NOW + 9.9) == RULED and kept(index, digest, now=NOW + 10) == ""
    index.rulings.record({digest: Verdict(kept_until=math.inf)})
    assert evict(index, [digest], now=1e300) == (set(), set())


def test_the_pinned_stay(index: Index) -> None:
    """By whatever of their names and whoever pinned it, for as long as it was; a pin goes before other reasons."""
    digest = record(index, "s3://b/one", "x").digest
    record(index, "s3://b/two", "x")
    assert index.pins.pin("s3://b/two", "", owner=7, asked="a", now=NOW, seconds=10)
    index.rulings.record({digest: Verdict(kept_until=math.inf)})
    assert kept(index, digest, now=NOW + 9.9) == PINNED and kept(index, digest, now=NOW + 10) == RULED
    index.rulings.record({digest: Verdict()})
    assert evict(index, [digest], now=NOW + 9) == (set(), set())
    assert index.pins.pin("s3://b/one", "", owner=8, asked="a", now=NOW)
    assert evict(index, [digest], now=1e300) == (set(), set())
    assert index.pins.unpin(["a"], "", NOW) == ["s3://b/one", "s3://b/two"]
    assert evict(index, [digest])[0] == {digest}


def test_eviction_looks_again(index: Index) -> None:
    """What was planned and has got a pin, is held no more, or never was, does not go; the rest does."""
    trees = [brought(index, name) for name in "abc"]
    planned = queue(index)
    index.pins.pin(uri("b"), "", owner=1, asked="b", now=NOW)
    evict(index, [trees[2]])
    assert evict(index, [*planned, "f" * 64]) == ({trees[0]}, {blob("a").digest})


def test_exactly_what_nothing_else_needs_goes(path: str, index: Index) -> None:
    """Not what another tree has, nor what a download has brought and not yet recorded; with all that it was held as."""
    first, second = brought(index, "mine", "shared", "coming"), brought(index, "other", "shared")
    index.record_tree(tree("mine", "shared", "coming"), [], (), OLD)
    record(index, "s3://b/alias", "mine", "shared", "coming")
    index.record_arrivals([blob("coming")], {"s3://b/new/x": arrived("coming")}, Standing.FINISHED, OLD)
    index.ledger.charge({(first, 1): OLD, (first, 2): OLD, (second, 1): OLD})
    assert evict(index, [first]) == ({first}, {blob("mine").digest})
    assert [held.uri for held in index.asked()] == [uri("other")]
    assert set(index.all_digests()) == {blob(name).digest for name in ("shared", "coming", "other")}
    assert query(path, "SELECT count(*) FROM accounts") == [(1,)]
    assert expire(index, OLD + 1) == {blob("coming").digest: len("coming")}
    assert evict(index, [second]) == ({second}, {blob("shared").digest, blob("other").digest})
    assert index.totals() == dict.fromkeys(index.totals(), 0)


def test_trees_that_go_together_take_what_only_they_share(index: Index) -> None:
    """In one transaction, with more blobs than a statement takes."""
    names = [str(n) for n in range(2000)]
    first, second = brought(index, *names), brought(index, "own", *names[:1500])
    assert evict(index, [first, second]) == ({first, second}, {blob(n).digest for n in (*names, "own")})


def test_what_went_is_remembered(path: str, index: Index) -> None:
    """When it comes back its policy knows it: GDSF gives it half of its uses, S3-FIFO the main queue, once."""
    digest = brought(index, "x", policy="gdsf")
    for n in range(1, 10):
        index.rankings.used({digest: (1, OLD + n * 10_000)}, GDSF)
    assert query(path, "SELECT counted FROM trees") == [(10,)]
    evict(index, [digest])
    brought(index, "x", policy="gdsf")
    assert query(path, "SELECT counted FROM trees") == [(6,)]
    assert query(path, "SELECT count(*) FROM ghosts") == [(0,)]
    evict(index, [digest])
    brought(index, "x", policy="s3-fifo")
    assert queue(index, 0, 1) == [digest]


def test_uses_of_one_burst_count_as_one(path: str, index: Index) -> None:
    """From its beginning: jobs that one push starts say once that they want it. That is kept from use to use."""
    digest = brought(index, "x", at=1000.0, policy="gdsf")
    counts = []
    for at in (1100.0, 1500.0, 1601.0, 2100.0, 2300.0):
        index.rankings.used({digest: (5, at)}, GDSF)
        counts.append(query(path, "SELECT counted, used_at FROM trees")[0])
    assert counts == [(1, 1100.0), (1, 1500.0), (2, 1601.0), (2, 2100.0), (3, 2300.0)]


def test_not_all_that_went_is_remembered(path: str, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones only."""
    monkeypatch.setattr(room, "GHOSTS_MAX", 5)
    trees = [brought(index, f"tree {n}") for n in range(30)]
    for now, digest in enumerate(trees[:15]):
        evict(index, [digest], now=NOW + now)
    assert {row[0] for row in query(path, "SELECT tree FROM ghosts")} == set(trees[10:15])
    evict(index, trees[15:], now=NOW + 100)
    assert len(query(path, "SELECT tree FROM ghosts")) <= 5


def test_the_age_never_sinks(index: Index) -> None:
    """Whatever a later plan, made of what is cheaper, says of it."""
    for age, expected in ((5.0, 5.0), (3.0, 5.0), (0.0, 5.0), (6.0, 6.0)):
        index.rankings.aged(age)
        assert index.holdings.age() == expected


def test_another_policy_ranks_all_anew(path: str, index: Index) -> None:
    """From what was noted of their uses, a few at a time; ghosts and age of the one before are worth nothing."""
    trees = [brought(index, f"tree {n}", at=1000.0 + n) for n in range(25)]
    index.rankings.used({trees[0]: (4, 5000.0)}, LRU)
    while index.rankings.rank_some(LRU, 10):
        pass
    evict(index, [trees[24]])
    index.rankings.aged(9.0)
    assert queue(index)[-1] == trees[0]
    rounds = 1
    while index.rankings.rank_some(S3, 10):
        rounds += 1
    assert rounds == 3 and index.holdings.age() == 0.0
    assert query(path, "SELECT count(*) FROM ghosts") == [(0,)]
    assert set(queue(index) + queue(index, 0, 1)) == set(trees[:24])
    before = queue(index)
    assert not index.rankings.rank_some(S3, 10) and queue(index) == before, "it is done once"
    while index.rankings.rank_some(LRU, 10):
        pass
    assert queue(index)[-1] == trees[0] and len(queue(index)) == 24


def test_what_has_no_name_is_dropped_with_the_reason(index: Index) -> None:
    """No artifact is that tree any more; what a rule wants gone goes when it is due; what is kept says why."""
    nameless, due, later, fine = (brought(index, name) for name in ("nameless", "due", "later", "fine"))
    record(index, uri("nameless"), "another", now=OLD + 1)
    index.rulings.record({due: Verdict(drop_at=NOW), later: Verdict(drop_at=NOW + 0.1)})
    found = {one.item.tree: (one.kept, why) for one, why in index.holdings.drops(now=NOW, young_since=NOW)}
    assert set(found) == {nameless, due} and fine not in found
    assert "no artifact is this tree" in found[nameless][1] and "rule" in found[due][1]
    index.forget(uri("later"))
    young = index.holdings.drops(now=OLD, young_since=OLD - 60)
    assert {(one.item.tree, one.kept) for one, _ in young} == {(nameless, YOUNG), (later, YOUNG)}


def test_what_has_no_name_and_is_due_is_dropped_once(index: Index) -> None:
    """One tree, however many reasons there are for it to go."""
    digest = brought(index, "x")
    index.rulings.record({digest: Verdict(drop_at=OLD)})
    index.forget(uri("x"))
    assert [one.item.tree for one, _ in index.holdings.drops(now=NOW, young_since=NOW)] == [digest]


def test_what_a_tree_was_asked_for_as_is_told(index: Index) -> None:
    """Its URIs, each once and in order, and its size; not what is only a location behind one, nor what is not held."""
    digest = record(index, "s3://b/two", "x", "yy").digest
    record(index, "s3://b/one", "x", "yy")
    record(index, "s3://b/behind", "x", "yy", asked=False)
    nameless = record(index, "s3://b/gone", "zzz").digest
    index.forget("s3://b/gone")
    described = index.holdings.described([digest, nameless, "f" * 64])
    assert {tree: told[:3] for tree, told in described.items()} == {
        digest: (("s3://b/one", "s3://b/two"), 3, 2),
        nameless: ((), 3, 1),
    }


def test_holders_are_counted_rightly(path: str, index: Index, dice: random.Random) -> None:
    """After whatever the index can do, in any order: a blob's count is that of the trees that have it."""
    names = ["a", "bb", "ccc", "dddd", "eeeee"]
    for now in range(400):
        some = dice.sample(names, dice.randrange(1, 4))
        match dice.randrange(7):
            case 0 | 1:
                record(index, uri(dice.choice(names)), *some, now=now)
            case 2:
                index.record_arrivals([blob(n) for n in some], {"s3://b/x": arrived(some[0])}, Standing.FINISHED, now)
            case 3:
                evict(index, [tree(*some).digest, tree(*dice.sample(names, 2)).digest])
            case 4:
                index.forget_blob(blob(some[0]).digest)
            case 5:
                index.rejoin(tree(*some).digest, {blob(n).digest: 1 for n in some})
            case 6:
                index.holdings.remove_unheld()
                expire(index, now - dice.randrange(30))
                with pytest.raises(MissingBlobs):
                    index.record_tree(tree(*some, "never there"), [], (), now)
        assert query(
            path, "SELECT count(*) FROM blobs WHERE holder_count != (SELECT count(*) FROM members WHERE blob = id)"
        ) == [(0,)]
