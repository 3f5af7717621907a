"""Records who fetched which tree when, for `cacheserver simulate`.

Law of this file: a fetch only notes; what is written is written later. Where it cannot be, that is told, and no error.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque

from cacheserver import traces
from cacheserver.holdings import Holdings

NOTES_MAX = 100_000  # between two times that they are written down
TREES_MAX = 1_000_000  # that this daemon remembers to have told

_log = logging.getLogger(__name__)


class Recorder:
    """A trace that grows.

    Args:
        path: of its file; empty for none.
    """

    def __init__(self, path: str, holdings: Holdings) -> None:
        self._path = path
        self._holdings = holdings
        self._notes: deque[tuple[str, float]] = deque(maxlen=NOTES_MAX)
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()
        self._has_failed = False

    def note(self, tree: str, at: float) -> None:
        """A tree was fetched."""
        if self._path:
            self._notes.append((tree, at))

    def write(self) -> None:
        """Writes down what was noted."""
        with self._lock:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            lines = "".join(line for tree, at in notes for line in self._lines(tree, at))
            if not lines:
                return
            try:
                self._append(lines)
                self._has_failed = False
            except OSError as error:
                if not self._has_failed:
                    _log.warning("the trace %s cannot be written, fetches are missing there: %s", self._path, error)
                self._has_failed = True

    def _lines(self, tree: str, at: float) -> list[str]:
        known = self._holdings.as_traced(tree)
        if known is None:  # it has been evicted since
            return [traces.fetch_line(tree, at)] if tree in self._told else []
        seconds, blobs = known
        lines = []
        if self._told.get(tree) != seconds and len(self._told) < TREES_MAX:
            self._told[tree] = seconds
            lines.append(traces.tree_line(tree, seconds, blobs))
        return [*lines, traces.fetch_line(tree, at)] if tree in self._told else []

    def _append(self, lines: str) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "r+b", buffering=0) as file:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # what a daemon left that was killed
                tail = os.pread(fd, min(size, traces.LINE_BYTES_MAX), max(0, size - traces.LINE_BYTES_MAX))
                size -= len(tail) - (tail.rfind(b"\n") + 1)
                file.truncate(size)
            file.write(("" if size else traces.header()).encode() + lines.encode())
