"""What would go next: the front of the queues, as a sweep would go through them.

Law of this file: it only looks, in the policy's own order; no more is read than is shown, and no file is looked at. So
it does not know what a tree's going would give back to the disk: `explain` tells that of one, a dry sweep of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from cacheserver.holdings import Holdings
from cacheserver.leases import Leases
from cacheserver.planning import Candidate, plan_eviction
from cacheserver.space import Need
from cacheserver.sweeper import LEASED, Sweeper

LOOKED_AT_MAX = 400  # where nearly all are kept
EVERYTHING = Need(2**62, 2**62)


class Waiting(NamedTuple):
    """A tree at the front: what it is held as, what it takes on the disk, and why it goes before others, or why it
    stays."""

    tree: str
    names: tuple[str, ...]
    share_bytes: float
    reason: str
    kept: str


class Outlook:
    """Of one store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, sweeper: Sweeper, holdings: Holdings, clock: Callable[[], float]) -> None:
        self._sweeper = sweeper
        self._leases: Leases = sweeper.leases
        self._holdings = holdings
        self._clock = clock

    def front(self, most: int) -> list[Waiting]:
        """So many trees that would go, in this order; before them, as many at most whose place is there and that
        stay."""
        now, policy, holdings = self._clock(), self._sweeper.policy, self._holdings
        young_since = now - self._sweeper.grace_seconds
        seen: dict[str, Candidate] = {}

        def looked_at(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
            for one in candidates:
                if len(seen) >= LOOKED_AT_MAX or sum(not each.kept for each in seen.values()) >= most:
                    return
                if one.item.tree not in seen:
                    leased = not one.kept and self._leases.is_leased(one.item.tree)
                    seen[one.item.tree] = Candidate(one.item, LEASED) if leased else one
                    yield seen[one.item.tree]

        due = holdings.drops(now=now, young_since=young_since)
        why = {one.item.tree: reason for one, reason in due}
        drops = [(one, why[one.item.tree]) for one in looked_at(one for one, _ in due)]
        levels = (
            [
                looked_at(holdings.queue(level, number, now=now, young_since=young_since))
                for number in range(policy.queue_count)
            ]
            for level in holdings.levels()
        )
        plan = plan_eviction(
            policy,
            levels,
            holdings.queued_bytes(policy.queue_count),
            lambda tree: (),
            EVERYTHING,
            age=holdings.age(),
            now=now,
            drops=drops,
        )
        going = {one.tree: one.reason for one in plan.evict}
        staying = [tree for tree, one in seen.items() if one.kept][:most]
        named = holdings.described(chain(staying, going))
        return [
            Waiting(tree, named[tree][0], named[tree][3].share_bytes, going.get(tree, ""), seen[tree].kept)
            for tree in chain(staying, going)
            if tree in named
        ]
