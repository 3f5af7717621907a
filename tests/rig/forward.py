"""A forward proxy: it takes requests for any host, and knows by itself where that is.

It speaks HTTP/1.1 with absolute URIs, as clients ask a proxy for plain HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-authorization", "proxy-connection", "transfer-encoding"})


class Forward(ThreadingHTTPServer):
    """One that is running. `asked` counts requests by the host that they are for, `logins` are those it was told."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hosts: dict[str, str], renamed: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hosts = hosts
        self.renamed = renamed
        self.asked: Counter[str] = Counter()
        self.logins = set[str]()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Forward

    def _forward(self) -> None:
        target = urlsplit(self.path)
        self.server.asked[target.netloc] += 1
        self.server.logins.add(self.headers.get("proxy-authorization", ""))
        upstream = self.server.hosts.get(target.netloc)
        if upstream is None:
            self.send_error(502)
            return
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        connection = http.client.HTTPConnection(upstream, timeout=30)
        try:
            connection.putrequest(
                self.command,
                target.path + ("?" + target.query if target.query else ""),
                skip_host=True,
                skip_accept_encoding=True,
            )
            is_renamed = target.hostname == self.server.renamed
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, upstream if is_renamed and name.lower() == "host" else value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("content-length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""


@contextlib.contextmanager
def forward(hosts: dict[str, str], renamed: str = "") -> Iterator[Forward]:
    """A running one.

    Args:
        hosts: by `host:port` that is asked for, the `host:port` where that is.
        renamed: a host that hears its own name in the request, for it answers to no other.
    """
    server = Forward(hosts, renamed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
