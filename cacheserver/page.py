"""The page to look at, over HTTP on a loopback address.

Law of this file: without a key nobody is shown anything but the page's own files, which are the same for all. What a
browser can be made to ask by another site is refused: a name that only leads here (the Host header), another site's
script (Origin, Sec-Fetch-Site), and there is no cookie, for those of one host go to all its ports, other users' servers
among them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from artifactcache.errors import CacheError, DaemonUnavailable, InvalidRequest, PermissionDenied, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.entrance import Entrance
from cacheserver.sessions import Peer
from cacheserver.visitors import reply

_log = logging.getLogger(__name__)

SCRIPTS = ("page", "map", "treemap", "charts", "words")
ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
METHODS = {"/enter": ("POST",), "/overview": ("GET",)} | dict.fromkeys(ASSETS, ("GET", "HEAD"))
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src"
    " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_JSON = "application/json"
_STATUS: dict[type[CacheError], str] = {
    InvalidRequest: "400 Bad Request",
    Unauthenticated: "401 Unauthorized",
    PermissionDenied: "403 Forbidden",
    DaemonUnavailable: "503 Service Unavailable",
}


class Site:
    """What is at the page's address.

    Args:
        entrance: who is let in.
        overview: what somebody may see, with the history since a time.
        admit: raises PermissionDenied where the daemon does not serve somebody any more.
    """

    def __init__(
        self,
        entrance: Entrance,
        overview: Callable[[Peer, float], pb.OverviewReply],
        admit: Callable[[Peer], None],
    ) -> None:
        self._entrance = entrance
        self._overview = overview
        self._admit = admit
        port = entrance.address.rpartition(":")[2]
        self._hosts = {entrance.address, f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}
        folder = files("cacheserver").joinpath("assets")
        self._assets = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in ASSETS.items()}

    def answer(self, head: bytes, now: float) -> bytes:
        """What a request gets, of which all lines but those of a body are here."""
        try:
            method, target, headers = _read(head)
            path, _, query = target.partition("?")
            if headers.get("host", "") not in self._hosts:
                return _words("421 Misdirected Request", "This is not the name of the page.")
            if path not in METHODS:
                return _words("404 Not Found", "There is nothing here.")
            if method not in METHODS[path]:
                return _words("405 Method Not Allowed", "This is not how it is asked for.", Allow=METHODS[path][0])
            if path in self._assets:
                body, kind = self._assets[path]
                found = reply("200 OK", kind, body, HEADERS)
                return found if method == "GET" else found[: found.index(b"\r\n\r\n") + 4]
            _refuse_others(headers)
            return _document("200 OK", self._enter(headers) if path == "/enter" else self._shown(headers, query))
        except CacheError as error:
            status = _STATUS.get(type(error), "500 Internal Server Error")
            return _document(status, {"error": type(error).__name__, "message": str(error)})
        except Exception:  # noqa: BLE001 - what is shown goes wrong, and nothing else
            _log.exception("the page cannot be shown")
            return _document("500 Internal Server Error", {"error": "CacheError", "message": "See the daemon's log."})

    def _enter(self, headers: Mapping[str, str]) -> dict[str, Any]:
        return {"key": self._entrance.enter(_secret(headers, "ticket"))}

    def _shown(self, headers: Mapping[str, str], query: str) -> Any:
        peer = self._entrance.whose(_secret(headers, "bearer"))
        self._admit(peer)
        try:
            since = float(parse_qs(query).get("since", ["0"])[0])
        except ValueError:
            raise InvalidRequest("since is a number of seconds.") from None
        return plain(self._overview(peer, since))


def _read(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers of a request. Raises InvalidRequest."""
    first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() in headers:
            raise InvalidRequest(f"The header {name} is there twice.")
        headers[name.lower()] = value.strip()
    return method, rest.partition(" ")[0], headers


def _refuse_others(headers: Mapping[str, str]) -> None:
    """Raises PermissionDenied where another site has made a browser ask."""
    if headers.get("origin", f"http://{headers['host']}") != f"http://{headers['host']}":
        raise PermissionDenied("Another site asks for this.")
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise PermissionDenied("Another site asks for this.")


def _secret(headers: Mapping[str, str], kind: str) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() != kind:
        raise Unauthenticated("Run `artifactcache page`, and open the address that it prints.")
    return secret


def _words(status: str, words: str, **more: str) -> bytes:
    return reply(status, "text/plain; charset=utf-8", f"{words}\n".encode(), HEADERS | more)


def _document(status: str, value: Any) -> bytes:
    return reply(status, _JSON, json.dumps(value, allow_nan=False).encode("ascii"), HEADERS)


def plain(value: Any) -> Any:
    """A message as JSON has it. Numbers stay numbers (protobuf's own JSON makes texts of large ones), and what has no
    end is the text "Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity"
    if not hasattr(value, "DESCRIPTOR"):
        return value
    return {one.name: _field(getattr(value, one.name)) for one in value.DESCRIPTOR.fields}


def _field(value: Any) -> Any:
    return (
        plain(value) if isinstance(value, (str, int, float)) or hasattr(value, "DESCRIPTOR") else [*map(plain, value)]
    )
