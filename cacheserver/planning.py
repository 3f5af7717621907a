"""What has to go so that there is room: a plan, by the order of a policy.

Law of this file: values in, a plan out; it touches nothing, and the same code plans in the daemon and in the simulator.
A plan is advice: who executes it looks again at leases and pins.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cacheserver.eviction import Item, Policy, Usage
from cacheserver.space import Need


class Blob(NamedTuple):
    """A blob of a tree: how many trees have it, and whether it is hard-linked outside the store: then its bytes stay on
    the disk when its row goes."""

    key: Hashable
    size_bytes: int
    holder_count: int
    is_linked: bool = False


class Candidate(NamedTuple):
    """A tree in its queue, and why it must stay; empty where it may go."""

    item: Item
    kept: str = ""


class Eviction(NamedTuple):
    """A tree that is to go, the bytes that this gives back to the disk, and why."""

    tree: str
    freed_bytes: int
    reason: str


@dataclass
class Plan:
    """What is to go, in this order, and what else follows.

    Attributes:
        freed_bytes: what all of it gives back to the disk.
        held_bytes: what the store holds less afterwards: more, where blobs are hard-linked outside.
        spared: what the policy remembers from now on of those that it let stay.
        kept: of those that had to stay, how many for each reason.
        dropped: those that go whether or not room is needed.
        age: of the policy, when all of it has gone.
    """

    age: float
    evict: list[Eviction] = field(default_factory=list)
    freed_bytes: int = 0
    held_bytes: int = 0
    spared: dict[str, Usage] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: set[str] = field(default_factory=set)


BlobsOf = Callable[[str], Iterable[Blob]]
Levels = Iterable[Sequence[Iterator[Candidate]]]


LINKED = "hard-linked outside the store: evicting it would free nothing"
SHARED = "part of others that stay: evicting it would free nothing"


def plan_eviction(
    policy: Policy,
    levels: Levels,
    queued_bytes: Sequence[float],
    blobs_of: BlobsOf,
    need: Need,
    *,
    age: float,
    now: float,
    drops: Iterable[tuple[Candidate, str]] = (),
) -> Plan:
    """What has to go for `need` bytes.

    Args:
        levels: the policy's queues, each in the order of ranks, for each level of priority: the lower levels first.
            They are read no further than it takes.
        queued_bytes: bytes in each of the policy's queues, of all levels.
        blobs_of: the blobs of a tree, asked for when it is its turn.
        age: of the policy, until now.
        drops: what goes first, whether or not room is needed, each with the reason; none of it may stand in a queue.
    """
    work = _Work(policy, blobs_of, need, now, Plan(age), list(queued_bytes))
    for candidate, reason in drops:
        if candidate.kept:
            work.plan.kept[candidate.kept] += 1
        else:
            plan_age = work.plan.age
            work.out(_Turn(candidate.item, tuple(blobs_of(candidate.item.tree)), reason))
            work.plan.age = plan_age  # it has not gone by its rank
            work.plan.dropped.add(candidate.item.tree)
    for queues in levels:
        if work.is_done():
            break
        work.level(queues)
    if not work.is_done():
        work.last_resort()
    return work.plan


@dataclass(eq=False)
class _Turn:
    """A tree whose turn it is, or was, to go: its blobs, and why."""

    item: Item
    blobs: tuple[Blob, ...]
    reason: str
    is_out: bool = False


@dataclass
class _Work:
    """A plan in the making."""

    policy: Policy
    blobs_of: BlobsOf
    need: Need
    now: float
    plan: Plan
    queued: list[float]
    holders: dict[Hashable, int] = field(default_factory=dict)  # of blobs, less those trees that are to go already
    # Those whose turn it was while nothing would have come of it. By blob: they go with the last but them that has it.
    passed_over: list[_Turn] = field(default_factory=list)
    waiting: dict[Hashable, list[_Turn]] = field(default_factory=dict)
    spared_count: int = 0

    def is_done(self) -> bool:
        """Whether enough is to go."""
        plan, need = self.plan, self.need
        return plan.freed_bytes >= need.disk_bytes and plan.held_bytes >= need.capacity_bytes

    def level(self, queues: Sequence[Iterator[Candidate]]) -> None:
        """Goes through one level's queues until enough is to go."""
        behind: list[deque[Candidate]] = [deque() for _ in queues]  # those that came to the end of a queue by now
        while not self.is_done():
            first = self.policy.turn(self.queued)
            for number in (first, *(n for n in range(len(queues)) if n != first)):
                candidate = next(queues[number], None) or (behind[number].popleft() if behind[number] else None)
                if candidate is not None:
                    break
            else:
                return
            item = candidate.item
            self.queued[number] -= item.share_bytes
            if candidate.kept:
                self.plan.kept[candidate.kept] += 1
                continue
            self.spared_count += 1
            usage = self.policy.spared(item, self.now + self.spared_count * 1e-6)
            if usage is None:
                self.turn(_Turn(item, tuple(self.blobs_of(item.tree)), self.policy.words(item, self.now)))
                continue
            self.plan.spared[item.tree] = usage
            self.queued[usage.queue] += item.share_bytes
            behind[usage.queue].append(Candidate(item._replace(usage=usage)))

    def turn(self, one: _Turn) -> None:
        """This one goes, unless nothing comes of it."""
        if not one.blobs or any(self.left(blob) == 0 and not blob.is_linked for blob in one.blobs):
            self.out(one)
            return
        self.passed_over.append(one)
        for blob in one.blobs:
            if not blob.is_linked:
                self.waiting.setdefault(blob.key, []).append(one)

    def left(self, blob: Blob) -> int:
        """How many trees will have a blob when one more goes."""
        return self.holders.get(blob.key, blob.holder_count) - 1

    def out(self, one: _Turn) -> None:
        """This one is to go, and with it those that only it has kept from giving anything back."""
        follow: list[_Turn] = [one]
        for turn in follow:
            if turn.is_out or (turn is not one and self.is_done()):
                continue
            turn.is_out = True
            freed = held = 0
            for blob in turn.blobs:
                left = self.holders[blob.key] = self.left(blob)
                if left <= 0:
                    held += blob.size_bytes
                    freed += 0 if blob.is_linked else blob.size_bytes
                elif left == 1:
                    follow += self.waiting.get(blob.key, ())
            plan = self.plan
            plan.evict.append(Eviction(turn.item.tree, freed, turn.reason))
            plan.freed_bytes += freed
            plan.held_bytes += held
            plan.age = self.policy.older(turn.item, plan.age)
            plan.spared.pop(turn.item.tree, None)

    def last_resort(self) -> None:
        """Those that free nothing by themselves: together with each other they may; and what is linked outside frees
        nothing on the disk, but counts for the capacity, and goes only for that."""
        left = [turn for turn in self.passed_over if not turn.is_out]
        together = Counter(blob.key for turn in left for blob in turn.blobs)
        for turn in left:
            if turn.is_out:
                continue
            last = [b for b in turn.blobs if self.holders.get(b.key, b.holder_count) <= together[b.key]]
            for_disk = any(not blob.is_linked for blob in last) and not self.is_done()
            if for_disk or (last and self.plan.held_bytes < self.need.capacity_bytes):
                elsewhere = "" if for_disk else "; its bytes stay on the disk, linked elsewhere"
                turn.reason += elsewhere
                self.out(turn)
            else:
                self.plan.kept[LINKED if last else SHARED] += 1
