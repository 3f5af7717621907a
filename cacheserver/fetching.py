"""One fetch: from the question, by the gate, to a lease and what is handed out with it.

Law of this file: nothing is looked up before the gate has let the caller in, and what has been brought is judged again
before it is leased. What may wait for others counts as lengthy before it does.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from artifactcache.errors import (
    Corrupted,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import uris
from cacheserver.answers import artifact
from cacheserver.attempts import LEASE, VIEW, WAYS, Attempt
from cacheserver.cache import Cache
from cacheserver.errands import Ask
from cacheserver.gate import Admission, Gate
from cacheserver.origin import MlflowOrigin
from cacheserver.quotas import Quota
from cacheserver.selection import Selection
from cacheserver.sessions import Peer, Session, Sessions
from cacheserver.stopping import Stopping
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.uris import Artifact
from cacheserver.waiting import wait
from cacheserver.words import Brought, Held, Payer, Progress, Standing

HAND_OVER_ATTEMPTS = 5  # where a sweep takes a tree between the look at it and its lease


@dataclass
class Call:
    """A client's call about an artifact, while it lasts.

    Attributes:
        attempt: what the audit log has of it.
        is_active: whether the caller is there still.
        admission: what the gate let the caller read.
        lengthy: of the calls that may wait.
        flight: whether it waited for one: "checked" for its own, "joined" for another's, else empty.
        ends: what is given back when it is over.
    """

    attempt: Attempt
    session: Session
    is_active: Callable[[], bool]
    lengthy: Quota
    ends: ExitStack
    is_lengthy: bool = field(default=False)
    flight: str = field(default="")
    admission: Admission = field(default=Admission(""))

    def may_wait(self) -> None:
        """From now on it may take as long as others like. Raises QuotaExceeded."""
        if not self.is_lengthy:
            self.ends.enter_context(self.lengthy.one(self.session.peer.uid))
            self.is_lengthy = True


class Fetching:
    """Fetches, for all clients."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        sweeper: Sweeper,
        gate: Gate,
        stopping: Stopping,
        *,
        serves: Callable[[Peer], None],
        hardlink_for_root: bool,
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._sweeper = sweeper
        self._gate = gate
        self._stopping = stopping
        self._serves = serves
        self.hardlink_for_root = hardlink_for_root  # it may change
        self._served: Counter[str] = Counter()
        self._saved_bytes = 0
        self.given = Tally((way, what) for way in WAYS for what in (VIEW, LEASE))
        self._lock = threading.Lock()

    def served(self) -> dict[str, int]:
        """Counts of what was handed out."""
        return dict(self._served)

    def saved_bytes(self) -> int:
        """How many bytes were handed out that the origin did not have to send for it."""
        return self._saved_bytes

    def readable(self, call: Call, named: pb.ArtifactSelection) -> tuple[Artifact, Selection]:
        """What a client names, at the version that it stands for, where the caller may read that. It may wait."""
        call.may_wait()
        asked, selection = artifact(named)
        version = self._cache.version_of(asked, origin=self._origin_of(call)).artifact
        self._admit(call, version)
        is_kept_only = call.admission.says_where and self._cache.is_forgotten(version, selection)
        if is_kept_only or self._is_elsewhere(call, version):
            raise NotFound(f"{version.uri} is not held, but another one that had its name: fetch it first.")
        return version, selection

    def fetch(self, call: Call, request: pb.FetchRequest) -> Generator[pb.FetchEvent, None, None]:
        """Tells how far it is, and then the result."""
        session = call.session
        asked, selection = artifact(request.artifact)
        if asked.kind not in uris.MOVING:
            self._admit(call, asked)
        if request.view:
            self._store.check_views()
        brought = None if request.refresh else self._found(call, asked, selection, request.view)
        if brought is None or (request.view and not self._store.index.has_view(brought.held.tree)):
            call.may_wait()
        for _ in range(HAND_OVER_ATTEMPTS):
            started = brought is not None
            if brought is None:
                found = yield from self._bring(call, asked, selection, request)
                if found is None:
                    return
                brought, started = found
            if not call.is_active():
                return  # while the caller was judged, who has gone since
            lease = self._lease(session, brought.held.tree, view=request.view)
            if lease is not None:
                break
            brought = None
        else:
            raise Corrupted(f"{asked.uri} is evicted again and again before it can be handed out. Try again.")
        yield from self._give(call, brought, lease, started, view=request.view)

    def _give(
        self, call: Call, brought: Brought, lease: int, started: bool, *, view: bool
    ) -> Generator[pb.FetchEvent, None, None]:
        """Hands out what is leased. Where the caller has gone before it came, that is taken back."""
        delivered = has_view = False
        try:
            result = self._hand_out(call.session, brought, lease, started, view)
            call.attempt.fetched(result, _way(call, result), view=view)
            has_view = view  # whoever was let into it can read it, whether or not the answer comes
            yield pb.FetchEvent(result=result)
            delivered = call.is_active()
        finally:
            if not delivered:  # nobody learns of the lease
                self._sessions.release(call.session, lease)
            if delivered or has_view:
                self._note(call, brought.held, result)
            else:
                call.attempt.taken_back()

    def _lease(self, session: Session, tree: str, *, view: bool) -> int | None:
        """Leases a tree; None where a sweep had it already."""
        lease, is_held = self._sessions.lease(session, tree, view=view), False
        try:
            is_held = self._store.index.holdings.has(tree)
        finally:
            if not is_held:
                self._sessions.release(session, lease)
        return lease if is_held else None

    def _bring(
        self, call: Call, asked: Artifact, selection: Selection, request: pb.FetchRequest
    ) -> Generator[pb.FetchEvent, None, tuple[Brought, bool] | None]:
        """Has it brought, telling the caller how far that is. Returns what was brought and whether this call
        started it, None where the caller has gone."""
        call.may_wait()
        origin = self._origin_of(call)
        version = self._cache.version_of(asked, refresh=request.refresh, origin=origin)
        self._admit(call, version.artifact)
        is_new = version.is_new or self._is_elsewhere(call, version.artifact)
        ask = Ask.STRICTLY if request.refresh else Ask.AGAIN if is_new else Ask.WHAT_IS_DUE
        brought, started = None, True
        if version.artifact is not asked and ask is Ask.WHAT_IS_DUE:
            brought = self._found(call, version.artifact, selection, request.view)
        may_be_old = brought is None
        while may_be_old:
            flight, started, may_be_old = self._cache.bring(
                version.artifact, selection, ask, _payer(call.session.peer), origin
            )
            call.ends.callback(self._cache.leave, flight)
            call.flight = "checked" if started else "joined"
            for progress in wait(flight.future, flight.progress, self._store, call.is_active, self._stopping):
                yield pb.FetchEvent(progress=progress)
            if not call.is_active():
                return None
            try:
                brought = flight.future.result()
            except (QuotaExceeded, PermissionDenied, Unauthenticated, NotFound) as error:
                if started or (origin.is_own and not isinstance(error, QuotaExceeded)):
                    raise
                may_be_old = True  # it was somebody else's quota, or what somebody else is shown: now it is this one's
                continue
            may_be_old = may_be_old and brought.held.standing is Standing.OPEN and not brought.stale
            if ask is Ask.WHAT_IS_DUE and not brought.stale and self._cache.is_another(version):
                ask, may_be_old = Ask.AGAIN, True  # it was made anew while somebody was bringing the old one
        assert brought is not None
        self._admit(call, version.artifact)  # what took long may have outlived the decision
        stands = self._stands(call, version.artifact, selection, brought.held)
        if not stands or self._is_elsewhere(call, version.artifact):
            raise OriginUnavailable(f"{version.artifact.uri} was made anew meanwhile. Try again.")
        return replace(brought, stale=brought.stale or version.stale), started

    def _hand_out(self, session: Session, brought: Brought, lease: int, started: bool, view: bool) -> pb.FetchResult:
        held = brought.held
        origin_bytes, shared_bytes = (brought.origin_bytes, brought.shared_bytes) if started else (0, 0)
        path = self._view(held, session.peer.uid) if view else ""
        return pb.FetchResult(
            version=held.uri,
            digest=held.tree,
            file_count=held.file_count,
            size_bytes=held.size_bytes,
            hit=origin_bytes == 0,
            origin_bytes=origin_bytes,
            stale=brought.stale,
            file_name=held.file_name,
            lease=lease,
            view_path=os.fsencode(os.path.join(path, held.file_name) if held.file_name and path else path),
            hardlink_for_root=self.hardlink_for_root,
            transport=brought.transport if started else "",
            shared_bytes=shared_bytes,
        )

    def _note(self, call: Call, held: Held, result: pb.FetchResult) -> None:
        """It has been handed out."""
        self._cache.used(held, _payer(call.session.peer), is_hit=result.hit)
        self.given.add(call.attempt.way, call.attempt.given)
        with self._lock:
            self._saved_bytes += max(0, result.size_bytes - result.origin_bytes)
            self._served.update(
                fetch_count=1,
                hit_count=int(result.hit),
                origin_bytes=result.origin_bytes,
                served_bytes=result.size_bytes,
            )

    def _view(self, held: Held, uid: int) -> str:
        tree = None if self._store.index.has_view(held.tree) else self._store.tree(held.tree)
        if tree is None:
            return self._store.view(held.tree, uid)
        # Its folders cost a block each, and there may be more of them than files.
        with self._sweeper.room(held.uri, 0, len(tree.manifest.folders) + 1, Progress()):
            return self._store.view(held.tree, uid)

    def _admit(self, call: Call, artifact: Artifact) -> None:
        """Lets the caller in, or raises."""
        peer, credentials = call.session.peer, call.session.credentials
        self._serves(peer)  # again: while it waited, the configuration or the host's groups may have put the caller out
        if not self._gate.knows(peer, credentials, artifact):
            call.may_wait()
        admission = self._gate.admit(peer, credentials, artifact)
        if self._cache.is_elsewhere(artifact, admission.roots, admission.parts):  # the decision is old, or what is held
            call.may_wait()
            admission = self._gate.admit(peer, credentials, artifact, anew=True)
        call.attempt.because, call.admission = admission.reason, admission

    def _stands(self, call: Call, artifact: Artifact, selection: Selection, held: Held) -> bool:
        """Whether what was brought is what the caller was let in to read, and not only kept in its name."""
        if call.admission.parts is not None:
            return held.checked_at > 0  # of a run that is running others may have brought more by now
        return not call.admission.roots or self._cache.stands(artifact, selection, held.tree)

    def _is_elsewhere(self, call: Call, artifact: Artifact) -> bool:
        return self._cache.is_elsewhere(artifact, call.admission.roots, call.admission.parts)

    def _found(self, call: Call, artifact: Artifact, selection: Selection, view: bool) -> Brought | None:
        """What is held (`Cache.find`), where it is what the caller was let in to read, and not what had its name."""
        # Before: what has the name is forgotten before another one is remembered by it.
        return None if self._is_elsewhere(call, artifact) else self._cache.find(artifact, selection, view=view)

    def _origin_of(self, call: Call) -> MlflowOrigin:
        """As the caller sees it, where it is asked as the caller."""
        headers = call.session.credentials.headers if self._gate.asks_as_caller else None
        return self._cache.seen_by(call.session.peer.uid, headers)


def _way(call: Call, result: pb.FetchResult) -> str:
    """One of WAYS."""
    if result.stale or not result.hit:
        return "stale" if result.stale else "miss"
    return call.flight or "hit"


def _payer(peer: Peer) -> Payer:
    return Payer(peer.uid, (peer.gid, *peer.groups))
