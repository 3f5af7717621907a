"""What the counters were, now and then, for whoever looks later.

Law of this file: pure, with time as an argument; it stays within its limit however long the daemon runs. What is older
is kept more seldom: of the last hour a sample each 10 s is worth having, of last night one each two minutes.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

SAMPLE_SECONDS = 10
RECENT_MAX = 360  # an hour of them
SELDOM_SECONDS = 120.0
OLD_MAX = 690  # and the 23 hours before it


class Sample(NamedTuple):
    """Counters at one moment, in seconds since the epoch; all but the last since the daemon started."""

    at: float
    fetch_count: int
    hit_count: int
    served_bytes: int
    saved_bytes: int
    blob_bytes: int


class History:
    """The samples of a day."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[Sample] = deque()
        self._old: deque[Sample] = deque(maxlen=OLD_MAX)

    def note(self, sample: Sample) -> None:
        """Adds one."""
        with self._lock:
            if self._recent and sample.at < self._recent[-1].at:  # the clock was set back: what was said is of no time
                self._recent.clear()
                self._old.clear()
            self._recent.append(sample)
            while len(self._recent) > RECENT_MAX:
                leaving = self._recent.popleft()
                if not self._old or leaving.at - self._old[-1].at >= SELDOM_SECONDS:
                    self._old.append(leaving)

    def since(self, at: float) -> list[Sample]:
        """Those after a time, the oldest first."""
        with self._lock:
            return [one for one in (*self._old, *self._recent) if one.at > at]
