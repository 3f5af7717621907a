"""How many questions one server is asked at a time: as many as it answers side by side, and hardly more.

Law of this file: the server's own answers decide. Where more questions only wait longer for theirs, there are fewer;
where they do not, there are more. One that hangs says nothing of the others, and they go past it. The estimate of how
many wait is that of TCP Vegas (Brakmo and Peterson, 1995): of `limit` questions, limit * (1 - shortest / mean) are in
the queue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

START = 1  # the first answers tell how long one takes that nobody waits in front of
QUEUE_MIN = 0.6  # with fewer than so many waiting there, one more is asked at a time
QUEUE_MAX = 1.2  # with more, one less
WINDOW_MIN = 8  # answers that a decision is made on
HANGS_AFTER = 0.25  # of its patience: a question that has no answer by then keeps nobody else from asking
FORGET_WINDOWS = 64  # after so many the shortest time is measured anew: the server may have become slower for good


def next_limit(limit: int, shortest: float, mean: float) -> int:
    """How many questions to ask at a time, after `limit` at a time took `mean` seconds, and one alone `shortest`."""
    queue = limit * (1 - shortest / mean) if mean > 0 else 0.0
    if queue < QUEUE_MIN:
        return limit + 1
    return max(limit - 1, 1) if queue > QUEUE_MAX else limit


class Throttle:
    """Questions to one server.

    Args:
        most: questions at a time, however quickly it answers.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, most: int, ticks: Callable[[], float]) -> None:
        self._most = most
        self._ticks = ticks
        self._changed = threading.Condition()
        self._asked: list[float] = []  # when each of those under way began
        self._limit = min(START, most)
        self._shortest = float("inf")
        self._total = 0.0
        self._count = 0
        self._windows = 0
        self._answered = 0

    @property
    def limit(self) -> int:
        """Questions at a time, now."""
        return self._limit

    @contextmanager
    def question(self, patience: float) -> Iterator[None]:
        """Waits for its turn; lasts until the answer begins. One that fails teaches nothing.

        Raises TimeoutError where for `patience` seconds none of those before it was answered.
        """
        step = HANGS_AFTER * patience
        with self._changed:
            waited, seen = 0.0, self._answered
            while not self._changed.wait_for(lambda: self._has_room(step), timeout=step):
                waited, seen = 0.0 if seen != self._answered else waited + step, self._answered
                if waited >= patience:
                    raise TimeoutError(f"none of the questions before it was answered within {patience:g} s")
            began = self._ticks()
            self._asked.append(began)
        try:
            yield
            self._learn(self._ticks() - began)
        finally:
            with self._changed:
                self._asked.remove(began)
                self._changed.notify()

    def _has_room(self, hangs_after: float) -> bool:
        """Whether one more may be asked: those that hang do not count, but for the most that there may be."""
        now = self._ticks()
        waiting = sum(now - began < hangs_after for began in self._asked)
        return waiting < self._limit and len(self._asked) < self._most

    def _learn(self, seconds: float) -> None:
        with self._changed:
            self._answered += 1
            self._total += seconds
            self._count += 1
            if self._count < max(WINDOW_MIN, 2 * self._limit):
                return
            mean, full = self._total / self._count, len(self._asked) >= self._limit
            self._total, self._count = 0.0, 0
            self._windows += 1
            if self._windows % FORGET_WINDOWS == 0:
                self._shortest = mean
            self._shortest = min(self._shortest, mean)
            following = next_limit(self._limit, self._shortest, mean)
            if following < self._limit or full:  # who did not use all of it learns nothing of what more would cost
                self._limit = min(following, self._most)
                self._changed.notify()
