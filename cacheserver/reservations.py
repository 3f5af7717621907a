"""Space for downloads, promised before their first byte.

Law of this file: no two downloads are promised the same space, and what the disk or the index shows of a download
already is not counted again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from artifactcache.errors import NoSpace
from cacheserver import space
from cacheserver.store import Store
from cacheserver.words import Progress


@dataclass(frozen=True, eq=False)
class Promise:
    """Space promised to a download, of which some is on the disk already."""

    needed: int
    written: int
    progress: Progress
    done_before: int
    kept_before: int
    found_before: int

    def coming(self) -> int:
        """Bytes that are no blobs yet."""
        return max(0, self.needed - (self.progress.bytes_kept - self.kept_before))

    def unwritten(self) -> int:
        """Bytes that are not on the disk yet, but for files that are half written."""
        found = self.progress.bytes_found - self.found_before  # what was on the disk already is not written again
        return max(0, self.needed - self.written - (self.progress.bytes_done - self.done_before - found))


class Reservations:
    """What is promised of one store's disk."""

    def __init__(self, store: Store, limits: space.Limits) -> None:
        self._store = store
        self._limits = limits
        self._lock = threading.Lock()
        self._promises: list[Promise] = []

    @contextmanager
    def reserve(self, what: str, needed: int, progress: Progress, *, written: int = 0) -> Iterator[None]:
        """Promises space to a download, for as long as this lasts.

        Args:
            what: names the download in messages.
            needed: bytes.
            written: how many of them an earlier attempt has left on the disk.
            progress: of the download; what it has done before does not count.

        Raises NoSpace.
        """
        promise = Promise(needed, written, progress, progress.bytes_done, progress.bytes_kept, progress.bytes_found)
        with self._lock:
            disk = self._store.space()
            if why := space.shortage(
                needed,
                written=written,
                stored=self._store.index.totals()["blob_bytes"],
                coming=sum(p.coming() for p in self._promises),
                unwritten=sum(p.unwritten() for p in self._promises),
                total=disk.total,
                free=disk.free,
                limits=self._limits,
            ):
                raise NoSpace(f"{what}: {why}")
            self._promises.append(promise)
        try:
            yield
        finally:
            with self._lock:
                self._promises.remove(promise)
