"""An origin that fails on command: a reverse proxy before the real MLflow server, and the ways in which it can fail.

What a fault does is said once, in `FAULTS`; when it begins and ends is the test's. What is asked is counted always.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.rig.mlflow_server import MlflowServer

_DOWNLOADS = "/api/2.0/mlflow-artifacts/artifacts/"
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "server"})
HANG_SECONDS_MAX = 120.0
UPSTREAM_SECONDS_MAX = 60.0
CHUNK_BYTES = 64 << 10
PIECES = 8  # of an answer that comes slowly
PIECE_SECONDS = 0.1
NEVER_SECONDS = "3600"  # how long a server may ask to be left alone: nobody waits for that
RST_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of socket(7)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the real server says, whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request, and what a fault can do with it.

    Attributes:
        turn: how many came before it since this fault began.
        over: set when the fault has ended, or the origin is closed.
    """

    turn: int
    over: threading.Event

    def __init__(self, handler: _Handler, server: MlflowServer) -> None:
        self._handler = handler
        self._server = server
        self.path = unquote(urlsplit(handler.path).path)
        self._body = handler.rfile.read(int(handler.headers.get("content-length", 0)))

    @property
    def is_download(self) -> bool:
        """Whether it asks for bytes of a file, or for its entity tag."""
        return self._handler.command == "GET" and self.path.startswith(_DOWNLOADS)

    def ask(self) -> Answer:
        """The real server's answer."""
        with self._upstream() as reply:
            return Answer(reply.status, _kept(reply), reply.read())

    @contextlib.contextmanager
    def _upstream(self) -> Iterator[http.client.HTTPResponse]:
        handler, there = self._handler, urlsplit(self._server.uri).netloc
        upstream = http.client.HTTPConnection(there, timeout=UPSTREAM_SECONDS_MAX)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
            upstream.request(handler.command, handler.path, self._body, headers | {"Host": there})
            yield upstream.getresponse()
        finally:
            upstream.close()

    def head(self, answer: Answer, claimed_bytes: int | None) -> None:
        """Send the head, which claims that so many bytes follow; None: as chunks."""
        self._handler.send_response(answer.status)
        for name, value in answer.headers:
            self._handler.send_header(name, value)
        length = ("Transfer-Encoding", "chunked") if claimed_bytes is None else ("Content-Length", str(claimed_bytes))
        self._handler.send_header(*length)
        self._handler.end_headers()

    def write(self, data: bytes) -> None:
        """Send some of the body."""
        if self._handler.command != "HEAD":
            self._handler.wfile.write(data)

    def relay(self) -> None:
        """Answer as the real server does, and as soon."""
        with self._upstream() as reply:
            is_chunked = reply.length is None
            self.head(Answer(reply.status, _kept(reply), b""), reply.length)
            while chunk := reply.read(CHUNK_BYTES):
                self.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if is_chunked else chunk)
            self.write(b"0\r\n\r\n" if is_chunked else b"")

    def refuse(self, status: int, retry_after: str = "") -> None:
        """Answer that it cannot be done now."""
        body = b"<html>the disk is on fire</html>"
        self.head(Answer(status, [("Retry-After", retry_after)] if retry_after else [], body), len(body))
        self.write(body)

    def hang_up(self) -> None:
        """End the connection in order."""
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End the connection with a RST, as a host does that has crashed meanwhile."""
        self._handler.close_connection = True
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
        os.close(self._handler.connection.detach())

    def rewrite(self) -> None:
        """Exchange the file on the server's disk for another one of the same size, as if it had been logged again."""
        file: Path = self._server.artifacts / self.path.removeprefix(_DOWNLOADS)
        other = file.with_name(f".{file.name}-{threading.get_ident()}")
        other.write_bytes(bytes([(file.read_bytes()[0] + 1) % 256]) * file.stat().st_size)
        other.rename(file)


def _kept(reply: http.client.HTTPResponse) -> list[tuple[str, str]]:
    return [pair for pair in reply.getheaders() if pair[0].lower() not in _HOP_BY_HOP | {"content-length"}]


Fault = Callable[[Exchange], None]


def _slow(exchange: Exchange) -> None:
    """Everything comes, in pieces."""
    answer = exchange.ask()
    exchange.head(answer, len(answer.body))
    step = len(answer.body) // PIECES + 1
    for begin in range(0, len(answer.body), step):
        exchange.over.wait(PIECE_SECONDS)
        exchange.write(answer.body[begin : begin + step])


def _hangs(exchange: Exchange) -> None:
    """Nothing comes: now before the head, now in the middle of the body."""
    if exchange.turn % 2:
        _first_half(exchange)
    exchange.over.wait(HANG_SECONDS_MAX)
    exchange.hang_up()


def _first_half(exchange: Exchange) -> None:
    """The first half of what there is; of its rest nothing, so that there is no progress without an end."""
    answer = exchange.ask()
    exchange.head(answer, len(answer.body))
    if answer.status != 206:
        exchange.write(answer.body[: len(answer.body) // 2])


def _half_answers(exchange: Exchange) -> None:
    """The first half comes, and the connection ends."""
    _first_half(exchange)
    exchange.hang_up()


def _resets(exchange: Exchange) -> None:
    """The connection is reset: before the head, or in the middle of the body."""
    if exchange.turn % 2:
        _first_half(exchange)
    exchange.reset()


def _storm(exchange: Exchange) -> None:
    """Errors of a server and of what stands before it, some of which ask for a pause: none, a second, an hour."""
    status, retry_after = _STORM[exchange.turn % len(_STORM)]
    exchange.refuse(status, retry_after)


_STORM = ((503, ""), (500, ""), (502, ""), (503, "0"), (504, ""), (429, "1"), (503, NEVER_SECONDS))


def _wrong_lengths(exchange: Exchange) -> None:
    """The head claims one byte less than there is, one more, none, beyond all disks; or the last chunk is missing."""
    answer = exchange.ask()
    there = len(answer.body)
    claimed = (max(there - 1, 0), there + 1, 0, 1 << 40, None)[exchange.turn % 5]
    exchange.head(answer, claimed)
    if claimed is None:
        exchange.write(b"%x\r\n%b\r\n" % (there, answer.body) if there else b"")
    else:
        exchange.write(answer.body[:claimed])
    exchange.hang_up()


def _changing(exchange: Exchange) -> None:
    """A file becomes another one of the same size while it is downloaded: after a half, which is all that comes."""
    if not exchange.is_download or exchange.turn % 3 == 0:
        exchange.relay()
    else:
        _first_half(exchange)
        exchange.rewrite()
        exchange.hang_up()


FAULTS: dict[str, Fault] = {
    "slow": _slow,
    "hangs": _hangs,
    "half answers": _half_answers,
    "resets": _resets,
    "5xx storm": _storm,
    "wrong lengths": _wrong_lengths,
    "changing": _changing,
}


class UnsteadyOrigin:
    """The origin as the daemon sees it.

    Attributes:
        uri: its tracking URI.
        downloads: requests for bytes of files, by path.
        question_count: all other requests.
    """

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self.downloads: Counter[str] = Counter()
        self.question_count = 0
        self._lock = threading.Lock()
        self._fault: Fault = Exchange.relay
        self._of_downloads_only = False
        self._turns = itertools.count()
        self._over = threading.Event()
        self._http = _Server(self)
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @contextlib.contextmanager
    def failing(self, kind: str, *, of_downloads_only: bool = False) -> Iterator[None]:
        """Everything that is asked in this block fails so; what hangs is let go at its end."""
        self._begin(FAULTS[kind], of_downloads_only)
        try:
            yield
        finally:
            self._begin(Exchange.relay, False)

    def forget(self) -> None:
        """Count from now on."""
        with self._lock:
            self.downloads.clear()
            self.question_count = 0

    def close(self) -> None:
        """Stop serving, and let go what hangs."""
        self._begin(Exchange.relay, False)
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: _Handler) -> None:
        """One request."""
        exchange = Exchange(handler, self.server)
        with self._lock:
            exchange.turn, exchange.over = next(self._turns), self._over
            fault = self._fault if exchange.is_download or not self._of_downloads_only else Exchange.relay
            if exchange.is_download:
                self.downloads[exchange.path] += 1
            else:
                self.question_count += 1
        fault(exchange)

    def _begin(self, fault: Fault, of_downloads_only: bool) -> None:
        with self._lock:
            self._over.set()
            self._over, self._turns = threading.Event(), itertools.count()
            self._fault, self._of_downloads_only = fault, of_downloads_only


@contextlib.contextmanager
def unsteady_origin(server: MlflowServer) -> Iterator[UnsteadyOrigin]:
    """An origin for the length of a block."""
    origin = UnsteadyOrigin(server)
    try:
        yield origin
    finally:
        origin.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, origin: UnsteadyOrigin) -> None:
        self.origin = origin
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no defect of this proxy."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""

    def do_GET(self) -> None:
        self.server.origin.answer(self)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET
