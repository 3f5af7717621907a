"""Threads for work that may never end: each artifact store has its own, so that one that hangs keeps no other waiting.

Law of this file: nobody can end a thread; so there is an end to how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeVar

from artifactcache.errors import OriginUnavailable
from cacheserver.shares import Shares
from cacheserver.stopping import stopped

# Stores of one scheme that are asked at a time; more than that only where all of them hang at once. Of one scheme, for
# whoever names as many hosts of his own that never answer, as he can of ftp, is to keep nobody from S3.
CREWS_MAX = 32
CREWS_ALL_MAX = 128  # of all schemes together: whoever names an artifact can write any

T = TypeVar("T")


class _Crew:
    """Threads for one store, and how much they have to do."""

    def __init__(self, size: int, name: str) -> None:
        self.pool = Shares(size, name)
        self.under_way = 0


class Crews:
    """A crew for each store.

    Args:
        size: threads of one crew.
        name: of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._crews: dict[str, _Crew] = {}
        self._closed = False

    def close(self) -> None:
        """Starts nothing any more."""
        with self._lock:
            self._closed = True
            crews = list(self._crews.values())
        for crew in crews:  # without the lock: what is cancelled ends here
            crew.pool.close()

    def submit(self, store: str, owner: Hashable, work: Callable[..., T], *args: object) -> Future[T]:
        """Has work done by the crew of a store, for a user (`Shares.submit`). Raises OriginUnavailable where too many
        stores hang already."""
        with self._lock:
            if self._closed:
                raise stopped()
            crew = self._crews.pop(store, None) or self._new(store.partition(":")[0])
            self._crews[store] = crew  # the last one: the first has not been needed for the longest time
            crew.under_way += 1
        try:  # without the lock, too: a pool that is being shut down has one of its own, and waits for this one
            future = crew.pool.submit(owner, work, *args)
        except BaseException:
            self._ended(crew)
            raise
        future.add_done_callback(lambda _: self._ended(crew))
        return future

    def _new(self, scheme: str) -> _Crew:
        alike = [store for store in self._crews if store.partition(":")[0] == scheme]
        if len(alike) >= CREWS_MAX:
            idle = next((store for store in alike if not self._crews[store].under_way), None)
            if idle is None:
                raise OriginUnavailable(
                    f"{CREWS_MAX} artifact stores of {scheme}: are being asked and have not answered yet, so no other"
                    " of them is. Try again in a moment."
                )
            self._crews.pop(idle).pool.close()
        elif len(self._crews) >= CREWS_ALL_MAX:
            idle = next((store for store in self._crews if not self._crews[store].under_way), None)
            if idle is None:
                raise OriginUnavailable(
                    f"{CREWS_ALL_MAX} artifact stores are being asked and have not answered yet, so no other is. Try"
                    " again in a moment."
                )
            self._crews.pop(idle).pool.close()
        return _Crew(self._size, self._name)

    def _ended(self, crew: _Crew) -> None:
        with self._lock:
            crew.under_way -= 1
