"""HTTP: connections that are kept, and answers that come in time.

Law of this file: credentials go to the host that was meant and to no other; and no packet is waited for longer than
`patience`.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from cacheserver.throttle import Throttle

CONNECTIONS_MAX = 32  # kept to one host: as many as there are downloads from it at a time
QUESTIONS_MAX = 16  # to one host at a time, however quickly it answers
REDIRECTS_MAX = 5
QUICK_BYTES_MAX = 1 << 18  # of a body for which 40 ms are long
MESSAGE_BYTES_MAX = 65536
_USUAL_PORTS = {"http": 80, "https": 443}


class Access(NamedTuple):
    """What a request needs beside its URL.

    Attributes:
        headers: credentials and whatever else a header plugin wants.
        verify: whether the server's certificate is checked; a path checks it against the certificates there.
        client_cert: path of our own certificate, or None.
        is_signed: whether it is of use for this one request only.
    """

    headers: Mapping[str, str]
    verify: bool | str
    client_cert: str | None
    is_signed: bool = False


class StatusError(OSError):
    """The server answered with a status that is no success, and perhaps with one of MLflow's error codes."""

    def __init__(self, code: int, message: str, retry_after: str = "", error_code: str = "", date: str = "") -> None:
        super().__init__(f"HTTP {code}{f': {message}' if message else ''}")
        self.code = code
        self.date = date
        self.error_code = error_code
        self.retry_after = retry_after


class ElsewhereError(OSError):
    """The server redirects to another host, which nobody has named and whom nobody trusts."""


class _Quick:
    """Acknowledges what arrives at once.

    MLflow's usual server sends head and body of an answer in two packets without TCP_NODELAY: it holds the second one
    back until the first is acknowledged, which Linux delays by 40 ms. TCP_QUICKACK (tcp(7)) acknowledges what is here
    at once, and what comes next only perhaps: so it is set when the head is here. Not where much follows: each packet
    of it would be acknowledged by itself, which costs the server an eighth of its time.
    """

    sock: socket.socket | None

    def getresponse(self) -> Any:
        answer = super().getresponse()  # type: ignore[misc]
        if self.sock is not None and (answer.length_remaining or 0) < QUICK_BYTES_MAX:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return answer


class _Plain(_Quick, HTTPConnection):
    pass


class _Secure(_Quick, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Adapter(HTTPAdapter):
    """Finds the pool for a URL, with the proxies and certificates of the environment; requests' way of one request
    costs three times what urllib3's does."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
        return manager


class Http:
    """GET requests, to any number of hosts, from any number of threads.

    Args:
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._session = requests.Session()
        self._adapter = _Adapter(pool_connections=CONNECTIONS_MAX, pool_maxsize=CONNECTIONS_MAX)
        self._throttles: defaultdict[str, Throttle] = defaultdict(lambda: Throttle(QUESTIONS_MAX, ticks))
        self._pools: dict[tuple[str, str, bool | str, str | None], HTTPConnectionPool] = {}

    @contextlib.contextmanager
    def get(
        self, url: str, access: Access, patience: float, headers: Mapping[str, str] | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer of status 200 or 206, its body still to be read. Redirects are followed on the same host only.

        Args:
            patience: seconds that it, or the next part of it, may take.

        Raises StatusError, ElsewhereError, and what urllib3 raises.
        """
        answer = self._ask(url, access, patience, headers)
        try:
            for _ in range(REDIRECTS_MAX):
                target = answer.get_redirect_location()
                if not target:
                    break
                following = _elsewhere(url, target)
                answer.close()
                url, answer = following, self._ask(following, access, patience, headers)
            if answer.status not in (200, 206):
                message, error_code = _said(answer)
                told = answer.headers
                raise StatusError(answer.status, message, told.get("Retry-After", ""), error_code, told.get("Date", ""))
            yield answer
        finally:
            if answer.length_remaining or (answer.length_remaining is None and not answer.closed):
                answer.close()  # what was not read would be the beginning of the next answer
            else:  # one without a body ends when it is read: else whoever frees it later ends it under the next request
                answer.drain_conn()
            answer.release_conn()

    def _ask(
        self, url: str, access: Access, patience: float, headers: Mapping[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        parts, pool = urlsplit(url), self._pool(url, access)
        host = parts.netloc.rpartition("@")[2]
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = {"Accept-Encoding": "identity", **access.headers, **(headers or {})}
        if pool.proxy and parts.scheme == "http":  # such a proxy is told by the request itself whom it is for
            target = f"http://{host}{target}"
            sent |= {"Host": host, **self._adapter.proxy_headers(pool.proxy.url)}
        # Until the answer begins: its body keeps nobody waiting.
        with self._throttles[host].question(patience):
            return pool.urlopen(
                "GET",
                target,
                headers=sent,
                preload_content=False,
                redirect=False,
                assert_same_host=False,  # it would take a proxy for the host
                retries=False,
                timeout=urllib3.Timeout(connect=patience, read=patience),
            )

    def _pool(self, url: str, access: Access) -> HTTPConnectionPool:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc, access.verify, access.client_cert)
        found = self._pools.get(key)
        if found is None:
            host = f"{parts.scheme}://{parts.netloc}/"
            request = requests.Request("GET", host).prepare()
            settings = self._session.merge_environment_settings(host, {}, False, access.verify, access.client_cert)
            found = self._pools[key] = self._adapter.get_connection_with_tls_context(
                request, settings["verify"], settings["proxies"], settings["cert"]
            )
        return found


def _elsewhere(url: str, target: str) -> str:
    """Where a redirect leads. Raises ElsewhereError where that is another host, or none."""
    try:
        following = urljoin(url, target)
        if _same_host(url, following):
            return following
        named = str(urlsplit(following).hostname)
    except ValueError:
        raise ElsewhereError("it redirects to what is no URL") from None
    raise ElsewhereError(f"it redirects to {named}, which is another host")


def same_server(one: str, other: str) -> bool:
    """Whether two URLs are of one server: the same scheme, host and port, which may be left out where it is usual."""
    try:
        return _server(one) == _server(other)
    except ValueError:  # a port that is none
        return False


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _USUAL_PORTS.get(parts.scheme)


def _same_host(one: str, other: str) -> bool:
    """Whether a redirect stays where it was sent: the same server, or its TLS side."""
    a, b = urlsplit(one), urlsplit(other)
    return _server(one) == _server(other) or (a.hostname == b.hostname and (a.scheme, b.scheme) == ("http", "https"))


def _said(answer: urllib3.BaseHTTPResponse) -> tuple[str, str]:
    """What the server says is wrong: message and error code of MLflow's JSON; anything else is left out."""
    try:
        said = json.loads(answer.read(MESSAGE_BYTES_MAX))
        return str(said.get("message", "")), str(said.get("error_code", ""))
    except (ValueError, AttributeError, RecursionError, OSError, urllib3.exceptions.HTTPError):
        return "", ""
