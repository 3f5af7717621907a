"""What the daemon does by itself, every second and now and then, in one thread.

Law of this file: what fails is told, and tried again later; it ends neither the thread nor the daemon.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

from artifactcache.errors import CacheError
from cacheserver.sessions import Sessions
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper

ROUND_SECONDS = 1.0  # between two looks at how full the disk is
CHORES_ROUNDS = 30
ARRIVALS_KEPT_SECONDS = 86_400  # how long an unfinished download is worth resuming

_log = logging.getLogger(__name__)


class Upkeep:
    """The thread that looks after a store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, sweeper: Sweeper, sessions: Sessions, store: Store, clock: Callable[[], float]) -> None:
        self._sweeper = sweeper
        self._sessions = sessions
        self._store = store
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Looks after the store from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Begins nothing any more; what has begun ends soon, in small steps."""
        self._stopping.set()

    def _run(self) -> None:
        for number in itertools.count():
            self._attempt(self._sweeper.watch)
            if number % CHORES_ROUNDS == 0:
                for chore in (self._sessions.reap, self._sweeper.tidy, self._drop):
                    self._attempt(chore)
            if self._stopping.wait(ROUND_SECONDS):
                return

    def _attempt(self, chore: Callable[[], object]) -> None:
        if self._stopping.is_set():
            return
        try:
            chore()
        except CacheError as error:  # a full disk, or one that does not work: it says itself what can be done
            _log.warning("%s", error)
        except Exception:  # noqa: BLE001 - this thread is the only one that looks after the store
            _log.exception("a chore failed")

    def _drop(self) -> None:
        now = self._clock()
        self._store.index.pins.expire(now)
        self._store.departures.drop_arrivals(now - ARRIVALS_KEPT_SECONDS)
