"""No more bytes a second than somebody is granted.

Law of this file: what was taken is paid for before more is taken; nobody else waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

BURST_SECONDS = 1.0  # so much may come at once after a pause
NAP_SECONDS_MAX = 1.0


class Pace:
    """A rate, which several downloads may share.

    Args:
        rate: bytes per second.
        ticks: seconds of a clock that never jumps.
        sleep: waits so many seconds.
    """

    def __init__(self, rate: int, ticks: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.rate = rate
        self._ticks = ticks
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = 0.0

    def spend(self, count: int) -> None:
        """Waits until so many bytes that have come are paid for."""
        with self._lock:
            now = self._ticks()
            self._paid_until = max(self._paid_until, now - BURST_SECONDS) + count / self.rate
            until = self._paid_until
        while (left := until - self._ticks()) > 0:
            self._sleep(min(left, NAP_SECONDS_MAX))
