"""Space for downloads, promised before their first byte.

Law of this file: no two downloads are promised the same space, and what the disk or the index shows of a download
already is not counted again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from artifactcache.errors import NoSpace
from cacheserver.space import Fill, Limits, Need, missing, pressure, shortage, show
from cacheserver.store import Store
from cacheserver.words import Progress

FILE_BYTES = 4096  # what a file costs beside its bytes, at most: the rest of its last block


@dataclass(frozen=True, eq=False)
class Promise:
    """Space promised to a download, of which some is on the disk already."""

    needed: int
    written: int
    file_count: int
    progress: Progress
    done_before: int
    kept_before: int
    found_before: int
    files_before: int

    def coming(self) -> int:
        """Bytes that are no blobs yet."""
        return max(0, self.needed - (self.progress.bytes_kept - self.kept_before))

    def unwritten(self, half_written: int) -> int:
        """Bytes that are not on the disk yet.

        Args:
            half_written: how many the files have that are being written now, beginnings that go on included.
        """
        beginnings = self.written - (self.progress.bytes_found - self.found_before)  # those that wait still, and these
        done = self.progress.bytes_done - self.done_before
        bare = max(0, self.needed - done - max(half_written, beginnings))
        return bare + FILE_BYTES * max(0, self.file_count - (self.progress.files_done - self.files_before))


class Refusal(NamedTuple):
    """Why space is not promised, and what would have to go for it."""

    need: Need
    why: str


class Reservations:
    """What is promised of one store's disk."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.limits = limits
        self._store = store
        self._lock = threading.Lock()
        self._promises: list[Promise] = []

    def fill(self) -> Fill:
        """How full the store and its disk are, with what is promised."""
        with self._lock:
            return self._fill()

    def promise(
        self, needed: int, file_count: int, progress: Progress, *, written: int = 0, is_spare: bool = False
    ) -> Promise | Refusal:
        """Promises space, for as long as it is not given back.

        Args:
            needed: bytes, of so many files.
            progress: of the download; what it has done before does not count.
            written: how many of the bytes an earlier attempt has left on the disk.
            is_spare: whether it has to stay within what sweeps leave: nothing is to go for it, now or a moment later.
        """
        before = progress.bytes_done, progress.bytes_kept, progress.bytes_found, progress.files_done
        promise = Promise(needed, written, file_count, progress, *before)
        with self._lock:
            fill, limits, on_disk = self._fill(), self.limits, needed + FILE_BYTES * file_count
            over = missing(needed, fill, limits, written=written).capacity_bytes
            under = missing(on_disk, fill, limits, written=written).disk_bytes
            if over or under:
                why = shortage(needed if over else on_disk, fill, limits, written=written)
                return Refusal(Need(under, over), why or "")
            more = fill._replace(coming=fill.coming + needed, unwritten=fill.unwritten + on_disk - written)
            if is_spare and (need := pressure(more, limits, above=limits.low)):
                return Refusal(need, f"{show(needed)} more would fill the store above {limits.low:g}%.")
            self._promises.append(promise)
            return promise

    @contextmanager
    def spare(self, what: str, needed: int, file_count: int, progress: Progress, *, written: int = 0) -> Iterator[None]:
        """Promises space that nothing has to go for, for as long as this lasts. Raises NoSpace where there is none.

        Args:
            what: names the download in messages.
            needed, file_count, progress, written: as in `promise`.
        """
        found = self.promise(needed, file_count, progress, written=written, is_spare=True)
        if isinstance(found, Refusal):
            raise NoSpace(f"{what}: {found.why}")
        try:
            yield
        finally:
            self.give_back(found)

    def has_spare(self) -> bool:
        """Whether there is any such space."""
        limits = self.limits
        return not pressure(self.fill(), limits, above=limits.low)

    def give_back(self, promise: Promise) -> None:
        """Ends a promise."""
        with self._lock:
            self._promises.remove(promise)

    def _fill(self) -> Fill:
        disk = self._store.space()
        return Fill(
            stored=self._store.index.totals()["blob_bytes"],
            coming=sum(p.coming() for p in self._promises),
            unwritten=sum(p.unwritten(self._store.written(p.progress)) for p in self._promises),
            total=disk.total,
            free=disk.free,
        )
