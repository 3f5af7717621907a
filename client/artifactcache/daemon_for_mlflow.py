"""The daemon as MLflow's repositories need it, and what they do where it cannot serve.

Law of this file: no error of ours reaches a caller of MLflow. What MLflow will fail with by itself is left to it in
silence; where the cache is to blame it says so once. It speaks through `logging`, for a warning of Python's may be an
error in the caller's tests.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from artifactcache import temporary
from artifactcache.client import Client
from artifactcache.errors import (
    CacheError,
    DaemonUnavailable,
    DeadlineExceeded,
    DestinationExists,
    InvalidRequest,
    ModeUnavailable,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
)
from artifactcache.paths import SOCKET_DIR_VARIABLE
from artifactcache.servers import server

ANSWER_SECONDS_MAX = 5.0  # of a daemon that works, for a call that reads nothing but memory
REFUSAL_SECONDS_MAX = 1.0  # one that took longer is not waited for by every download
PAUSE_SECONDS = 60.0  # before a daemon that did not answer in time is asked again
ORIGIN_SECONDS_MAX = 2.0  # of a tracking server that is up, for its /health
MLMODEL_BYTES_MAX = 1 << 20

_logger = logging.getLogger("artifactcache")
_MODEL_ID = re.compile(rb"^model_id: *['\"]?(m-[0-9a-f]{32})['\"]?\s*$", re.M)

_clients: dict[str | None, Client] = {}
_logged_models: dict[str, str | None] = {}
_warned: set[str] = set()
_paused_until: dict[str | None, float] = {}
"""By folder of sockets, on the clock `time.monotonic`."""


class Unserved(Exception):
    """This is none of the daemon's business, and no fault of anybody."""


def attempt(serve: Callable[[], str], repository: Any) -> str | None:
    """Let the daemon serve. None where MLflow is to do it; an MlflowException where the tracking server is down."""
    try:
        return serve()
    except (Unserved, NotFound, InvalidRequest, DestinationExists) as error:
        _logger.debug("MLflow downloads by itself: %s", error)
    except OriginUnavailable as error:
        _refuse_where_nobody_answers(tracking_uri_of(repository), error)
        _warn(error)
    except CacheError as error:
        _warn(error)
    except Exception as error:  # noqa: BLE001 - MLflow's own errors, which it will raise again, and defects of ours
        if not type(error).__module__.startswith("mlflow."):
            _warn(error)
    return None


def tracking_uri_of(repository: Any) -> str:
    """The tracking URI of one of MLflow's repositories."""
    import mlflow

    return str(repository.tracking_uri or mlflow.get_tracking_uri())


class Daemon:
    """A daemon that has answered a moment ago, and whose origin is the caller's own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    def serving(cls, tracking_uris: list[str]) -> Daemon:
        """Return the daemon. Raises Unserved where it has another tracking server than all of these, or CacheError."""
        if _workspace():
            raise Unserved("the daemon knows no workspaces")
        socket_dir = os.environ.get(SOCKET_DIR_VARIABLE) or None
        if time.monotonic() < _paused_until.get(socket_dir, 0.0):
            raise Unserved("the daemon did not answer in time a moment ago")
        client = _clients.get(socket_dir) or _clients.setdefault(socket_dir, Client(socket_dir))
        began = time.monotonic()
        try:
            its = client.whoami(timeout=ANSWER_SECONDS_MAX).tracking_uri
        except CacheError as error:
            if time.monotonic() - began > REFUSAL_SECONDS_MAX:
                _paused_until[socket_dir] = time.monotonic() + PAUSE_SECONDS
            if isinstance(error, DeadlineExceeded):
                raise DaemonUnavailable(f"the daemon has not answered within {ANSWER_SECONDS_MAX:g} s") from None
            if isinstance(error, InvalidRequest):  # nothing that MLflow asked for, but where the sockets are said to be
                raise DaemonUnavailable(str(error)) from None
            raise
        served = server(its)
        if served is None or any(server(uri) != served for uri in tracking_uris):
            raise Unserved(f"the daemon serves {its}")
        return cls(client)

    def place(self, uri: str, target: str) -> str:
        """Merge an artifact into `target`, as files of the caller's own; return its version.

        Not by hard link, whoever calls: MLflow and its users open what they were given for writing.
        """
        existed = os.path.lexists(target)
        fetched = self._client.fetch(uri, target, writable=True, exists="merge")
        if fetched.file_count == 0:  # of empty folders MLflow thinks in many ways
            if not existed and os.path.isdir(target) and not os.listdir(target):
                os.rmdir(target)
            raise Unserved(f"{uri} is empty")
        return fetched.version

    def are_the_same(self, uri: str, other: str) -> bool:
        """Tell whether two URIs are the same tree now."""
        try:
            first, second = self._client.warm(uri, other)
        except NotFound:
            return False
        return first.digest == second.digest

    def holds_the_same(self, version: str, uri: str) -> bool:
        """Tell whether what a version has is what is kept at a bare URI, as far as the daemon knows."""
        try:
            digest = self._client.warm(version)[0].digest
            return self._client.inspect(uri).artifact.digest == digest
        except (NotFound, InvalidRequest, OriginUnavailable, PermissionDenied):
            return False

    def logged_model_at(self, uri: str) -> str | None:
        """The logged model that a folder of a run is, as its MLmodel says; remembered for as long as the process.

        Not that there is none, before something was placed from there: it may be logged yet.
        """
        if uri not in _logged_models:
            try:
                said = _MODEL_ID.search(self._read(f"{uri}/MLmodel"))
                _logged_models[uri] = f"models:/{said[1].decode()}" if said else None
            except (NotFound, OriginUnavailable):  # what is held, where the tracking server is down, has none
                return None
        return _logged_models[uri]

    def is_no_logged_model(self, uri: str) -> None:
        """Remember that a folder of a run has files of its own, and no MLmodel."""
        _logged_models.setdefault(uri, None)

    def _read(self, uri: str) -> bytes:
        """The beginning of a file. A container that has the sockets need not have the store: then from a copy."""
        try:
            with self._client.fetch(uri) as found, open(found, "rb") as file:
                return file.read(MLMODEL_BYTES_MAX)
        except ModeUnavailable:
            folder = temporary.make()
        try:
            with open(self._client.fetch(uri, os.path.join(folder, "file"), writable=True), "rb") as file:
                return file.read(MLMODEL_BYTES_MAX)
        finally:
            temporary.remove(folder)


def _workspace() -> str | None:
    try:
        from mlflow.utils.workspace_context import get_request_workspace
    except ImportError:  # MLflow has had workspaces since 3.10
        return None
    name: str | None = get_request_workspace()
    return name


def _refuse_where_nobody_answers(uri: str, error: OriginUnavailable) -> None:
    """Raise what MLflow raises of a tracking server that is down, if it is down for this process too."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    if urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        http_request(
            get_default_host_creds(uri),
            "/health",
            "GET",
            max_retries=0,
            timeout=ORIGIN_SECONDS_MAX,
            raise_on_status=False,
        )
    except Exception:  # noqa: BLE001 - requests, urllib3 and MLflow raise many things
        raise MlflowException(f"API request failed, and the cache does not hold this: {error}") from None


def _warn(error: Exception) -> None:
    """Say once what is wrong with the cache."""
    kind = type(error).__name__
    if kind in _warned:
        _logger.debug("MLflow downloads by itself: %s: %s", kind, error)
        return
    _warned.add(kind)
    _logger.warning(
        "artifactcache does not serve, so MLflow downloads by itself: %s: %s (said once; ARTIFACTCACHE=off ends this)",
        kind,
        error,
    )
