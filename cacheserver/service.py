"""The gRPC edge: decode, one call, encode.

Law of this file: a handler decides nothing but who waits for how long; what a client gets is decided by the cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager

import grpc

from artifactcache.errors import InvalidRequest, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc
from cacheserver import __version__
from cacheserver.administration import Administration
from cacheserver.answers import artifact, evicted, explanation, held_artifact, sweep_result, usage, user_name, who
from cacheserver.audit import AuditLog
from cacheserver.cache import Cache
from cacheserver.checkup import Checkup
from cacheserver.counters import Counters
from cacheserver.entrance import Entrance
from cacheserver.fetching import Call, Fetching
from cacheserver.overview import Overview
from cacheserver.quotas import Quota
from cacheserver.roles import OPERATOR, Roles
from cacheserver.sessions import Session, Sessions
from cacheserver.statuses import stream, unary
from cacheserver.stopping import Stopping
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.waiting import wait
from cacheserver.words import Held, Progress

# A fetch that waits for a download holds a thread; they are made as they are needed, and cost about 40 KB each.
REQUESTS_MAX = 1024
# So many of them may wait: for the origin, for a view to be built, or for a client to read a long answer, of which gRPC
# does not tell whether that will ever be. The rest is for calls that take no time.
LENGTHY_MAX = 896
LENGTHY_PER_USER_MAX = 448
# So many are one user's, whether they take time or not: who never says what he asks for, or takes no answer, keeps the
# thread of a call for as long as he likes. And so many are of callers who have no session.
CALLS_PER_USER_MAX = 768
CALLS_WITHOUT_SESSION_MAX = 64
VERIFICATIONS_MAX = 16  # one runs, the others wait for it
VERIFICATIONS_PER_USER_MAX = 2
FILES_PER_MESSAGE = 1000
CONTRACT = pb.DESCRIPTOR.services_by_name["Cache"]
NOBODY = -1  # whose calls without a session are
PIN_SECONDS_MAX = 100 * 366 * 86_400

Context = grpc.ServicerContext


class Service(cache_pb2_grpc.CacheServicer):
    """What `Cache` of the contract means.

    Attributes:
        counters: of the daemon since then.
        overview: of the daemon; set by who puts it together.
    """

    overview: Overview

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        sweeper: Sweeper,
        administration: Administration,
        roles: Roles,
        fetching: Fetching,
        audit: AuditLog,
        checkup: Checkup,
        stopping: Stopping,
        about: dict[str, str],
        entrance: Entrance,
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._sweeper = sweeper
        self._administration = administration
        self._roles = roles
        self._fetching = fetching
        self._audit = audit
        self._checkup = checkup
        self.stopping = stopping
        self._about = about
        self.entrance = entrance
        self._calls = Quota("calls", per_user=CALLS_PER_USER_MAX, total=REQUESTS_MAX)
        self._nobodys = Quota("calls without a session", per_user=CALLS_WITHOUT_SESSION_MAX, total=REQUESTS_MAX)
        self._lengthy = Quota("lengthy calls", per_user=LENGTHY_PER_USER_MAX, total=LENGTHY_MAX)
        self._verifications = Quota("verifications", per_user=VERIFICATIONS_PER_USER_MAX, total=VERIFICATIONS_MAX)
        self._verifiers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self.counters = Counters(cache, store, sessions, sweeper, administration, fetching, audit, time.time)
        self.answered = Tally((method.name, "OK", "") for method in CONTRACT.methods)

    def place(self, context: Context) -> AbstractContextManager[None]:
        """A place among the calls under way for one of which only the head is here. Raises QuotaExceeded."""
        try:
            return self._calls.one(self._sessions.get(_token(context)).peer.uid)
        except Unauthenticated:  # that is said, and written down, when it has said what it asks for
            return self._nobodys.one(NOBODY)

    @unary
    def Ping(self, request: pb.PingRequest, context: Context) -> pb.PingReply:
        return pb.PingReply(version=__version__, pid=os.getpid())

    @unary
    def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIReply:
        return who(self._session(context).peer, self._roles, self._about)

    @stream
    def Fetch(self, request: pb.FetchRequest, context: Context) -> Iterator[pb.FetchEvent]:
        with self._call("Fetch", request.artifact, context) as call:
            yield from self._fetching.fetch(call, request)

    @unary
    def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        self._sessions.release(self._session(context), request.lease)
        return pb.ReleaseReply()

    @stream
    def List(self, request: pb.ListRequest, context: Context) -> Iterator[pb.HeldArtifact]:
        peer = self._session(context).peer
        with self._lengthy.one(peer.uid):
            shown = self._administration.shown(peer)
            untils = self._store.index.pins.untils(time.time())
            for held in shown:
                leases = self._sweeper.leases.count(held.tree)
                yield held_artifact(held, leases, untils.get((held.uri, held.selection), 0.0))

    @stream
    def Inspect(self, request: pb.InspectRequest, context: Context) -> Iterator[pb.InspectEvent]:
        with self._call("Inspect", request.artifact, context) as call:
            held, manifest = self._cache.look_up(*self._fetching.readable(call, request.artifact))
            call.attempt.found(held)
            yield pb.InspectEvent(artifact=self._described(held))
            for start in range(0, len(manifest.entries), FILES_PER_MESSAGE):
                files = [
                    pb.File(path=e.path, digest="" if e.is_folder else e.digest, size_bytes=e.size)
                    for e in manifest.entries[start : start + FILES_PER_MESSAGE]
                ]
                yield pb.InspectEvent(files=pb.FileBatch(files=files))

    @stream
    def Verify(self, request: pb.VerifyRequest, context: Context) -> Iterator[pb.VerifyEvent]:
        started, held = time.monotonic(), None
        with ExitStack() as ends:
            if request.HasField("artifact"):
                call = ends.enter_context(self._call("Verify", request.artifact, context))
                held = self._cache.look_up(*self._fetching.readable(call, request.artifact))[0]
                call.attempt.found(held)
                peer = call.session.peer
            else:
                peer = self._session(context).peer
                self._roles.require(peer, OPERATOR, "verify everything")
                ends.enter_context(self._lengthy.one(peer.uid))
            ends.enter_context(self._verifications.one(peer.uid))
            progress = Progress()
            future = self._verifiers.submit(self._store.verify, held, progress)
            try:
                for step in wait(future, progress, self._store, context.is_active, self.stopping):
                    yield pb.VerifyEvent(progress=step)
            finally:
                progress.is_wanted = False  # where it still runs, the caller has gone
            if not context.is_active():
                return
            found = future.result()
            yield pb.VerifyEvent(
                result=pb.VerifyResult(
                    blobs_checked=found.blobs_checked,
                    bytes_checked=found.bytes_checked,
                    corrupted=[*found.corrupted, *found.manifests],
                    affected=[one for one in found.affected if held is None or one == held.uri],
                    seconds=time.monotonic() - started,
                )
            )

    @unary
    def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsReply:
        self._session(context)
        return self.counters.read()

    @unary
    def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinReply:
        if not 0 <= request.seconds <= PIN_SECONDS_MAX:
            raise InvalidRequest(f"A pin lasts from 0 (without end) to {PIN_SECONDS_MAX} seconds.")
        with self._call("Pin", request.artifact, context) as call:
            peer, asked = call.session.peer, artifact(request.artifact)[0].uri
            self._roles.require(peer, OPERATOR, "pin")  # before the origin is asked for anything
            version = self._fetching.readable(call, request.artifact)
            held, pin = self._administration.pin(peer, asked, *version, request.seconds)
            call.attempt.found(held)
        return pb.PinReply(version=held.uri, digest=held.tree, until=pin.expires_at, owner=user_name(pin.owner))

    @unary
    def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinReply:
        peer = self._session(context).peer
        return pb.UnpinReply(versions=self._administration.unpin(peer, *artifact(request.artifact)))

    @stream
    def Sweep(self, request: pb.SweepRequest, context: Context) -> Iterator[pb.SweepEvent]:
        peer, started = self._session(context).peer, time.monotonic()
        if request.free_bytes < 0:
            raise InvalidRequest("How many bytes are to be freed is negative.")
        with self._lengthy.one(peer.uid):
            swept = self._administration.sweep(peer, free_bytes=request.free_bytes, dry_run=request.dry_run)
            for one in swept.leaving:
                yield pb.SweepEvent(evicted=evicted(one))
            yield pb.SweepEvent(result=sweep_result(swept, time.monotonic() - started))

    @unary
    def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainReply:
        with self._call("Explain", request.artifact, context) as call:
            asked = self._fetching.readable(call, request.artifact)
            held, given = self._administration.explain(call.session.peer, *asked)
            call.attempt.found(held)
            return explanation(self._described(held), given)

    @unary
    def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageReply:
        peer = self._session(context).peer
        with self._lengthy.one(peer.uid):
            return pb.UsageReply(users=map(usage, self._administration.usage(peer, everybody=request.everybody)))

    @unary
    def Overview(self, request: pb.OverviewRequest, context: Context) -> pb.OverviewReply:
        peer = self._session(context).peer
        with self._lengthy.one(peer.uid):
            return self.overview.of(peer, request.since)

    @unary
    def Page(self, request: pb.PageRequest, context: Context) -> pb.PageReply:
        url, seconds = self.entrance.ticket(self._session(context).peer)
        return pb.PageReply(url=url, seconds=seconds)

    @unary
    def Checkup(self, request: pb.CheckupRequest, context: Context) -> pb.CheckupReply:
        session = self._session(context)
        with self._lengthy.one(session.peer.uid):
            return self._checkup.reply(session, hardlink_for_root=self._fetching.hardlink_for_root)

    def _described(self, held: Held) -> pb.HeldArtifact:
        pins = self._store.index.pins.of_artifact(held.uri, held.selection, time.time())
        return held_artifact(held, self._sweeper.leases.count(held.tree), pins[0].expires_at if pins else 0.0)

    @stream
    def Audit(self, request: pb.AuditRequest, context: Context) -> Iterator[pb.AuditEvent]:
        peer = self._session(context).peer
        with self._lengthy.one(peer.uid):
            self._administration.admit_auditor(peer)
            if not request.follow:
                yield from self._audit.events(request, context.is_active)
                return
            yield from self._audit.events(request, lambda: context.is_active() and not self.stopping.has_begun())
            self.stopping.refuse()

    @contextmanager
    def _call(self, verb: str, asked: pb.ArtifactSelection, context: Context) -> Iterator[Call]:
        """A call about an artifact, and whose it is. Raises Unauthenticated."""
        with self._audit.attempt(verb, asked, context.add_callback) as attempt, ExitStack() as ends:
            session = self._whose(context)
            attempt.of(session)
            self._roles.admit(session.peer)
            yield Call(attempt, session, context.is_active, self._lengthy, ends)

    def _session(self, context: Context) -> Session:
        """Whose call it is. Raises Unauthenticated, and PermissionDenied where that user is not served any more."""
        session = self._whose(context)
        self._roles.admit(session.peer)
        return session

    def _whose(self, context: Context) -> Session:
        told = context.invocation_metadata()
        proof = next((str(value) for key, value in told if key == "artifactcache-proof"), "")
        return self._sessions.calling(_token(context), proof)


def _token(context: Context) -> str:
    """The token that a call carries. Raises Unauthenticated."""
    for key, value in context.invocation_metadata():
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            if scheme == "Bearer":
                return token
    raise Unauthenticated("The call carries no token: connect to handoff.sock first, as the client library does.")
