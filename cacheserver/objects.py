"""S3 objects, downloaded with obstore, a client in Rust that needs a sixth of the work that Python's needs for each.

Law of this file: what there is, MLflow's own client is asked, and whatever obstore cannot do as that client would is
left to it; what is downloaded is the very object that was listed, or another one from its beginning, never parts of
both. Memory is bounded however many objects come at once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from artifactcache.errors import Corrupted, NotFound, Unauthenticated
from cacheserver import names
from cacheserver.buckets import Changed, Place, Unfit, entity_tag, open_store, place, sayable, told, try_certificates
from cacheserver.hashing import READ_BYTES
from cacheserver.listings import ENTRIES_MAX, Entry, flat, one_file
from cacheserver.refusals import translated
from cacheserver.repository import RepositoryFiles
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location, join

if TYPE_CHECKING:
    from obstore.store import S3Store

PART_BYTES = 4 << 20
PARTS_MAX = 12  # in memory, of all objects together
WINDOW = 4  # of one object
WHOLE_BYTES_MAX = 2 * PART_BYTES  # larger ones are asked for in parts
PAGES_MAX = ENTRIES_MAX // 100  # of one listing: a page has 1,000 names, or fewer

_log = logging.getLogger(__name__)


class _Bucket(NamedTuple):
    """How one bucket is asked; no store where it is left to MLflow."""

    at: Place | None
    store: S3Store | None
    keys: Callable[[], Any]


class Objects:
    """What all downloads of S3 objects share: clients, and room for parts.

    Args:
        patience: seconds without progress after which an endpoint counts as unreachable.
        ask: gets one answer within its time, by what it is about.
        forget: makes MLflow forget the clients that it keeps.
    """

    def __init__(
        self, patience: float, ask: Callable[[str, Callable[[], Any]], Any], forget: Callable[[], None]
    ) -> None:
        self.patience = patience
        self.ask = ask
        self.room = threading.Semaphore(PARTS_MAX)
        self.pool = ThreadPoolExecutor(max_workers=PARTS_MAX, thread_name_prefix="part")
        self._forget = forget
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def close(self) -> None:
        """Starts no download any more."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def bucket(self, name: str, client: Callable[[], Any], *, look: bool = False) -> _Bucket:
        """How a bucket is asked. Raises what the client raises.

        Args:
            client: MLflow's own client, of boto3.
            look: whether to look again where it is: the client may have learnt since that it is in another region.
        """
        known = self._buckets.get(name)
        if known and not (look and known.store):
            return known
        found = self._looked_at(name, client(), known)
        with self._lock:
            self._buckets[name] = found
        return found

    def renew(self, seen: _Bucket | None) -> None:
        """Reads the credentials anew, from wherever they come, unless that was done since `seen` was got."""
        import boto3

        with self._lock:
            if seen is None or any(bucket is seen for bucket in self._buckets.values()):
                boto3.setup_default_session()
                self._forget()
                self._buckets.clear()

    def _looked_at(self, name: str, client: Any, known: _Bucket | None) -> _Bucket:
        import boto3

        credentials = boto3.DEFAULT_SESSION.get_credentials()
        keys = credentials.get_frozen_credentials if credentials else _no_keys
        try:
            at = place(client, name, os.environ)
            if known and known.at == at:
                return known
            if isinstance(at.verify, str):
                try_certificates(open_store(at, self.patience, keys, retries_max=0))
            return _Bucket(at, open_store(at, self.patience, keys), keys)
        except (Unfit, ImportError) as why:
            _log.warning("s3://%s is left to MLflow's own client, which is slower: %s", name, why)
            return _Bucket(None, None, keys)


class ObjectFiles:
    """The files below one root.

    Args:
        root: `s3://<bucket>/<prefix>`, taken literally.
        repository: MLflow's own for it.
        otherwise: what lists and downloads where obstore cannot.
    """

    def __init__(self, root: str, repository: Any, objects: Objects, otherwise: RepositoryFiles) -> None:
        self.transport = "s3"
        self._name, _, prefix = root.partition("://")[2].partition("/")
        self._prefix = prefix.rstrip("/")
        self._repository = repository
        self._objects = objects
        self._otherwise = otherwise

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        try:
            return self._listing(location)
        except Unauthenticated:  # what was good when it was read may have been replaced since
            self._objects.renew(None)
            return self._listing(location)

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file."""
        bucket, key = self._bucket(), self._key(file.remote)
        if bucket.store is None or not sayable(key):
            self._otherwise.fill(file, sink)
            return
        try:
            self._bring(bucket, key, file, sink)
        except Exception as error:
            if not isinstance(translated(error, key), Unauthenticated):
                raise
            self._objects.renew(bucket)
            sink.restart()
            self._bring(self._bucket(), key, file, sink)

    # -- what there is ----------------------------------------------------------------------------------------------

    def _listing(self, location: Location) -> Listing:
        what, key = location.uri, self._key(location.path)
        if self._objects.ask(what, self._bucket).store is None:
            self.transport = self._otherwise.transport
            return self._otherwise.listing(location)
        client = self._client()
        found = flat(location, self._entries(client, what, key, is_folder=True))
        if found is None and location.path:
            itself = next(self._entries(client, what, key, is_folder=False), None)
            if itself is None:
                raise NotFound(f"{what}: the origin has no file or folder there.")
            found = one_file(location, itself)
        self._objects.bucket(self._name, lambda: client, look=True)
        return found or Listing([], "")

    def _entries(self, client: Any, what: str, key: str, *, is_folder: bool) -> Iterator[Entry]:
        """All objects below a key, or the one with this key."""
        question: dict[str, Any] = {"Bucket": self._name, "Prefix": f"{key}/" if key and is_folder else key}
        if not is_folder:
            question["MaxKeys"] = 1  # the shortest name comes first
        for _ in range(PAGES_MAX):
            page = self._objects.ask(what, partial(client.list_objects_v2, **question))
            for found in page.get("Contents", ()):
                if is_folder or found.get("Key") == key:
                    yield self._entry(what, found)
            if not is_folder or not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == question.get("ContinuationToken"):
                raise Corrupted(f"{what}: the origin lists more than it lets itself be asked for.")
            question["ContinuationToken"] = token
        raise Corrupted(f"{what}: the origin lists it in more than {PAGES_MAX} pages.")

    def _entry(self, what: str, found: dict[str, Any]) -> Entry:
        """An object as a path below the root; a name with a slash at its end says that there is a folder."""
        key, size = str(found.get("Key", "")), int(found.get("Size", -1))
        inside = f"{self._prefix}/" if self._prefix else ""
        is_folder = key.endswith("/")
        if not key.startswith(inside) or size < 0 or (is_folder and size):
            raise Corrupted(f"{what}: the origin lists {names.show(key)} with {size} bytes, which cannot be.")
        path = key[len(inside) :]
        return Entry(path[:-1] if is_folder else path, is_folder, size, entity_tag(found.get("ETag")))

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _bring(self, bucket: _Bucket, key: str, file: File, sink: Sink) -> None:
        """Downloads the object that was listed; where there is another one by now, that one."""
        try:
            self._transfer(bucket, key, file, sink, file.etag)
        except Changed:
            sink.restart()
            try:
                self._transfer(bucket, key, file, sink, "")
            except Changed:
                raise Corrupted(
                    f"{names.show(key)} changes while it is downloaded. Try again when it has been written."
                ) from None

    def _transfer(self, bucket: _Bucket, key: str, file: File, sink: Sink, tag: str) -> None:
        if sink.size and sink.etag != tag:
            sink.restart()
        if file.size is not None and file.size - sink.size > WHOLE_BYTES_MAX:
            self._in_parts(bucket, key, file.size, sink, tag)
            return
        answer = self._get(bucket, key, sink.size, None, tag)
        sink.etag = entity_tag(answer.meta["e_tag"])
        begin, end = answer.range
        if end - begin <= READ_BYTES:
            sink.write(_bytes(answer, bucket))
            return
        chunks = iter(answer.stream(min_chunk_size=READ_BYTES))
        while chunk := _next(chunks, bucket):
            sink.write(chunk)

    def _in_parts(self, bucket: _Bucket, key: str, size: int, sink: Sink, tag: str) -> None:
        """Downloads several parts at a time, each of one and the same object, and writes them in order.

        Who waits for room holds none, so that somebody always goes on.
        """
        if not tag:  # whatever is there now: its first part says what it is
            chunk, tag = self._part(bucket, key, sink.size, PART_BYTES, "")
            sink.write(chunk)
        sink.etag = tag
        parts: deque[Future[tuple[memoryview, str]]] = deque()
        begin, room = sink.size, self._objects.room
        try:
            while sink.size < size:
                while begin < size and len(parts) < WINDOW and room.acquire(blocking=not parts):
                    length = min(PART_BYTES, size - begin)
                    parts.append(self._objects.pool.submit(self._part, bucket, key, begin, length, tag))
                    begin += length
                sink.write(parts[0].result()[0])
                parts.popleft()
                room.release()
        finally:
            for part in parts:
                part.cancel()
                part.add_done_callback(lambda _: room.release())

    def _part(self, bucket: _Bucket, key: str, begin: int, length: int, tag: str) -> tuple[memoryview, str]:
        answer = self._get(bucket, key, begin, length, tag)
        if answer.range != (begin, begin + length):
            raise Changed
        return _bytes(answer, bucket), entity_tag(answer.meta["e_tag"])

    def _get(self, bucket: _Bucket, key: str, begin: int, length: int | None, tag: str) -> Any:
        """One request; its answer is of the object that was meant. Raises Changed where there is another."""
        import obstore

        options: dict[str, Any] = {"if_match": tag} if tag else {}
        if length is not None:
            options["range"] = (begin, begin + length)
        elif begin:
            options["range"] = {"offset": begin}
        assert bucket.at is not None and bucket.store is not None
        if bucket.at.is_signed:
            bucket.keys()  # where new ones have to be got, it is this thread that waits, and not obstore's few
        with told(lambda: _secrets(bucket)):
            answer = obstore.get(bucket.store, key, options=options)  # type: ignore[arg-type]
        if tag and entity_tag(answer.meta["e_tag"]) != tag:
            raise Changed
        return answer

    # -- whom to ask ------------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return join(self._prefix, path) if self._prefix else path

    def _client(self) -> Any:
        return self._repository._get_s3_client()

    def _bucket(self) -> _Bucket:
        if self._owned():
            return _Bucket(None, None, _no_keys)
        return self._objects.bucket(self._name, self._client)

    def _owned(self) -> bool:
        """Whether MLflow is told whose the bucket must be (a header that obstore would not sign) or who asks."""
        repository = self._repository
        return bool(getattr(repository, "_bucket_owner_params", None) or getattr(repository, "_access_key_id", None))


def _bytes(answer: Any, bucket: _Bucket) -> memoryview:
    with told(lambda: _secrets(bucket)):
        return memoryview(answer.bytes())


def _next(chunks: Iterator[bytes], bucket: _Bucket) -> bytes | None:
    with told(lambda: _secrets(bucket)):
        return next(chunks, None)


def _no_keys() -> Any:
    raise AssertionError("nothing is signed without credentials")


def _secrets(bucket: _Bucket) -> tuple[str, ...]:
    """What must not be in a message."""
    if bucket.at is None or not bucket.at.is_signed:
        return ()
    frozen = bucket.keys()
    return (frozen.secret_key, frozen.token or "")
