"""The gRPC edge: decode, one call, encode.

Law of this file: a handler decides nothing but who waits for how long; what a client gets is decided by the cache.
"""

from __future__ import annotations

import os
import pwd
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

from artifactcache.errors import CacheError, InvalidRequest, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc
from cacheserver import __version__, journal, uris
from cacheserver.bringing import Ask
from cacheserver.cache import Cache
from cacheserver.quotas import Quota
from cacheserver.selection import Selection
from cacheserver.sessions import Session, Sessions
from cacheserver.space import Limits
from cacheserver.statuses import stream, unary
from cacheserver.store import Store
from cacheserver.words import Brought, Held, Manifest, Progress, Standing

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
HANDSHAKE_SECONDS = 10  # who says nothing would only hold a place

Context = grpc.ServicerContext


class Service(cache_pb2_grpc.CacheServicer):
    """What `Cache` of the contract means."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        limits: Limits,
        about: dict[str, str],
        *,
        hardlink_for_root: bool,
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._limits = limits
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
            user=_user_name(peer.uid),
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
        asked, selection = _artifact(request.artifact)
        brought = None if request.refresh else self._cache.find(asked, selection, view=request.view)
        started, delivered = True, False
        with ExitStack() as lengthy:
            if brought is None or (request.view and not self._store.index.has_view(brought.held.tree)):
                lengthy.enter_context(self._lengthy.one(session.peer.uid))
            if brought is None:
                found = yield from self._bring(asked, selection, request, context)
                if found is None:
                    return None
                brought, started = found
            result = self._hand_out(session, brought, started, request.view)
            try:
                yield pb.FetchEvent(result=result)
                delivered = context.is_active()
            finally:
                if not delivered:  # the caller has gone, and never learns of its lease
                    self._sessions.release(session, result.lease)
        return result if delivered else None

    def _bring(
        self, asked: uris.Artifact, selection: Selection, request: pb.FetchRequest, context: Context
    ) -> Generator[pb.FetchEvent, None, tuple[Brought, bool] | None]:
        """Asks the origin, telling the caller how far that is. Returns what was brought and whether this call
        started it, None where the caller has gone."""
        version = self._cache.version_of(asked, refresh=request.refresh)
        ask = Ask.STRICTLY if request.refresh else Ask.AGAIN if version.is_new else Ask.WHAT_IS_DUE
        brought, started = None, True
        if version.artifact is not asked and ask is Ask.WHAT_IS_DUE:
            brought = self._cache.find(version.artifact, selection, view=request.view)
        may_be_old = brought is None
        while may_be_old:
            flight, started, may_be_old = self._cache.bring(version.artifact, selection, ask)
            for progress in _wait(flight.future, flight.progress, self._store, context):
                yield pb.FetchEvent(progress=progress)
            if not context.is_active():
                return None
            brought = flight.future.result()
            may_be_old = may_be_old and brought.held.standing is Standing.OPEN and not brought.stale
            if ask is Ask.WHAT_IS_DUE and not brought.stale and self._cache.is_another(version):
                ask, may_be_old = Ask.AGAIN, True  # it was made anew while somebody was bringing the old one
        assert brought is not None
        return replace(brought, stale=brought.stale or version.stale), started

    def _hand_out(self, session: Session, brought: Brought, started: bool, view: bool) -> pb.FetchResult:
        held = brought.held
        origin_bytes = brought.origin_bytes if started else 0
        lease = self._sessions.lease(session, held.tree)
        try:
            path = self._store.view(held.tree) if view else ""
        except BaseException:
            self._sessions.release(session, lease)
            raise
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

    @unary
    def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        self._sessions.release(self._session(context), request.lease)
        return pb.ReleaseReply()

    @stream
    def List(self, request: pb.ListRequest, context: Context) -> Iterator[pb.HeldArtifact]:
        with self._lengthy.one(self._session(context).peer.uid):
            self._cache.record_uses()
            _, leases = self._sessions.counts()
            for held in self._store.index.asked():
                yield _held(held, leases[held.tree])

    @stream
    def Inspect(self, request: pb.InspectRequest, context: Context) -> Iterator[pb.InspectEvent]:
        with self._lengthy.one(self._session(context).peer.uid):
            held, manifest = self._look_up(request.artifact)
            yield pb.InspectEvent(artifact=_held(held, self._sessions.counts()[1][held.tree]))
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
            held = self._look_up(request.artifact)[0] if request.HasField("artifact") else None
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
        sessions, leases = self._sessions.counts()
        return pb.StatsReply(
            **self._store.index.totals(),
            **self._served,
            free_bytes=space.free,
            capacity_bytes=self._limits.capacity.of(space.total),
            min_free_bytes=self._limits.min_free.of(space.total),
            download_count=self._cache.download_count(),
            session_count=sessions,
            lease_count=leases.total(),
            quarantine_count=self._store.quarantine_count(),
            started_at=self._started_at,
            store_root=self._store.root,
        )

    def _look_up(self, request: pb.ArtifactSelection) -> tuple[Held, Manifest]:
        asked, selection = _artifact(request)
        return self._cache.look_up(asked, selection)

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


def _artifact(request: pb.ArtifactSelection) -> tuple[uris.Artifact, Selection]:
    selection = Selection.of(request.include, request.exclude)
    if bool(request.uri) == bool(request.run_id):
        raise InvalidRequest("Name an artifact by its URI or by run_id: exactly one of them.")
    if request.uri:
        if request.artifact_path:
            raise InvalidRequest("artifact_path goes with run_id; a URI carries its own path.")
        return uris.parse(request.uri), selection
    return uris.run(request.run_id, request.artifact_path), selection


def _held(held: Held, leases: int) -> pb.HeldArtifact:
    selection = Selection.from_key(held.selection)
    return pb.HeldArtifact(
        version=held.uri,
        digest=held.tree,
        file_count=held.file_count,
        size_bytes=held.size_bytes,
        fetched_at=held.fetched_at,
        used_at=held.used_at,
        include=selection.include,
        exclude=selection.exclude,
        lease_count=leases,
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
