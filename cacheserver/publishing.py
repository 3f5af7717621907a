"""Publishing: what this host has brought from the origin, written into the shared tier, in the background.

Law of this file: blobs first, the record last, so that no record names what is not there. What is there already is not
written again, so that whatever breaks it off, the next attempt goes on; and bytes are hashed as they leave.

What is there may be what a sweep of the tier (`tiersweep`) is about to remove, for no record needs it yet. A sweep
says so first, and looks for records a while later; so the list of what it has condemned is looked at before anything is
found to be there, and again before and after the record is written. Where a sweep has begun between two of these looks,
however long that took, nothing of what was seen counts, and all is looked at again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver import outgoing
from cacheserver.claims import Claim
from cacheserver.packing import (
    CONDEMNED,
    RECORD_BYTES_MAX,
    Condemned,
    Large,
    NotARecord,
    Pack,
    TreeRecord,
    layout,
    sayable,
)
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.tier import CLOCKS_DIFFER_SECONDS, Tier
from cacheserver.tierstore import TierError, TooLarge
from cacheserver.trees import Tree
from cacheserver.words import Held, Progress, Standing

PUBLISHERS = 2  # trees at a time
UPLOADS_MAX = 4  # objects at a time; of each large blob as many more wait in memory: 80 MiB at most
RETRY_SECONDS = 10.0  # after the first failure; twice as long after each one more
RETRY_SECONDS_MAX = 900.0
VERSIONS_MAX = 100  # names of one tree in its record
ATTEMPTS_MAX = 3  # at one tree, where a sweep of the tier begins meanwhile; then it is tried again later
CONDEMNED_BYTES_MAX = 256 << 20
# So long a list of what a sweep of the tier removes counts, from when it was written. A sweep removes nothing after
# half of that; this host's clock may differ from the object store's by the rest, which is more than signed requests
# allow.
CONDEMNED_SECONDS = 3600.0
PUBLISHED, REFRESHED, FAILED = OUTCOMES = ("published", "refreshed", "failed")

_log = logging.getLogger(__name__)


class Name(NamedTuple):
    """A location, or a selection of it."""

    uri: str
    selection: str


@dataclass
class _Waiting:
    """What waits: the claims that are given back when others need not wait for it any more, when it is tried, and after
    how many failures."""

    claims: list[Claim] = field(default_factory=list)
    due: float = 0.0
    failures: int = 0


class _Condemned(Exception):
    """A sweep of the tier is about to remove what a tree needs."""


class Publishing:
    """What one daemon gives to the shared tier.

    Args:
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self, tier: Tier, store: Store, sweeper: Sweeper, clock: Callable[[], float], ticks: Callable[[], float]
    ) -> None:
        self._tier = tier
        self._objects = tier.objects
        self._store = store
        self._rows = store.index.publications
        self._sweeper = sweeper
        self._clock = clock
        self._ticks = ticks
        self._changed = threading.Condition()
        self._waiting: dict[Name, _Waiting] = {}
        self._active = set[Name]()
        self._unsure = set[Name]()  # whose records may name what has gone
        self._is_stopping = False
        self._told = ""
        self._uploads = ThreadPoolExecutor(max_workers=UPLOADS_MAX, thread_name_prefix="upload")
        self._threads = [
            threading.Thread(target=self._run, name=f"publish-{number}", daemon=True) for number in range(PUBLISHERS)
        ]
        self.counts = Tally((outcome,) for outcome in OUTCOMES)

    def load(self) -> None:
        """Goes on with what an earlier daemon has left."""
        for uri, selection in self._rows.waiting():
            self._waiting.setdefault(Name(uri, selection), _Waiting())

    def start(self) -> None:
        """Publishes from now on, what an earlier daemon has left first."""
        self.load()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begins nothing any more, and breaks off what is under way: its rows stay."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._uploads.shutdown(wait=False, cancel_futures=True)

    def want(self, uri: str, selection: str, claims: Iterable[Claim] = ()) -> None:
        """Something was brought, or seen to be still what it was. Claims are given back when it is published."""
        name = Name(uri, selection)
        try:
            self._rows.add(uri, selection, self._clock())
        except CacheError as error:  # of a full disk: then it is published, unless the daemon is stopped before
            _log.warning("what is to be published is not written down: %s", error)
        with self._changed:
            waiting = self._waiting.setdefault(name, _Waiting())
            waiting.claims += claims
            waiting.due = 0.0
            self._changed.notify()

    def count(self) -> int:
        """How many trees wait to be published, or are being."""
        with self._changed:
            return len(self._waiting.keys() | self._active)

    def trouble(self) -> str:
        """What is wrong, in words; empty where nothing is known to be."""
        return self._told

    # -- one after the other ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Publishes what is due, in this thread."""
        while taken := self._next(waits=False):
            self._do(*taken)

    def _run(self) -> None:
        while taken := self._next(waits=True):
            self._do(*taken)

    def _do(self, name: Name, waiting: _Waiting) -> None:
        try:
            self.publish(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on, and it is tried again
            self._later(name, waiting.failures, error)
        else:
            self._ended(name)
        finally:
            self._tier.release(waiting.claims)  # others need not wait for what has failed here

    def _next(self, *, waits: bool) -> tuple[Name, _Waiting] | None:
        """What is due, those first for which other hosts wait; None where the daemon stops, or none is waited for."""
        with self._changed:
            while not self._is_stopping:
                now = self._ticks()
                idle = {name: waiting for name, waiting in self._waiting.items() if name not in self._active}
                due = [name for name, waiting in idle.items() if waiting.due <= now]
                if due:
                    found = max(due, key=lambda name: bool(idle[name].claims))
                    self._active.add(found)
                    return found, self._waiting.pop(found)
                if not waits:
                    return None
                self._changed.wait(min((waiting.due - now for waiting in idle.values()), default=None))
        return None

    def _ended(self, name: Name) -> None:
        self._told = ""
        with self._changed:
            self._active.discard(name)
            self._changed.notify()
            if name not in self._waiting:  # else it was brought anew meanwhile
                self._rows.end(*name)

    def _later(self, name: Name, failures: int, error: Exception) -> None:
        with self._changed:
            self._active.discard(name)
            self._changed.notify()
            if self._is_stopping:
                return
            seconds = min(RETRY_SECONDS * 2**failures, RETRY_SECONDS_MAX)
            # What was brought anew meanwhile is tried at once: other hosts may wait for it.
            waiting = self._waiting.setdefault(name, _Waiting(due=self._ticks() + seconds))
            waiting.failures = failures + 1
        if isinstance(error, _Condemned):
            return
        self.counts.add(FAILED)
        words = str(error) if isinstance(error, (TierError, CacheError)) else repr(error)
        if not self._told:
            _log.warning("%s could not be published, and is tried again: %s", name.uri, words)
        self._told = words

    # -- one tree ---------------------------------------------------------------------------------------------------

    def publish(self, name: Name) -> None:
        """Writes a tree into the tier, as far as it is not there. Raises TierError, and errors of ours."""
        held = self._store.index.held(*name)
        if held is None or held.standing is Standing.OPEN or held.checked_at <= 0:
            return  # it has gone, or is not what it was
        if held.size_bytes > self._tier.tree_bytes_max:
            return
        with self._leased(held.tree) as tree:
            if tree is None or tree.missing:
                return
            record = self._record(held, tree)
            if any(self._is_published(name, tree, record) for _ in range(ATTEMPTS_MAX)):
                return
        raise _Condemned

    def _is_published(self, name: Name, tree: Tree, record: TreeRecord) -> bool:
        """Writes what is lacking, and then the record; False where a sweep has begun meanwhile: what was there may have
        gone."""
        pieces = layout(tree.manifest)
        keys = {key for piece in pieces for key in piece.keys}
        condemned = self._condemned()
        if condemned.keys & keys:
            raise _Condemned
        there = self._there(record)
        if there and there.manifest == record.manifest:
            record = _both(record, there)
        elif there and there.checked_at > record.checked_at:
            return True  # another host has seen since that it is another one
        suspects = {key for piece in pieces for key in self._suspects(piece)}
        is_sure = not suspects and name not in self._unsure
        if there and is_sure and _says_as_much(there, record):
            return True
        try:
            data = record.encode(self._tier.secret)
        except NotARecord as why:
            _log.warning("%s is not published: its record %s", record.uri, why)
            return True
        is_there = there is not None and there.manifest == record.manifest and is_sure
        if not is_there:
            self._write(tree, pieces, suspects)
        if self._condemned().sweep != condemned.sweep:
            return False
        self._unsure.add(name)  # also where what follows fails: then nobody knows what has come of it
        self._objects.put(record.key, data)
        if (now := self._condemned()).sweep != condemned.sweep:
            if now.keys & keys:  # that sweep may have looked for records before this one was there
                self._objects.delete([record.key])
                raise _Condemned
            return False
        self._unsure.discard(name)
        for key in (record.key, *suspects, *(piece.stem for piece in pieces if isinstance(piece, Large))):
            self._tier.suspects.forget(key)
        self.counts.add(REFRESHED if is_there else PUBLISHED, amount=0 if is_there else record.manifest.size_bytes)
        return True

    @contextmanager
    def _leased(self, digest: str) -> Iterator[Tree | None]:
        progress = Progress()
        with self._sweeper.holding(progress) as hold:
            hold(digest)
            yield self._store.tree(digest)

    def _record(self, held: Held, tree: Tree) -> TreeRecord:
        names = [uri for uri, _ in self._store.index.names_of([held.tree])]
        return TreeRecord(
            self._tier.tracking_uri,
            held.uri,
            held.selection,
            held.file_name,
            held.standing,
            held.checked_at,
            tree.manifest,
            self._store.index.etags(held),
            tuple(uri for uri in names if uri.startswith(("runs:/", "models:/")) and sayable(uri))[:VERSIONS_MAX],
        )

    def _there(self, record: TreeRecord) -> TreeRecord | None:
        try:
            got = self._objects.get(record.key, RECORD_BYTES_MAX)
            found = TreeRecord.decode(record.key, got.data, self._tier.secret) if got else None
            is_ahead = found is not None and found.checked_at > self._clock() + CLOCKS_DIFFER_SECONDS
            return replace(found, checked_at=0.0) if found and is_ahead else found
        except (NotARecord, TooLarge):
            return None

    def _suspects(self, piece: Large | Pack) -> list[str]:
        """Those of its objects that were found to be wrong, or not there: all of them where nobody knows which."""
        is_suspect = self._tier.suspects.get
        if isinstance(piece, Large) and is_suspect(piece.stem):
            return piece.keys
        return [key for key in piece.keys if is_suspect(key)]

    def _condemned(self) -> Condemned:
        """What a sweep is about to remove."""
        got = self._objects.get(CONDEMNED, CONDEMNED_BYTES_MAX)
        if got is None:
            return Condemned()
        found = Condemned.decode(got.data)
        return found if self._clock() - got.written_at <= CONDEMNED_SECONDS else Condemned(found.sweep)

    def _write(self, tree: Tree, pieces: list[Large | Pack], suspects: set[str]) -> None:
        """Writes what is lacking, several objects at a time."""
        coming: list[Future[None]] = []
        try:
            for piece in pieces:
                if isinstance(piece, Pack):
                    coming.append(self._uploads.submit(self._write_pack, piece, suspects))
                else:
                    self._write_large(piece, suspects)
                coming = [future for future in coming if not future.done() or future.result() is not None]
            for future in coming:
                future.result()
        except RuntimeError:  # it is closed
            raise TierError("The daemon is being stopped: the next one goes on.") from None
        finally:
            for future in coming:
                future.cancel()

    def _write_pack(self, pack: Pack, suspects: set[str]) -> None:
        if pack.key not in suspects and self._objects.has(pack.key, pack.size):
            return
        blobs = (outgoing.read(self._store, blob) for blob in pack.blobs)
        self._objects.put(pack.key, b"".join([pack.head, *blobs]))

    def _write_large(self, large: Large, suspects: set[str]) -> None:
        """Writes the parts of a blob that are lacking. It is hashed meanwhile: where it is wrong, they go again."""
        parts = large.parts
        there = list(self._uploads.map(lambda part: self._objects.has(part.key, part.length), parts))
        lacking = {
            part.key for part, is_there in zip(parts, there, strict=True) if not is_there or part.key in suspects
        }
        if not lacking:
            return
        blake, coming = blake3(), list[Future[None]]()
        with outgoing.opened(self._store, large.blob) as fd:
            for part in parts:
                data = os.pread(fd, part.length, part.offset)
                blake.update(data)
                if part.key in lacking:
                    if len(coming) == UPLOADS_MAX:
                        coming.pop(0).result()
                    coming.append(self._uploads.submit(self._objects.put, part.key, data))
        for future in coming:
            future.result()
        if blake.hexdigest() != large.blob.digest:
            self._objects.delete(sorted(lacking))
            raise outgoing.rotten(self._store, large.blob)


def _both(record: TreeRecord, there: TreeRecord) -> TreeRecord:
    """What two records of one tree say together."""
    later = max(record, there, key=lambda one: one.checked_at)
    versions = tuple(dict.fromkeys((*record.versions, *there.versions)))[:VERSIONS_MAX]
    return replace(later, standing=max(record.standing, there.standing), versions=versions)


def _says_as_much(there: TreeRecord, record: TreeRecord) -> bool:
    """Whether nothing of a record would be new."""
    same = (there.manifest, there.etags, there.file_name, there.versions) == (
        record.manifest,
        record.etags,
        record.file_name,
        record.versions,
    )
    return same and there.standing >= record.standing and there.checked_at >= record.checked_at
