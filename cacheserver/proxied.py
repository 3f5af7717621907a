"""Artifacts that the tracking server hands out itself: `mlflow-artifacts:` URIs and their `http:` form.

Law of this file: a file that was broken off goes on where it ended only if the server proves, by a strong entity tag
(RFC 9110, 8.8.3), that it is the same file still; else it begins anew. Without progress it ends within `patience`.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import tenacity
import urllib3.exceptions

from artifactcache.errors import Corrupted
from cacheserver import names
from cacheserver.hashing import READ_BYTES
from cacheserver.headers import Accesses
from cacheserver.http import Http, StatusError
from cacheserver.listings import Entry, walk
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location, join

ENDPOINT = "/mlflow-artifacts/artifacts"
LISTING_BYTES_MAX = 1 << 28  # of one folder: about two million entries
ETAG_LENGTH_MAX = 256
ATTEMPTS_MAX = 4
FIRST_PAUSE_SECONDS = 0.2
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class ProxiedFiles:
    """The files below one root.

    Args:
        url: the root's `http:` form.
        accesses: what requests need beside their URL.
        patience: seconds without progress after which the origin counts as unreachable.

    Raises whatever `http` raises, after what may pass has been tried again.
    """

    transport = "http"

    def __init__(self, url: str, http: Http, accesses: Accesses, patience: float) -> None:
        self._base, _, root = url.partition(ENDPOINT)
        self._root = root.strip("/")
        self._http = http
        self._accesses = accesses
        self._patience = patience

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        return walk(location, self._entries)

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file, or what is missing of it."""
        if sink.size and file.size is not None and sink.size >= file.size:
            if sink.size == file.size and self.identify(file) == sink.etag:
                return  # it was broken off after its last byte
            sink.restart()
        url, most = self._url(file), -1
        while sink.size > most:  # each time it got further than ever before, patience begins anew
            most = sink.size
            try:
                self._patiently(lambda: self._transfer(url, sink))
                return
            except Exception as error:
                if not _is_transient(error) or sink.size <= most:
                    raise

    def identify(self, file: File) -> str:
        """The entity tag of a file's bytes; empty where the server gives none.

        By its first byte: MLflow's server ignores If-None-Match, and its HEAD computes another tag.
        """
        url = self._url(file)

        def ask() -> str:
            with self._get(url, {"Range": "bytes=0-0"}) as answer:
                return _strong(answer.headers)

        found: str = self._patiently(ask)
        return found

    def _url(self, file: File) -> str:
        path = posixpath.join(self._root, file.remote)
        return f"{self._base}{ENDPOINT}/{quote(path, safe='/', errors='surrogateescape')}"

    def _transfer(self, url: str, sink: Sink) -> None:
        """One request, for all of the file or for its rest."""
        headers = {}
        if sink.size and sink.etag:
            headers = {"Range": f"bytes={sink.size}-", "If-Range": sink.etag}
        with self._get(url, headers) as answer:
            etag = _strong(answer.headers)
            if not (answer.status == 206 and etag == sink.etag and _begins(answer.headers) == sink.size):
                if answer.status == 206:
                    sink.restart()
                    raise StatusError(206, "it answers with another part of the file than was asked for")
                if sink.size:
                    sink.restart()
            sink.begin(etag)
            # read1, for what came before the connection broke is not lost then.
            while chunk := answer.read1(READ_BYTES, decode_content=True):
                sink.write(chunk)

    def _entries(self, folder: str) -> list[Entry]:
        path = posixpath.join(self._root, folder) if folder else self._root
        url = f"{self._base}{ENDPOINT}?path={quote(path, safe='/', errors='surrogateescape')}"
        text = self._patiently(lambda: self._text(url))
        try:
            return [_entry(folder, found) for found in json.loads(text).get("files", [])]
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise Corrupted(f"{names.show(join(self._root, folder))}: the origin's listing is none.") from None

    def _text(self, url: str) -> bytes:
        with self._get(url) as answer:
            text: bytes = answer.read(LISTING_BYTES_MAX + 1, decode_content=True)
        if len(text) > LISTING_BYTES_MAX:
            raise Corrupted(f"The origin lists a folder with more than {LISTING_BYTES_MAX} bytes.")
        return text

    @contextmanager
    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """One answer. Credentials that are refused are asked for again: others may have taken their place."""
        access = self._accesses.of(url)
        with ExitStack() as stack:
            try:
                answer = stack.enter_context(self._http.get(url, access, self._patience, headers))
            except StatusError as error:
                newer = self._accesses.anew(url) if error.code == 401 else access
                if newer == access:
                    raise
                answer = stack.enter_context(self._http.get(url, newer, self._patience, headers))
            yield answer

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """Does the work, again and again where what went wrong may pass, until it has taken too long."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=_pause,
            stop=tenacity.stop_after_attempt(ATTEMPTS_MAX) | tenacity.stop_before_delay(self._patience),
            reraise=True,
        )(work)


def _entry(folder: str, found: Mapping[str, Any]) -> Entry:
    name, is_folder, size = found["path"], found.get("is_dir", False), found.get("file_size")
    if not isinstance(name, str) or not isinstance(is_folder, bool):
        raise TypeError("no entry of a listing")
    size = 0 if size is None else int(size)  # MLflow's JSON leaves out zeros
    if size < 0:
        raise ValueError("a size below 0")
    return Entry(f"{folder}/{name}" if folder else name, is_folder, size)


def _strong(headers: Mapping[str, str]) -> str:
    """The entity tag, where it proves that bytes are the same: not of what was compressed on the way."""
    etag = headers.get("ETag", "")
    plain = headers.get("Content-Encoding", "identity") == "identity"
    return etag if plain and etag.startswith('"') and len(etag) <= ETAG_LENGTH_MAX else ""


def _begins(headers: Mapping[str, str]) -> int:
    """At which byte a part begins; -1 where that is not said."""
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, StatusError):
        return error.code in _TRANSIENT
    return isinstance(error, urllib3.exceptions.HTTPError)  # not OSError: that is the store's disk


def _pause(state: tenacity.RetryCallState) -> float:
    """How long to wait: as the server says, else each time twice as long, with some chance in it."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, StatusError) and error.retry_after.isdecimal():
        return float(error.retry_after)
    return tenacity.wait_exponential_jitter(initial=FIRST_PAUSE_SECONDS, max=2, jitter=FIRST_PAUSE_SECONDS)(state)
