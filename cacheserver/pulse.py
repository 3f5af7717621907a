"""Whether the daemon lives: what it tells its service manager's watchdog, and whoever asks for its health.

Law of this file: only what never waits for anything is looked at. A disk that hangs, an index that is made anew, an
origin that is away or a crowd of clients are no reason to kill a daemon; a thread that serves everybody and does not
turn any more is.
"""

from __future__ import annotations

from collections.abc import Callable


class Pulse:
    """Looks at the one thread that takes every hand-over.

    Args:
        turns: has that thread turn once more, and returns how often it has turned by now.
        alive: told at each look at which it had turned since the last one.
    """

    def __init__(self, turns: Callable[[], int], alive: Callable[[], None]) -> None:
        self._turns = turns
        self._alive = alive
        self._last = -1
        self.is_alive = True

    def look(self) -> None:
        """Whether it has turned since the last time."""
        turns = self._turns()
        self.is_alive, self._last = turns != self._last, turns
        if self.is_alive:
            self._alive()
