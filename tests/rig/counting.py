"""A reverse proxy in front of the real MLflow server that counts artifact bytes, and can hold or break downloads.

What is counted is what the origin sent as bodies of artifact downloads, by path. Listings are not counted.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.rig.until import until

_DOWNLOADS = "/api/2.0/mlflow-artifacts/artifacts/"
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "server"})
_CHUNK_BYTES = 64 << 10
HOLD_SECONDS_MAX = 60.0


class CountingProxy:
    """The origin as the daemon sees it: `uri` is its tracking URI."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.bytes_by_path: collections.Counter[str] = collections.Counter()
        self.downloads_by_path: collections.Counter[str] = collections.Counter()
        self.requests_waiting = 0
        self.request_count = 0
        self.break_after_bytes: int | None = None
        self.lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self._answering = threading.Event()
        self._answering.set()
        self.stall_after_bytes: int | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self.bare: Callable[[str], bool] = lambda path: False
        self._server: _Server | None = None
        self.port = 0
        self.connect()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def bytes(self) -> int:
        """Artifact bytes sent so far."""
        with self.lock:
            return self.bytes_by_path.total()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Every download that begins in this block waits until its end before it gets its first byte."""
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Every request in this block is taken, and not answered before its end."""
        self._answering.clear()
        try:
            yield
        finally:
            self._answering.set()

    @contextlib.contextmanager
    def misrouting(self, which: Callable[[str], bool] = lambda path: True) -> Iterator[None]:
        """Every request in this block for such a path gets 404 and a page of the proxy's own: its backend is gone."""
        self.bare = which
        try:
            yield
        finally:
            self.bare = lambda path: False

    @contextlib.contextmanager
    def stalling(self, after_bytes: int) -> Iterator[None]:
        """Every download in this block stops after `after_bytes` of its body, and goes on at the block's end."""
        self._flowing.clear()
        self.stall_after_bytes = after_bytes
        try:
            yield
        finally:
            self.stall_after_bytes = None
            self._flowing.set()

    def wait_for_download(self, count: int = 1) -> None:
        """Wait until `count` downloads are being held."""
        until(lambda: self.requests_waiting >= count, f"{count} downloads to begin")

    @contextlib.contextmanager
    def breaking_off(self, after_bytes: int) -> Iterator[None]:
        """Every download in this block is cut after `after_bytes` of its body."""
        self.break_after_bytes = after_bytes
        try:
            yield
        finally:
            self.break_after_bytes = None

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens in this block: connections are refused."""
        self.disconnect()
        try:
            yield
        finally:
            self.connect()

    def connect(self) -> None:
        """Listen, at the same port as before."""
        self._server = _Server(self, self.port)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def disconnect(self) -> None:
        """Stop listening, and cut every connection that is open."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()

    def wait_to_answer(self) -> None:
        """Called by every request."""
        self._answering.wait(HOLD_SECONDS_MAX)

    def wait_to_flow(self) -> None:
        """Called by a download that has sent as much as it may."""
        self._flowing.wait(HOLD_SECONDS_MAX)

    def wait_at_gate(self) -> None:
        """Called by a download before its first byte."""
        with self.lock:
            self.requests_waiting += 1
        released = self._gate.wait(HOLD_SECONDS_MAX)
        with self.lock:
            self.requests_waiting -= 1
        assert released, "a test held a download for too long"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: CountingProxy, port: int) -> None:
        self.proxy = proxy
        self.open_requests: set[_Handler] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def cut(self) -> None:
        """Close every connection."""
        for request in list(self.open_requests):
            with contextlib.suppress(OSError):
                request.connection.shutdown(2)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no defect of the proxy."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open_requests.add(self)

    def finish(self) -> None:
        self.server.open_requests.discard(self)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""

    def do_GET(self) -> None:
        proxy = self.server.proxy
        path = unquote(urlsplit(self.path).path)
        is_download = self.command == "GET" and path.startswith(_DOWNLOADS)
        with proxy.lock:
            proxy.request_count += 1
        proxy.wait_to_answer()
        if proxy.bare(path):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            return self.send_error(404)
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=HOLD_SECONDS_MAX)
        try:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            upstream.request(self.command, self.path, body, headers | {"Host": proxy.upstream})
            reply = upstream.getresponse()
            if is_download:
                proxy.wait_at_gate()
            self._relay(reply, path if is_download and reply.status < 300 else None)
        finally:
            upstream.close()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def _relay(self, reply: http.client.HTTPResponse, counted_as: str | None) -> None:
        proxy = self.server.proxy
        self.send_response(reply.status, reply.reason)
        for name, value in reply.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        is_chunked = reply.getheader("content-length") is None and self.command != "HEAD"
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if counted_as is not None:
            with proxy.lock:
                proxy.downloads_by_path[counted_as] += 1
        sent_bytes = 0
        while chunk := reply.read(_CHUNK_BYTES):
            limit = proxy.break_after_bytes
            cut = counted_as is not None and limit is not None and sent_bytes + len(chunk) > limit
            if cut:
                chunk = chunk[: (limit or 0) - sent_bytes]
            if counted_as is not None:  # before it is sent: who has it may ask for the count at once
                with proxy.lock:
                    proxy.bytes_by_path[counted_as] += len(chunk)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if is_chunked and chunk else chunk)
            sent_bytes += len(chunk)
            if cut:
                self.close_connection = True
                return
            if counted_as is not None and proxy.stall_after_bytes is not None and sent_bytes >= proxy.stall_after_bytes:
                proxy.wait_to_flow()
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
