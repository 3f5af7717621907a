"""A run, or a logged model, that may have to be brought: when it is looked at, and whether it is still written.

Law of this file: pure, and times are arguments: `now` in seconds of a clock that never jumps, `clock` in seconds since
the epoch. No wait ends by the filesystem's clock alone, for a file server's may be ahead for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cacheserver.flights import Flight
from cacheserver.runfolders import Spot
from cacheserver.words import Brought

RETRY_SECONDS_MAX = 1800.0  # between two attempts; of a run that is running, between two questions:
RUNNING_SECONDS_MAX = 60.0
SECOND_LOOK_SECONDS = 600.0  # what was written that lately is looked at once more after it was brought


@dataclass(eq=False)
class Run:
    """One of them.

    Attributes:
        due: when it is looked at; as `now`.
        wait: how long after that it is looked at again.
        is_doubtful: something in it has changed: that its folders have not is no reason to take it for what is held.
        is_confirmed: the tracking server has said that it has finished, and that its bytes lie in this folder.
        newest, newest_at: what was written in it last, by the filesystem's clock, and when that was seen.
        brought: what was the newest when it was brought.
    """

    spot: Spot
    due: float
    wait: float
    is_doubtful: bool = False
    is_confirmed: bool = False
    newest: float = -math.inf
    newest_at: float = -math.inf
    brought: float = -math.inf
    flight: Flight[Brought] | None = None

    def later(self, now: float, most: float = RETRY_SECONDS_MAX) -> None:
        """It has its turn again, and the next time after twice as long, up to `most` seconds."""
        self.due, self.wait = now + self.wait, max(self.wait, min(self.wait * 2, most))

    def has_settled(self, newest: float, settle: float, *, clock: float, now: float) -> bool:
        """Whether nothing in it was written for `settle` seconds; else it has its turn again after as long.

        Args:
            newest: what was written in it last.
        """
        if newest != self.newest:
            self.newest, self.newest_at = newest, now
        # By the filesystem's clock; where that is ahead, by whether it stays what it is.
        if newest <= clock - settle or now - self.newest_at >= settle:
            return True
        self.due = now + settle
        return False

    def is_over(self, took_bytes: bool, settle: float, *, clock: float, now: float) -> bool:
        """Whether it was brought for good. Else it is looked at once more: somebody may have gone on writing, deep in
        it, where nothing is watched.

        Args:
            took_bytes: whether bringing it has taken any from the origin.
        """
        # A clock that is ahead makes it look as if it were written later than it was brought, until that time has come.
        is_same = self.newest == self.brought and not took_bytes
        if not self.is_doubtful and (is_same or self.newest < clock - SECOND_LOOK_SECONDS):
            return True
        self.brought = self.newest
        self.due, self.is_doubtful = now + settle, True
        return False
