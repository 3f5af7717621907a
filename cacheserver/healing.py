"""What was found wrong is fetched again, before anybody asks for it.

Law of this file: it asks the origin for what an artifact lacks, as a fetch does, with the daemon's own account; what
cannot be had stays in quarantine, is told once, and is tried again later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from artifactcache.errors import CacheError
from cacheserver import uris
from cacheserver.cache import Cache
from cacheserver.errands import Ask
from cacheserver.flights import Flight
from cacheserver.index import Index
from cacheserver.selection import Selection
from cacheserver.words import Brought

AT_ONCE = 4  # artifacts fetched together
WOUNDS_MAX = 10_000  # remembered; whoever asks for the rest heals it
RETRY_SECONDS, RETRY_SECONDS_MAX = 60.0, 6 * 3600.0

_log = logging.getLogger(__name__)
Name = tuple[str, str]  # an artifact's URI and the key of its selection


@dataclass
class _Wound:
    """An artifact that lacks bytes: when it is tried, and what is under way."""

    due: float
    wait: float = RETRY_SECONDS
    was_told: bool = False
    flight: Flight[Brought] | None = None


class Healing:
    """Of one cache.

    Args:
        ticks: seconds of a clock that never jumps.
        pause: lets others have their turn.
    """

    def __init__(
        self, cache: Cache, index: Index, ticks: Callable[[], float], pause: Callable[[], None] = lambda: None
    ) -> None:
        self._cache = cache
        self._index = index
        self._pause = pause
        self._ticks = ticks
        self._lock = threading.Lock()
        self._wounds: dict[Name, _Wound] = {}

    def want(self, names: Iterable[Name]) -> None:
        """These artifacts lack bytes."""
        with self._lock:
            for name in names:
                if len(self._wounds) < WOUNDS_MAX:
                    self._wounds.setdefault(name, _Wound(self._ticks()))

    def count(self) -> int:
        """How many artifacts are known to lack bytes."""
        return len(self._wounds)

    def search(self) -> None:
        """Looks for what lacks bytes and nobody remembers: since before the daemon was started, say."""
        row: int | None = -1
        while row is not None:
            trees, row = self._index.scrubs.lacking(row)
            if trees:
                self.want(self._index.names_of(trees))
            self._pause()

    def look(self) -> None:
        """Takes what has come, and asks for what is due. Waits for no download."""
        with self._lock:
            wounds = list(self._wounds.items())
        under_way = 0
        for name, wound in wounds:
            if wound.flight is not None and wound.flight.future.done():
                self._take(name, wound, wound.flight)
            under_way += wound.flight is not None
        for name, wound in wounds:
            if under_way < AT_ONCE and wound.flight is None and wound.due <= self._ticks() and name in self._wounds:
                self._begin(name, wound)
                under_way += 1

    def _begin(self, name: Name, wound: _Wound) -> None:
        uri, selection = name
        if self._index.held(uri, selection) is None:  # it was evicted, or the origin has it no more
            self._forget(name)
            return
        try:
            wound.flight = self._cache.bring(uris.stored(uri), Selection.from_key(selection), Ask.WHAT_IS_DUE)[0]
        except CacheError as error:
            self._failed(name, wound, error)

    def _take(self, name: Name, wound: _Wound, flight: Flight[Brought]) -> None:
        wound.flight = None
        try:
            brought = flight.future.result()
        except CacheError as error:
            self._failed(name, wound, error)
            return
        except Exception:  # noqa: BLE001 - the others have their turn whatever becomes of this one
            _log.exception("fetching %s again failed", ascii(name[0]))
            self._forget(name)
            return
        finally:
            self._cache.leave(flight)
        _log.info("healed uri=%a bytes=%d", name[0], brought.origin_bytes)
        self._forget(name)

    def _failed(self, name: Name, wound: _Wound, error: CacheError) -> None:
        if not wound.was_told:
            _log.warning(
                "%s lacks bytes that were damaged, and they cannot be had now: %s It is tried again, and by whoever"
                " asks for it.",
                ascii(name[0]),
                error,
            )
        wound.was_told = True
        wound.due, wound.wait = self._ticks() + wound.wait, min(wound.wait * 2, RETRY_SECONDS_MAX)

    def _forget(self, name: Name) -> None:
        with self._lock:
            self._wounds.pop(name, None)
