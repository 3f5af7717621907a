"""The daemon's counters, as the contract has them: of the store as it is now, the others since the daemon started.

Law of this file: nothing here costs more where the store holds more.
"""

from __future__ import annotations

from collections.abc import Callable

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.administration import Administration
from cacheserver.audit import AuditLog
from cacheserver.cache import Cache
from cacheserver.fetching import Fetching
from cacheserver.sessions import Sessions
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper


class Counters:
    """Of one daemon, from now on.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        sweeper: Sweeper,
        administration: Administration,
        fetching: Fetching,
        audit: AuditLog,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._sweeper = sweeper
        self._administration = administration
        self._fetching = fetching
        self._audit = audit
        self._clock = clock
        self._started_at = clock()

    def read(self) -> pb.StatsReply:
        """All of them."""
        space = self._store.space()
        limits, sweeper = self._sweeper.reservations.limits, self._sweeper
        scrub = self._store.index.scrubs.last()
        return pb.StatsReply(
            **self._store.index.totals(),
            **self._fetching.served(),
            free_bytes=space.free,
            capacity_bytes=limits.capacity.of(space.total),
            min_free_bytes=limits.min_free.of(space.total),
            download_count=self._cache.download_count(),
            refused_count=self._audit.refused_count(),
            session_count=self._sessions.count(),
            lease_count=sweeper.leases.total(),
            evicted_count=sweeper.evicted_count,
            evicted_bytes=sweeper.evicted_bytes,
            pin_count=self._store.index.pins.count(self._clock()),
            coming_bytes=sweeper.reservations.fill().coming,
            quarantine_count=self._store.quarantine_count(),
            damaged_count=self._administration.damaged_count(),
            scrub_began_at=scrub.began_at,
            scrub_ended_at=scrub.ended_at,
            scrub_blob_count=scrub.blob_count,
            scrub_bytes=scrub.byte_count,
            scrub_wrong_count=scrub.wrong_count,
            started_at=self._started_at,
            store_root=self._store.root,
        )
