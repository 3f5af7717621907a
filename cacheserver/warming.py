"""Keeps named artifacts present, and follows their aliases.

Law of this file: the new one is here before the old one may go; who has no answer keeps what there is. A time of a
schedule has come when it lies between the last look and now: what the daemon has slept through is looked at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from artifactcache.errors import CacheError
from cacheserver import uris
from cacheserver.cache import Cache
from cacheserver.errands import Ask
from cacheserver.flights import Flight
from cacheserver.index import Index
from cacheserver.schedules import DAY_SECONDS, Ahead, Schedule, latest
from cacheserver.selection import Selection
from cacheserver.words import Brought

RETRY_SECONDS = 60.0  # after a failure, where the next time is not sooner

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Warm:
    """A named artifact that is kept present: it is looked after every so many seconds, or at some times of the week;
    then `every` is infinite."""

    uri: str
    every: float
    selection: Selection
    at: Schedule = ()


class Warming:
    """All of them, for one cache.

    Args:
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        ahead: how many seconds the host's local time is ahead of UTC at a moment.
    """

    def __init__(
        self,
        cache: Cache,
        index: Index,
        wanted: Sequence[Warm],
        clock: Callable[[], float],
        ticks: Callable[[], float],
        ahead: Ahead,
    ) -> None:
        self._cache = cache
        self._index = index
        self._clock = clock
        self._ticks = ticks
        self._ahead = ahead
        self._due: dict[Warm, float] = {}  # by `ticks`; those with a schedule wait for that as well
        self._looked_at: dict[Warm, float] = {}  # by `clock`
        self._owed: set[Warm] = set()  # those whose last look has failed
        self._failed: set[Warm] = set()
        self._under_way: dict[Warm, Flight[Brought]] = {}
        self.become(wanted)
        self._settle()

    def become(self, wanted: Sequence[Warm]) -> None:
        """Keeps these from the next look on, and no others."""
        self._wanted, self._has_changed = tuple(wanted), True

    def _settle(self) -> None:
        """Lets go what is not to be kept any more."""
        self._has_changed = False  # before it is read: what changes from now on has another look
        wanted = self._wanted
        self._due = {one: self._due.get(one, -math.inf) for one in wanted}
        for one in [one for one in self._under_way if one not in wanted]:
            self._cache.leave(self._under_way.pop(one))
        self._looked_at = {one: self._last(one) for one in wanted}
        self._owed &= self._due.keys()
        self._index.pins.forget_warm({(one.uri, one.selection.key) for one in wanted})

    def look(self) -> None:
        """Looks after those whose time has come, and those that are here now. Waits for no download."""
        if self._has_changed:
            self._settle()
        for one in self._due:
            flight = self._under_way.get(one)
            if flight is not None and flight.future.done():
                del self._under_way[one]
                self._attempt(one, lambda one=one, flight=flight: self._take(one, flight))  # type: ignore[misc]
            elif flight is None and self._due[one] <= self._ticks() and self._has_come(one):
                self._looked_at[one] = self._clock()
                self._attempt(one, lambda one=one: self._begin(one))  # type: ignore[misc]

    def _last(self, one: Warm) -> float:
        """When it was looked at; by the index where it is new here, as everything is after a start."""
        if one in self._looked_at:
            return self._looked_at[one]
        return self._index.pins.warmed_at(one.uri, one.selection.key)

    def _has_come(self, one: Warm) -> bool:
        """Whether there was a time of its schedule since it was looked at; always true of what has none."""
        if not one.at or one in self._owed:
            return True
        now = self._clock()
        if self._looked_at[one] > now + DAY_SECONDS:
            # A clock that was far ahead: until it is as late again, there would be no look at all.
            self._looked_at[one] = now
        return latest(one.at, now, self._ahead) > self._looked_at[one]

    def _begin(self, one: Warm) -> bool:
        # A schedule has one look where others have many: it counts when the origin has answered it.
        version = self._cache.version_of(uris.parse(one.uri), refresh=bool(one.at))
        found = None if version.is_new else self._cache.find(version.artifact, one.selection, view=False)
        if found is not None:
            return self._pin(one, found)
        ask = Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
        flight = self._under_way[one] = self._cache.bring(version.artifact, one.selection, ask)[0]
        flight.future.add_done_callback(lambda _: self._arrived(one, flight))
        return True

    def _arrived(self, one: Warm, flight: Flight[Brought]) -> None:
        """Keeps it at once, unless the next look, which finds out whether that went well, was faster."""
        if self._under_way.get(one) is flight and not flight.future.exception():
            with contextlib.suppress(CacheError):
                self._pin(one, flight.future.result())

    def _take(self, one: Warm, flight: Flight[Brought]) -> bool:
        try:
            brought = flight.future.result()
            _log.info("warm uri=%a version=%a bytes=%d", one.uri, brought.held.uri, brought.origin_bytes)
            return self._pin(one, brought)
        finally:
            self._cache.leave(flight)

    def _attempt(self, one: Warm, work: Callable[[], bool]) -> None:
        """Does some of the work; where that does not succeed, soon again."""
        is_done = False
        try:
            is_done = work()
            self._failed.discard(one)
        except CacheError as error:
            if one not in self._failed:
                _log.warning("%s cannot be kept warm now, and is tried again: %s", ascii(one.uri), error)
            self._failed.add(one)
        except Exception:  # noqa: BLE001 - the others have their turn whatever becomes of this one
            _log.exception("keeping %s warm failed", ascii(one.uri))
        (self._owed.discard if is_done else self._owed.add)(one)
        rest = 0.0 if one.at else one.every
        self._due[one] = self._ticks() + (rest if is_done else min(one.every, RETRY_SECONDS))

    def _pin(self, one: Warm, found: Brought) -> bool:
        """Keeps a version; False where a sweep was faster, or a schedule has had no answer of the origin's."""
        is_unanswered = bool(one.at) and found.stale
        # By the clock of the look; another thread may find it gone from the configuration by now.
        began = 0.0 if is_unanswered else self._looked_at.get(one, self._clock())
        is_kept = self._index.pins.keep_warm(one.uri, one.selection.key, found.held.uri, now=began)
        return is_kept and not is_unanswered
