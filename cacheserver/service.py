"""The gRPC edge: decode, one call, encode.

Law of this file: a handler decides nothing but who waits for how long; what a client gets is decided by the cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import grpc

from artifactcache.errors import CacheError, Corrupted, InvalidRequest, QuotaExceeded, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc
from cacheserver import __version__, journal, uris
from cacheserver.administration import Administration
from cacheserver.answers import artifact, evicted, explanation, held_artifact, sweep_result, user_name
from cacheserver.bringing import Ask
from cacheserver.cache import Cache
from cacheserver.quotas import Quota
from cacheserver.selection import Selection
from cacheserver.sessions import Peer, Session, Sessions
from cacheserver.statuses import stream, unary
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.words import Brought, Held, Payer, Progress, Standing

# A fetch that waits for a download holds a thread; they are made as they are needed, and cost about 40 KB each.
REQUESTS_MAX = 1024
# So many of them may wait: for the origin, for a view to be built, or for a client to read a long answer, of which gRPC
# does not tell whether that will ever be. The rest is for calls that take no time.
LENGTHY_MAX = 896
LENGTHY_PER_USER_MAX = 448
VERIFICATIONS_MAX = 16  # one runs, the others wait for it
VERIFICATIONS_PER_USER_MAX = 2
MESSAGE_BYTES_MAX = 1 << 20
FILES_PER_MESSAGE = 1000
PROGRESS_SECONDS = 0.1
CONNECTIONS_MAX = 4096
# A client closes a connection without calls long before: it comes to an end here only where a client does not.
CONNECTION_IDLE_SECONDS = 600
PING_SECONDS_MIN = 5  # between pings of one connection; the client library sends one after 10 s
PIN_SECONDS_MAX = 100 * 366 * 86_400
HAND_OVER_ATTEMPTS = 5  # where a sweep takes a tree between the look at it and its lease
HANDSHAKE_SECONDS = 10  # who says nothing would only hold a place

Context = grpc.ServicerContext


class Service(cache_pb2_grpc.CacheServicer):
    """What `Cache` of the contract means."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        sweeper: Sweeper,
        administration: Administration,
        about: dict[str, str],
        *,
        hardlink_for_root: bool,
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._sweeper = sweeper
        self._administration = administration
        self._about = about
        self._hardlink_for_root = hardlink_for_root
        self._lengthy = Quota("lengthy calls", per_user=LENGTHY_PER_USER_MAX, total=LENGTHY_MAX)
        self._verifications = Quota("verifications", per_user=VERIFICATIONS_PER_USER_MAX, total=VERIFICATIONS_MAX)
        self._verifiers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._started_at = time.time()
        self._served: Counter[str] = Counter()
        self._lock = threading.Lock()

    @unary
    def Ping(self, request: pb.PingRequest, context: Context) -> pb.PingReply:
        return pb.PingReply(version=__version__, pid=os.getpid())

    @unary
    def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIReply:
        peer = self._session(context).peer
        return pb.WhoAmIReply(
            uid=peer.uid,
            user=user_name(peer.uid),
            gids=dict.fromkeys((peer.gid, *peer.groups)),
            pid=peer.pid,
            **self._about,
        )

    @stream
    def Fetch(self, request: pb.FetchRequest, context: Context) -> Iterator[pb.FetchEvent]:
        began, peer = time.monotonic(), None
        try:
            session = self._session(context)
            peer = session.peer
            result = yield from self._fetch(session, request, context)
        except CacheError as error:
            journal.refused(peer, request.artifact, error, seconds=time.monotonic() - began)
            raise
        if result is not None:
            line = partial(journal.fetched, session.peer, result, request.view, time.monotonic() - began)
            if not context.add_callback(line):  # when the call is over: it is a twentieth of what a hit takes
                line()

    def _fetch(
        self, session: Session, request: pb.FetchRequest, context: Context
    ) -> Generator[pb.FetchEvent, None, pb.FetchResult | None]:
        """Returns what was handed out, None where the caller has gone."""
        asked, selection = artifact(request.artifact)
        brought = None if request.refresh else self._cache.find(asked, selection, view=request.view)
        with ExitStack() as ends:
            if brought is None or (request.view and not self._store.index.has_view(brought.held.tree)):
                ends.enter_context(self._lengthy.one(session.peer.uid))
            for _ in range(HAND_OVER_ATTEMPTS):
                started = brought is not None
                if brought is None:
                    found = yield from self._bring(session.peer, asked, selection, request, context, ends)
                    if found is None:
                        return None
                    brought, started = found
                lease = self._sessions.lease(session, brought.held.tree, view=request.view)
                is_held = False
                try:
                    is_held = self._store.index.holdings.has(brought.held.tree)
                finally:
                    if not is_held:  # a sweep had it already when it was leased
                        self._sessions.release(session, lease)
                if is_held:
                    break
                brought = None
            else:
                raise Corrupted(f"{asked.uri} is evicted again and again before it can be handed out. Try again.")
            delivered = False
            try:
                result = self._hand_out(session, brought, lease, started, request.view)
                yield pb.FetchEvent(result=result)
                delivered = context.is_active()
            finally:
                if not delivered:  # the caller has gone, and never learns of its lease
                    self._sessions.release(session, lease)
        return result if delivered else None

    def _bring(
        self,
        peer: Peer,
        asked: uris.Artifact,
        selection: Selection,
        request: pb.FetchRequest,
        context: Context,
        ends: ExitStack,
    ) -> Generator[pb.FetchEvent, None, tuple[Brought, bool] | None]:
        """Has it brought, telling the caller how far that is. Returns what was brought and whether this call
        started it, None where the caller has gone. Flights are left when the call `ends`."""
        version = self._cache.version_of(asked, refresh=request.refresh)
        ask = Ask.STRICTLY if request.refresh else Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
        brought, started = None, True
        if version.artifact is not asked and ask is Ask.WHAT_IS_DUE:
            brought = self._cache.find(version.artifact, selection, view=request.view)
        may_be_old = brought is None
        while may_be_old:
            flight, started, may_be_old = self._cache.bring(version.artifact, selection, ask, _payer(peer))
            ends.callback(self._cache.leave, flight)
            for progress in _wait(flight.future, flight.progress, self._store, context):
                yield pb.FetchEvent(progress=progress)
            if not context.is_active():
                return None
            try:
                brought = flight.future.result()
            except QuotaExceeded:
                if started:
                    raise
                may_be_old = True  # it was somebody else's quota: now it is on this account
                continue
            may_be_old = may_be_old and brought.held.standing is Standing.OPEN and not brought.stale
            if ask is Ask.WHAT_IS_DUE and not brought.stale and self._cache.is_another(version):
                ask, may_be_old = Ask.AGAIN, True  # it was made anew while somebody was bringing the old one
        assert brought is not None
        return replace(brought, stale=brought.stale or version.stale), started

    def _hand_out(self, session: Session, brought: Brought, lease: int, started: bool, view: bool) -> pb.FetchResult:
        held = brought.held
        origin_bytes = brought.origin_bytes if started else 0
        path = self._view(held) if view else ""
        self._cache.used(held, _payer(session.peer), is_hit=origin_bytes == 0)
        with self._lock:
            self._served.update(
                fetch_count=1, hit_count=int(origin_bytes == 0), origin_bytes=origin_bytes, served_bytes=held.size_bytes
            )
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
            hardlink_for_root=self._hardlink_for_root,
            transport=brought.transport if origin_bytes else "",
        )

    def _view(self, held: Held) -> str:
        tree = None if self._store.index.has_view(held.tree) else self._store.tree(held.tree)
        if tree is None:
            return self._store.view(held.tree)
        # Its folders cost a block each, and there may be more of them than files.
        with self._sweeper.room(held.uri, 0, len(tree.manifest.folders) + 1, Progress()):
            return self._store.view(held.tree)

    @unary
    def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        self._sessions.release(self._session(context), request.lease)
        return pb.ReleaseReply()

    @stream
    def List(self, request: pb.ListRequest, context: Context) -> Iterator[pb.HeldArtifact]:
        with self._lengthy.one(self._session(context).peer.uid):
            self._cache.record_uses()
            untils = self._store.index.pins.untils(time.time())
            for held in self._store.index.asked():
                leases = self._sweeper.leases.count(held.tree)
                yield held_artifact(held, leases, untils.get((held.uri, held.selection), 0.0))

    @stream
    def Inspect(self, request: pb.InspectRequest, context: Context) -> Iterator[pb.InspectEvent]:
        with self._lengthy.one(self._session(context).peer.uid):
            held, manifest = self._cache.look_up(*artifact(request.artifact))
            yield pb.InspectEvent(artifact=self._described(held))
            for start in range(0, len(manifest.entries), FILES_PER_MESSAGE):
                files = [
                    pb.File(path=e.path, digest="" if e.is_folder else e.digest, size_bytes=e.size)
                    for e in manifest.entries[start : start + FILES_PER_MESSAGE]
                ]
                yield pb.InspectEvent(files=pb.FileBatch(files=files))

    @stream
    def Verify(self, request: pb.VerifyRequest, context: Context) -> Iterator[pb.VerifyEvent]:
        uid, started = self._session(context).peer.uid, time.monotonic()
        with self._lengthy.one(uid), self._verifications.one(uid):
            held = self._cache.look_up(*artifact(request.artifact))[0] if request.HasField("artifact") else None
            progress = Progress()
            future = self._verifiers.submit(self._store.verify, held, progress)
            try:
                for step in _wait(future, progress, self._store, context):
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
                    corrupted=found.corrupted,
                    affected=found.affected,
                    seconds=time.monotonic() - started,
                )
            )

    @unary
    def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsReply:
        self._session(context)
        space = self._store.space()
        limits, sweeper = self._sweeper.reservations.limits, self._sweeper
        return pb.StatsReply(
            **self._store.index.totals(),
            **self._served,
            free_bytes=space.free,
            capacity_bytes=limits.capacity.of(space.total),
            min_free_bytes=limits.min_free.of(space.total),
            download_count=self._cache.download_count(),
            session_count=self._sessions.count(),
            lease_count=sweeper.leases.total(),
            evicted_count=sweeper.evicted_count,
            evicted_bytes=sweeper.evicted_bytes,
            pin_count=len(self._store.index.pins.untils(time.time())),
            coming_bytes=sweeper.reservations.fill().coming,
            quarantine_count=self._store.quarantine_count(),
            started_at=self._started_at,
            store_root=self._store.root,
        )

    @unary
    def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinReply:
        if not 0 <= request.seconds <= PIN_SECONDS_MAX:
            raise InvalidRequest(f"A pin lasts from 0 (without end) to {PIN_SECONDS_MAX} seconds.")
        peer = self._session(context).peer
        held, pin = self._administration.pin(peer, *artifact(request.artifact), request.seconds)
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
        with self._lengthy.one(self._session(context).peer.uid):
            held, given = self._administration.explain(*artifact(request.artifact))
            return explanation(self._described(held), given)

    def _described(self, held: Held) -> pb.HeldArtifact:
        pins = self._store.index.pins.of_artifact(held.uri, held.selection, time.time())
        return held_artifact(held, self._sweeper.leases.count(held.tree), pins[0].expires_at if pins else 0.0)

    def _session(self, context: Context) -> Session:
        for key, value in context.invocation_metadata():
            if key == "authorization":
                scheme, _, token = str(value).partition(" ")
                if scheme == "Bearer":
                    return self._sessions.get(token)
        raise Unauthenticated("The call carries no token: connect to handoff.sock first, as the client library does.")


def serve(service: Service, address: str, connections_max: int = CONNECTIONS_MAX) -> grpc.Server:
    """A server that answers at a Unix socket, once it is started.

    Args:
        connections_max: from this one on, or from CONNECTIONS_MAX where that is less, connections are closed at once.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_workers=REQUESTS_MAX, thread_name_prefix="request"),
        options=(
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", 16384),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", min(connections_max, CONNECTIONS_MAX)),
            ("grpc.max_connection_idle_ms", round(CONNECTION_IDLE_SECONDS * 1000)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS_MIN * 1000),
        ),
        maximum_concurrent_rpcs=REQUESTS_MAX,
    )
    cache_pb2_grpc.add_CacheServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{quote(os.fsencode(address))}")  # a URI, in which %, # and ? have a meaning
    return server


def _payer(peer: Peer) -> Payer:
    return Payer(peer.uid, (peer.gid, *peer.groups))


def _wait(future: Future[Any], progress: Progress, store: Store, context: Context) -> Iterator[pb.Progress]:
    """Gives how far the work is, whenever that has changed, until it is done or the caller has gone."""
    last = None
    while True:
        try:
            future.exception(timeout=PROGRESS_SECONDS)
            return
        except FutureTimeout:
            pass
        if not context.is_active():
            return
        now = (
            progress.bytes_done + store.written(progress),
            progress.bytes_total,
            progress.files_done,
            progress.files_total,
        )
        if now != last:
            yield pb.Progress(bytes_done=now[0], bytes_total=now[1], files_done=now[2], files_total=now[3])
            last = now
