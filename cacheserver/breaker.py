"""Who does not answer is not asked again by everybody: a circuit breaker before one server.

Law of this file: one failed answer condemns nobody, for a server is away only when a plain look at it fails as well.
Where that look hangs, no caller is held up to find out whether the server is back: one thread looks, every second, for
as long as it is away. Where it is refused at once, every caller looks anew.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from artifactcache.errors import OriginUnavailable
from cacheserver.stopping import stopped

LOOK_SECONDS = 1.0
DOUBT_SECONDS_MAX = 4.0  # how long callers wait for the first look: names that nobody resolves have no timeout of ours
QUICK_SECONDS = 0.1  # a look that took no longer may be had again by everybody


class Breaker:
    """What is known of whether a server answers.

    Args:
        name: of the server, for messages.
        answers: looks whether it does, within a few seconds; raises nothing.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, name: str, answers: Callable[[], bool], ticks: Callable[[], float]) -> None:
        self._name = name
        self._answers = answers
        self._ticks = ticks
        self._look_seconds = 0.0
        self._looking = threading.Lock()
        self._changed = threading.Condition()
        self._state = "closed"  # or "doubtful": looked at for the first time; or "open": it did not answer then
        self._closing = threading.Event()

    def check(self) -> None:
        """Raises OriginUnavailable at once where the server is known to be away, DaemonUnavailable where nobody asks
        any more."""
        with self._changed:
            is_known = self._changed.wait_for(
                lambda: self._state != "doubtful" or self._closing.is_set(), timeout=DOUBT_SECONDS_MAX
            )
            if self._closing.is_set():
                raise stopped()
            if not is_known:
                self._state, self._look_seconds = "open", math.inf  # it is as good as one that fails
            if self._state == "closed":
                return
            quick = self._look_seconds < QUICK_SECONDS
        if not (quick and self._look_alone()):
            raise OriginUnavailable(
                f"{self._name} does not answer, and this cannot be given without it. It is looked at every"
                f" {LOOK_SECONDS:g} s: try again when it is back."
            )
        self._become("closed")

    def is_open(self) -> bool:
        """Whether the server is known to be away."""
        return self._state == "open"

    def failed(self) -> None:
        """Somebody got no answer."""
        with self._changed:
            if self._state != "closed":
                return
            self._state = "doubtful"
        try:
            threading.Thread(target=self._watch, name="breaker", daemon=True).start()
        except RuntimeError:  # no thread can be had: then everybody asks as if nothing had happened
            self._become("closed")

    def close(self) -> None:
        """Looks no more, and lets nobody wait for a look."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()

    def _watch(self) -> None:
        while not self._look():
            self._become("open")
            if self._closing.wait(LOOK_SECONDS):
                return
        self._become("closed")

    def _look_alone(self) -> bool:
        """A look, unless somebody looks already: it may have begun to hang."""
        if not self._looking.acquire(blocking=False):
            return False
        try:
            return self._look()
        finally:
            self._looking.release()

    def _look(self) -> bool:
        began = self._ticks()
        found = self._answers()
        self._look_seconds = self._ticks() - began
        return found

    def _become(self, state: str) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()
