"""Records who fetched which tree when, for `cacheserver simulate`.

Law of this file: a fetch only notes; what is written is written later. Where it cannot be, that is told, and no error.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque

from cacheserver import traces
from cacheserver.holdings import Holdings

NOTES_MAX = 100_000  # between two times that they are written down
TREES_MAX = 1_000_000  # that this daemon remembers to have told

_HEADER = traces.header().encode()

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
        self._file = 0, 0
        self._has_failed = False

    def note(self, tree: str, at: float) -> None:
        """A tree was fetched."""
        if self._path:
            self._notes.append((tree, at))

    def write(self) -> None:
        """Writes down what was noted."""
        with self._lock:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            if not notes:
                return
            try:
                self._append(notes)
                self._has_failed = False
            except OSError as error:
                self._told.clear()  # who knows what of it is in there
                if not self._has_failed:
                    _log.warning("the trace %s cannot be written, fetches are missing there: %s", self._path, error)
                self._has_failed = True

    def _append(self, notes: list[tuple[str, float]]) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "r+b", buffering=0) as file:
            seen = os.fstat(fd)
            size = seen.st_size
            if not _HEADER.startswith(os.pread(fd, len(_HEADER), 0)):
                raise OSError("it is something else: name a file that is not there yet")
            if size < len(_HEADER):
                file.truncate(0)
                size = 0
            if size and os.pread(fd, 1, size - 1) != b"\n":  # what a daemon left that was killed
                tail = os.pread(fd, min(size, traces.LINE_BYTES_MAX), max(0, size - traces.LINE_BYTES_MAX))
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
            if not size or (seen.st_dev, seen.st_ino) != self._file:  # it was put away, or never was
                self._told.clear()
            self._file = seen.st_dev, seen.st_ino
            lines = "".join(line for tree, at in notes for line in self._lines(tree, at)).encode()
            data = lines if size or not lines else _HEADER + lines
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
