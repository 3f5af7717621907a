"""The way to a server, over TCP: what moves on it is counted by the host that it moves for, and it fails on command.

It passes bytes on, and knows of HTTP only where a request begins, and how long an answer says that it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

KINDS = ("slow", "silent", "half answers", "absent")
SLOW_BYTES_PER_SECOND = 256 << 10  # of all connections together
HELD_SECONDS_MAX = 120.0
PIECE_BYTES = 8 << 10
_CHUNK_BYTES = 256 << 10
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE|PATCH|OPTIONS) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_RST_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of socket(7)


@dataclasses.dataclass
class Moved:
    """What has moved for one host: bytes to the server and from it, heads of HTTP and all; requests, by method."""

    up: int = 0
    down: int = 0
    requests: Counter[str] = dataclasses.field(default_factory=Counter)


class _Spell:
    """How the link is for a while: `kind`, or "" where it is well; `over` is set at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.over = threading.Event()
        self.narrow = threading.Lock()


class Link:
    """A listening socket, and the server behind it.

    Args:
        listen: makes the listening socket, each time that the link is opened.
        connect: makes a connection to the server.

    Attributes:
        moved: by the address of the host.
        pauses: how often bytes were held back because the link was slow.
    """

    def __init__(self, listen: Callable[[], socket.socket], connect: Callable[[], socket.socket]) -> None:
        self.moved: defaultdict[str, Moved] = defaultdict(Moved)
        self.pauses = 0
        self._listen = listen
        self._connect = connect
        self._lock = threading.Lock()
        self._spell = _Spell("")
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        self.open()

    def open(self) -> None:
        """Take connections from now on, at the same address as before."""
        if self._listener is not None:
            return
        self._listener = self._listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Take no connection any more: they are refused. Those that are open are cut."""
        if self._listener is None:
            return
        self._listener.shutdown(socket.SHUT_RDWR)  # so that accept() ends
        self._listener.close()
        self._listener = None
        self._become("")
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.shut()

    @contextlib.contextmanager
    def failing(self, kind: str) -> Iterator[None]:
        """Everything on it in this block is so, on connections that were open before as well.

        "slow" is `SLOW_BYTES_PER_SECOND`; "silent" takes everything, and gives nothing, and is cut at the end; of "half
        answers" the second half is missing, of body or head, and the connection ends; who is "absent" refuses.
        """
        assert kind in KINDS
        if kind == "absent":
            self.close()
        else:
            self._become(kind)
        try:
            yield
        finally:
            if kind == "absent":
                self.open()
            else:
                self._become("")

    def total(self) -> Moved:
        """What has moved for all hosts."""
        with self._lock:
            found = list(self.moved.values())
        requests = sum((one.requests for one in found), Counter[str]())
        return Moved(sum(one.up for one in found), sum(one.down for one in found), requests)

    def forget(self) -> None:
        """Count from now on."""
        with self._lock:
            self.moved.clear()

    def _become(self, kind: str) -> None:
        before, self._spell = self._spell, _Spell(kind)
        before.over.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, (host, *_) = listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._serve, args=(client, host), daemon=True).start()

    def _serve(self, client: socket.socket, host: str) -> None:
        try:
            server = self._connect()
        except OSError:  # nobody is there: the client is to be told so, and not that all has been said
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_AT_CLOSE)
            client.close()
            return
        connection = _Connection(client, server)
        with self._lock:
            self._connections.add(connection)
        back = threading.Thread(target=self._pump, args=(connection, host, server, client), daemon=True)
        back.start()
        self._pump(connection, host, client, server)
        back.join()
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _pump(self, connection: _Connection, host: str, source: socket.socket, target: socket.socket) -> None:
        """Pass on what comes from one end, until it ends."""
        is_up = source is connection.client
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            while count := source.recv_into(buffer):
                chunk, spell = buffer[:count], self._spell
                if spell.kind == "silent":
                    spell.over.wait(HELD_SECONDS_MAX)
                    return connection.shut()
                if is_up:
                    connection.note_request(chunk)
                elif spell.kind == "half answers":
                    chunk = connection.half_of(chunk)
                self._count(connection, host, chunk, is_up)
                if spell.kind == "slow":
                    self._trickle(spell, target, chunk)
                else:
                    target.sendall(chunk)
                if len(chunk) < count:
                    return connection.shut()
            if is_up:
                return target.shutdown(socket.SHUT_WR)  # the answer may be still to come
        except OSError:  # one of them has hung up
            pass
        return connection.shut()

    def _count(self, connection: _Connection, host: str, chunk: memoryview, is_up: bool) -> None:
        """Before it is sent: who has it may ask for the count at once."""
        with self._lock:
            moved = self.moved[host]
            if not is_up:
                moved.down += len(chunk)
                return
            moved.up += len(chunk)
            if connection.begins_request:
                moved.requests[connection.method] += 1

    def _trickle(self, spell: _Spell, target: socket.socket, chunk: memoryview) -> None:
        for begin in range(0, len(chunk), PIECE_BYTES):
            with spell.narrow:
                self.pauses += not spell.over.wait(PIECE_BYTES / SLOW_BYTES_PER_SECOND)
            target.sendall(chunk[begin : begin + PIECE_BYTES])


class _Connection:
    """A client's, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.method = ""
        self.begins_request = False
        self._half: int | None = None  # of the answer, what may still pass; None: its head is yet to come
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def note_request(self, chunk: memoryview) -> None:
        """Of what the client says: whether a request begins here. The answer before has ended then."""
        found = _REQUEST.match(chunk)
        self.begins_request = found is not None
        if found:
            self.method, self._half = found[1].decode(), None

    def half_of(self, chunk: memoryview) -> memoryview:
        """Of what the server says: what lies before the answer's middle."""
        if self._half is None:
            head, end, _ = bytes(chunk).partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            has_body = bool(end and length and int(length[1]) and self.method != "HEAD")
            self._half = len(head + end) + int(length[1]) // 2 if has_body and length else len(head) // 2
        passed = chunk[: self._half]
        self._half -= len(passed)
        return passed

    def shut(self) -> None:
        """Wake whoever waits for either of them."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody uses them any more."""
        self.client.close()
        self.server.close()


def door(port: int, connect: Callable[[], socket.socket]) -> Link:
    """A way for the tests' own process, at a port of the loopback address, to where it is not."""
    return Link(functools.partial(socket.create_server, ("127.0.0.1", port)), connect)
