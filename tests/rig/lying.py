"""An origin that speaks just enough of MLflow's REST interface to lie about artifacts.

Each run is one `Lie`: what its folders list, and how a download answers. `HONEST` is what MLflow's own client can
download from; a test makes sure of that, so that a lie is refused for what it is and not for a defect of this server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = "/api/2.0"
DOWNLOADS = f"{API}/mlflow-artifacts/artifacts"
HANG_SECONDS_MAX = 30.0

Listing = list[dict[str, Any]]
Answer = Callable[["Reply"], None]


def file(path: str, size: object = 10) -> dict[str, Any]:
    """A file in a listing; `size` is what the listing claims."""
    return {"path": path, "is_dir": False, "file_size": size}


def folder(path: str) -> dict[str, Any]:
    """A folder in a listing."""
    return {"path": path, "is_dir": True}


class Reply:
    """What a lie can do with one HTTP connection."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler

    @property
    def target(self) -> str:
        """What the request line asks for: a path, or of a proxy a whole URL."""
        return self._handler.path

    @property
    def peer(self) -> tuple[str, int]:
        """Who asks: each connection has a port of its own."""
        host, port = self._handler.client_address[:2]
        return str(host), int(port)

    def header(self, name: str) -> str:
        """A header of the request; empty where there is none."""
        return self._handler.headers.get(name, "")

    def head(self, status: int = 200, **headers: object) -> None:
        """Send the status line and the headers, with `_` for `-`."""
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), str(value))
        self._handler.end_headers()

    def write(self, data: bytes) -> None:
        """Send bytes as they are; none where only the headers were asked for."""
        if self._handler.command != "HEAD":
            self._handler.wfile.write(data)

    def hang_up(self) -> None:
        """Close the connection, as a server that dies does."""
        self._handler.wfile.flush()
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Say nothing until the other side gives up, or the test ends."""
        self._handler.server.origin.closing.wait(HANG_SECONDS_MAX)
        self.hang_up()

    def json(self, value: object, status: int = 200) -> None:
        """Send a whole JSON answer."""
        self.sized(json.dumps(value).encode(), status)

    def sized(self, body: bytes, status: int = 200) -> None:
        """Send a whole answer with its Content-Length."""
        self.head(status, Content_Length=len(body))
        self.write(body)


def sends(body: bytes) -> Answer:
    """A download that is whole as HTTP goes, with Content-Length."""
    return lambda reply: reply.sized(body)


def sends_chunked(body: bytes) -> Answer:
    """A download that is whole as HTTP goes, in chunks."""

    def answer(reply: Reply) -> None:
        reply.head(Transfer_Encoding="chunked")
        reply.write((b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n")

    return answer


def sends_until_close(body: bytes) -> Answer:
    """A download without a length, which ends when the connection does: nobody can tell that it is short."""

    def answer(reply: Reply) -> None:
        reply.head(Connection="close")
        reply.write(body)
        reply.hang_up()

    return answer


def breaks_off(body: bytes, claimed_bytes: int) -> Answer:
    """A download that promises more than it sends before it hangs up."""

    def answer(reply: Reply) -> None:
        reply.head(Content_Length=claimed_bytes)
        reply.write(body)
        reply.hang_up()

    return answer


def breaks_off_chunked(body: bytes) -> Answer:
    """A download in chunks that hangs up before the last one."""

    def answer(reply: Reply) -> None:
        reply.head(Transfer_Encoding="chunked")
        reply.write(b"%x\r\n%b\r\n" % (len(body), body))
        reply.hang_up()

    return answer


def fails(status: int) -> Answer:
    """An error of the server."""
    return lambda reply: reply.json({"error_code": "INTERNAL_ERROR", "message": "the disk is on fire"}, status)


def hangs() -> Answer:
    """No answer at all."""
    return lambda reply: reply.hang()


@dataclasses.dataclass(frozen=True)
class Lie:
    """What one run's artifacts pretend to be: `listing(path)` of a folder, and `download(path)` of a file."""

    listing: Callable[[str], Listing | Answer]
    download: Callable[[str], Answer] = lambda path: sends(b"0123456789")


def flat(*entries: dict[str, Any]) -> Callable[[str], Listing]:
    """A listing of the root only; everything below lists nothing."""
    return lambda path: list(entries) if not path else []


HONEST = Lie(
    lambda path: {
        "": [file("MLmodel", 10), folder("data")],
        "data": [file("a.bin", 10), file("empty", 0)],
    }.get(path, []),
    lambda path: sends(b"" if path.endswith("empty") else b"0123456789"),
)


class LyingOrigin:
    """The server; `uri` is its tracking URI."""

    def __init__(self) -> None:
        self.lies: dict[str, Lie] = {}
        self.answers: dict[str, object] = {}  # JSON to give instead of an answer, by the path below the REST interface
        self.download_count = 0
        self.listing_count = 0
        self.request_count = 0
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def run(self, lie: Lie) -> str:
        """A run whose artifacts are this lie; returns its ID."""
        run_id = uuid.uuid4().hex
        self.lies[run_id] = lie
        return run_id

    def close(self) -> None:
        """Stop serving, and let everything that hangs go."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, reply: Reply, path: str, query: dict[str, list[str]]) -> None:
        """One GET request."""
        self.request_count += 1
        if path in ("/health", "/version"):
            return reply.sized(b"3.17.2" if path == "/version" else b"OK")
        if path.removeprefix(f"{API}/mlflow/") in self.answers:
            return reply.json(self.answers[path.removeprefix(f"{API}/mlflow/")])
        if path == f"{API}/mlflow/runs/get":
            run_id = (query.get("run_id") or query.get("run_uuid") or [""])[0]
            return reply.json({"run": _run(run_id)}) if run_id in self.lies else _missing(reply)
        if path == DOWNLOADS:
            return self._list(reply, query.get("path", [""])[0])
        if path.startswith(f"{DOWNLOADS}/"):
            run_id, _, inside = path.removeprefix(f"{DOWNLOADS}/").partition("/")
            self.download_count += 1
            return self.lies[run_id].download(inside)(reply) if run_id in self.lies else _missing(reply)
        return _missing(reply)

    def posted(self, reply: Reply, path: str, body: bytes) -> None:
        """One POST request."""
        reply.json({})

    def _list(self, reply: Reply, path: str) -> None:
        self.listing_count += 1
        run_id, _, inside = path.strip("/").partition("/")
        if run_id not in self.lies:
            return _missing(reply)
        listing = self.lies[run_id].listing(inside)
        return listing(reply) if callable(listing) else reply.json({"files": listing})


def run_info(run_id: str) -> dict[str, Any]:
    """What the server says of a run."""
    return {
        "run_id": run_id,
        "run_uuid": run_id,
        "experiment_id": "1",
        "user_id": "nobody",
        "status": "FINISHED",
        "start_time": 1,
        "end_time": 2,
        "artifact_uri": f"mlflow-artifacts:/{run_id}",
        "lifecycle_stage": "active",
    }


def _run(run_id: str) -> dict[str, Any]:
    return {"info": run_info(run_id), "data": {}, "inputs": {}, "outputs": {}}


def _missing(reply: Reply) -> None:
    reply.json({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing here"}, 404)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    origin: LyingOrigin

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up on a liar is right."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.origin.answer(Reply(self), unquote(parts.path), parse_qs(parts.query, keep_blank_values=True))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.origin.posted(Reply(self), urlsplit(self.path).path, body)


@contextlib.contextmanager
def lying_origin() -> Iterator[LyingOrigin]:
    """A server for the length of a block."""
    origin = LyingOrigin()
    try:
        yield origin
    finally:
        origin.close()
