"""Keeps named artifacts present, and follows their aliases.

Law of this file: the new one is here before the old one may go; who has no answer keeps what there is.
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
from cacheserver.selection import Selection
from cacheserver.words import Brought

RETRY_SECONDS = 60.0  # after a failure, where the next time is not sooner

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Warm:
    """A named artifact that is kept present: it is looked after every so many seconds."""

    uri: str
    every: float
    selection: Selection


class Warming:
    """All of them, for one cache.

    Args:
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        cache: Cache,
        index: Index,
        wanted: Sequence[Warm],
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._index = index
        self._clock = clock
        self._ticks = ticks
        self._due: dict[Warm, float] = {}
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
            elif flight is None and self._due[one] <= self._ticks():
                self._attempt(one, lambda one=one: self._begin(one))  # type: ignore[misc]

    def _begin(self, one: Warm) -> bool:
        version = self._cache.version_of(uris.parse(one.uri))
        found = None if version.is_new else self._cache.find(version.artifact, one.selection, view=False)
        if found is not None:
            return self._pin(one, found.held.uri)
        ask = Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
        flight = self._under_way[one] = self._cache.bring(version.artifact, one.selection, ask)[0]
        flight.future.add_done_callback(lambda _: self._arrived(one, flight))
        return True

    def _arrived(self, one: Warm, flight: Flight[Brought]) -> None:
        """Keeps it at once, unless the next look, which finds out whether that went well, was faster."""
        if self._under_way.get(one) is flight and not flight.future.exception():
            with contextlib.suppress(CacheError):
                self._pin(one, flight.future.result().held.uri)

    def _take(self, one: Warm, flight: Flight[Brought]) -> bool:
        try:
            brought = flight.future.result()
            _log.info("warm uri=%a version=%a bytes=%d", one.uri, brought.held.uri, brought.origin_bytes)
            return self._pin(one, brought.held.uri)
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
        self._due[one] = self._ticks() + (one.every if is_done else min(one.every, RETRY_SECONDS))

    def _pin(self, one: Warm, version: str) -> bool:
        """Keeps a version; False where a sweep was faster."""
        return self._index.pins.keep_warm(one.uri, one.selection.key, version, now=self._clock())
