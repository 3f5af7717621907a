"""What MLflow's own client would send to the tracking server of this process: the caller's credentials.

Law of this file: they are those of one server. Where this process has another tracking server than the daemon, the
daemon's is told nothing. The order is that of MLflow and of requests below it: a URL's own login, then ~/.netrc, then
MLFLOW_TRACKING_USERNAME and _PASSWORD or ~/.mlflow/credentials, then MLFLOW_TRACKING_TOKEN, and header plugins.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import netrc
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote, urlsplit

VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "NETRC",
    "HOME",
)
HEADER_PLUGINS = "mlflow.request_header_provider"  # MLflow's group of entry points
_USUAL_PORTS = {"http": 80, "https": 443}

Stamp = tuple[int, int, int]


def headers(server: str) -> dict[str, str]:
    """Return the HTTP headers that MLflow would send to `server` for this process; none where it has another server.

    Args:
        server: the daemon's tracking URI, without credentials.
    """
    tracking_uri = _tracking_uri() or server
    if not _same(tracking_uri, server):
        return {}
    environ = tuple((name, os.environ.get(name, "")) for name in VARIABLES)
    found = {}
    if _has_header_plugins():
        from mlflow.tracking.request_header.registry import resolve_request_headers

        found = {str(name): str(value) for name, value in resolve_request_headers().items() if name != "User-Agent"}
    paths = _netrc_path(), _credentials_path()
    if login := _authorization(tracking_uri, environ, *paths, *(_stamp(path) for path in paths)):
        found["Authorization"] = login
    return found


def sources(server: str) -> list[str]:
    """Name what this process has credentials for `server` from, what counts first; nothing of what is in them."""
    tracking_uri = _tracking_uri() or server
    if not _same(tracking_uri, server):
        return []
    told = {name: os.environ.get(name, "") for name in VARIABLES}
    logins = _logins(tracking_uri, told, _netrc_path(), _credentials_path())
    found = [name for name, user, password in logins if user and password]
    found += ["MLFLOW_TRACKING_TOKEN"] if told["MLFLOW_TRACKING_TOKEN"] else []
    return found + (["a header plugin of MLflow's"] if _has_header_plugins() else [])


def files() -> list[str]:
    """Return the files that credentials may be in."""
    return [_credentials_path(), _netrc_path()]


def _tracking_uri() -> str:
    """The tracking server of this process, as MLflow knows it where it is loaded."""
    mlflow = sys.modules.get("mlflow")
    with contextlib.suppress(Exception):  # it is being imported, or is another package of that name
        if mlflow is not None and mlflow.is_tracking_uri_set():
            return str(mlflow.get_tracking_uri())
    return os.environ.get("MLFLOW_TRACKING_URI", "")


@lru_cache(maxsize=8)
def _authorization(
    uri: str,
    environ: tuple[tuple[str, str], ...],
    netrc_path: str,
    credentials_path: str,
    _netrc_stamp: Stamp | None,
    _credentials_stamp: Stamp | None,
) -> str:
    """The Authorization header, or an empty text. Remembered as long as variables and files stay as they are."""
    told = dict(environ)
    for _, user, password in _logins(uri, told, netrc_path, credentials_path):
        if user and password:
            return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    return f"Bearer {told['MLFLOW_TRACKING_TOKEN']}" if told["MLFLOW_TRACKING_TOKEN"] else ""


def _logins(
    uri: str, told: Mapping[str, str], netrc_path: str, credentials_path: str
) -> Iterator[tuple[str, str, str]]:
    """Where a user and a password may stand, and those that do, what counts first."""
    yield "the tracking URI", *_of_url(uri)
    yield netrc_path, *_of_netrc(uri, netrc_path)
    user, password = _of_mlflow(told, credentials_path)
    are_variables = [bool(told[name]) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")]
    name = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if all(are_variables) else credentials_path
    yield name, user, password


def _of_url(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return unquote(parts.username or ""), unquote(parts.password or "")


def _of_netrc(uri: str, path: str) -> tuple[str, str]:
    try:
        found = netrc.netrc(path).authenticators(urlsplit(uri).hostname or "")
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return "", ""
    return (found[0] or found[1] or "", found[2] or "") if found else ("", "")


def _of_mlflow(environ: Mapping[str, str], path: str) -> tuple[str, str]:
    """User and password of the variables, each by itself before that of MLflow's file."""
    file = configparser.ConfigParser()
    try:
        file.read(path)
        section = dict(file["mlflow"]) if "mlflow" in file else {}
    except (configparser.Error, UnicodeDecodeError, OSError):
        section = {}
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    user, password = (environ[name] or section.get(name.lower(), "") for name in names)
    return user, password


def _netrc_path() -> str:
    return os.environ.get("NETRC") or os.path.expanduser("~/.netrc")


def _credentials_path() -> str:
    return os.path.expanduser("~/.mlflow/credentials")


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _has_header_plugins() -> bool:
    """Whether a package of this process gives MLflow headers: then MLflow is there too, and is asked for them."""
    from importlib.metadata import entry_points

    return bool(entry_points(group=HEADER_PLUGINS))


def _same(one: str, other: str) -> bool:
    try:
        return _server(one) == _server(other)
    except ValueError:  # a port that is none
        return False


def _server(uri: str) -> tuple[str, str | None, int | None, str]:
    parts = urlsplit(uri)
    port = parts.port or _USUAL_PORTS.get(parts.scheme.lower())
    return parts.scheme.lower(), parts.hostname, port, parts.path.rstrip("/")
