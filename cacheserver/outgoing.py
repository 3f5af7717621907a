"""Blobs on their way to other hosts.

Law of this file: what leaves is hashed before it does, and what is wrong is put aside here, where it is fetched again,
and given to nobody. What is there already is not written again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver.faults import GONE_ERRNOS, LOST_ERRNOS, trouble
from cacheserver.hashing import xxh3_of
from cacheserver.packing import Blob, Large, Pack, Part
from cacheserver.store import Store
from cacheserver.tierstore import TierError, TierStore

# Objects at a time, of all trees; each is in memory, 8 MiB and a pack's head, as is the part of each tree that is being
# hashed. Of each tree no more wait for a thread, so that those of a small one are not behind thousands of a large one.
UPLOADS_MAX = 4

T = TypeVar("T")


class TooMuch(Exception):
    """More bytes are lacking than are to be written now."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class Outgoing:
    """What writes packs and parts of blobs into the tier."""

    def __init__(self, objects: TierStore, store: Store) -> None:
        self._objects = objects
        self._store = store
        self._is_closing = False
        self._pool = ThreadPoolExecutor(max_workers=UPLOADS_MAX, thread_name_prefix="upload")

    def close(self) -> None:
        """Writes nothing any more; what is under way comes to its end."""
        self._is_closing = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def write(self, pieces: Sequence[Large | Pack], suspects: Collection[str], bytes_max: float) -> None:
        """Writes what holds the bytes of a tree, as far as it is lacking.

        Args:
            suspects: names of objects that are written though they are there.

        Raises TierError; CacheError where a blob of ours is wrong; TooMuch where more than so many bytes are lacking.
        """
        sizes = {key: size for piece in pieces for key, size in piece.sizes.items()}
        looks = (partial(self._objects.has, key, size) for key, size in sizes.items())
        there = {key for key, is_there in zip(sizes, self._several(looks), strict=True) if is_there}
        lacking = {key: size for key, size in sizes.items() if key not in there or key in suspects}
        if (needed := sum(lacking.values())) > bytes_max:
            raise TooMuch(needed)
        for _ in self._several(self._writes(pieces, lacking)):
            pass

    def _writes(self, pieces: Sequence[Large | Pack], lacking: Collection[str]) -> Iterator[Callable[[], None]]:
        """What is to be done, one after the other; blobs are looked through only when it is their turn."""
        for piece in pieces:
            if isinstance(piece, Pack):
                if piece.key in lacking:
                    yield partial(self._write_pack, piece)
            elif parts := [part for part in piece.parts if part.key in lacking]:
                sums = self._sums(piece)
                yield from (partial(self._write_part, piece.blob, part, sums[part.key]) for part in parts)

    def _write_pack(self, pack: Pack) -> None:
        data = bytearray(pack.head)
        for blob in pack.blobs:
            data += _read(self._store, blob)
        self._objects.put(pack.key, memoryview(data))

    def _sums(self, large: Large) -> dict[str, str]:
        """What each part of a blob must be, once all of them together are known to be the blob. It is read twice: a
        part that has left before the last one was read could be of a blob that is wrong, and others count on it."""
        blake, sums = blake3(), dict[str, str]()
        with _opened(self._store, large.blob) as fd:
            for part in large.parts:
                if self._is_closing:
                    raise _stopping()
                data = os.pread(fd, part.length, part.offset)
                blake.update(data)
                sums[part.key] = xxh3_of([memoryview(data)])
        if blake.hexdigest() != large.blob.digest:
            raise _rotten(self._store, large.blob)
        return sums

    def _write_part(self, blob: Blob, part: Part, expected: str) -> None:
        with _opened(self._store, blob) as fd:
            data = os.pread(fd, part.length, part.offset)
        if xxh3_of([memoryview(data)]) != expected:
            raise _rotten(self._store, blob)
        self._objects.put(part.key, data)

    def _several(self, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Does them, several at a time. Yields what comes of each, in their order."""
        coming: deque[Future[T]] = deque()
        try:
            for job in jobs:
                if len(coming) == UPLOADS_MAX:
                    yield coming.popleft().result()
                coming.append(self._submit(job))
            while coming:
                yield coming.popleft().result()
        except CancelledError:
            raise _stopping() from None
        finally:  # nothing is read any more when the tree's lease ends
            for future in coming:
                if not future.cancel():
                    future.exception()

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        try:
            return self._pool.submit(job)
        except RuntimeError:  # it is closed
            raise _stopping() from None


def _stopping() -> TierError:
    return TierError("The daemon is being stopped: the next one goes on.")


@contextmanager
def _opened(store: Store, blob: Blob) -> Iterator[int]:
    """A descriptor of a blob, for whoever hashes what he reads. Raises CacheError, also of what is read from it."""
    try:
        fd = store.open_blob(blob.digest)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in GONE_ERRNOS | LOST_ERRNOS:
            raise _rotten(store, blob) from None
        raise trouble(error, f"the blob {blob.digest} cannot be read to be published") from None


def _rotten(store: Store, blob: Blob) -> CacheError:
    """What is to be told of a blob that is wrong here; the store puts it aside, and fetches it again."""
    for row in store.index.blobs([blob.digest]).values():
        store.verifier.recheck(row)
    return CacheError(f"The blob {blob.digest} is damaged: it is fetched again, and given to others then.")


def _read(store: Store, blob: Blob) -> bytes:
    """A small blob, hashed. Raises CacheError where it is wrong or cannot be read."""
    with _opened(store, blob) as fd:
        data = os.pread(fd, blob.size + 1, 0)
    if blake3(data).hexdigest() != blob.digest:
        raise _rotten(store, blob)
    return data
