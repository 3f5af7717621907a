"""The gRPC edge: decode, one call, encode. The one room that speaks gRPC.

Law of this file: an error of ours becomes its status by one table; any other is a defect, logged here and told to the
caller in one line.
"""

from __future__ import annotations

import logging
import os
import pwd
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from functools import wraps
from typing import Any, TypeVar

import grpc

from artifactcache import errors
from artifactcache.errors import CacheError, InvalidRequest, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc
from cacheserver import __version__, uris
from cacheserver.cache import Cache
from cacheserver.selection import Selection
from cacheserver.sessions import Session, Sessions
from cacheserver.space import Limits
from cacheserver.store import Store
from cacheserver.words import Brought, Held, Progress

# A fetch that waits for a download holds a thread; they are made as they are needed, and cost about 40 KB each.
REQUESTS_MAX = 1024
MESSAGE_BYTES_MAX = 1 << 20
FILES_PER_MESSAGE = 1000
PROGRESS_SECONDS = 0.1

_STATUS: dict[type[CacheError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.DestinationExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.ModeUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OriginUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Corrupted: grpc.StatusCode.DATA_LOSS,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_log = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.ServicerContext


def _abort(context: Context, error: CacheError) -> None:
    context.set_trailing_metadata((("artifactcache-error", type(error).__name__),))
    context.abort(_STATUS.get(type(error), grpc.StatusCode.INTERNAL), str(error))


def _unary(method: Callable[[Any, Any, Context], T]) -> Callable[[Any, Any, Context], T]:
    """Turns what a handler raises into a status."""

    @wraps(method)
    def handler(self: Any, request: Any, context: Context) -> T:
        try:
            return method(self, request, context)
        except CacheError as error:
            failure = error
        except Exception:  # noqa: BLE001 - a defect here must not end the daemon
            _log.exception("%s failed", method.__name__)
            failure = CacheError(f"{method.__name__} failed in the daemon; its log says why.")
        _abort(context, failure)
        raise AssertionError

    return handler


def _stream(method: Callable[[Any, Any, Context], Iterator[T]]) -> Callable[[Any, Any, Context], Iterator[T]]:
    """Turns what a handler raises while it streams into a status."""

    @wraps(method)
    def handler(self: Any, request: Any, context: Context) -> Iterator[T]:
        try:
            yield from method(self, request, context)
            return
        except CacheError as error:
            failure = error
        except Exception:  # noqa: BLE001 - a defect here must not end the daemon
            _log.exception("%s failed", method.__name__)
            failure = CacheError(f"{method.__name__} failed in the daemon; its log says why.")
        _abort(context, failure)

    return handler


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
        self._verifiers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._started_at = time.time()
        self._served = dict.fromkeys(("fetch_count", "hit_count", "origin_bytes", "served_bytes"), 0)

    @_unary
    def Ping(self, request: pb.PingRequest, context: Context) -> pb.PingReply:
        return pb.PingReply(version=__version__, pid=os.getpid())

    @_unary
    def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIReply:
        peer = self._session(context).peer
        return pb.WhoAmIReply(
            uid=peer.uid,
            user=_user_name(peer.uid),
            gids=dict.fromkeys((peer.gid, *peer.groups)),
            pid=peer.pid,
            **self._about,
        )

    @_stream
    def Fetch(self, request: pb.FetchRequest, context: Context) -> Iterator[pb.FetchEvent]:
        session = self._session(context)
        asked, selection = _artifact(request.artifact)
        artifact = self._cache.version_of(asked)
        brought = None if request.refresh else self._cache.find(artifact, selection, view=request.view)
        started = True
        if brought is None:
            flight, started = self._cache.bring(artifact, selection, refresh=request.refresh)
            for progress in _wait(flight.future, flight.progress, self._store, context):
                yield pb.FetchEvent(progress=progress)
            if not context.is_active():
                return
            brought = flight.future.result()
        result = self._hand_out(session, brought, started, request.view)
        delivered = False
        try:
            yield pb.FetchEvent(result=result)
            delivered = context.is_active()
        finally:
            if not delivered:  # the caller has gone, and never learns of its lease
                self._sessions.release(session, result.lease)

    def _hand_out(self, session: Session, brought: Brought, started: bool, view: bool) -> pb.FetchResult:
        held = brought.held
        origin_bytes = brought.origin_bytes if started else 0
        lease = self._sessions.lease(session, held.tree)
        try:
            path = self._store.view(held.tree) if view else ""
        except BaseException:
            self._sessions.release(session, lease)
            raise
        served = self._served
        served["fetch_count"] += 1
        served["hit_count"] += origin_bytes == 0
        served["origin_bytes"] += origin_bytes
        served["served_bytes"] += held.size_bytes
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
        )

    @_unary
    def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        self._sessions.release(self._session(context), request.lease)
        return pb.ReleaseReply()

    @_stream
    def List(self, request: pb.ListRequest, context: Context) -> Iterator[pb.HeldArtifact]:
        self._session(context)
        self._cache.record_uses()
        _, leases = self._sessions.counts()
        for held in self._store.index.asked():
            yield _held(held, leases[held.tree])

    @_stream
    def Inspect(self, request: pb.InspectRequest, context: Context) -> Iterator[pb.InspectEvent]:
        self._session(context)
        asked, selection = _artifact(request.artifact)
        held, manifest = self._cache.look_up(self._cache.version_of(asked), selection)
        yield pb.InspectEvent(artifact=_held(held, self._sessions.counts()[1][held.tree]))
        for start in range(0, len(manifest.entries), FILES_PER_MESSAGE):
            files = [
                pb.File(path=e.path, digest="" if e.is_folder else e.digest, size_bytes=e.size)
                for e in manifest.entries[start : start + FILES_PER_MESSAGE]
            ]
            yield pb.InspectEvent(files=pb.FileBatch(files=files))

    @_stream
    def Verify(self, request: pb.VerifyRequest, context: Context) -> Iterator[pb.VerifyEvent]:
        self._session(context)
        held, progress, started = None, Progress(), time.monotonic()
        if request.HasField("artifact"):
            asked, selection = _artifact(request.artifact)
            held, _ = self._cache.look_up(self._cache.version_of(asked), selection)
        future = self._verifiers.submit(self._store.verify, held, progress)
        for step in _wait(future, progress, self._store, context):
            yield pb.VerifyEvent(progress=step)
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

    @_unary
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

    def _session(self, context: Context) -> Session:
        for key, value in context.invocation_metadata():
            if key == "authorization":
                scheme, _, token = str(value).partition(" ")
                if scheme == "Bearer":
                    return self._sessions.get(token)
        raise Unauthenticated("The call carries no token: connect to handoff.sock first, as the client library does.")


def serve(service: Service, address: str) -> grpc.Server:
    """A server that answers at a Unix socket, once it is started."""
    server = grpc.server(
        ThreadPoolExecutor(max_workers=REQUESTS_MAX, thread_name_prefix="request"),
        options=(
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", 16384),
            ("grpc.so_reuseport", 0),
        ),
        maximum_concurrent_rpcs=REQUESTS_MAX,
    )
    cache_pb2_grpc.add_CacheServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{address}")
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
