"""Bytes from the shared tier: blobs out of packs and parts, into the store.

Law of this file: what has not the digest that it should have is no blob, and its object is suspected from then on. What
has come stays, also after a failure, so that the origin is asked for the rest only.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from cacheserver.packing import Blob, Large, Pack, Run, layout, runs
from cacheserver.receiving import Receiver
from cacheserver.shares import Shares
from cacheserver.staging import Sink, Staged
from cacheserver.stopping import stopped
from cacheserver.store import Store
from cacheserver.tier import Tier, Wrong
from cacheserver.tierstore import TierError
from cacheserver.words import Manifest, Progress, Standing
from cacheserver.work import Submit, Work

WORKERS_MAX = 16  # objects at a time, of one user half of them
WINDOW = 4  # of one tree
WINDOW_PACED = 2  # of somebody whose rate is limited
PAID_BYTES = 256 << 10  # at a time: whoever waits to pay for more sees as often whether the daemon stops
PARTS_MAX = 4  # of large blobs, in memory: 32 MiB
RESUMABLE_BYTES_MIN = 16 << 20  # smaller blobs begin anew


class Lacking(NamedTuple):
    """Blobs to bring, with what is remembered of each: under which key, and the origin's entity tag of it."""

    keys: Mapping[str, tuple[str, str]]
    standing: Standing


class Unpacking:
    """What one daemon takes from the shared tier into its store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, tier: Tier, store: Store, clock: Callable[[], float]) -> None:
        self._tier = tier
        self._objects = tier.objects
        self._store = store
        self._clock = clock
        self._pool = Shares(WORKERS_MAX, "tier")
        self._parts = ThreadPoolExecutor(max_workers=PARTS_MAX, thread_name_prefix="tier-part")
        self._room = threading.Semaphore(PARTS_MAX)
        self._receiver = Receiver(store, TierError, "what the shared tier has sent", is_shared=True)
        self._lock = threading.Lock()
        self._is_closing = False
        self._under_way: set[Work[Large | Pack]] = set()

    def close(self) -> None:
        """Takes nothing any more, and breaks off what is under way."""
        with self._lock:
            self._is_closing = True
            under_way = list(self._under_way)
        for work in under_way:
            work.fail(stopped())
        self._pool.close()
        self._parts.shutdown(wait=False, cancel_futures=True)

    def bring(
        self,
        manifest: Manifest,
        lacking: Lacking,
        progress: Progress,
        owner: Hashable,
        spend: Callable[[int], None] | None,
    ) -> set[str]:
        """Takes blobs into the store. Returns the digests of those that have come, all that the tier had right.

        Args:
            manifest: of the record: it says in which objects the blobs are.
            owner: for whom; whose threads it takes.
            spend: told of bytes that are about to come, and waits until they are paid for: nothing that others need is
                kept meanwhile. None for somebody who may have them as fast as they come.

        Raises errors of ours, of this daemon's disk and not of the tier.
        """
        wanted = lacking.keys.keys()
        pieces = {
            one.keys[0]: one
            for one in layout(manifest)
            if not wanted.isdisjoint([one.blob.digest] if isinstance(one, Large) else [b.digest for b in one.blobs])
        }
        work: Work[Large | Pack] = Work(pieces, partial(self._piece, lacking, progress, spend))
        with self._lock:
            if self._is_closing:
                raise stopped()
            self._under_way.add(work)
        arrived, own = set[str](), None
        submit: Submit = partial(self._pool.submit, owner)
        if spend:  # it sleeps more than it works: not in threads that others wait for
            own = ThreadPoolExecutor(max_workers=WINDOW_PACED, thread_name_prefix="paced-tier")
            submit = own.submit
        try:
            for batch in work.batches(submit, min(WINDOW_PACED if spend else WINDOW, len(pieces))):
                self._store.keep(batch, lacking.standing, self._clock())
                progress.bytes_kept += sum(staged.row.size for staged in batch.values())
                arrived |= {staged.row.digest for staged in batch.values()}
        except TierError as error:
            self._tier.failed(error)
        finally:
            with self._lock:
                self._under_way.remove(work)
            for staged in work.abandon().values():  # only after a failure is anything left
                self._store.discard(staged.path)
            if own:
                own.shutdown(wait=False)
        return arrived

    def _piece(
        self,
        lacking: Lacking,
        progress: Progress,
        spend: Callable[[int], None] | None,
        key: str,
        piece: Large | Pack,
    ) -> dict[str, Staged]:
        """The blobs of one piece that are lacking, by what they are remembered under; none where it is wrong."""
        if error := self._tier.says_away():  # for somebody else: then so for this one
            raise error
        found: dict[str, Staged] = {}
        try:
            if isinstance(piece, Large):
                named, etag = lacking.keys[piece.blob.digest]
                found[named] = self._large(piece, progress, spend)._replace(etag=etag)
            else:
                for run in runs(piece, lacking.keys):
                    self._pay(spend, run.length)
                    self._packed(key, run, lacking, found, progress)
        except Wrong as wrong:
            self._tier.suspect(wrong)
        except TierError as error:
            if not found:
                raise
            self._tier.failed(error)  # those who ask for the next piece hear of it; what has come stays
        except BaseException:
            for staged in found.values():
                self._store.discard(staged.path)
            raise
        return found

    def _packed(
        self,
        key: str,
        run: Run,
        lacking: Lacking,
        found: dict[str, Staged],
        progress: Progress,
    ) -> None:
        data = _whole(key, self._objects.read(key, run.begin, run.length), run.length)
        for blob, begin in run.blobs:
            named, etag = lacking.keys[blob.digest]
            chunk = data[begin : begin + blob.size]
            staged = self._written(blob, key, lambda sink, chunk=chunk: sink.write(chunk), progress)  # type: ignore[misc]
            found[named] = staged._replace(etag=etag)

    def _written(
        self,
        blob: Blob,
        key: str,
        fill: Callable[[Sink], None],
        progress: Progress,
        resumable: str = "",
    ) -> Staged:
        """A file with what fills it. Raises Wrong where that is not the blob."""

        def filled(sink: Sink) -> Staged:
            fill(sink)
            staged = sink.finish()
            if staged.row.digest != blob.digest:
                raise Wrong(key, f"has other bytes than those of {blob.digest}")
            return staged

        return self._receiver.receive(key, blob.size, filled, progress, self._go_on, resumable)

    def _large(self, large: Large, progress: Progress, spend: Callable[[int], None] | None) -> Staged:
        """A blob that comes in parts, several at a time, and goes on where an earlier attempt was broken off."""
        blob = large.blob
        resumable = partial_key(blob.digest) if blob.size >= RESUMABLE_BYTES_MIN else ""
        return self._written(blob, large.stem, partial(self._in_parts, large, spend), progress, resumable)

    def _in_parts(self, large: Large, spend: Callable[[int], None] | None, sink: Sink) -> None:
        sink.begin(large.blob.digest)
        waiting = deque(part for part in large.parts if part.offset + part.length > sink.size)
        coming: deque[tuple[str, int, Future[memoryview | None]]] = deque()
        try:
            while waiting or coming:
                if not coming:
                    self._pay(spend, waiting[0].offset + waiting[0].length - sink.size)
                # Who waits for room, or pays, holds none, so that somebody always goes on.
                most = 1 if spend else PARTS_MAX
                while waiting and len(coming) < most and self._room.acquire(blocking=not coming):
                    part = waiting.popleft()
                    begin = 0 if coming else max(0, sink.size - part.offset)
                    try:
                        future = self._parts.submit(self._objects.read, part.key, begin, part.length - begin)
                    except RuntimeError:  # it is closed
                        self._room.release()
                        raise stopped() from None
                    coming.append((part.key, part.length - begin, future))
                key, length, future = coming[0]
                sink.write(_whole(key, future.result(), length))
                coming.popleft()
                self._room.release()
        finally:
            for _, _, future in coming:
                future.cancel()
                future.add_done_callback(lambda _: self._room.release())

    def _pay(self, spend: Callable[[int], None] | None, count: int) -> None:
        """Waits until so many bytes are paid for. Raises DaemonUnavailable where no more are to come."""
        while spend and count > 0:
            self._go_on()
            spend(min(count, PAID_BYTES))
            count -= PAID_BYTES

    def _go_on(self, _: int = 0) -> None:
        """Raises DaemonUnavailable where no more bytes are to come."""
        if self._is_closing:
            raise stopped()


def partial_key(digest: str) -> str:
    """Under which name the beginning of a blob waits for the rest."""
    return f"blob:{digest}"


def _whole(key: str, data: memoryview | None, length: int) -> memoryview:
    """What was asked for. Raises Wrong where it is less."""
    if data is None:
        raise Wrong(key, "is not there")
    if len(data) != length:
        raise Wrong(key, "has fewer bytes than it should")
    return data
