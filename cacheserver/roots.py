"""Answers of the tracking server taken apart: roots, numbers and stamps.

Law of this file: what is not what it should be is Corrupted, or InvalidRequest where a client wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from artifactcache.errors import Corrupted, InvalidRequest
from cacheserver import names
from cacheserver.local import LOCAL_SCHEMES
from cacheserver.refusals import without_credentials
from cacheserver.uris import Artifact, literal


def number(artifact: Artifact, found: Any) -> int:
    """The version of a registered model, in an answer. Raises Corrupted."""
    number = str(found.version)
    if not number.isdecimal():
        raise Corrupted(f"{artifact.base}: the origin answers without a version.")
    return int(number)


def stamp(version: Any) -> str:
    """When a version of a registered model was made."""
    return str(version.creation_timestamp or "")


def root(what: str, uri: Any) -> str:
    """Where bytes are, in an answer. Raises Corrupted."""
    try:
        if isinstance(uri, str) and uri and uri.encode() and "\0" not in (tidy := _tidy(uri)):  # an escape may be one
            return tidy
    except UnicodeEncodeError:  # half a surrogate pair
        pass
    raise Corrupted(f"{what}: the origin answers without saying where its artifacts are.")


def folders(run_id: str, models: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Of the logged models that a run names those that MLflow shows as folders of it (since 3.0): their names and
    places. Raises Corrupted."""
    newest: dict[str, Any] = {}  # of several of one name, MLflow shows one
    for model in sorted(models, key=lambda model: model.creation_timestamp):
        if model.source_run_id == run_id:
            newest[model.name] = model
    return tuple((model.name, root(model.model_id, model.artifact_location)) for model in newest.values())


def local_path(root: str) -> str:
    """The folder of a local root.

    A URI has its escapes decoded where it comes in, a client's as a whole by `uris.parse`, the tracking server's root,
    below which paths are plain names, by `_tidy`; from there on root and path are taken literally.
    """
    if not scheme(root):
        return root
    path = root.partition(":")[2]
    return "/" + path[2:].partition("/")[2] if path.startswith("//") else path


def scheme(uri: str) -> str:
    """The scheme of a URI, in lower case; empty for a path."""
    head, colon, _ = uri.partition(":")
    return head.lower() if colon and "/" not in head else ""


def server(uri: str) -> str:
    """Host and port, with the user where there is one. Raises InvalidRequest."""
    try:
        return urlsplit(uri).netloc
    except ValueError:  # half an IPv6 address
        raise InvalidRequest(f"{names.show(without_credentials(uri))} is no URL.") from None


def store(root: str) -> str:
    """Which artifact store a root is in: its scheme and its server. Raises InvalidRequest."""
    return f"{scheme(root)}://{server(root)}"


def _tidy(uri: str) -> str:
    """The root as the index knows it: without a slash at its end; a local one without escapes, as MLflow reads it."""
    uri = literal(uri) if scheme(uri) in LOCAL_SCHEMES else uri
    return uri.rstrip("/") if len(uri.rstrip("/")) > 1 else uri
