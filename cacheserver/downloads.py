"""Bringing files in from the origin: a pool of their own, each file once, however many artifacts it is part of.

Law of this file: a file counts as arrived when its bytes are kept, not when they are here; and who has claimed a file
settles the claim whatever happens, for others may wait for it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from artifactcache.errors import OriginUnavailable
from cacheserver import names
from cacheserver.crews import Crews
from cacheserver.leftovers import key_of
from cacheserver.local import LOCAL_SCHEMES
from cacheserver.origin import MlflowOrigin
from cacheserver.receiving import Receiver
from cacheserver.roots import scheme, server, store
from cacheserver.shares import Shares
from cacheserver.staging import Sink, Staged
from cacheserver.stopping import stopped
from cacheserver.store import Store
from cacheserver.words import Arrived, File, Location, Progress, Standing, join
from cacheserver.work import Submit, Work

DOWNLOADS_MAX = 32  # files at a time, of one user half of them; as many more of each artifact store
AT_HAND = frozenset({"", "file", "http", "https", "mlflow-artifacts"})  # the tracking server or this host has them
WINDOW = 8  # files at a time of one artifact: no artifact keeps the others waiting for all of its files
WINDOW_PACED = 2  # of somebody whose rate is limited

RESUMABLE_BYTES_MIN = 16 << 20  # smaller ones begin anew: to write down what they are would cost more

CLAIM_ATTEMPTS = 2


class Way(NamedTuple):
    """How files are downloaded: from the origin as whoever asks sees it; whether a client has named the location; and
    what is told of bytes that come, and waits where they come too fast."""

    origin: MlflowOrigin
    named_by_client: bool
    spend: Callable[[int], None] | None = None


class _Abandoned(Exception):
    """Somebody else's claim has ended without the file; `error` is why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class _Claim:
    """The files that one call is bringing; others that need one of them wait here. One for all: files are many."""

    def __init__(self, number: int, standing: Standing) -> None:
        self.number = number
        self.standing = standing
        self._arrived: dict[str, Arrived] = {}
        self._end: BaseException | None = None
        self._changed = threading.Condition()

    def settle(self, arrived: dict[str, Arrived]) -> None:
        """These files are kept."""
        with self._changed:
            self._arrived.update(arrived)
            self._changed.notify_all()

    def end(self, error: BaseException) -> None:
        """No file arrives any more; who waits for one gets `error`."""
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def wait(self, uri: str) -> Arrived:
        """A file, when it is kept. Raises _Abandoned where it will not be."""
        with self._changed:
            self._changed.wait_for(lambda: uri in self._arrived or self._end)
            if uri in self._arrived:
                return self._arrived[uri]
            assert self._end is not None
            raise _Abandoned(self._end)


class Downloads:
    """Downloads of single files."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        # Apart from each other: a store that hangs keeps no download from the tracking server or this host waiting.
        self._pool = Shares(DOWNLOADS_MAX, "download")
        self._crews = Crews(DOWNLOADS_MAX, "store-download")
        self._receiver = Receiver(store, OriginUnavailable, "a download")
        self._lock = threading.Lock()
        self._claims: dict[str, _Claim] = {}
        self._under_way: set[Work[File]] = set()
        self._is_closing = False
        self._numbers = itertools.count(1)

    def mark(self) -> int:
        """A number that every download from now on comes after."""
        return next(self._numbers)

    def close(self) -> None:
        """Starts no download any more, and breaks off those under way with their next bytes: what is here stays for
        the next attempt, as after any other failure."""
        with self._lock:
            self._is_closing = True
            under_way = list(self._under_way)
        for work in under_way:
            work.fail(stopped())
        self._pool.close()
        self._crews.close()

    def bring(
        self,
        location: Location,
        files: list[File],
        progress: Progress,
        *,
        way: Way,
        standing: Standing,
        since: int,
        known: Callable[[], dict[bytes, Arrived]],
    ) -> dict[bytes, Arrived]:
        """Takes files into the store. Returns what arrived, by path; `progress` has the bytes that this call took.

        Args:
            standing: what these files will be worth as evidence, and what somebody else's have to be worth.
            since: a mark; what somebody else began to bring before it is too old.
            known: those of the files that are held by now. Asked when nobody else is bringing any of these: whatever
                somebody brought since the caller looked is found by then.

        Raises errors of ours; files that arrived before the failure stay for the next attempt.
        """
        arrived: dict[bytes, Arrived] = {}
        for _ in range(CLAIM_ATTEMPTS):  # what somebody else could not finish, perhaps for another file's sake
            try:
                left = [f for f in files if f.path not in arrived]
                self._bring(location, left, progress, arrived, way, standing, since, known)
                return arrived
            except _Abandoned as abandoned:
                error = abandoned.error
        raise error

    def _bring(
        self,
        location: Location,
        files: list[File],
        progress: Progress,
        arrived: dict[bytes, Arrived],
        way: Way,
        standing: Standing,
        since: int,
        known: Callable[[], dict[bytes, Arrived]],
    ) -> None:
        claim = _Claim(next(self._numbers), standing)
        mine, theirs = self._claim(location, files, claim, since)
        error: BaseException = AssertionError("every file of a claim is settled, or its error is")
        try:
            there = known()
            found = {uri: f for uri, f in mine.items() if f.path in there}
            for uri, file in found.items():
                arrived[file.path] = there[file.path]
                del mine[uri]
            self._release(found, claim)
            claim.settle({uri: there[file.path] for uri, file in found.items()})
            for batch in self._batches(location, mine, progress, way):
                staged_by_key = {key(location, mine[uri]): staged for uri, staged in batch.items()}
                self._store.keep(staged_by_key, standing, self._clock())
                kept = {uri: Arrived(s.row.digest, s.row.size, s.etag) for uri, s in batch.items()}
                progress.bytes_kept += sum(one.size for one in kept.values())
                arrived.update({mine.pop(uri).path: one for uri, one in kept.items()})
                self._release(kept, claim)  # who asks for one of them from now on finds its arrival
                claim.settle(kept)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._release(mine, claim)
            claim.end(error)
        # Only now: two calls that need files of each other have both brought their own by then.
        for file, other in theirs:
            theirs_is = other.wait(join(location.root, file.remote))
            if file.size not in (None, theirs_is.size) or (file.etag and file.etag != theirs_is.etag):
                raise _Abandoned(OriginUnavailable(f"{join(location.root, file.remote)} changes all the time."))
            arrived[file.path] = theirs_is

    def _claim(
        self, location: Location, files: list[File], claim: _Claim, since: int
    ) -> tuple[dict[str, File], list[tuple[File, _Claim]]]:
        """Those files that nobody else is bringing, by URI, and the others with whose they are."""
        mine: dict[str, File] = {}
        theirs: list[tuple[File, _Claim]] = []
        with self._lock:
            for file in files:
                uri = join(location.root, file.remote)
                owner = self._claims.get(uri)
                if owner is not None and owner.standing >= claim.standing and owner.number > since:
                    theirs.append((file, owner))
                else:
                    self._claims[uri] = claim
                    mine[uri] = file
        return mine, theirs

    def _release(self, uris: Iterable[str], claim: _Claim) -> None:
        with self._lock:
            for uri in uris:
                if self._claims.get(uri) is claim:  # else somebody who needs better evidence has taken it over
                    del self._claims[uri]

    def _batches(
        self, location: Location, mine: dict[str, File], progress: Progress, way: Way
    ) -> Iterator[dict[str, Staged]]:
        """Downloads, and gives what is finished in batches that are worth a sync."""
        work = Work(mine, lambda uri, file: {uri: self._one(location, file, progress, way)})
        with self._lock:
            if self._is_closing:
                raise stopped()
            self._under_way.add(work)
        elsewhere, own = _artifact_store(location.root, way.origin.name), None
        owner = way.origin.owner
        submit: Submit = partial(self._pool.submit, owner)
        if way.spend:  # it sleeps more than it works: not in threads that others wait for
            own = ThreadPoolExecutor(max_workers=WINDOW_PACED, thread_name_prefix="paced-download")
            submit = own.submit
        elif elsewhere:
            submit = partial(self._crews.submit, elsewhere, owner)
        try:
            yield from work.batches(submit, min(WINDOW_PACED if way.spend else WINDOW, len(mine)))
        finally:
            with self._lock:
                self._under_way.remove(work)
            for staged in work.abandon().values():  # only after a failure is anything left
                self._store.discard(staged.path)
            if own:
                own.shutdown(wait=False)

    def _one(self, location: Location, file: File, progress: Progress, way: Way) -> Staged:
        def fill(sink: Sink) -> Staged:
            way.origin.fill(location, file, sink, named_by_client=way.named_by_client)
            staged = sink.finish()
            if file.etag not in ("", staged.etag):  # rewritten meanwhile, or another one each time
                told = way.origin.identified(location, [file], named_by_client=way.named_by_client)
                if file.path in told and told[file.path].etag != staged.etag:
                    return staged._replace(etag="")
            return staged

        shown = names.show(join(location.root, file.remote))
        resumable = key(location, file) if (file.size or 0) >= RESUMABLE_BYTES_MIN else ""
        return self._receiver.receive(shown, file.size, fill, progress, partial(self._spend, way), resumable)

    def _spend(self, way: Way, count: int) -> None:
        """Bytes of a download have come. Raises DaemonUnavailable where no more are to."""
        if self._is_closing:
            raise stopped()
        if way.spend:
            way.spend(count)


def _artifact_store(root: str, tracking_uri: str) -> str:
    """Which artifact store a root is in; empty where the tracking server, or this host, has it. Another server that
    speaks as the tracking server does is a store like others: whoever may create runs may be able to name his own."""
    there = "" if scheme(root) in LOCAL_SCHEMES else server(root)
    return "" if scheme(root) in AT_HAND and there in ("", server(tracking_uri)) else store(root)


def key(location: Location, file: File) -> str:
    """Under which URI the index remembers that a file has arrived."""
    return key_of(join(location.root, file.remote))
