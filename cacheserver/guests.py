"""Calls that anybody may make, who has no session and no user: how many there are, and for how long.

Law of this file: nobody is turned away, for then whoever held all places would have a service manager believe that the
daemon is dead. Where there are too many, the one goes that has been there for longest: who only asks is gone by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Cancelled(Protocol):
    """A call that can be ended."""

    def cancel(self) -> None:
        """Ends it."""


class Guests:
    """The calls of one kind.

    Args:
        most: at a time.
        seconds_max: of one.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, most: int, seconds_max: float, ticks: Callable[[], float]) -> None:
        self._most = most
        self._seconds_max = seconds_max
        self._ticks = ticks
        self._lock = threading.Lock()
        self._there: dict[Cancelled, float] = {}  # until when; the oldest first

    @contextmanager
    def one(self, call: Cancelled) -> Iterator[None]:
        """A call, for as long as this lasts."""
        with self._lock:
            oldest = next(iter(self._there)) if len(self._there) >= self._most else None
            if oldest is not None:
                del self._there[oldest]
            self._there[call] = self._ticks() + self._seconds_max
        if oldest is not None:
            oldest.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._there.pop(call, None)

    def look(self) -> None:
        """Ends those whose time is over."""
        now = self._ticks()
        with self._lock:
            over = [call for call, until in self._there.items() if until < now]
            for call in over:
                del self._there[call]
        for call in over:
            call.cancel()
