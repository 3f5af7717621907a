"""Artifact URIs: what a client may name, and how it is read.

Law of this file: a URI is taken literally. MLflow's own parser drops what follows `#` and `?`; here they are characters
of a name like any other, so that two artifacts never answer to one URI. Only in a `file:` URI are escapes decoded, all
of them and once, as MLflow does: the canonical URI has the file's plain name, in which `%20` is `%20`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from urllib.parse import unquote

from artifactcache.errors import InvalidRequest
from cacheserver import names

URI_LENGTH_MAX = 4096

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,255}")
_LOGGED_MODEL_ID = re.compile(r"m-[A-Za-z0-9_\-]{1,255}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_FORMS = (
    "Write runs:/<run id>/<path>, models:/<name>/<version>, models:/<name>@<alias>, models:/<name>/latest, "
    "models:/m-<id>, or a bare artifact URI such as s3://bucket/path."
)


class Kind(Enum):
    """What the first part of an artifact URI names."""

    RUN = auto()
    LOGGED_MODEL = auto()
    MODEL_VERSION = auto()
    MODEL_ALIAS = auto()
    MODEL_LATEST = auto()
    MODEL_STAGE = auto()
    BARE = auto()


MOVING = frozenset({Kind.MODEL_ALIAS, Kind.MODEL_LATEST, Kind.MODEL_STAGE})


@dataclass(frozen=True)
class Artifact:
    """An artifact URI, taken apart.

    Attributes:
        kind: what is named.
        name: the run's ID, the logged model's ID, the registered model's name, or the bare URI.
        selector: the version, alias or stage of a registered model; else empty.
        path: the path below it, without slashes at its ends; always empty for a bare URI.
    """

    kind: Kind
    name: str
    selector: str = ""
    path: str = ""

    @property
    def base(self) -> str:
        """The canonical URI without the path."""
        match self.kind:
            case Kind.RUN:
                return f"runs:/{self.name}"
            case Kind.LOGGED_MODEL:
                return f"models:/{self.name}"
            case Kind.MODEL_ALIAS:
                return f"models:/{self.name}@{self.selector}"
            case Kind.BARE:
                return self.name
            case _:
                return f"models:/{self.name}/{self.selector}"

    @property
    def uri(self) -> str:
        """The canonical URI."""
        return f"{self.base}/{self.path}" if self.path else self.base

    def at_version(self, version: str) -> Artifact:
        """The same path below one version of the registered model."""
        return replace(self, kind=Kind.MODEL_VERSION, selector=version)


def parse(uri: str) -> Artifact:
    """Reads an artifact URI. Raises InvalidRequest."""
    if not uri or len(uri) > URI_LENGTH_MAX:
        raise InvalidRequest(f"The URI {uri[:80]!r} is empty or longer than {URI_LENGTH_MAX} characters. {_FORMS}")
    if "\0" in uri:
        raise InvalidRequest(f"The URI {uri!r} contains a NUL byte.")
    found = _SCHEME.match(uri)
    if not found:
        raise InvalidRequest(f"{names.show(uri)} is no artifact URI. {_FORMS}")
    scheme, rest = found[1].lower(), uri[found.end() :]
    if scheme == "runs":
        return _run(uri, rest)
    if scheme == "models":
        return _model(uri, rest)
    return _bare(uri, scheme, rest)


def stored(uri: str) -> Artifact:
    """What a URI of ours stands for, as it was written down. Raises InvalidRequest where another release has done so.

    That of a file has no escapes any more: read as a caller's, a `%20` of its name would become a space.
    """
    return Artifact(Kind.BARE, uri) if uri.startswith("file:") else parse(uri)


def run(run_id: str, path: str) -> Artifact:
    """The artifact at a path of a run; the whole run where the path is empty. Raises InvalidRequest."""
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidRequest(
            f"{names.show(run_id)} is no run ID: letters, digits, '-' and '_' only, as in MLflow's page."
        )
    return Artifact(Kind.RUN, run_id, path=_clean(path, f"the run {run_id}"))


def literal(escaped: str) -> str:
    """What a text with escapes such as `%20` stands for. Raises InvalidRequest where they are no UTF-8."""
    try:
        return unquote(escaped, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"The escapes in {names.show(escaped)} are no UTF-8. Name the folder above, which can have any names in it."
        ) from None


def _run(uri: str, rest: str) -> Artifact:
    if not rest.startswith("/") or rest.startswith("//"):
        raise InvalidRequest(f"{names.show(uri)} is no runs:/ URI. Write runs:/<run id>/<path>.")
    run_id, _, path = rest[1:].partition("/")
    return run(run_id, path)


def _model(uri: str, rest: str) -> Artifact:
    if not rest.startswith("/") or rest.startswith("//"):
        raise InvalidRequest(f"{names.show(uri)} is no models:/ URI of this tracking server. {_FORMS}")
    first, _, tail = rest[1:].partition("/")
    if not first.strip():
        raise InvalidRequest(f"{names.show(uri)} names no model. {_FORMS}")
    if "@" in first:
        name, _, alias = first.rpartition("@")
        if not name or not alias:
            raise InvalidRequest(f"{names.show(uri)} lacks a model's name or an alias. Write models:/<name>@<alias>.")
        return Artifact(Kind.MODEL_ALIAS, name, alias, _clean(tail, uri))
    if _LOGGED_MODEL_ID.fullmatch(first) and not tail.partition("/")[0].isdigit():
        return Artifact(Kind.LOGGED_MODEL, first, path=_clean(tail, uri))
    selector, _, path = tail.partition("/")
    if not selector.strip():
        raise InvalidRequest(
            f"{names.show(uri)} names no version. Write models:/{first}/<version> or models:/{first}@<alias>."
        )
    clean = _clean(path, uri)
    if re.fullmatch(r"[0-9]{1,18}", selector):
        return Artifact(Kind.MODEL_VERSION, first, str(int(selector)), clean)
    if selector.lower() == "latest":
        return Artifact(Kind.MODEL_LATEST, first, "latest", clean)
    return Artifact(Kind.MODEL_STAGE, first, selector, clean)


def _bare(uri: str, scheme: str, rest: str) -> Artifact:
    authority = rest[2:].partition("/")[0] if rest.startswith("//") else ""
    if ":" in authority.rpartition("@")[0]:
        raise InvalidRequest("A bare artifact URI must not contain a password: give it to the daemon's environment.")
    path = rest[2 + len(authority) :] if rest.startswith("//") else rest
    if path and not path.startswith("/"):
        raise InvalidRequest(f"The path of {names.show(uri)} does not begin with a slash. {_FORMS}")
    path = path[1:-1] if path.endswith("/") else path[1:]
    if scheme == "file":
        path = literal(path)
    if not path:
        raise InvalidRequest(f"{names.show(uri)} names a whole store. Name a folder or a file in it.")
    for escaped in (path, path.replace("%2e", ".").replace("%2E", ".")):
        if wrong := names.fault(escaped.encode("utf-8", "surrogateescape")):
            raise InvalidRequest(f"The path of {names.show(uri)} {wrong}.")
    head = f"{scheme}://{authority}/" if rest.startswith("//") else f"{scheme}:/"
    return Artifact(Kind.BARE, head + path)


def _clean(path: str, of: str) -> str:
    path = path[:-1] if path.endswith("/") else path
    if path and (wrong := names.fault(path.encode("utf-8", "surrogateescape"))):
        raise InvalidRequest(f"The path {names.show(path)} of {names.show(of)} {wrong}.")
    return path
