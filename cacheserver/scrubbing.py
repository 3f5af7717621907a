"""The scrub: every blob and every manifest is hashed again, in the background, from the disk and not from memory.

Law of this file: nobody feels it, and nothing is left out: a pass that is broken off goes on where it was. What is
wrong is in quarantine before the next blob is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cacheserver.pace import Pace
from cacheserver.scrubs import Scrub
from cacheserver.space import show
from cacheserver.store import Store
from cacheserver.verify import Ended

STEP_BLOBS = 64  # or manifests, looked at between two notes of how far it is
# Of one turn, and of one step: then how far it is is noted, and at the latest after the blob that is being read.
LOOK_SECONDS = 5.0
BLOB_BYTES_MIN = 64 << 10  # what a small blob counts as: it costs a seek and the interpreter's time

_log = logging.getLogger(__name__)


class Scrubber:
    """Scrubs one store.

    Args:
        every: seconds from the end of a pass to the beginning of the next; it may change.
        pace: what is read a second.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, every: float, pace: Pace, clock: Callable[[], float]) -> None:
        self._store = store
        self._scrubs = store.index.scrubs
        self.every = every
        self._pace = pace
        self._clock = clock
        self._is_stopping = False

    def stop(self) -> None:
        """Ends after the piece that is being read: the blob is read from its beginning the next time."""
        self._is_stopping = True

    def look(self) -> None:
        """Begins a pass where one is due; goes on with the one under way, for a moment."""
        scrub = self._scrubs.last()
        if not scrub.is_under_way:
            if 0 <= self._clock() - scrub.ended_at < self.every:
                return
            scrub = Scrub(began_at=self._clock(), ended_at=min(scrub.ended_at, self._clock() - 1))
        end = self._store.ticks() + LOOK_SECONDS
        while scrub.is_under_way and not self._is_enough(end):
            scrub = self._step(scrub, end)

    def _is_enough(self, end: float) -> bool:
        return self._is_stopping or self._store.ticks() >= end

    def _step(self, scrub: Scrub, end: float) -> Scrub:
        last, found = self._store.verifier.some(scrub.position, STEP_BLOBS, self._spend, lambda: self._is_enough(end))
        after = Scrub(
            last or "",
            scrub.began_at,
            max(self._clock(), scrub.began_at) if last is None else scrub.ended_at,
            scrub.blob_count + found.blobs_checked,
            scrub.byte_count + found.bytes_checked,
            scrub.wrong_count + len(found.corrupted) + len(found.manifests),
        )
        self._scrubs.record(after)
        for kind, wrong in (("blob", found.corrupted), ("manifest", found.manifests)):
            for digest in [one for one in wrong if one not in found.unseen]:
                _log.warning(
                    "scrub: the %s %s was wrong or gone; %d artifacts need it, and are fetched again: %s",
                    kind,
                    digest,
                    len(found.affected),
                    ascii(", ".join(found.affected[:3])),
                )
        if last is None:
            _log.info(
                "scrub: all is looked at: blobs=%d bytes=%s wrong=%d seconds=%.0f",
                after.blob_count,
                show(after.byte_count),
                after.wrong_count,
                after.ended_at - after.began_at,
            )
        return after

    def _spend(self, count: int) -> None:
        """So much was read. The pace makes this wait, and while it waits it may be told to end."""
        if not self._is_stopping:
            self._pace.spend(max(count, BLOB_BYTES_MIN))
        if self._is_stopping:
            raise Ended
