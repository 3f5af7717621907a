"""Who does not answer is not asked again by everybody: a circuit breaker before one server.

Law of this file: no caller is held up to find out whether a server is back; one thread looks, every second, for as long
as it is away. And one failed answer condemns nobody: a server is away only when a plain look at it fails as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from artifactcache.errors import OriginUnavailable

LOOK_SECONDS = 1.0


class Breaker:
    """What is known of whether a server answers.

    Args:
        name: of the server, for messages.
        answers: looks whether it does, within a few seconds; raises nothing.
    """

    def __init__(self, name: str, answers: Callable[[], bool]) -> None:
        self._name = name
        self._answers = answers
        self._changed = threading.Condition()
        self._state = "closed"  # or "doubtful": looked at for the first time; or "open": it did not answer then
        self._closing = threading.Event()

    def check(self) -> None:
        """Raises OriginUnavailable at once where the server is known to be away."""
        with self._changed:
            self._changed.wait_for(lambda: self._state != "doubtful")
            if self._state == "open":
                raise OriginUnavailable(
                    f"{self._name} does not answer, and this is not held. It is looked at every"
                    f" {LOOK_SECONDS:g} s: try again when it is back."
                )

    def failed(self) -> None:
        """Somebody got no answer."""
        with self._changed:
            if self._state != "closed":
                return
            self._state = "doubtful"
        threading.Thread(target=self._watch, name="breaker", daemon=True).start()

    def close(self) -> None:
        """Looks no more."""
        self._closing.set()

    def _watch(self) -> None:
        while not self._answers():
            self._become("open")
            if self._closing.wait(LOOK_SECONDS):
                return
        self._become("closed")

    def _become(self, state: str) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()
