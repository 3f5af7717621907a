"""How much time a call has left. The only room of the client that reads a clock to decide something."""

from __future__ import annotations

import time

from artifactcache.errors import DeadlineExceeded

TIMEOUT_SECONDS_MAX = 1e9  # about 30 years; what lies beyond overflows C's time types and means "for ever"


class Deadline:
    """The moment by which a call has to be over, or never."""

    __slots__ = ("_at", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        """Start the clock: `timeout` seconds from now, None for never."""
        self._timeout = timeout
        self._at = None if timeout is None or timeout > TIMEOUT_SECONDS_MAX else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, None for no limit; raise DeadlineExceeded where there are none."""
        if self._at is None:
            return None
        seconds = self._at - time.monotonic()
        if seconds <= 0:
            raise self.exceeded()
        return seconds

    def exceeded(self) -> DeadlineExceeded:
        """Make the error that says so."""
        return DeadlineExceeded(
            f"not done within {self._timeout:g} seconds; a download that had begun goes on in the daemon"
        )
