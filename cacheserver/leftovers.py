"""Leftovers: what downloads that failed have left, finished files and beginnings, which the next attempt goes on with.

Law of this file: nobody has been handed a leftover, so leftovers go before any tree; but who may count on one has said
so before he looked, and none at or below what he named goes before he is done.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

from cacheserver.arrivals import Finished
from cacheserver.departures import Departures
from cacheserver.disk import Disk
from cacheserver.holdings import Gone
from cacheserver.index import Index
from cacheserver.partials import Beginning
from cacheserver.space import Need

STEP_LEFTOVERS = 2_000  # go together, at most: one transaction, one sync
PAUSE_EVERY = 256  # while they are looked at, others have their turn of the interpreter
_BYTES = "bytes:"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """A finished file, or the beginning of one, and what its going gives.

    Attributes:
        at: when it came, seconds since the epoch.
        freed_bytes: what it gives back to the disk: nothing of bytes that have another name.
        held_bytes: what the store holds less: nothing of a beginning, which is no blob yet.
    """

    what: Finished | Beginning
    at: float
    freed_bytes: int
    held_bytes: int

    @property
    def name(self) -> str:
        """The blob's digest, or the beginning's path."""
        return self.what.path if isinstance(self.what, Beginning) else self.what.digest


@dataclass(frozen=True)
class Clearance:
    """Leftovers that are to go, or have gone, in this order."""

    leftovers: tuple[Leftover, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """What they give back to the disk."""
        return sum(one.freed_bytes for one in self.leftovers)

    def rest(self, need: Need) -> Need:
        """What is needed beside them."""
        held = sum(one.held_bytes for one in self.leftovers)
        return Need(max(0, need.disk_bytes - self.freed_bytes), max(0, need.capacity_bytes - held))


NOTHING = Clearance()


class Leftovers:
    """The leftovers in one store.

    Args:
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, disk: Disk, index: Index, departures: Departures, ticks: Callable[[], float]) -> None:
        self._disk = disk
        self._index = index
        self._departures = departures
        self._ticks = ticks
        # Held while one step is decided: who begins to count waits for that, and then looks at what is left.
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # by the location that somebody counts on
        self._until: dict[str, float] = {}  # after a failure the next attempt has a moment to come

    @contextmanager
    def counting(self, linger_seconds: float) -> Iterator[Callable[[str], None]]:
        """What is at or below a location that the block names stays until the block ends; where it fails, for some
        seconds more. The block names it before it looks what is there."""
        mine: set[str] = set()

        def count_on(uri: str) -> None:
            uri = uri.rstrip("/")
            with self._lock:
                if uri not in mine:
                    mine.add(uri)
                    self._counts[uri] += 1

        try:
            yield count_on
        except BaseException:
            with self._lock:
                self._until.update(dict.fromkeys(mine, self._ticks() + linger_seconds))
            raise
        finally:
            with self._lock:
                self._counts.subtract(mine)
                for uri in mine:
                    if not self._counts[uri]:
                        del self._counts[uri]

    def plan(self, need: Need, pause: Callable[[], None]) -> Clearance:
        """Which go for `need` bytes, the oldest first: all that help where those are not enough.

        Args:
            pause: called now and then.
        """
        chosen: list[Leftover] = []
        freed = held = 0
        for one in heapq.merge(self._finished(pause), self._beginnings(), key=lambda one: one.at):
            for_disk, for_capacity = freed < need.disk_bytes, held < need.capacity_bytes
            if not for_disk and not for_capacity:
                break
            if (for_disk and one.freed_bytes) or (for_capacity and one.held_bytes):
                chosen.append(one)
                freed += one.freed_bytes
                held += one.held_bytes
        return Clearance(tuple(chosen))

    def clear(self, planned: Clearance, why: str, pause: Callable[[], None] = lambda: None) -> Clearance:
        """Lets leftovers go, but those that somebody counts on by now. Returns which have gone.

        Args:
            pause: called after each step.
        """
        went: list[Leftover] = []
        # Beginnings first: on a disk that is full, nothing has to be written down for them.
        ones = sorted(planned.leftovers, key=lambda one: isinstance(one.what, Finished))
        for start in range(0, len(ones), STEP_LEFTOVERS):
            went += self._step(ones[start : start + STEP_LEFTOVERS])
            pause()
        if went:
            beginnings = sum(isinstance(one.what, Beginning) for one in went)
            freed = Clearance(tuple(went)).freed_bytes
            _log.info(
                "leftovers of failed downloads went: finished_files=%d beginnings=%d freed=%d reason=%r",
                len(went) - beginnings,
                beginnings,
                freed,
                why,
            )
        return Clearance(tuple(went))

    def expire(self, before: float) -> int:
        """Lets go what came before a time, in seconds since the epoch. Returns how many files went."""
        with self._lock:
            now = self._ticks()
            self._until = {uri: until for uri, until in self._until.items() if until > now}
        old: Iterator[Leftover] = chain(
            (one for one in self._beginnings() if one.at < before),
            (self._leftover(one) for one in self._uncounted(self._index.arrivals.older(before))),
        )
        count = 0
        while some := tuple(islice(old, STEP_LEFTOVERS)):
            count += len(self.clear(Clearance(some), "nobody went on with them").leftovers)
        return count

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _beginnings(self) -> list[Leftover]:
        waiting = self._disk.partials.waiting()
        with self._lock:
            waiting = [one for one in waiting if not self._is_counted_on(one.key)]
        return [Leftover(one, one.written_at, one.size_bytes, 0) for one in waiting]

    def _finished(self, pause: Callable[[], None]) -> Iterator[Leftover]:
        for number, one in enumerate(self._uncounted(self._index.arrivals.unheld()), start=1):
            if number % PAUSE_EVERY == 0:
                pause()
            yield self._leftover(one)

    def _uncounted(self, ones: Iterator[Finished]) -> Iterator[Finished]:
        for one in ones:
            with self._lock:
                is_counted_on = any(self._is_counted_on(key) for _, key in one.keys)
            if not is_counted_on:
                yield one

    def _leftover(self, one: Finished) -> Leftover:
        _, other_names = self._disk.links(one.digest)
        return Leftover(one, one.arrived_at, 0 if other_names else one.size_bytes, one.size_bytes)

    def _step(self, some: Sequence[Leftover]) -> list[Leftover]:
        beginnings = [one.what for one in some if isinstance(one.what, Beginning)]
        finished = [one.what for one in some if isinstance(one.what, Finished)]
        with self._lock:
            given_up = self._disk.partials.give_up(beginnings, self._is_counted_on)
        for one in given_up:
            self._disk.discard(one.path)

        def decide() -> Gone:
            with self._lock:
                return Gone({}, self._index.arrivals.drop(finished, self._is_counted_on))

        gone = self._departures.remove(decide).blobs if finished else {}
        went = {one.path for one in given_up}.union(gone)
        return [one for one in some if one.name in went]

    def _is_counted_on(self, key: str) -> bool:
        """Whether somebody counts on the file with this key. The lock is held."""
        uri, now = uri_of(key), self._ticks()
        while True:
            if uri in self._counts or self._until.get(uri, now) > now:
                return True
            head, slash, _ = uri.rpartition("/")
            if not slash:
                return False
            uri = head


def key_of(uri: str) -> str:
    """Under which key the index remembers a file of the origin."""
    try:
        uri.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8: SQLite's text cannot hold it
        return _BYTES + uri.encode("utf-8", "surrogateescape").hex()
    return uri


def uri_of(key: str) -> str:
    """The URI of the file with this key."""
    if not key.startswith(_BYTES):
        return key
    try:
        return bytes.fromhex(key.removeprefix(_BYTES)).decode("utf-8", "surrogateescape")
    except ValueError:
        return key
