"""Counts of what happens, and how long it took, for whoever looks at them later.

Law of this file: to count costs a microsecond and waits for nobody; labels are of small sets that no client chooses.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable

# Seconds. The smallest are a view's, the largest those of a model that comes over a slow line.
BOUNDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)

Labels = tuple[str, ...]


class Tally:
    """How often, and how much of something, by labels.

    Args:
        known: labels that are there before anything is counted, so that whoever looks sees the first one as a change.
    """

    def __init__(self, known: Iterable[Labels] = ()) -> None:
        self._lock = threading.Lock()
        self._found: dict[Labels, list[int]] = {labels: [0, 0] for labels in known}

    def add(self, *labels: str, amount: int = 0) -> None:
        """Once more, and so much."""
        with self._lock:
            found = self._found.setdefault(labels, [0, 0])
            found[0] += 1
            found[1] += amount

    def counts(self) -> dict[Labels, int]:
        """How often, by labels."""
        with self._lock:
            return {labels: count for labels, (count, _) in self._found.items()}

    def amounts(self) -> dict[Labels, int]:
        """How much, by labels."""
        with self._lock:
            return {labels: amount for labels, (_, amount) in self._found.items()}


class Spread:
    """How long something took, by a label: how often no longer than each of BOUNDS.

    Args:
        known: as of `Tally`.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, list[int]] = {label: _none() for label in known}
        self._seconds: dict[str, float] = dict.fromkeys(self._found, 0.0)

    def add(self, label: str, seconds: float) -> None:
        """Once more, and so long."""
        place = bisect_left(BOUNDS, seconds)
        with self._lock:
            self._found.setdefault(label, _none())[place] += 1
            self._seconds[label] = self._seconds.get(label, 0.0) + seconds

    def values(self) -> dict[str, tuple[list[int], float]]:
        """By label: how often up to each bound but not to the one before it, and beyond the last; and all seconds."""
        with self._lock:
            return {label: (list(counts), self._seconds[label]) for label, counts in self._found.items()}


def _none() -> list[int]:
    return [0] * (len(BOUNDS) + 1)
