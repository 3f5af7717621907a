"""Why a tree is kept, or what would have to happen for it to go: in plain words.

Law of this file: a sentence says what is so and what would change it; nothing is decided here.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass

from cacheserver.eviction import Policy
from cacheserver.holdings import Tree
from cacheserver.pins import CONFIGURATION, Pin
from cacheserver.planning import LINKED, Blob
from cacheserver.space import show


@dataclass(frozen=True)
class Circumstances:
    """All that is known of a tree when it is explained.

    Attributes:
        owners: names of the pins' owners, in the same order.
        ruled: what retention rules say, a sentence each.
        place, length: in the queue, from 1, and how many there are.
        grace_seconds: how long what was brought stays at least.
    """

    tree: Tree
    lease_count: int
    is_leased: bool
    pins: tuple[Pin, ...]
    owners: tuple[str, ...]
    ruled: tuple[str, ...]
    blobs: tuple[Blob, ...]
    place: int
    length: int
    grace_seconds: float
    policy: Policy
    now: float

    @property
    def freed_bytes(self) -> int:
        """What its going alone would give back to the disk."""
        return sum(b.size_bytes for b in self.blobs if b.holder_count <= 1 and not b.is_linked)

    @property
    def is_kept(self) -> bool:
        """Whether something keeps it from being evicted now."""
        return self.is_leased or bool(self.tree.kept)


def sentences(given: Circumstances) -> list[str]:
    """Why it is kept, or what would have to happen for it to go."""
    return [*_keeping(given), *given.ruled, *_going(given)]


def _keeping(given: Circumstances) -> Iterator[str]:
    tree = given.tree
    if given.lease_count:
        yield (
            f"It is leased {given.lease_count} times, by jobs that have a view of it or are being handed it: it stays"
            " until they release it or end."
        )
    elif given.is_leased:
        yield "It was brought or handed over a moment ago, and stays until that is over."
    for pin, owner in zip(given.pins, given.owners, strict=True):
        until = "without end" if math.isinf(pin.expires_at) else f"until {_time(pin.expires_at)}"
        if pin.owner == CONFIGURATION:
            yield f"It is what {pin.asked} stands for, which [[warm]] in the configuration keeps present."
        else:
            yield f"It is pinned by {owner}, as {pin.asked}, {until}: `artifactcache unpin {pin.asked}` ends that."
    if given.now - given.grace_seconds < tree.recorded_at <= given.now:
        rest = tree.recorded_at + given.grace_seconds - given.now
        age = given.now - tree.recorded_at
        yield f"It came {age:.0f} s ago: nothing goes before the grace time is over, in {rest:.0f} s."


def _going(given: Circumstances) -> Iterator[str]:
    tree, item = given.tree, given.tree.item
    if tree.drop_at is not None:
        when = "as soon as nothing else keeps it" if tree.drop_at <= given.now else f"at {_time(tree.drop_at)}"
        yield f"A retention rule wants it gone, room or not: it goes {when}."
    if given.is_kept:
        yield "When nothing of this is so any more, it can go where room is needed."
    else:
        yield (
            "Nothing keeps it: it goes when the store or its disk is too full and the"
            f" {given.place - 1} before it in the queue are not enough."
        )
    yield (
        f"Its place in the queue is {given.place} of {given.length} ({given.policy.name}):"
        f" {given.policy.words(item, given.now)}."
    )
    shared = sum(b.size_bytes for b in given.blobs if b.holder_count > 1)
    linked = sum(b.size_bytes for b in given.blobs if b.holder_count <= 1 and b.is_linked)
    yield (
        f"Its going would give {show(given.freed_bytes)} back to the disk, and fetching it again take"
        f" {tree.seconds:.1f} s."
    )
    if shared:
        yield f"{show(shared)} of it are part of other trees as well, and stay with them."
    if linked and not given.freed_bytes and not shared:
        yield f"All of it is {LINKED}; it goes only where the capacity itself is exceeded."
    elif linked:
        yield f"{show(linked)} of it are hard-linked outside the store, and would stay on the disk there."


def _time(at: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "a time that no calendar has"
