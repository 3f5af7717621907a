"""Unusual numbers: a user of whom something is counted too often within a time.

Law of this file: pure counting, with time as an argument. Told is once for each user and time, not at every event.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 600.0


@dataclass
class _Events:
    times: deque[float]
    told_at: float = field(default=float("-inf"))


class Alarm:
    """Counts one kind of event by user.

    Args:
        threshold: how many within `window` seconds are too many; it may change. So many times are kept of a user.
    """

    def __init__(self, threshold: int, window: float = WINDOW_SECONDS) -> None:
        self.threshold = threshold
        self._window = window
        self._users: OrderedDict[int | None, _Events] = OrderedDict()  # who had one last at the end

    def count(self, user: int | None, now: float) -> bool:
        """Counts one event. Returns whether that is now to be told: too many, and not told yet in this time."""
        events = self._users.setdefault(user, _Events(deque(maxlen=self.threshold)))
        if events.times.maxlen != self.threshold:
            events.times = deque(events.times, maxlen=self.threshold)
        self._users.move_to_end(user)
        events.times.append(now)
        self._forget(now)
        is_many = len(events.times) == self.threshold and now - events.times[0] < self._window
        if not is_many or now - events.told_at < self._window:
            return False
        events.told_at = now
        return True

    def _forget(self, now: float) -> None:
        """Lets users go of whom nothing has been counted for so long that it does not matter any more."""
        while (oldest := next(iter(self._users.values()))).times[-1] <= now - self._window:
            self._users.popitem(last=False)
            del oldest
