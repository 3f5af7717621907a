"""Threads that users share: none of them, however much he has to do, takes those that another one is about to need.

Law of this file: whoever wants a thread and has none gets one as long as there is a free one; and whoever has some gets
one more only while as many as he has are left. That is the dynamic threshold of Choudhury and Hahne (1998) with a
factor of one: a user who is alone has half of the threads, of two each has a third, and the rest is always free. A
fixed share would either keep threads idle that nobody else wants, or be filled by two users for a third.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from artifactcache.errors import CacheError
from cacheserver.stopping import stopped

_NO_THREAD = (
    "The daemon can begin no thread on this host now: raise TasksMax= of its unit, or `ulimit -u` of its user, or end"
    " what has so many. Then try again."
)

T = TypeVar("T")
_Begun = tuple[Hashable, Future[Any], Callable[[], Any]]


class Shares:
    """Threads, and who waits for one.

    Args:
        size: threads.
        name: of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._pool = self._new()
        self._lock = threading.Lock()
        self._free = size
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[
            Hashable, deque[tuple[Future[Any], Callable[[], Any]]]
        ] = {}  # who was served last comes last
        self._is_closed = False

    def submit(self, owner: Hashable, work: Callable[..., T], *args: object) -> Future[T]:
        """Has work done when its owner's turn comes. Raises DaemonUnavailable after `close`.

        Args:
            owner: a user's ID; None for the daemon itself.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise stopped()
            works = self._waiting.setdefault(owner, deque())
            while works and works[0][0].cancelled():  # who has waited in vain waits no more; nobody else takes him out
                works.popleft()
            works.append((future, partial(work, *args)))
            due = self._due()
        self._start(due)
        return future

    def each(self, owner: Hashable, work: Callable[[Any], T], things: Iterable[Any]) -> list[T]:
        """Has the same work done of each thing, and waits. Raises what the first one raised that failed."""
        futures = [self.submit(owner, work, thing) for thing in things]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Starts nothing any more: who waits gets DaemonUnavailable."""
        with self._lock:
            self._is_closed = True
            waiting = [future for works in self._waiting.values() for future, _ in works]
            self._waiting.clear()
        for future in waiting:  # without the lock: what is told of it may ask for more
            if future.set_running_or_notify_cancel():
                future.set_exception(stopped())
        self._pool.shutdown(wait=False)

    def _due(self) -> list[_Begun]:
        """What may begin now, which is taken out under the lock: of who has least, and of those of who has waited for
        longest."""
        due: list[_Begun] = []
        while self._waiting:
            owner = min(self._waiting, key=self._running.__getitem__)
            if self._running[owner] >= self._free:
                break
            works = self._waiting.pop(owner)
            future, work = works.popleft()
            if works:
                self._waiting[owner] = works
            if future.set_running_or_notify_cancel():
                self._free -= 1
                self._running[owner] += 1
                due.append((owner, future, work))
        return due

    def _start(self, due: list[_Begun]) -> None:
        while due:
            owner, future, work = due.pop(0)
            claim, pool = [work], self._pool  # who takes it out does it
            try:
                pool.submit(self._run, owner, future, claim)
            except RuntimeError:  # closed meanwhile, or this host has no thread left: the pool keeps it all the same
                self._replace(pool)
                try:
                    claim.pop()
                except IndexError:  # a thread that there is does it
                    continue
                due += self._give_back(owner)
                future.set_exception(stopped() if self._is_closed else CacheError(_NO_THREAD))

    def _run(self, owner: Hashable, future: Future[Any], claim: list[Callable[[], Any]]) -> None:
        try:
            work = claim.pop()
        except IndexError:
            return
        try:
            tell = partial(future.set_result, work())
        except BaseException as error:  # noqa: BLE001 - whoever has the future hears of it
            tell = partial(future.set_exception, error)
        self._start(self._give_back(owner))
        tell()

    def _new(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=self._size, thread_name_prefix=self._name)

    def _replace(self, pool: ThreadPoolExecutor) -> None:
        """Has another pool from now on: one that has failed to begin a thread counts wrong which of its are idle."""
        with self._lock:
            if self._pool is pool and not self._is_closed:
                self._pool = self._new()
        pool.shutdown(wait=False)

    def _give_back(self, owner: Hashable) -> list[_Begun]:
        """Returns what may begin for it."""
        with self._lock:
            self._free += 1
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
            return [] if self._is_closed else self._due()
