"""The handoff socket: who a client is, and descriptors to and from it.

Law of this file: nothing that a client sends is a path. One thread watches all connections; a request is worked on in a
pool, and its connection is watched again when it has its answer.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from artifactcache.errors import CacheError, InvalidRequest, PermissionDenied
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import __version__
from cacheserver.sessions import Peer, Session, Sessions
from cacheserver.store import Store

PACKET_BYTES_MAX = 65536
DESCRIPTORS_PER_PACKET_MAX = 4  # a client has reason to send one
CONNECTIONS_MAX = 8192
WORKERS_MAX = 16
ACCEPT_PAUSE_SECONDS = 0.05  # without it, a connection that waits for a free descriptor would keep the thread spinning
_SO_PEERGROUPS = 59
_NO_GROUPS_MAX = 65536

_log = logging.getLogger(__name__)


@dataclass
class Connection:
    """One client connection: whom the kernel says it is, the session it belongs to, and whether it is that session."""

    socket: socket.socket
    peer: Peer
    session: Session | None = None
    owns_session: bool = False


class Handoff:
    """Serves the handoff socket.

    Args:
        listener: bound and listening, SOCK_SEQPACKET.
        admits: whether a user may have a session.
    """

    def __init__(
        self, listener: socket.socket, sessions: Sessions, store: Store, admits: Callable[[Peer], bool]
    ) -> None:
        self._listener = listener
        self._sessions = sessions
        self._store = store
        self._admits = admits
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._again: list[Connection] = []  # answered, and to be watched again by the watching thread
        self._lock = threading.Lock()
        self._stopping = False
        self._count = 0
        self._pool = ThreadPoolExecutor(max_workers=WORKERS_MAX, thread_name_prefix="handoff")
        self._thread = threading.Thread(target=self._watch, name="handoff", daemon=True)

    def start(self) -> None:
        """Takes connections from now on."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Takes no connection any more, and lets the requests under way finish."""
        self._stopping = True
        self._wake()
        self._thread.join()
        self._pool.shutdown(wait=True)
        self._listener.close()

    # -- the watching thread ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping:
            for chosen, _ in self._selector.select():
                if chosen.fileobj is self._listener:
                    self._accept()
                elif chosen.fileobj == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                else:
                    self._selector.unregister(chosen.fileobj)
                    self._pool.submit(self._serve, chosen.data)
            with self._lock:
                again, self._again = self._again, []
            for connection in again:
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # the client has gone already, or descriptors have run out
            _log.warning("a connection could not be taken: %s", error.strerror)
            time.sleep(ACCEPT_PAUSE_SECONDS)
            return
        if self._count >= CONNECTIONS_MAX:
            client.close()
            return
        self._count += 1
        client.setblocking(False)  # a client that asks and does not read is hung up on, not waited for
        self._selector.register(client, selectors.EVENT_READ, Connection(client, _peer(client)))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # -- one request ------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        try:
            alive = self._answer(connection)
        except OSError:  # the client has gone
            alive = False
        except Exception:  # noqa: BLE001 - a defect here must not end the daemon
            _log.exception("a request on the handoff socket failed")
            alive = False
        if not alive or self._stopping:
            self._hang_up(connection)
            return
        with self._lock:
            self._again.append(connection)
        self._wake()

    def _answer(self, connection: Connection) -> bool:
        """Reads one request and answers it. Returns whether the connection goes on."""
        packet, fds, flags = _receive(connection.socket)
        try:
            if not packet:
                return False
            reply, reply_fds = pb.HandoffReply(), list[int]()
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise InvalidRequest("The packet is too long, or carries too many descriptors.")
                reply_fds = self._do(connection, _decode(packet), fds, reply)
            except CacheError as error:
                reply.failure.error, reply.failure.message = type(error).__name__, str(error)
            except OSError as error:  # of the store's disk, not of the socket
                _log.exception("a request on the handoff socket failed")
                reply.failure.error = CacheError.__name__
                reply.failure.message = f"The store cannot be read or written: {error.strerror}."
            try:
                _send(connection.socket, reply.SerializeToString(), reply_fds)
            finally:
                for fd in reply_fds:
                    os.close(fd)
            # Who is not admitted, or does not begin with Hello, is not listened to any longer.
            return connection.session is not None
        finally:
            for fd in fds:
                os.close(fd)

    def _do(
        self, connection: Connection, request: pb.HandoffRequest, fds: list[int], reply: pb.HandoffReply
    ) -> list[int]:
        kind = request.WhichOneof("request")
        if kind == "hello":
            self._hello(connection, request.hello.token)
            assert connection.session is not None
            reply.welcome.token, reply.welcome.version = connection.session.token, __version__
            return []
        if connection.session is None:
            raise InvalidRequest("The first request of a connection is Hello.")
        if kind == "manifest":
            reply.manifest.SetInParent()
            return [self._store.open_manifest(self._sessions.leased(connection.session, request.manifest.lease))]
        if kind == "link":
            tree = self._sessions.leased(connection.session, request.link.lease)
            reply.link.file_count = self._store.link(tree, _folder(fds), connection.peer.uid)
            return []
        if kind == "blobs":
            tree = self._sessions.leased(connection.session, request.blobs.lease)
            if request.blobs.first < 0:
                raise InvalidRequest("The first blob's place is negative.")
            found = self._store.open_blobs(tree, request.blobs.first)
            if not found:
                raise InvalidRequest(f"The tree has no blob at place {request.blobs.first}.")
            reply.blobs.count = len(found)
            return found
        raise InvalidRequest("The packet holds no request.")

    def _hello(self, connection: Connection, token: str) -> None:
        if connection.session is not None:
            raise InvalidRequest("This connection has said Hello already.")
        if not self._admits(connection.peer):
            raise PermissionDenied(
                f"This daemon serves only the user who started it (uid {os.geteuid()}), and you are uid"
                f" {connection.peer.uid}. Start one of your own, or ask the administrator for a system daemon."
            )
        if token:
            connection.session = self._sessions.join(token, connection.peer)
        else:
            connection.session = self._sessions.open(connection.peer)
            connection.owns_session = True

    def _hang_up(self, connection: Connection) -> None:
        if connection.owns_session and connection.session is not None:
            self._sessions.close(connection.session)
        connection.socket.close()
        self._count -= 1


def _peer(client: socket.socket) -> Peer:
    pid, uid, gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _NO_GROUPS_MAX)
    except OSError:
        raw = b""
    return Peer(uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, pid, tuple(array.array("I", raw)))


def _decode(packet: bytes) -> pb.HandoffRequest:
    try:
        return pb.HandoffRequest.FromString(packet)
    except DecodeError:
        raise InvalidRequest("The packet is no HandoffRequest.") from None


def _folder(fds: list[int]) -> int:
    if len(fds) != 1 or not stat.S_ISDIR(os.fstat(fds[0]).st_mode):
        raise InvalidRequest("A LinkRequest carries one descriptor: that of the folder to link into.")
    return fds[0]


def _receive(client: socket.socket) -> tuple[bytes, list[int], int]:
    room = socket.CMSG_SPACE(DESCRIPTORS_PER_PACKET_MAX * 4)
    packet, ancillary, flags, _ = client.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds), flags


def _send(client: socket.socket, packet: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    client.sendmsg([packet], rights)
