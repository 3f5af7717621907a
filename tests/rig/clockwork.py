"""A stand-in for a tracking server that answers looks as it is told: with another clock, another status, or never."""

from __future__ import annotations

import contextlib
import email.utils
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_SECONDS_MAX = 60.0


class Clockwork(ThreadingHTTPServer):
    """Answers every GET alike.

    Attributes:
        ahead_seconds: of its clock.
        status: of its answers.
        hangs: whether it takes connections and answers nothing.
        asked: how often it was asked anything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ahead_seconds = 0.0
        self.status = 200
        self.hangs = False
        self.asked = 0
        self.closing = threading.Event()

    @property
    def uri(self) -> str:
        """Its tracking URI."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Clockwork
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.hangs:
            self.server.closing.wait(HANG_SECONDS_MAX)
            self.close_connection = True
            return
        body = b"{}"
        self.send_response_only(self.server.status)
        self.send_header("Date", email.utils.formatdate(time.time() + self.server.ahead_seconds, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def clockwork() -> Iterator[Clockwork]:
    """One, for as long as this lasts."""
    server = Clockwork()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
