"""Rests of work that nobody waits for: it is done in moments, so that whoever is served meanwhile finds the interpreter
and a core free.

Law of this file: who rests does so in proportion to the work; who is waited for does not rest at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

WORK_SECONDS = 0.0005  # a moment: half of a hit
WORK_SECONDS_MAX = 0.02  # of one step that could not be made smaller; what is more of it is not rested for
REST_TIMES = 6.0  # the work: a seventh of a core. With 3 and twice the moment a tenth of all hits took twice as long


class Rests:
    """Of one kind of work, which one thread does at a time.

    Args:
        worked: how many seconds of a processor this thread has used.
        sleep: waits so many seconds.
    """

    def __init__(self, worked: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._worked = worked
        self._sleep = sleep
        self._lock = threading.Lock()
        self._hasty = 0
        self._since = 0.0

    def rest(self) -> None:
        """Called after each small step of the work: rests where there was a moment of it since the last time."""
        if self._hasty:
            return
        took = self._worked() - self._since
        if took < 0 or took >= WORK_SECONDS:  # less than nothing: the last one to rest was another thread
            self._sleep(min(abs(took), WORK_SECONDS_MAX) * REST_TIMES)
            self._since = self._worked()

    @contextmanager
    def none(self) -> Iterator[None]:
        """Nobody rests for as long as this lasts: somebody waits."""
        with self._lock:
            self._hasty += 1
        try:
            yield
        finally:
            with self._lock:
                self._hasty -= 1


@dataclass(frozen=True)
class Clocks:
    """The edge's clocks: seconds since the epoch, seconds that never jump, a moment's pause, and rests."""

    now: Callable[[], float]
    ticks: Callable[[], float]
    pause: Callable[[], None]
    rests: Rests


class Awaited:
    """A lock that knows whether somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[int] = set()  # threads

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waiting.add(threading.get_ident())
            try:
                self._lock.acquire()
            finally:
                self._waiting.discard(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it now."""
        return bool(self._waiting)
