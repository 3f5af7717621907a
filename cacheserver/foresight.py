"""Policies that know the future: how little refetching there could be.

Law of this file: they run in the simulator only, in the very engine that the others run in. Nobody knows how to find
the best plan for trees of different size and cost in any reasonable time; the best of these orders is what "offline
best" means here. The true best may be a little better, and no daemon can know what these know.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from cacheserver.eviction import Item, Lru
from cacheserver.simulate import LOW_HIGH, Outcome, Watermarks, replay
from cacheserver.traces import Fetch

NAME = "offline best"
NEVER = math.inf


def _farthest(item: Item, distance: float) -> float:
    """Belady's: what is used last of all goes first."""
    return -distance


def _cheapest(item: Item, distance: float) -> float:
    """What saves the fewest seconds for the bytes that it holds for so long."""
    return item.seconds / (max(item.share_bytes, 1.0) * (distance + 1.0))


def _between(item: Item, distance: float) -> float:
    """Belady's, with the cost of a byte counted by its root."""
    return math.sqrt(item.seconds / max(item.share_bytes, 1.0)) / (distance + 1.0)


# By item and seconds until its next use, the lowest goes first; what is never used again goes before all others.
ORDERS: Mapping[str, Callable[[Item, float], float]] = {
    "farthest next use": _farthest,
    "fewest seconds saved": _cheapest,
    "in between": _between,
}


class Future:
    """When each tree of a trace is fetched."""

    def __init__(self, fetches: Iterable[Fetch]) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)
        for at, tree in fetches:
            self._times[tree.name].append(at)

    def distance(self, tree: str, now: float) -> float:
        """Seconds until it is fetched the next time after `now`; infinite where it never is."""
        times = self._times[tree]
        place = bisect_right(times, now)
        return times[place] - now if place < len(times) else NEVER


def offline_best(
    fetches: Sequence[Fetch], capacity_bytes: int, watermarks: Watermarks = LOW_HIGH, future: Future | None = None
) -> Outcome:
    """The outcome of whichever order refetches least.

    Args:
        future: of these fetches, where it is known already.
    """
    known = future or Future(fetches)
    found = []
    for rank in ORDERS.values():

        def order(item: Item, now: float, rank: Callable[[Item, float], float] = rank) -> float:
            distance = known.distance(item.tree, now)
            return -math.inf if distance == NEVER else rank(item, distance)

        found.append(replay(fetches, Lru(), capacity_bytes, watermarks, order))
    return min(found, key=lambda outcome: outcome.refetch_seconds)._replace(policy=NAME)
