"""Which trees go first when room is needed: the policies.

Law of this file: values in, a plan out; it touches nothing, and the same code decides in the daemon and in the
simulator. A plan is advice: who executes it looks again at leases and pins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

MIB = 1 << 20
BURST_SECONDS = 600.0  # jobs that one push or one sweep starts: they say once, not thirty times, that a tree is wanted
USE_EXPONENT = (
    0.5  # the 100th use says less than the 2nd: 0.3 to 0.5 are alike on generated traces, 1 (GDSF's) is worse
)
REMEMBERED = 0.5  # of the uses of a tree that went, when it comes back: it was used, but not enough to stay
SMALL_SHARE = 0.1  # of the bytes that S3-FIFO gives its small queue: https://doi.org/10.1145/3600006.3613147
S3_COUNT_MAX = 3  # uses that S3-FIFO counts, from the same paper


class Usage(NamedTuple):
    """What a policy remembers of a tree.

    Attributes:
        queue: which of the policy's queues it stands in.
        rank: its place there: the lowest goes first.
        count: uses, as the policy counts them.
        used_at: seconds since the epoch.
    """

    queue: int = 0
    rank: float = 0.0
    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which nobody misses here
    used_at: float = 0.0


class Item(NamedTuple):
    """A tree as a policy sees it.

    Attributes:
        tree: its digest.
        share_bytes: its size, where each blob is divided by the number of trees that have it.
        seconds: what it would take to fetch that share of it again: see `share_seconds`.
    """

    tree: str
    share_bytes: float
    seconds: float
    usage: Usage = Usage()


class Policy(Protocol):
    """How trees are ranked. All methods are pure; `age` is a number of the policy's own that grows with what goes."""

    name: str
    queue_count: int

    def arrived(self, item: Item, before: Usage | None, age: float, now: float) -> Usage:
        """Of a tree that was just brought; `before` is what was remembered of it when it last went, if it is."""

    def used(self, item: Item, times: int, age: float, now: float) -> Usage:
        """Of a tree that was handed out so often since it was last looked at."""

    def turn(self, queued_bytes: Sequence[float]) -> int:
        """Which queue's first is looked at next, by the bytes in each."""

    def spared(self, item: Item, rank: float) -> Usage | None:
        """Where the first of a queue goes instead of out; `rank` is one behind all others. None where it goes out."""

    def older(self, item: Item, age: float) -> float:
        """The age, after this one went out."""

    def words(self, item: Item, now: float) -> str:
        """Why this one goes before others."""


class Lru:
    """The least recently used goes first."""

    name = "lru"
    queue_count = 1

    def arrived(self, item: Item, before: Usage | None, age: float, now: float) -> Usage:
        """The newest."""
        return Usage(0, now, 1, now)

    def used(self, item: Item, times: int, age: float, now: float) -> Usage:
        """The newest again."""
        return Usage(0, now, item.usage.count + times, now)

    def turn(self, queued_bytes: Sequence[float]) -> int:
        """The only queue."""
        return 0

    def spared(self, item: Item, rank: float) -> Usage | None:
        """Never."""
        return None

    def older(self, item: Item, age: float) -> float:
        """It does not age."""
        return age

    def words(self, item: Item, now: float) -> str:
        """When it was used."""
        return f"used least recently, {_ago(item.usage.used_at, now)}"


class Gdsf:
    """GreedyDual-Size-Frequency: what costs the fewest seconds to fetch again, for its size and its uses, goes first.

    The rank is age + sqrt(uses) * seconds / MiB; the age is the highest rank that went, so that what is not used any
    more is overtaken by what is. From Cherkasova, HP Labs technical report HPL-98-69R1, which has neither the root nor
    the bursts: uses come in bursts here and end when a new version comes, and a count of them for ever holds old
    versions for long. Uses of one burst count as one; `used_at` is when the burst began.
    """

    name = "gdsf"
    queue_count = 1

    def arrived(self, item: Item, before: Usage | None, age: float, now: float) -> Usage:
        """One use; and half of those that are remembered."""
        return self._usage(item, 1 + (int(before.count * REMEMBERED) if before else 0), age, now)

    def used(self, item: Item, times: int, age: float, now: float) -> Usage:
        """One use more, unless it is of the last one's burst; at the age of today in any case."""
        _, _, count, used_at = item.usage
        is_burst = 0 <= now - used_at < BURST_SECONDS
        return self._usage(item, count if is_burst else count + 1, age, used_at if is_burst else now)

    def turn(self, queued_bytes: Sequence[float]) -> int:
        """The only queue."""
        return 0

    def spared(self, item: Item, rank: float) -> Usage | None:
        """Never."""
        return None

    def older(self, item: Item, age: float) -> float:
        """The highest rank that went."""
        return max(age, item.usage.rank)

    def words(self, item: Item, now: float) -> str:
        """What it would cost, and how much it is used."""
        return (
            f"cheapest to fetch again for its size and use: {item.seconds:.1f} s for {item.share_bytes / MIB:.1f} MiB,"
            f" {item.usage.count} use{'s' * (item.usage.count != 1)}, the last {_ago(item.usage.used_at, now)}"
        )

    def _usage(self, item: Item, count: int, age: float, now: float) -> Usage:
        return Usage(0, age + count**USE_EXPONENT * item.seconds / max(item.share_bytes / MIB, 1 / MIB), count, now)


class S3Fifo:
    """S3-FIFO: a small queue for what is new, a main one for what was used in it (SOSP 2023).

    Its queues are first in, first out: a use is only counted, and looked at when the tree comes to the front.
    """

    name = "s3-fifo"
    queue_count = 2

    def arrived(self, item: Item, before: Usage | None, age: float, now: float) -> Usage:
        """To the end of the small queue; of the main one where it had left the small one too early."""
        return Usage(1 if before and before.queue == 0 else 0, now, 0, now)

    def used(self, item: Item, times: int, age: float, now: float) -> Usage:
        """Counted."""
        return item.usage._replace(count=min(item.usage.count + times, S3_COUNT_MAX), used_at=now)

    def turn(self, queued_bytes: Sequence[float]) -> int:
        """The small one, where it has more than its share."""
        return 0 if queued_bytes[0] > SMALL_SHARE * sum(queued_bytes) else 1

    def spared(self, item: Item, rank: float) -> Usage | None:
        """To the end of the main queue, where it was used: more than once in the small one."""
        queue, _, count, used_at = item.usage
        if queue == 0 and count > 1:
            return Usage(1, rank, 0, used_at)
        if queue == 1 and count:
            return Usage(1, rank, count - 1, used_at)
        return None

    def older(self, item: Item, age: float) -> float:
        """It does not age."""
        return age

    def words(self, item: Item, now: float) -> str:
        """Where it stood."""
        return f"first in the {'main' if item.usage.queue else 'small'} queue, not used since it came there"


POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (Gdsf(), Lru(), S3Fifo())}


def refetch_seconds(seconds: float, fetched_bytes: int, size_bytes: int, seconds_per_byte: float) -> float:
    """What it would take to fetch a tree again: what it took, in proportion where only a part was fetched then.

    Args:
        seconds, fetched_bytes: measured when it was fetched; 0 where all of it was there already.
        seconds_per_byte: of all fetches, for what was never measured.
    """
    if fetched_bytes:
        return seconds * max(1.0, size_bytes / fetched_bytes)
    return size_bytes * seconds_per_byte


def share_seconds(seconds: float, size_bytes: float, share_bytes: float) -> float:
    """What it would take to fetch a tree's share of its bytes again: what others have too costs it a part."""
    return seconds * share_bytes / size_bytes if size_bytes else seconds


def _ago(at: float, now: float) -> str:
    seconds = max(0.0, now - at)
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{math.floor(seconds / length)} {unit} ago"
    return f"{seconds:.0f} s ago"
