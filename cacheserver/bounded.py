"""A map that stays within a total weight: what was not asked for lately is forgotten first.

Law of this file: values only; and a put or a get takes the same time however much is remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """A map for any thread.

    Args:
        weight_max: of all values together; the one put last stays, however heavy it is.
    """

    def __init__(self, weight_max: int) -> None:
        self._weight_max = weight_max
        self._weight = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """What was put, where it is remembered still."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        """Remembers a value; one without weight counts as 1, for it takes room as well."""
        with self._lock:
            self._drop(key)
            self._values[key] = (value, max(weight, 1))
            self._weight += max(weight, 1)
            while self._weight > self._weight_max and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]

    def forget(self, key: K) -> None:
        """Remembers a value no more."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Remembers nothing any more."""
        with self._lock:
            self._values.clear()
            self._weight = 0

    def _drop(self, key: K) -> None:
        gone = self._values.pop(key, None)
        if gone is not None:
            self._weight -= gone[1]
