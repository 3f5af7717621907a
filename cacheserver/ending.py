"""The end of the daemon: each part in its turn, and all of them within one time.

Law of this file: what cannot be ended is told, and keeps nothing behind it from being ended; what is waited for is
waited for out of one purse, so that the last ones, who write down what was used, are not those for whom none is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

LOOK_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Ending:
    """One end.

    Args:
        seconds: for everything that has to be waited for.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, seconds: float, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._end = ticks() + seconds

    def left(self, seconds: float) -> float:
        """So many seconds, as far as they are left."""
        return max(0.0, min(seconds, self._end - self._ticks()))

    def until(self, seconds: float, is_so: Callable[[], bool]) -> None:
        """Waits until it is so, and no longer than that."""
        end = self._ticks() + self.left(seconds)
        while not is_so() and self._ticks() < end:
            time.sleep(LOOK_SECONDS)

    def of(self, parts: Iterable[Callable[[], object]]) -> None:
        """Ends each of these parts."""
        for end in parts:
            try:
                end()
            except Exception:  # noqa: BLE001 - whatever it is, those behind it have as much to write down
                _log.exception("a part of the daemon could not be ended")
