"""Which trees go: the policies, and the plan that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from cacheserver.eviction import (
    BURST_SECONDS,
    MIB,
    POLICIES,
    S3_COUNT_MAX,
    Gdsf,
    Item,
    Lru,
    Policy,
    S3Fifo,
    Usage,
    refetch_seconds,
    share_seconds,
)
from cacheserver.planning import LINKED, Blob, Candidate, Plan, plan_eviction
from cacheserver.space import Need

NOW = 1_000_000.0


class Shelf:
    """Trees and their blobs, as a store would have them."""

    def __init__(self, policy: Policy = Lru()) -> None:  # noqa: B008 - it has no state
        self.policy = policy
        self.blobs: dict[str, list[Blob]] = {}
        self.items: dict[str, Item] = {}
        self.kept: dict[str, str] = {}
        self.asked: list[str] = []
        self.given: list[str] = []

    def add(self, tree: str, usage: Usage, *blobs: Blob, kept: str = "", seconds: float = 1.0) -> None:
        """A tree of these blobs."""
        share = sum(blob.size_bytes / blob.holder_count for blob in blobs)
        self.items[tree] = Item(tree, share, seconds, usage)
        self.blobs[tree], self.kept[tree] = list(blobs), kept

    def plan(self, disk: int = 0, capacity: int = 0, levels: Sequence[Sequence[str]] = (), age: float = 0.0) -> Plan:
        """A plan with these levels of priority, or with one."""
        chosen = levels or [list(self.items)]
        queued = [0.0] * self.policy.queue_count
        for item in self.items.values():
            queued[item.usage.queue] += item.share_bytes
        queues = [[self._queue(names, number) for number in range(self.policy.queue_count)] for names in chosen]
        return plan_eviction(self.policy, queues, queued, self._blobs_of, Need(disk, capacity), age=age, now=NOW)

    def _queue(self, names: Iterable[str], number: int) -> Iterator[Candidate]:
        items = (self.items[name] for name in names)
        for item in sorted((item for item in items if item.usage.queue == number), key=lambda item: item.usage.rank):
            self.given.append(item.tree)
            yield Candidate(item, self.kept[item.tree])

    def _blobs_of(self, tree: str) -> list[Blob]:
        self.asked.append(tree)
        return self.blobs[tree]


def gone(plan: Plan) -> list[str]:
    """The trees that are to go, in order."""
    return [eviction.tree for eviction in plan.evict]


def own(key: int, size: int = 10) -> Blob:
    """A blob that no other tree has."""
    return Blob(key, size, 1)


def ranked(rank: float) -> Usage:
    """A place in the only queue."""
    return Usage(0, rank, 1, rank)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_as_much_goes_as_has_to() -> None:
    """In the order of ranks; nothing where nothing is needed."""
    shelf = Shelf()
    for n in (3, 1, 2, 4):
        shelf.add(f"t{n}", ranked(n), own(n))
    assert gone(shelf.plan(disk=11)) == ["t1", "t2"]
    assert gone(shelf.plan(capacity=30)) == ["t1", "t2", "t3"]
    assert gone(shelf.plan()) == []
    everything = shelf.plan(disk=1000)
    assert gone(everything) == ["t1", "t2", "t3", "t4"] and everything.freed_bytes == 40


def test_queues_are_read_no_further_than_it_takes() -> None:
    """And the blobs of each tree that goes are asked for once, of others never."""
    shelf = Shelf()
    for n in range(100):
        shelf.add(f"t{n}", ranked(n), own(n))
    shelf.plan(disk=25)
    assert shelf.given == shelf.asked == ["t0", "t1", "t2"]


def test_a_lower_level_goes_first() -> None:
    """Whatever the ranks; the next one only when the first is empty."""
    shelf = Shelf()
    for n in range(4):
        shelf.add(f"t{n}", ranked(n), own(n))
    levels = [["t2", "t3"], ["t0", "t1"]]
    assert gone(shelf.plan(disk=20, levels=levels)) == ["t2", "t3"]
    assert gone(shelf.plan(disk=21, levels=levels)) == ["t2", "t3", "t0"]


def test_what_must_stay_stays_and_is_counted() -> None:
    """By its reason, as far as the queue was read."""
    shelf = Shelf()
    for n, kept in enumerate(["leased", "", "pinned", "leased", "", "pinned"]):
        shelf.add(f"t{n}", ranked(n), own(n), kept=kept)
    plan = shelf.plan(disk=20)
    assert gone(plan) == ["t1", "t4"]
    assert plan.kept == {"leased": 2, "pinned": 1}


def test_a_shared_blob_goes_with_its_last_holder() -> None:
    """It frees its bytes then, and not before."""
    shelf = Shelf()
    base = Blob(100, 1000, 3)
    for n in range(3):
        shelf.add(f"t{n}", ranked(n), base, own(n))
    plan = shelf.plan(disk=1)
    assert [(e.tree, e.freed_bytes) for e in plan.evict] == [("t0", 10)]
    plan = shelf.plan(disk=500)
    assert [(e.tree, e.freed_bytes) for e in plan.evict] == [("t0", 10), ("t1", 10), ("t2", 1010)]
    assert plan.freed_bytes == plan.held_bytes == 1030


def test_a_blob_that_a_leased_tree_has_stays() -> None:
    """The others may go, and free what is their own."""
    shelf = Shelf()
    base = Blob(100, 1000, 2)
    shelf.add("leased", ranked(0), base, kept="leased")
    shelf.add("other", ranked(1), base, own(1))
    plan = shelf.plan(disk=500)
    assert plan.freed_bytes == 10 and gone(plan) == ["other"]


def test_what_is_linked_outside_frees_nothing_and_stays() -> None:
    """It is no help on the disk: what comes after it goes."""
    shelf = Shelf()
    shelf.add("linked", ranked(0), Blob(1, 10, 1, is_linked=True))
    shelf.add("half", ranked(1), Blob(2, 10, 1, is_linked=True), own(3, 5))
    shelf.add("own", ranked(2), own(4))
    plan = shelf.plan(disk=15)
    assert [(e.tree, e.freed_bytes) for e in plan.evict] == [("half", 5), ("own", 10)]
    assert plan.freed_bytes == 15 and plan.held_bytes == 25 and plan.kept == {}
    assert gone(shelf.plan(disk=1000)) == ["half", "own"] and shelf.plan(disk=1000).kept == {LINKED: 1}


def test_what_is_linked_outside_goes_for_the_capacity_at_last() -> None:
    """After all that frees something, with a reason that says so; and no more of it than it takes."""
    shelf = Shelf()
    for n in range(2):
        shelf.add(f"linked{n}", ranked(n), Blob(n, 10, 1, is_linked=True))
    shelf.add("own", ranked(2), own(4))
    plan = shelf.plan(capacity=20)
    assert gone(plan) == ["own", "linked0"] and plan.kept == {LINKED: 1}
    assert "linked elsewhere" in plan.evict[1].reason and plan.evict[1].freed_bytes == 0
    assert gone(shelf.plan(capacity=10)) == ["own"], "the last resort is one"


def test_an_empty_tree_can_go() -> None:
    """It frees nothing, and is no reason to stop."""
    shelf = Shelf()
    shelf.add("empty", ranked(0))
    shelf.add("own", ranked(1), own(1))
    assert gone(shelf.plan(disk=1)) == ["empty", "own"]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_same_store_makes_the_same_plan(policy: Policy) -> None:
    """And every eviction has a reason in words."""

    def one() -> Plan:
        shelf = Shelf(policy)
        for n in range(50):
            item = Item(f"t{n}", 10.0, float(n % 7))
            shelf.add(item.tree, policy.arrived(item, None, 0.0, NOW - 100 * n), own(n), seconds=item.seconds)
        return shelf.plan(disk=200)

    plan = one()
    assert plan == one() and len(plan.evict) == 20
    assert all(len(eviction.reason) > 10 for eviction in plan.evict)


def test_what_a_rule_drops_goes_whether_or_not_room_is_needed() -> None:
    """For its reason; what is leased or pinned is counted and stays."""
    shelf = Shelf()
    shelf.add("old", ranked(0), own(0))
    shelf.add("pinned", ranked(1), own(1))
    drops = [(Candidate(shelf.items["old"]), "unused for 30 d"), (Candidate(shelf.items["pinned"], "pinned"), "unused")]
    plan = plan_eviction(Lru(), [], [0.0], lambda tree: shelf.blobs[tree], Need(0, 0), age=3.0, now=NOW, drops=drops)
    assert plan.evict == [("old", 10, "unused for 30 d")] and plan.kept == {"pinned": 1} and plan.age == 3.0


# -- LRU and GDSF -----------------------------------------------------------------------------------------------------


def used(policy: Policy, item: Item, times: Iterable[float], age: float = 0.0) -> Item:
    """A tree that arrived and was used at these moments."""
    first, *others = times
    item = item._replace(usage=policy.arrived(item, None, age, first))
    for now in others:
        item = item._replace(usage=policy.used(item, 1, age, now))
    return item


def test_lru_goes_by_the_last_use() -> None:
    """Size, cost and number of uses make no difference."""
    early = used(Lru(), Item("early", 1e3, 1e6), [0, 1, 2, 3])
    late = used(Lru(), Item("late", 1e9, 1.0), [4])
    assert early.usage.rank < late.usage.rank and early.usage.count == 4


def test_gdsf_keeps_what_is_expensive_for_its_size() -> None:
    """Twice the seconds or half the bytes are twice the worth."""
    cheap = used(Gdsf(), Item("cheap", 8 * MIB, 2.0), [NOW])
    dear = used(Gdsf(), Item("dear", 8 * MIB, 4.0), [NOW])
    small = used(Gdsf(), Item("small", 4 * MIB, 2.0), [NOW])
    assert cheap.usage.rank == 0.25 and dear.usage.rank == small.usage.rank == 0.5


def test_gdsf_counts_uses_by_their_root() -> None:
    """Four uses hours apart are worth twice one."""
    item = used(Gdsf(), Item("t", MIB, 1.0), [0, 10_000, 20_000, 30_000])
    assert item.usage == Usage(0, 2.0, 4, 30_000)


def test_gdsf_counts_a_burst_once() -> None:
    """Thirty jobs that one push starts are one use; they still renew the rank at the age of today."""
    item = used(Gdsf(), Item("t", MIB, 1.0), [n * 10.0 for n in range(30)])
    assert item.usage == Usage(0, 1.0, 1, 0.0)
    assert Gdsf().used(item, 5, 7.0, BURST_SECONDS - 1) == Usage(0, 8.0, 1, 0.0)
    assert Gdsf().used(item, 5, 7.0, BURST_SECONDS).count == 2
    steady = used(Gdsf(), Item("t", MIB, 1.0), [n * 300.0 for n in range(13)])
    assert steady.usage.count == 7, "an hour of a use every five minutes is no single burst"


def test_gdsf_survives_a_clock_that_was_set_back() -> None:
    """A last use that lies ahead ends its burst."""
    item = used(Gdsf(), Item("t", MIB, 1.0), [NOW])
    assert Gdsf().used(item, 1, 0.0, NOW - 1e6) == Usage(0, 2**0.5, 2, NOW - 1e6)


def test_gdsf_ages() -> None:
    """What goes raises the age; a much used tree of yesterday is overtaken by what is used at that age."""
    shelf = Shelf(Gdsf())
    for n in range(3):
        shelf.add(f"t{n}", ranked(float(n)), own(n))
    plan = shelf.plan(disk=20, age=0.5)
    assert plan.age == 1.0
    old = used(Gdsf(), Item("old", MIB, 1.0), [n * 1e4 for n in range(16)])
    assert old.usage.rank < used(Gdsf(), Item("new", MIB, 1.0), [NOW], age=3.5).usage.rank
    assert shelf.plan(disk=10, age=9.0).age == 9.0, "it never falls"


def test_gdsf_remembers_half_the_uses_of_what_comes_back() -> None:
    """And none of what it never saw."""
    item = Item("t", MIB, 1.0)
    assert Gdsf().arrived(item, Usage(0, 5.0, 6, 0.0), 0.0, NOW).count == 4
    assert Gdsf().arrived(item, None, 0.0, NOW).count == 1


def test_gdsf_can_rank_an_empty_tree() -> None:
    """It has no bytes to divide by."""
    assert Gdsf().arrived(Item("t", 0.0, 0.0), None, 2.0, NOW).rank == 2.0


def test_a_share_costs_its_part_of_the_seconds() -> None:
    """What others have too is not fetched for one tree alone."""
    assert share_seconds(100.0, 1000, 250) == 25.0
    assert share_seconds(0.5, 0, 0) == 0.5


def test_what_was_fetched_in_part_costs_in_proportion() -> None:
    """What was never measured costs what others do."""
    assert refetch_seconds(10.0, 50, 100, 9.0) == 20.0
    assert refetch_seconds(10.0, 100, 100, 9.0) == 10.0
    assert refetch_seconds(0.0, 0, 100, 0.5) == 50.0


# -- S3-FIFO ----------------------------------------------------------------------------------------------------------


def test_s3_fifo_begins_in_the_small_queue() -> None:
    """What had left that too early begins in the main one; what had left the main one has had its chance."""
    item = Item("t", 10.0, 1.0)
    assert S3Fifo().arrived(item, None, 0.0, NOW).queue == 0
    assert S3Fifo().arrived(item, Usage(0, 1.0, 0, 1.0), 0.0, NOW).queue == 1
    assert S3Fifo().arrived(item, Usage(1, 1.0, 0, 1.0), 0.0, NOW).queue == 0


def test_s3_fifo_counts_uses_and_moves_nothing() -> None:
    """Up to three; its place stays."""
    item = used(S3Fifo(), Item("t", 10.0, 1.0), range(10))
    assert item.usage == Usage(0, 0, S3_COUNT_MAX, 9)


def test_s3_fifo_moves_what_was_used_to_the_main_queue() -> None:
    """What was used more than once in the small queue; the others go."""
    shelf = Shelf(S3Fifo())
    for n, count in enumerate([0, 2, 1, 3]):
        shelf.add(f"t{n}", Usage(0, n, count, n), own(n))
    plan = shelf.plan(disk=20)
    assert gone(plan) == ["t0", "t2"]
    assert plan.spared == {"t1": Usage(1, NOW + 2e-6, 0, 1)}


def test_s3_fifo_gives_the_main_queue_another_round() -> None:
    """For each use that was counted, behind all others; it ends nevertheless, and who goes at last is not spared."""
    shelf = Shelf(S3Fifo())
    for n in range(5):
        shelf.add(f"t{n}", Usage(1, n, 3 if n < 4 else 0, n), own(n))
    plan = shelf.plan(disk=10)
    assert gone(plan) == ["t4"]
    assert [plan.spared[f"t{n}"].count for n in range(4)] == [2, 2, 2, 2]
    ranks = [plan.spared[f"t{n}"].rank for n in range(4)]
    assert ranks == sorted(ranks) and min(ranks) > NOW
    whole = shelf.plan(disk=1000)
    assert sorted(gone(whole)) == [f"t{n}" for n in range(5)] and whole.spared == {}


def test_s3_fifo_takes_from_the_small_queue_what_is_above_its_share() -> None:
    """A tenth; below that from the main one."""
    shelf = Shelf(S3Fifo())
    shelf.add("small0", Usage(0, 0, 0, 0), own(0, 8))
    shelf.add("small1", Usage(0, 1, 0, 0), own(1, 8))
    shelf.add("main", Usage(1, 5, 0, 0), own(2, 84))
    assert gone(shelf.plan(disk=8)) == ["small0"]
    assert gone(shelf.plan(disk=9)) == ["small0", "main"]
