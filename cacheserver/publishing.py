"""Publishing: what this host has brought from the origin, written into the shared tier, in the background.

Law of this file: blobs first, the record last, so that no record names what is not there. What is there already is not
written again, so that whatever breaks it off, the next attempt goes on.

What is there may be what a sweep of the tier (`tiersweep`) is about to remove, for no record needs it yet. A sweep
says so first, and looks for records a while later; so the list of what it has condemned is looked at before anything is
found to be there, and again before and after the record is written. Where a sweep has begun between two of these looks,
however long that took, nothing of what was seen counts, and all is looked at again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from artifactcache.errors import CacheError
from cacheserver.claims import Claim
from cacheserver.outgoing import Outgoing, TooMuch
from cacheserver.packing import Large, Pack, layout
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.tier import CLOCKS_DIFFER_SECONDS, Tier
from cacheserver.tierstore import TierError, TooLarge
from cacheserver.treerecords import CONDEMNED, RECORD_BYTES_MAX, Condemned, NotARecord, TreeRecord, is_tag, sayable
from cacheserver.trees import Tree
from cacheserver.words import Held, Progress, Standing

# One tree at a time in each, of which at most so many bytes are lacking: other hosts wait for what is small while its
# claim is renewed, and it must not be behind what takes hours.
LANES = (math.inf, 8 << 30, 256 << 20)
RETRY_SECONDS = 10.0  # after the first failure; twice as long after each one more
RETRY_SECONDS_MAX = 900.0
DOUBLINGS_MAX = 10  # of what is that much by then; after a thousand, of ten days, it would be too much for a number
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
    """What waits: how many bytes of it the tier lacks, so far as somebody has looked; the claims that are given back
    when others need not wait for it any more; when it is tried, and after how many failures."""

    lacking_bytes: int = 0
    claims: list[Claim] = field(default_factory=list)
    due: float = 0.0
    failures: int = 0


class Outcome(Enum):
    """Of one attempt: the record was written; the tier needs none; there is nothing that could be published, and the
    tier was not asked; or a sweep of the tier has begun meanwhile, and what was there may have gone."""

    WRITTEN, NOTHING, GONE, SWEPT = range(4)


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
        self._outgoing = Outgoing(self._objects, store)
        self._threads = [
            threading.Thread(target=self._run, args=(bytes_max,), name=f"publish-{number}", daemon=True)
            for number, bytes_max in enumerate(LANES)
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
        self._outgoing.close()

    def want(self, uri: str, selection: str, claims: Iterable[Claim] = ()) -> None:
        """Something was brought, or seen to be still what it was. Claims are given back when it is published."""
        name = Name(uri, selection)
        with self._changed:  # before its row: an attempt under way, which ends, must not take that for its own
            waiting = self._waiting.setdefault(name, _Waiting())
            waiting.claims += claims
            waiting.due = 0.0
            self._changed.notify_all()
        try:
            self._rows.add(uri, selection, self._clock())
            with self._changed:
                if name not in self._waiting and name not in self._active:  # it was published before that
                    self._rows.end(*name)
        except CacheError as error:  # of a full disk: then it is published, unless the daemon is stopped before
            _log.warning("what is to be published is not written down: %s", error)

    def count(self) -> int:
        """How many trees wait to be published, or are being."""
        with self._changed:
            return len(self._waiting.keys() | self._active)

    def trouble(self) -> str:
        """What is wrong, in words; empty where nothing is known to be."""
        return self._told

    # -- one after the other ----------------------------------------------------------------------------------------

    def publish_next(self, bytes_max: float = math.inf, *, waits: bool = False) -> bool:
        """Publishes one tree of at most so many bytes, in this thread. Returns False where the daemon stops, or none is
        due and none is waited for."""
        if taken := self._next(bytes_max, waits=waits):
            self._do(*taken, bytes_max)
        return taken is not None

    def _run(self, bytes_max: float) -> None:
        is_on = True
        while is_on:
            try:
                is_on = self.publish_next(bytes_max, waits=True)
            except Exception as error:  # noqa: BLE001 - of no thread to be had, say: the next one may be
                _log.error("publishing goes on after %r", error)

    def _do(self, name: Name, waiting: _Waiting, bytes_max: float) -> None:
        try:
            outcome = self.publish(name, bytes_max)
            self._ended(name)  # where that cannot be written down, it is looked for once more
            if outcome is Outcome.WRITTEN or (outcome is Outcome.NOTHING and waiting.failures):
                self._told = ""
        except TooMuch as found:
            self._again(name, waiting, found.size_bytes)
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on, and it is tried again
            self._later(name, waiting, error)
        finally:
            self._tier.release(waiting.claims)  # others need not wait for what has failed here

    def _next(self, bytes_max: float, *, waits: bool) -> tuple[Name, _Waiting] | None:
        """What is due: first that for which other hosts wait, then what has waited for longest; None where the daemon
        stops, or none is waited for."""
        with self._changed:
            while not self._is_stopping:
                now = self._ticks()
                idle = {
                    name: waiting
                    for name, waiting in self._waiting.items()
                    if name not in self._active and waiting.lacking_bytes <= bytes_max
                }
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
        with self._changed:
            if name not in self._waiting:  # else it was brought anew meanwhile
                self._rows.end(*name)
            self._active.discard(name)
            self._changed.notify_all()

    def _again(self, name: Name, tried: _Waiting, lacking_bytes: int) -> None:
        """It waits for its turn among those that are as large; its claims are not given back yet."""
        with self._changed:
            self._active.discard(name)
            waiting = self._waiting.setdefault(name, _Waiting(failures=tried.failures))
            waiting.lacking_bytes = lacking_bytes
            waiting.claims += tried.claims
            tried.claims = []
            self._changed.notify_all()

    def _later(self, name: Name, tried: _Waiting, error: Exception) -> None:
        with self._changed:
            self._active.discard(name)
            self._changed.notify_all()
            if self._is_stopping:
                return
            seconds = min(RETRY_SECONDS * 2 ** min(tried.failures, DOUBLINGS_MAX), RETRY_SECONDS_MAX)
            # What was brought anew meanwhile is tried at once: other hosts may wait for it.
            waiting = self._waiting.setdefault(name, _Waiting(tried.lacking_bytes, due=self._ticks() + seconds))
            waiting.failures = tried.failures + 1
        if isinstance(error, _Condemned):
            return
        self.counts.add(FAILED)
        words = str(error) if isinstance(error, (TierError, CacheError)) else repr(error)
        if not self._told:
            _log.warning("%s could not be published, and is tried again: %s", name.uri, words)
        self._told = words

    # -- one tree ---------------------------------------------------------------------------------------------------

    def publish(self, name: Name, bytes_max: float = math.inf) -> Outcome:
        """Writes a tree into the tier, as far as it is not there. Raises TierError, and errors of ours; TooMuch where
        more than so many bytes of it are lacking."""
        held = self._store.index.held(*name)
        if held is None or held.standing is Standing.OPEN or held.checked_at <= 0:
            return Outcome.GONE
        if held.size_bytes > self._tier.tree_bytes_max:
            return Outcome.GONE
        with self._leased(held.tree) as tree:
            if tree is None or tree.missing:
                return Outcome.GONE
            record = self._record(held, tree)
            for _ in range(ATTEMPTS_MAX):
                outcome = self._attempt(name, tree, record, bytes_max)
                if outcome is not Outcome.SWEPT:
                    return outcome
        raise _Condemned

    def _attempt(self, name: Name, tree: Tree, record: TreeRecord, bytes_max: float) -> Outcome:
        """Writes what is lacking, and then the record."""
        pieces = layout(tree.manifest)
        keys = {key for piece in pieces for key in piece.keys}
        condemned = self._condemned()
        if condemned.keys & keys:
            raise _Condemned
        there = self._there(record)
        if there and there.manifest == record.manifest:
            record = _both(record, there)
        elif there and there.checked_at > record.checked_at:
            return Outcome.NOTHING  # another host has seen since that it is another one
        suspects = {key for piece in pieces for key in self._suspects(piece)}
        is_sure = not suspects and name not in self._unsure
        if there and is_sure and _says_as_much(there, record):
            return Outcome.NOTHING
        try:
            data = record.encode(self._tier.secret)
        except NotARecord as why:
            _log.warning("%s is not published: its record %s", record.uri, why)
            return Outcome.NOTHING
        is_there = there is not None and there.manifest == record.manifest and is_sure
        if not is_there:
            self._outgoing.write(pieces, suspects, bytes_max)
        if self._condemned().sweep != condemned.sweep:
            return Outcome.SWEPT
        self._unsure.add(name)  # also where what follows fails: then nobody knows what has come of it
        self._objects.put(record.key, data)
        if (now := self._condemned()).sweep != condemned.sweep:
            if now.keys & keys:  # that sweep may have looked for records before this one was there
                self._objects.delete([record.key])
                raise _Condemned
            return Outcome.SWEPT
        self._unsure.discard(name)
        for key in (record.key, *suspects, *(piece.stem for piece in pieces if isinstance(piece, Large))):
            self._tier.suspects.forget(key)
        self.counts.add(REFRESHED if is_there else PUBLISHED, amount=0 if is_there else record.manifest.size_bytes)
        return Outcome.WRITTEN

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
            tuple(tag if is_tag(tag) else "" for tag in self._store.index.etags(held)),
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
