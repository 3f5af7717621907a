"""Keeps named artifacts present, and follows their aliases.

Law of this file: the new one is here before the old one may go; who has no answer keeps what there is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from artifactcache.errors import CacheError
from cacheserver import uris
from cacheserver.bringing import Ask
from cacheserver.cache import Cache
from cacheserver.index import Index
from cacheserver.selection import Selection

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
        self._wanted = tuple(wanted)
        self._clock = clock
        self._ticks = ticks
        self._due = dict.fromkeys(self._wanted, -math.inf)
        self._failed: set[Warm] = set()
        index.pins.forget_warm({(one.uri, one.selection.key) for one in self._wanted})

    def look(self) -> None:
        """Looks after those whose time has come."""
        for one in self._wanted:
            if self._due[one] <= self._ticks():
                self._due[one] = self._ticks() + (one.every if self._warm(one) else min(one.every, RETRY_SECONDS))

    def _warm(self, one: Warm) -> bool:
        try:
            version = self._cache.version_of(uris.parse(one.uri))
            ask = Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
            found = None if version.is_new else self._cache.find(version.artifact, one.selection, view=False)
            if found is None:
                flight, _, _ = self._cache.bring(version.artifact, one.selection, ask)
                try:
                    found = flight.future.result()
                    self._pin(one, found.held.uri)
                finally:
                    self._cache.leave(flight)
                _log.info("warm uri=%s version=%s bytes=%d", ascii(one.uri), ascii(found.held.uri), found.origin_bytes)
            else:
                self._pin(one, found.held.uri)
        except Exception as error:  # noqa: BLE001 - the others have their turn whatever becomes of this one
            if not isinstance(error, CacheError):
                _log.exception("keeping %s warm failed", ascii(one.uri))
            elif one not in self._failed:
                _log.warning("%s cannot be kept warm now, and is tried again: %s", ascii(one.uri), error)
            self._failed.add(one)
            return False
        self._failed.discard(one)
        return True

    def _pin(self, one: Warm, version: str) -> None:
        self._index.pins.keep_warm(one.uri, one.selection.key, version, now=self._clock())
