"""Turns: one at a time for each thing, while others go on with other things.

Law of this file: what nobody uses or waits for is not remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Locks by name, made when they are needed: never more than there are threads that hold or want one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Waits until nobody else has this name's turn, and has it."""
        with self._lock:
            turn, users = self._turns.get(name, (threading.Lock(), 0))
            self._turns[name] = turn, users + 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                turn, users = self._turns[name]
                if users > 1:
                    self._turns[name] = turn, users - 1
                else:
                    del self._turns[name]
