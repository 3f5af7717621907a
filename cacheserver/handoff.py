"""The handoff socket: who a client is, and descriptors to and from it.

Law of this file: nothing that a client sends is a path, and no descriptor of a client is touched before it is known to
lie where the daemon may go.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable

from google.protobuf.message import DecodeError

from artifactcache.errors import CacheError, InvalidRequest, QuotaExceeded
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import __version__
from cacheserver.connections import STOP_SECONDS, Connection, Connections
from cacheserver.proofs import new_page
from cacheserver.sessions import Peer, Sessions
from cacheserver.stopping import Stopping
from cacheserver.store import DESCRIPTORS_MAX, Store
from cacheserver.tallies import Spread, Tally

PACKET_BYTES_MAX = 65536
# Sent to one user and not read yet. The kernel's limit for all of them is that of open files (unix(7), ETOOMANYREFS).
UNREAD_DESCRIPTORS_PER_USER_MAX = 4096

KINDS = tuple(field.name for field in pb.HandoffReply.DESCRIPTOR.fields if field.name != "failure")

_log = logging.getLogger(__name__)


class Handoff:
    """Serves the handoff socket.

    Args:
        listener: bound and listening, SOCK_SEQPACKET.
        admit: raises PermissionDenied where a user may not have a session, or not any more.
        ticks: seconds of a clock that never jumps.
        turned_away: told of everybody who got none, and why.
        credentials_for: the tracking server to which callers have to present credentials; empty where none are wanted.
    """

    def __init__(
        self,
        listener: socket.socket,
        sessions: Sessions,
        store: Store,
        admit: Callable[[Peer], None],
        turned_away: Callable[[Peer, CacheError], None],
        stopping: Stopping,
        ticks: Callable[[], float],
        credentials_for: str = "",
    ) -> None:
        self._sessions = sessions
        self._credentials_for = credentials_for
        self._store = store
        self._admit = admit
        self._turned_away = turned_away
        self._stopping = stopping
        self._ticks = ticks
        self.reply_seconds, self.failed = Spread(KINDS), Tally()
        self._joined: set[Connection] = set()
        self._lock = threading.Lock()
        self._sent: defaultdict[int, dict[Connection, int]] = defaultdict(dict)  # descriptors that may be unread
        self._connections = Connections(listener, self._answer, self._ended, self._closed)

    def start(self) -> None:
        """Takes connections from now on."""
        self._connections.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Takes no connection any more, and gives the requests under way so long to finish."""
        self._connections.stop(seconds)

    def turns(self) -> int:
        """Has the thread that hears of every connection turn once more. Returns how often it has until now."""
        return self._connections.turns()

    def hand_over_count(self) -> int:
        """How many hand-overs are under way."""
        return len(self._joined)

    def _ended(self, connection: Connection) -> None:
        with self._lock:
            self._joined.discard(connection)
        if connection.owns_session and connection.session is not None:
            self._sessions.close(connection.session)

    def _closed(self, connection: Connection) -> None:
        # Not when it ended: descriptors that nobody has read count against this process until the client lets them go.
        with self._lock:
            self._sent[connection.peer.uid].pop(connection, None)

    # -- one request ------------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection) -> bool:
        """Reads one request and answers it. Returns whether the connection goes on."""
        if connection.has_unread():
            return False  # it asks again without reading: its descriptors would pile up
        packet, fds, flags = _receive(connection)
        try:
            if not packet:
                return False
            reply, reply_fds = pb.HandoffReply(), list[int]()
            began = self._ticks()
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise InvalidRequest("The packet is too long, or carries too many descriptors.")
                reply_fds = self._do(connection, _decode(packet), fds, reply)
            except CacheError as error:
                reply = _failure(error)
            except OSError as error:  # of the store's disk, not of the socket
                _log.exception("a request on the handoff socket failed")
                reply = _failure(CacheError(f"The store cannot be read or written: {error.strerror}."))
            self._count(reply, self._ticks() - began)
            try:
                self._send(connection, reply, reply_fds)
            finally:
                for fd in reply_fds:
                    os.close(fd)
            # Who is not admitted, or does not begin with Hello, is not listened to any longer.
            return connection.session is not None
        finally:
            for fd in fds:
                os.close(fd)

    def _count(self, reply: pb.HandoffReply, seconds: float) -> None:
        kind = str(reply.WhichOneof("reply"))
        if kind == "failure":
            self.failed.add(reply.failure.error)
        else:
            self.reply_seconds.add(kind, seconds)

    def _do(
        self, connection: Connection, request: pb.HandoffRequest, fds: list[int], reply: pb.HandoffReply
    ) -> list[int]:
        kind = request.WhichOneof("request")
        try:
            self._admit(connection.peer)  # each time: who was admitted may be denied since
            beside = self._hello(connection, request.hello) if kind == "hello" else []
        except CacheError as error:
            self._turned_away(connection.peer, error)
            raise
        if kind == "hello":
            assert connection.session is not None
            reply.welcome.token, reply.welcome.version = connection.session.token, __version__
            reply.welcome.credentials_for = self._credentials_for
            reply.welcome.wants_proofs = bool(beside)
            return beside
        if connection.session is None:
            raise InvalidRequest("The first request of a connection is Hello.")
        if kind == "present":
            self._sessions.present(connection.session, request.present.headers)
            reply.presented.SetInParent()
            return []
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
            if request.blobs.limit < 0:
                raise InvalidRequest("The most descriptors to send are negative.")
            found = self._store.open_blobs(tree, request.blobs.first, request.blobs.limit or DESCRIPTORS_MAX)
            if not found:
                raise InvalidRequest(f"The tree has no blob at place {request.blobs.first}.")
            reply.blobs.count = len(found)
            return found
        if kind == "probe":
            return [self._probe(connection, _folder(fds) if fds else None, reply.probe)]
        raise InvalidRequest("The packet holds no request.")

    def _probe(self, connection: Connection, folder: int | None, reply: pb.ProbeReply) -> int:
        tried = self._store.probe.tried(folder, connection.peer.uid)
        reply.linked_as, reply.no_link, reply.no_view = tried.linked_as, tried.no_link, tried.no_view
        reply.views_path = os.fsencode(tried.views)
        reply.views_device, reply.views_inode = tried.views_found.st_dev, tried.views_found.st_ino
        reply.filesystem, reply.filesystem_id = tried.filesystem
        return tried.descriptor

    def _hello(self, connection: Connection, hello: pb.Hello) -> list[int]:
        """Returns the descriptor of the session's page, where it is a new one whose process proves its calls."""
        if connection.session is not None:
            raise InvalidRequest("This connection has said Hello already.")
        if hello.token:
            connection.session = self._sessions.join(hello.token, connection.peer)
            with self._lock:
                self._joined.add(connection)
            return []
        self._stopping.refuse()
        connection.session, connection.owns_session = self._sessions.open(connection.peer), True
        if not hello.proves_calls:
            return []
        try:
            connection.session.page, descriptor = new_page()  # nobody knows the token yet
        except CacheError:
            self._sessions.close(connection.session)
            connection.session = None
            raise
        return [descriptor]

    def _send(self, connection: Connection, reply: pb.HandoffReply, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            if fds:
                self._count_unread(connection, len(fds))
            connection.socket.sendmsg([reply.SerializeToString()], rights)
        except QuotaExceeded as error:
            connection.socket.send(_failure(error).SerializeToString())
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            busy = QuotaExceeded("The daemon has sent as many descriptors as it may: try again in a moment.")
            connection.socket.send(_failure(busy).SerializeToString())

    def _count_unread(self, connection: Connection, count: int) -> None:
        """Counts descriptors that are about to be sent. Raises QuotaExceeded where too many have not been read."""
        with self._lock:
            sent = self._sent[connection.peer.uid]
            if sum(sent.values()) + count > UNREAD_DESCRIPTORS_PER_USER_MAX:
                for other in [other for other in sent if not other.has_unread()]:
                    del sent[other]
                if sum(sent.values()) + count > UNREAD_DESCRIPTORS_PER_USER_MAX:
                    raise QuotaExceeded("Too many descriptors were sent to you and not read: read the replies.")
            sent[connection] = count


def _decode(packet: bytes) -> pb.HandoffRequest:
    try:
        return pb.HandoffRequest.FromString(packet)
    except DecodeError:
        raise InvalidRequest("The packet is no HandoffRequest.") from None


def _failure(error: CacheError) -> pb.HandoffReply:
    return pb.HandoffReply(failure=pb.Failure(error=type(error).__name__, message=str(error)))


def _folder(fds: list[int]) -> int:
    if len(fds) != 1:
        raise InvalidRequest("It carries one descriptor: that of the folder to link into.")
    return fds[0]


def _receive(connection: Connection) -> tuple[bytes, list[int], int]:
    # A client has reason to send one descriptor, and none before Hello. What finds no room the kernel drops: that
    # never waits, while closing a file of a client's own filesystem may.
    room = socket.CMSG_SPACE(4) if connection.session else 0
    packet, ancillary, flags, _ = connection.socket.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds), flags
