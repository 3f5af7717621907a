"""The connections of the handoff socket: one thread watches them all, requests are worked on in a pool.

Law of this file: no user's connections or requests, however slow, keep another user's waiting. Only the watching thread
touches what is counted here. A connection keeps its place until the client has read or thrown away what was sent on it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import os
import selectors
import socket
import struct
import termios
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cacheserver.sessions import Peer, Session

CONNECTIONS_MAX = 8192
CONNECTIONS_PER_USER_MAX = 3072
REQUESTS_MAX = 32
# A folder that a client passes may be on a filesystem of its own that never answers: then only its own requests wait.
REQUESTS_PER_USER_MAX = 8
GREETING_SECONDS = 10  # for the first packet; who sends none would only hold a place
LINGER_SECONDS = 1.0  # how often it is looked whether a connection that is over has been read to its end
STOP_SECONDS = 2
PAUSE_SECONDS = 0.05  # without it, a connection that waits for a free descriptor would keep the thread spinning
_SO_PEERGROUPS = 59
_NO_GROUPS_MAX = 65536

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Connection:
    """One client connection: whom the kernel says it is, the session it belongs to, and whether it is that session."""

    socket: socket.socket
    peer: Peer
    greet_by: float
    session: Session | None = None
    owns_session: bool = False

    def has_unread(self) -> bool:
        """Whether something that was sent has not been read yet (SIOCOUTQ of unix(7))."""
        return bool(struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


class Connections:
    """Takes connections, and has their requests answered.

    Args:
        listener: bound and listening, SOCK_SEQPACKET.
        answer: reads one request and answers it; returns whether the connection goes on. Raises OSError where the
            client has gone.
        ended: told of every connection that is over, at once.
        closed: told of it again before its socket is closed, which is later where the client has not read what was
            sent on it.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Connection], bool],
        ended: Callable[[Connection], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._ended = ended
        self._closed = closed
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pool = ThreadPoolExecutor(max_workers=REQUESTS_MAX, thread_name_prefix="handoff")
        self._thread = threading.Thread(target=self._watch, name="handoff", daemon=True)
        self._answered: deque[tuple[Connection, bool]] = deque()  # by the workers; deque.append needs no lock
        self._stopping = False
        self._turn_count = 0
        # The watching thread's own:
        self._of_user: Counter[int] = Counter()
        self._busy: Counter[int] = Counter()
        self._waiting: defaultdict[int, deque[Connection]] = defaultdict(deque)
        self._silent: dict[Connection, None] = {}  # nothing heard yet, the oldest first
        self._lingering: list[Connection] = []  # over, but not read to the end
        self._look_again_at = 0.0

    def start(self) -> None:
        """Takes connections from now on."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Takes no connection and no request any more, and gives those under way so long to finish."""
        self._stopping = True
        self._wake()
        until = time.monotonic() + seconds
        self._thread.join(seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)
        while self._busy.total() and time.monotonic() < until:
            self._reap()
            time.sleep(PAUSE_SECONDS)
        for connection in self._lingering:
            connection.socket.close()
        self._listener.close()

    def turns(self) -> int:
        """Has the watching thread turn once more. Returns how often it has until now."""
        # Read before: that turn may come at once, and would be taken for one since the last time at one look too early.
        count = self._turn_count
        self._wake()
        return count

    # -- the watching thread ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - this thread is the only one: without it nobody is served any more
                _log.exception("watching the connections failed")
                time.sleep(PAUSE_SECONDS)

    def _turn(self) -> None:
        for chosen, _ in self._selector.select(timeout=1 if self._silent or self._lingering else None):
            if chosen.fileobj is self._listener:
                self._accept()
            elif chosen.fileobj == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                self._selector.unregister(chosen.fileobj)
                self._begin(chosen.data)
        self._turn_count += 1
        self._reap()
        now = time.monotonic()
        while self._silent and (oldest := next(iter(self._silent))).greet_by < now:
            self._selector.unregister(oldest.socket)
            self._end(oldest)
        if self._look_again_at < now:  # not at every turn: there may be thousands
            self._look_again_at = now + LINGER_SECONDS
            over, self._lingering = self._lingering, []
            for connection in over:
                self._close_if_read(connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # the client has gone already, or descriptors have run out
            _log.warning("a connection could not be taken: %s", error.strerror)
            time.sleep(PAUSE_SECONDS)
            return
        peer = _peer(client)
        if self._of_user[peer.uid] >= CONNECTIONS_PER_USER_MAX or self._of_user.total() >= CONNECTIONS_MAX:
            client.close()
            return
        client.setblocking(False)  # a client that asks and does not read is hung up on, not waited for
        connection = Connection(client, peer, time.monotonic() + GREETING_SECONDS)
        self._of_user[peer.uid] += 1
        self._silent[connection] = None
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _begin(self, connection: Connection) -> None:
        """Has a request worked on, or lets it wait for the same user's others."""
        self._silent.pop(connection, None)
        uid = connection.peer.uid
        if self._busy[uid] >= REQUESTS_PER_USER_MAX:
            self._waiting[uid].append(connection)
            return
        self._busy[uid] += 1
        self._pool.submit(self._work, connection)

    def _reap(self) -> None:
        """Takes back the connections whose requests are answered."""
        while self._answered:
            connection, alive = self._answered.popleft()
            uid = connection.peer.uid
            self._busy[uid] -= 1
            if alive and not self._stopping:
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            else:
                self._end(connection)
            if uid in self._waiting and not self._stopping:
                following = self._waiting[uid].popleft()
                if not self._waiting[uid]:
                    del self._waiting[uid]
                self._begin(following)

    def _end(self, connection: Connection) -> None:
        self._silent.pop(connection, None)
        self._ended(connection)
        with contextlib.suppress(OSError):  # the client has closed its end
            connection.socket.shutdown(socket.SHUT_RDWR)
        _throw_away(connection.socket)
        self._close_if_read(connection)

    def _close_if_read(self, connection: Connection) -> None:
        """Closes a connection that is over, unless something on it is unread: that stays in the client's socket, and
        counts against this process, also when this end is closed. The kernel throws it away once the client closes.
        """
        if connection.has_unread():  # POLLHUP would not do: a client that shuts down both ways keeps what it was sent
            self._lingering.append(connection)
            return
        self._of_user[connection.peer.uid] -= 1
        self._closed(connection)
        connection.socket.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # -- the workers ------------------------------------------------------------------------------------------------

    def _work(self, connection: Connection) -> None:
        alive = False
        try:
            alive = self._answer(connection)
        except OSError:  # the client has gone
            pass
        except Exception:  # noqa: BLE001 - a defect here must not end the daemon
            _log.exception("a request on the handoff socket failed")
        finally:
            self._answered.append((connection, alive))
            self._wake()


def _throw_away(client: socket.socket) -> None:
    """Drops what a client has sent and nobody will read, with the descriptors beside it. One of them may be its own
    end, which would live on in there, and keep its place, after the client has closed it."""
    with contextlib.suppress(OSError):
        # A packet of no bytes looks like the end, but for its sender's credentials, for which there is no room.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        while client.recvmsg(1)[2] & socket.MSG_CTRUNC:
            pass


def _peer(client: socket.socket) -> Peer:
    pid, uid, gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _NO_GROUPS_MAX)
    except OSError:
        raw = b""
    return Peer(uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, pid, tuple(array.array("I", raw)))
