"""What is costly to find out, and is shown again and again: made anew the more seldom, the longer it took.

Law of this file: however many look, no more than a small share of the time goes into it, and no more than one makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from cacheserver.bounded import Bounded

K = TypeVar("K")
V = TypeVar("V")

# A twentieth of one processor at most; in a store where it takes 3 s, what is shown is a minute old.
SHARE_OF_TIME = 20
AGE_SECONDS_MIN = 1.0
KEYS_MAX = 256


class _Made(NamedTuple, Generic[V]):
    """A value, and until when it is good."""

    value: V
    until: float


class Snapshots(Generic[K, V]):
    """Values by key.

    Args:
        make: finds one out.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, make: Callable[[K], V], ticks: Callable[[], float]) -> None:
        self._make = make
        self._ticks = ticks
        self._made: Bounded[K, _Made[V]] = Bounded(KEYS_MAX)
        self._making = threading.Lock()

    def get(self, key: K) -> V:
        """The value: a new one, or one that is not too old yet. While somebody makes it the others get the old one."""
        made = self._made.get(key)
        if made is not None and self._ticks() < made.until:
            return made.value
        if not self._making.acquire(blocking=made is None):
            assert made is not None
            return made.value
        try:
            made = self._made.get(key)  # whoever was waited for may have made it
            if made is not None and self._ticks() < made.until:
                return made.value
            began = self._ticks()
            value = self._make(key)
            ended = self._ticks()
            until = ended + max(AGE_SECONDS_MIN, (ended - began) * SHARE_OF_TIME)
            self._made.put(key, _Made(value, until))
            return value
        finally:
            self._making.release()
