"""What a cache of another size, or with another policy, would have done: a trace is replayed.

Law of this file: the policies and the plan are those of `eviction`, as the daemon runs them; a trace in, figures out.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cacheserver.eviction import Item, Policy, Usage, share_seconds
from cacheserver.planning import Blob, Candidate, plan_eviction
from cacheserver.space import Need
from cacheserver.traces import Fetch, Tree

HIGH = 0.95  # of the capacity: more than that starts a sweep, as in the daemon
LOW = 0.90  # of the capacity: a sweep ends there
GHOSTS_MAX = 100_000  # evicted trees whose usage is remembered
LEASED = "leased"


class Outcome(NamedTuple):
    """What one policy did at one capacity.

    Attributes:
        hits: fetches that took no bytes from the origin.
        hit_bytes: bytes handed out that were held, also those of trees of which another part was missing.
        fetch_seconds: of all fetching, where the part of a tree that is missing takes its part of the tree's seconds.
        refetch_seconds: of fetching what had been fetched before. The rest no cache can save.
    """

    policy: str
    capacity_bytes: int
    requests: int
    hits: int
    requested_bytes: int
    hit_bytes: int
    fetch_seconds: float
    refetch_seconds: float
    evictions: int

    @property
    def hit_ratio(self) -> float:
        """Of fetches."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def byte_hit_ratio(self) -> float:
        """Of bytes handed out."""
        return self.hit_bytes / self.requested_bytes if self.requested_bytes else 0.0


class Watermarks(NamedTuple):
    """Parts of the capacity: above `high` a sweep starts, at `low` it ends."""

    high: float
    low: float


LOW_HIGH = Watermarks(HIGH, LOW)
ONE_BY_ONE = Watermarks(1.0, 1.0)  # no more goes than has to

# For policies whose order is not that of ranks given when a tree was used: those of `foresight`.
Order = Callable[[Item, float], float]


@dataclass
class _Held:
    """A tree in the store, and which of the queues' entries is its own: older ones are passed over."""

    tree: Tree
    usage: Usage
    entry: int = 0


@dataclass
class _Blob:
    """A blob in the store: its size, and how many trees of each queue have it."""

    size_bytes: int
    holders: list[int]


@dataclass
class Replay:
    """A store of some capacity under some policy, as a trace goes by.

    Args:
        order: where given, ranks are found anew for each sweep: the lowest goes first.
    """

    policy: Policy
    capacity_bytes: int
    watermarks: Watermarks = LOW_HIGH
    order: Order | None = None
    held: dict[str, _Held] = field(default_factory=dict)
    held_bytes: int = 0
    age: float = 0.0
    hits: int = 0
    requests: int = 0
    requested_bytes: int = 0
    hit_bytes: int = 0
    fetch_seconds: float = 0.0
    refetch_seconds: float = 0.0
    evictions: int = 0

    def __post_init__(self) -> None:
        self._blobs: dict[str, _Blob] = {}
        self._seen: set[str] = set()  # blobs that were fetched once
        self._ghosts: OrderedDict[str, Usage] = OrderedDict()
        self._queued = [0.0] * self.policy.queue_count
        self._heaps: list[list[tuple[float, int, str]]] = [[] for _ in self._queued]
        self._entries = 0

    def outcome(self) -> Outcome:
        """The figures until now."""
        return Outcome(
            self.policy.name,
            self.capacity_bytes,
            self.requests,
            self.hits,
            self.requested_bytes,
            self.hit_bytes,
            self.fetch_seconds,
            self.refetch_seconds,
            self.evictions,
        )

    def fetch(self, at: float, tree: Tree) -> None:
        """Somebody fetches a tree."""
        size = tree.size_bytes
        self.requests += 1
        self.requested_bytes += size
        held = self.held.get(tree.name)
        if held and held.tree.blobs == tree.blobs:
            self.hits += 1
            self.hit_bytes += size
            held.tree = tree
            self._ranked(tree.name, self.policy.used(self._item(held), 1, self.age, at))
            return
        if held:
            self._drop(tree.name)
        self._bring(tree, size)
        if size <= self.capacity_bytes:
            self._keep(tree, at)

    def _bring(self, tree: Tree, size: int) -> None:
        missing = [(blob, bytes_) for blob, bytes_ in tree.blobs if blob not in self._blobs]
        again = sum(bytes_ for blob, bytes_ in missing if blob in self._seen)
        fetched = sum(bytes_ for _, bytes_ in missing)
        self._seen.update(blob for blob, _ in missing)
        self.hits += not missing
        self.hit_bytes += size - fetched
        if size:
            self.fetch_seconds += tree.seconds * fetched / size
            self.refetch_seconds += tree.seconds * again / size

    def _keep(self, tree: Tree, at: float) -> None:
        before = self._ghosts.pop(tree.name, None)
        held = _Held(tree, Usage(0))
        for blob, size in tree.blobs:
            if blob not in self._blobs:
                self._blobs[blob] = _Blob(size, [0] * self.policy.queue_count)
                self.held_bytes += size
        self._count(tree, 0, 1)
        usage = self.policy.arrived(self._item(held), before, self.age, at)
        self._count(tree, 0, -1)
        held.usage = usage
        self._count(tree, usage.queue, 1)
        self.held[tree.name] = held
        self._ranked(tree.name, usage)
        if self.held_bytes > self.watermarks.high * self.capacity_bytes:
            self._sweep(at, tree.name)

    def _sweep(self, now: float, leased: str) -> None:
        """Makes room: all but for the tree that was just brought, which its caller has a lease on."""
        need = Need(0, self.held_bytes - int(self.watermarks.low * self.capacity_bytes))
        passed: list[str] = []
        queues = [self._queue(number, now, leased, passed) for number in range(self.policy.queue_count)]
        plan = plan_eviction(self.policy, [queues], self._queued, self._blobs_of, need, age=self.age, now=now)
        self.age = plan.age
        for eviction in plan.evict:
            self._drop(eviction.tree)
        for name, usage in plan.spared.items():
            self._ranked(name, usage)
        for name in passed:
            self._enter(self.held[name])
        self.evictions += len(plan.evict)

    def _queue(self, number: int, now: float, leased: str, passed: list[str]) -> Iterator[Candidate]:
        """A queue in the order of ranks; what it gives is out of the heap."""
        heap = self._heaps[number]
        if self.order:
            heap[:] = [(self.order(self._item(held), now), held.entry, name) for name, held in self.held.items()]
            heapq.heapify(heap)
        while heap:
            _, entry, name = heapq.heappop(heap)
            held = self.held.get(name)
            if held is None or held.entry != entry:
                continue  # it went, or was used since
            if name == leased:
                passed.append(name)
            yield Candidate(self._item(held), LEASED if name == leased else "")

    def _drop(self, name: str) -> None:
        held = self.held.pop(name)
        self._count(held.tree, held.usage.queue, -1)
        for blob, size in held.tree.blobs:
            if not any(self._blobs[blob].holders):
                del self._blobs[blob]
                self.held_bytes -= size
        self._ghosts[name] = held.usage
        if len(self._ghosts) > GHOSTS_MAX:
            self._ghosts.popitem(last=False)

    def _ranked(self, name: str, usage: Usage) -> None:
        held = self.held[name]
        if usage.queue != held.usage.queue:
            self._count(held.tree, held.usage.queue, -1)
            self._count(held.tree, usage.queue, 1)
        is_where_it_was = held.entry and (held.usage.queue, held.usage.rank) == (usage.queue, usage.rank)
        held.usage = usage
        if not is_where_it_was:
            self._enter(held)

    def _enter(self, held: _Held) -> None:
        """Puts it into its queue, behind those of the same rank."""
        self._entries += 1
        held.entry = self._entries
        if not self.order:
            heapq.heappush(self._heaps[held.usage.queue], (held.usage.rank, held.entry, held.tree.name))

    def _count(self, tree: Tree, queue: int, change: int) -> None:
        """One holder more or less in a queue, of each blob; and what that makes of the queues' bytes."""
        for name, size in tree.blobs:
            blob = self._blobs[name]
            for sign in (-1, 1):
                if sign > 0:
                    blob.holders[queue] += change
                total = sum(blob.holders)
                for number, count in enumerate(blob.holders):
                    self._queued[number] += sign * size * count / total if total else 0.0

    def _item(self, held: _Held) -> Item:
        size = share = 0.0
        for name, bytes_ in held.tree.blobs:
            size += bytes_
            share += bytes_ / max(1, sum(self._blobs[name].holders))
        return Item(held.tree.name, share, share_seconds(held.tree.seconds, size, share), held.usage)

    def _blobs_of(self, name: str) -> Iterable[Blob]:
        for blob, size in self.held[name].tree.blobs:
            yield Blob(blob, size, sum(self._blobs[blob].holders))


def replay(
    fetches: Iterable[Fetch],
    policy: Policy,
    capacity_bytes: int,
    watermarks: Watermarks = LOW_HIGH,
    order: Order | None = None,
) -> Outcome:
    """Replays a trace from an empty store."""
    store = Replay(policy, capacity_bytes, watermarks, order)
    for at, tree in fetches:
        store.fetch(at, tree)
    return store.outcome()
