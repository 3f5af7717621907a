"""Signals: SIGTERM and SIGINT end the daemon, SIGHUP has it read its configuration anew.

Law of this file: one that comes counts, whenever it comes and whichever thread takes it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

ENDS = frozenset({signal.SIGTERM, signal.SIGINT})


class Signals:
    """Hears of signals from now on.

    A handler that takes a lock, as that of threading.Event does, could meet the main thread with the lock in its hand,
    and wait for ever. So the handler does nothing, and what C writes when a signal comes is what counts: at any moment,
    in any thread.

    Args:
        hangup_ends: whether SIGHUP is that of a terminal that was closed, and ends the daemon too.
    """

    def __init__(self, *, hangup_ends: bool = False) -> None:
        self._ends = ENDS | {signal.SIGHUP} if hangup_ends else ENDS
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*ENDS, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def wait(self, hangup: Callable[[], None]) -> None:
        """Returns when one has come that ends the daemon; calls `hangup` when SIGHUP has."""
        while not self.has_ended(None):
            hangup()

    def has_ended(self, seconds: float | None) -> bool:
        """Waits for signals for so long, or until some come. Returns whether one of them ends the daemon."""
        if not select.select([self._reader], [], [], seconds)[0]:
            return False
        return any(number in self._ends for number in os.read(self._reader, 4096))
