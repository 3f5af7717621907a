"""The client's end of a session: who it is, over which channel it calls, and when it is to be opened again.

A session is one connection to handoff.sock; its leases end with it. The channel beside it belongs to nobody: each
call carries the session's token, so all sessions of a process with one daemon share one channel. It is never closed,
because closing takes place in grpc's own threads and a fork that meets them leaves a child that hangs.
"""

from __future__ import annotations

import os
import stat
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import grpc

from artifactcache import credentials, forks, handoff, proofs, request, status
from artifactcache.deadline import Deadline
from artifactcache.errors import CacheError, DaemonUnavailable, InvalidRequest, Unauthenticated
from artifactcache.paths import GRPC_SOCKET, SOCKET_DIR_VARIABLE, SYSTEM_SOCKET_DIR, user_socket_dir
from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1.cache_pb2_grpc import CacheStub

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
RECONNECT_BACKOFF_MS = 100  # the least that grpc accepts; a daemon that comes back is on this host
# Then the channel lets its connection go, and the next call opens another. Well before the daemon would, for grpc tells
# of that on standard error; it may take twice as long.
IDLE_SECONDS = 120
READY_SECONDS_MAX = 2.0  # between a restarted daemon's handoff.sock and its cache.sock
CONNECT_SECONDS_MAX = 5
# A daemon that is stopped, or hangs as a whole, answers no ping: a call that waits for it ends after these two.
PING_AFTER_SECONDS = 10
PONG_SECONDS_MAX = 10
RELEASE_SECONDS_MAX = 5.0  # a lease that cannot be given back by then ends with the session

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # `http_proxy` is for the network
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_SECONDS_MAX * 1000),  # how long connecting may take, whatever its name
    ("grpc.client_idle_timeout_ms", IDLE_SECONDS * 1000),
    ("grpc.keepalive_time_ms", PING_AFTER_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", PONG_SECONDS_MAX * 1000),
    ("grpc.http2.ping_timeout_ms", PONG_SECONDS_MAX * 1000),  # what newer grpc heeds, whose default is a minute
    ("grpc.http2.max_pings_without_data", 0),  # as many as it takes: nothing is said while the origin is waited for
    # The caller's own thread reads the stream. It saves two changes of thread a call, and a thread at a fork.
    # The value of grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, whose import costs 10 ms.
    ("SingleThreadedUnaryStream", 1),
)

_JUDGED = frozenset({"Fetch", "Inspect", "Verify", "Explain", "Pin"})  # calls about what not everybody may read

Result = TypeVar("Result")
Watch = Callable[[pb.Progress], None]

_stubs: dict[str, Any] = {}
_stubs_lock = threading.Lock()
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_with_views: set[Connection] = set()


class Connection:
    """One session, from Hello to the end of its connection."""

    def __init__(self, socket_dir: str, connection: handoff.Handoff, deadline: Deadline) -> None:
        """Introduce this process to the daemon at the other end of `connection`."""
        self._socket_dir = socket_dir
        self._handoff = connection
        welcome, descriptors = connection.open(deadline)
        try:
            self._page = proofs.Page(descriptors[0]) if descriptors else None
        finally:
            handoff.close_all(descriptors)
        self._token, self._credentials_for = welcome.token, welcome.credentials_for
        self._presented: dict[str, str] | None = None
        self._stub = _stub(socket_dir)

    def ended(self) -> bool:
        """Tell whether the session is over: closed here, left behind by a fork, or closed by the daemon."""
        return self._handoff.hung_up()

    def join(self, deadline: Deadline) -> handoff.Handoff:
        """Open a hand-over's own connection; the caller closes it."""
        joined = handoff.Handoff(self._socket_dir, deadline)
        try:
            joined.join(self._token, deadline)
        except BaseException:
            joined.close()
            raise
        return joined

    def present(self, deadline: Deadline) -> None:
        """Give the daemon this process's credentials for the tracking server, where it wants them, as they are now."""
        if not self._credentials_for:
            return
        headers = credentials.headers(self._credentials_for)
        if headers != self._presented:
            with self.join(deadline) as handoff:
                handoff.present(headers, deadline)
            self._presented = headers

    @contextmanager
    def _inside(self, deadline: Deadline) -> Iterator[tuple[tuple[str, str], ...]]:
        """Make one call in the block, inside the gate, with this metadata: whose the call is, and its proof."""
        with nullcontext("") if self._page is None else self._page.proof(deadline) as proof:
            forks.gate.enter()
            try:
                yield ("authorization", f"Bearer {self._token}"), ("artifactcache-proof", proof)
            finally:
                forks.gate.leave()

    def unary(self, method: str, request: object, deadline: Deadline) -> Any:
        """Make a call with one answer. Raises grpc.RpcError."""
        if method in _JUDGED:
            self.present(deadline)
        with self._inside(deadline) as metadata:
            return getattr(self._stub, method)(request, timeout=deadline.remaining(), metadata=metadata)

    def stream(self, method: str, request: object, deadline: Deadline, watch: Watch | None = None) -> list[Any]:
        """Make a call with many answers and return them; progress goes to `watch`. Raises grpc.RpcError.

        What `watch` raises breaks the call off and goes on to the caller.
        """
        answers: list[Any] = []
        if method in _JUDGED:
            self.present(deadline)
        gate = forks.gate
        with self._inside(deadline) as metadata:
            call = getattr(self._stub, method)(request, timeout=deadline.remaining(), metadata=metadata)
            gate.began(call)
            try:
                for answer in call:
                    if watch is None or not answer.HasField("progress"):
                        answers.append(answer)
                        continue
                    gate.leave()  # the watcher may take its time, or fork
                    try:
                        watch(answer.progress)
                    finally:
                        gate.enter()
            except BaseException:
                call.cancel()
                raise
            finally:
                gate.ended(call)
        return answers

    def each(self, method: str, request: object, deadline: Deadline) -> Iterator[Any]:
        """Make a call with many answers and give each as it comes. Raises grpc.RpcError, also where a fork of this
        process breaks the call off. Who does not want the rest closes it."""
        pid, gate = os.getpid(), forks.gate
        with self._inside(deadline) as metadata:
            call = getattr(self._stub, method)(request, timeout=deadline.remaining(), metadata=metadata)
            gate.began(call)
            try:
                for answer in call:
                    gate.leave()  # whoever takes it may take their time, or fork
                    try:
                        yield answer
                    finally:
                        gate.enter()
            except BaseException:
                if os.getpid() == pid:  # in a forked child it is the parent's
                    call.cancel()
                raise
            finally:
                gate.ended(call)

    def release(self, lease: int) -> None:
        """End a lease, if it has not ended with the session already. What goes wrong here goes wrong silently."""
        if self.ended():
            return
        try:
            self.unary("Release", pb.ReleaseRequest(lease=lease), Deadline(RELEASE_SECONDS_MAX))
        except (grpc.RpcError, CacheError):
            pass  # the lease ends with the session

    def view_lease(self, lease: int) -> Callable[[], None]:
        """Keep the session until it is closed or the process ends, and return what ends the lease."""
        _with_views.add(self)
        return lambda: self.release(lease)

    def await_channel(self) -> None:
        """Wait until the channel has found a daemon that was restarted."""
        deadline = Deadline(READY_SECONDS_MAX)
        forks.gate.enter()
        try:
            self._stub.Ping(pb.PingRequest(), timeout=deadline.remaining(), wait_for_ready=True)
        except grpc.RpcError:
            pass  # the call that follows says what is wrong
        finally:
            forks.gate.leave()

    def close(self) -> None:
        """End the session, and all its leases."""
        _with_views.discard(self)
        self._handoff.close()

    def __del__(self) -> None:
        connection = getattr(self, "_handoff", None)
        if connection is not None:
            connection.close()


class Session:
    """Calls the daemon, opening the session when it is first needed, and again when the daemon was restarted."""

    def __init__(self, socket_dir: str | None) -> None:
        """Talk to the daemon whose sockets are in `socket_dir`; None looks for them, as the README says."""
        self._socket_dir = socket_dir
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        _sessions.add(self)

    def call(self, operation: Callable[[Connection], Result], deadline: Deadline) -> Result:
        """Do `operation`; once more where the session turns out to be gone, again where a fork broke it off."""
        renewed = False
        while True:
            connection = self.connection(deadline)
            epoch = forks.gate.epoch
            try:
                return operation(connection)
            except grpc.RpcError as error:
                forked = forks.gate.epoch != epoch and error.code() is grpc.StatusCode.CANCELLED
                if not forked and (renewed or not _stale(connection, error)):
                    raise status.typed(error) from None
            except (DaemonUnavailable, Unauthenticated):  # from a hand-over
                if renewed or not connection.ended():
                    raise
                forked = False
            if not forked:
                renewed = True
                self.connection(deadline).await_channel()

    def connection(self, deadline: Deadline) -> Connection:
        """Return the session's connection, made anew where it has ended."""
        connection = self._connection
        if connection is not None and not connection.ended():
            return connection
        remaining = deadline.remaining()
        lock = self._lock
        if not lock.acquire(timeout=-1 if remaining is None else remaining):
            raise deadline.exceeded()
        try:
            connection = self._connection
            if connection is None or connection.ended():
                if connection is not None:
                    connection.close()
                connection = self._connection = self._connect(deadline)
            return connection
        finally:
            lock.release()

    def _connect(self, deadline: Deadline) -> Connection:
        given = self._socket_dir or os.environ.get(SOCKET_DIR_VARIABLE)
        if given:
            return _introduce(request.socket_dir(given), deadline)
        try:
            return _introduce(SYSTEM_SOCKET_DIR, deadline)
        except handoff.PASSED_OVER as error:
            absent = error
        uid = os.geteuid()
        own_dir = user_socket_dir(os.environ, uid)
        try:
            return _introduce(_own(own_dir, uid), deadline, owner=uid)
        except DaemonUnavailable as error:
            raise DaemonUnavailable(f"{error}; and of the host's own daemon: {absent}") from None

    def close(self) -> None:
        """End the session, and all its leases."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def forget(self) -> None:
        """In a forked child: leave the parent's session to the parent."""
        self._connection = None
        self._lock = threading.Lock()


def _own(socket_dir: str, uid: int) -> str:
    """Refuse a folder that somebody else made where this user's own would be: both sockets in it would be theirs."""
    try:
        found = os.lstat(socket_dir)
    except OSError:
        return socket_dir  # connecting says what is wrong
    if found.st_uid != uid or not stat.S_ISDIR(found.st_mode):
        raise DaemonUnavailable(
            f"{socket_dir} is not a folder of your own, so no daemon in it is trusted: have it removed, or set "
            "ARTIFACTCACHE_SOCKET_DIR to where your daemon's sockets are"
        )
    return socket_dir


def _introduce(socket_dir: str, deadline: Deadline, owner: int | None = None) -> Connection:
    connection = handoff.Handoff(socket_dir, deadline)
    try:
        if owner is not None and connection.peer_uid() != owner:
            raise DaemonUnavailable(f"the daemon in {socket_dir} belongs to user {connection.peer_uid()}, not to you")
        return Connection(socket_dir, connection, deadline)
    except BaseException:
        connection.close()
        raise


def _stale(connection: Connection, error: grpc.RpcError) -> bool:
    """Tell whether a call failed only because the daemon was restarted since the last one."""
    named = status.named_by_daemon(error)
    if named is None:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return named is Unauthenticated and connection.ended()


def _stub(socket_dir: str) -> Any:
    with _stubs_lock:
        stub = _stubs.get(socket_dir)
        if stub is None:
            path = os.path.join(socket_dir, GRPC_SOCKET)
            if len(os.fsencode(path)) > handoff.SOCKET_PATH_BYTES_MAX:
                raise InvalidRequest(f"{path}: too long for a socket's path; choose a shorter socket_dir")
            forks.gate.enter()
            try:
                target = "unix:" + urllib.parse.quote(os.fsencode(path))
                channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
                stub = _stubs[socket_dir] = CacheStub(channel)  # type: ignore[no-untyped-call]
            finally:
                forks.gate.leave()
        return stub


def _after_fork_in_child() -> None:
    global _stubs, _stubs_lock, _with_views
    forks.never_free(_stubs)
    _stubs, _stubs_lock, _with_views = {}, threading.Lock(), set()
    for session in list(_sessions):
        session.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
