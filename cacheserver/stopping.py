"""The daemon's end: who may still begin something, and what is under way.

Law of this file: from the moment that it begins to stop, nobody begins anything new; hand-overs of what is here already
may end; and who waits for the origin is told at once to come again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from artifactcache.errors import DaemonUnavailable

# A call that gives something back ends a hand-over, and begins nothing.
STILL_ANSWERED = frozenset({"Release"})


class Stopping:
    """Whether the daemon is being stopped, and how many calls it still has to answer."""

    def __init__(self) -> None:
        self._has_begun = threading.Event()
        self._lock = threading.Lock()
        self._calls = 0

    def begin(self) -> None:
        """From now on."""
        self._has_begun.set()

    def has_begun(self) -> bool:
        """Whether it is being stopped."""
        return self._has_begun.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until it is being stopped. Returns whether it is."""
        return self._has_begun.wait(seconds)

    def refuse(self) -> None:
        """Raises DaemonUnavailable where the daemon is being stopped."""
        if self._has_begun.is_set():
            raise stopped()

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """A call that is answered in this block. Raises DaemonUnavailable where it comes too late."""
        with self._lock:
            self._calls += 1
        try:
            if method not in STILL_ANSWERED:
                self.refuse()
            yield
        finally:
            with self._lock:
                self._calls -= 1

    def call_count(self) -> int:
        """How many calls are being answered."""
        return self._calls


def stopped() -> DaemonUnavailable:
    """What whoever comes too late, or waits for too long, is told."""
    return DaemonUnavailable("The daemon is being stopped. Try again when it was started again.")
