"""S3 objects, downloaded with obstore, a client in Rust that needs a sixth of the work that boto3 needs for each.

Law of this file: what there is, MLflow's own client is asked, and whatever obstore cannot do as that client would is
left to it; what is downloaded is the very object that was listed, or another one from its beginning, never parts of
both. Memory is bounded however many objects come at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from artifactcache.errors import Corrupted, NotFound, Unauthenticated
from cacheserver import names
from cacheserver.buckets import Bucket, Buckets, Changed, entity_tag, list_page, sayable, told
from cacheserver.hashing import READ_BYTES
from cacheserver.listings import ENTRIES_MAX, Entry, flat, one_file
from cacheserver.refusals import translated
from cacheserver.repository import RepositoryFiles
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location, join

PART_BYTES = 4 << 20
PARTS_MAX = 5  # in memory, of all objects together
WINDOW = 4  # of one object
WHOLE_BYTES_MAX = 2 * PART_BYTES  # larger ones are asked for in parts
PAGES_MAX = ENTRIES_MAX // 100  # of one listing: a page has 1,000 names, or fewer


class Objects:
    """What all downloads of S3 objects share: clients, and room for parts.

    Args:
        patience: seconds without progress after which an endpoint counts as unreachable.
        forget: makes MLflow forget the clients that it keeps.
    """

    def __init__(self, patience: float, forget: Callable[[], None]) -> None:
        self.buckets = Buckets(patience, forget)
        self.room = threading.Semaphore(PARTS_MAX)
        self.pool = ThreadPoolExecutor(max_workers=PARTS_MAX, thread_name_prefix="part")

    def close(self) -> None:
        """Starts no download any more."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class ObjectFiles:
    """The files below one root.

    Args:
        root: `s3://<bucket>/<prefix>`, taken literally.
        repository: MLflow's own for it.
        ask: gets one answer within its time, by what it is about.
        otherwise: what lists and downloads where obstore cannot.
    """

    def __init__(
        self,
        root: str,
        repository: Any,
        objects: Objects,
        ask: Callable[[str, Callable[[], Any]], Any],
        otherwise: RepositoryFiles,
    ) -> None:
        self.transport = "s3"
        self._name, _, prefix = root.partition("://")[2].partition("/")
        self._prefix = prefix.rstrip("/")
        self._repository = repository
        self._objects = objects
        self._ask = ask
        self._otherwise = otherwise

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        try:
            return self._listing(location)
        except Unauthenticated:  # what was good when it was read may have been replaced since
            self._objects.buckets.renew(None)
            return self._listing(location)

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file."""
        bucket, key = self._bucket(file.remote), self._key(file.remote)
        if bucket.store is None or not sayable(key):
            self._otherwise.fill(file, sink)
            return
        try:
            self._bring(bucket, key, file, sink)
        except Exception as error:
            if not isinstance(translated(error, key), Unauthenticated):
                raise
            self._objects.buckets.renew(bucket)
            sink.restart()
            self._bring(self._bucket(file.remote), key, file, sink)

    # -- what there is ----------------------------------------------------------------------------------------------

    def _listing(self, location: Location) -> Listing:
        found = flat(location, self._below(location))
        if found is None and location.path:
            itself = self._itself(location)
            if itself is None:
                raise NotFound(f"{location.uri}: the origin has no file or folder there.")
            found = one_file(location, itself)
        found = found or Listing([], "")
        if self._bucket(location.path).store is None:
            self.transport = self._otherwise.transport
            # MLflow's client does not say which object it has brought: the tags would prove nothing of the bytes.
            found = found._replace(files=[file._replace(etag="") for file in found.files])
        return found

    def _below(self, location: Location) -> Iterator[Entry]:
        """All objects in a folder and below it."""
        key = self._key(location.path)
        question = {"Prefix": f"{key}/" if key else ""}
        for _ in range(PAGES_MAX):
            page = self._page(location.uri, question)
            for found in page.get("Contents", ()):
                yield self._entry(location.uri, found)
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == question.get("ContinuationToken"):
                raise Corrupted(f"{location.uri}: the origin lists more than it lets itself be asked for.")
            question["ContinuationToken"] = token
        raise Corrupted(f"{location.uri}: the origin lists it in more than {PAGES_MAX} pages.")

    def _itself(self, location: Location) -> Entry | None:
        """The object at a location; of all whose keys begin like its own, it is the first."""
        key = self._key(location.path)
        found = self._page(location.uri, {"Prefix": key, "MaxKeys": 1}).get("Contents", ())
        return self._entry(location.uri, found[0]) if found and found[0].get("Key") == key else None

    def _page(self, what: str, question: dict[str, Any]) -> Mapping[str, Any]:
        """One page of a listing, by MLflow's own client, from whom it is learnt how the bucket is asked."""

        def answer() -> Mapping[str, Any]:
            client = self._objects.buckets.client(self._repository._get_s3_client)
            owner = getattr(self._repository, "_bucket_owner_params", {})
            page, sent = list_page(client, {"Bucket": self._name, **question, **owner})
            self._objects.buckets.learn(self._name, client, sent)
            return page

        page: Mapping[str, Any] = self._ask(what, answer)
        return page

    def _entry(self, what: str, found: dict[str, Any]) -> Entry:
        """An object as a path below the root; a name with a slash at its end says that there is a folder."""
        key, size = str(found.get("Key", "")), int(found.get("Size", -1))
        inside = f"{self._prefix}/" if self._prefix else ""
        is_folder = key.endswith("/")
        if not key.startswith(inside) or size < 0 or (is_folder and size):
            raise Corrupted(f"{what}: the origin lists {names.show(key)} with {size} bytes, which cannot be.")
        path = key[len(inside) :]
        etag = entity_tag(found.get("ETag")) if sayable(key) else ""
        return Entry(path[:-1] if is_folder else path, is_folder, size, etag)

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _bring(self, bucket: Bucket, key: str, file: File, sink: Sink) -> None:
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

    def _transfer(self, bucket: Bucket, key: str, file: File, sink: Sink, tag: str) -> None:
        if sink.size and sink.etag != tag:
            sink.restart()
        if sink.size and file.size is not None and sink.size >= file.size:
            if sink.size == file.size:
                return  # it was broken off after its last byte
            sink.restart()
        if file.size is not None and file.size - sink.size > WHOLE_BYTES_MAX:
            self._in_parts(bucket, key, file.size, sink, tag)
            return
        self._whole(bucket, key, sink, tag)

    def _whole(self, bucket: Bucket, key: str, sink: Sink, tag: str) -> None:
        """Downloads an object, or the rest of it, by one request."""
        answer = self._get(bucket, key, sink.size, None, tag)
        sink.begin(entity_tag(answer.meta["e_tag"]))
        begin, end = answer.range
        if end - begin <= READ_BYTES:
            sink.write(_bytes(answer, bucket))
            return
        chunks = iter(answer.stream(min_chunk_size=READ_BYTES))
        while chunk := _next(chunks, bucket):
            sink.write(chunk)

    def _in_parts(self, bucket: Bucket, key: str, size: int, sink: Sink, tag: str) -> None:
        """Downloads several parts at a time, each of one and the same object, and writes them in order.

        Who waits for room holds none, so that somebody always goes on.
        """
        if not tag:  # whatever is there now: its first part says what it is
            chunks, tag = self._part(bucket, key, sink.size, PART_BYTES, "")
            if not tag:  # nothing would show that the parts are of one object
                self._whole(bucket, key, sink, "")
                return
            sink.begin(tag)
            for chunk in chunks:
                sink.write(chunk)
        sink.begin(tag)
        parts: deque[Future[tuple[list[bytes], str]]] = deque()
        begin, room = sink.size, self._objects.room
        try:
            while sink.size < size:
                while begin < size and len(parts) < WINDOW and room.acquire(blocking=not parts):
                    length = min(PART_BYTES, size - begin)
                    parts.append(self._objects.pool.submit(self._part, bucket, key, begin, length, tag))
                    begin += length
                for chunk in parts[0].result()[0]:
                    sink.write(chunk)
                parts.popleft()
                room.release()
        finally:
            for part in parts:
                part.cancel()
                part.add_done_callback(lambda _: room.release())

    def _part(self, bucket: Bucket, key: str, begin: int, length: int, tag: str) -> tuple[list[bytes], str]:
        answer = self._get(bucket, key, begin, length, tag)
        if answer.range != (begin, begin + length):
            raise Changed
        # In pieces that stay in the processor's cache from the write to the second hash: a third of the time of one.
        with told(bucket.secrets):
            return list(answer.stream(min_chunk_size=READ_BYTES)), entity_tag(answer.meta["e_tag"])

    def _get(self, bucket: Bucket, key: str, begin: int, length: int | None, tag: str) -> Any:
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
        with told(bucket.secrets):
            answer = obstore.get(bucket.store, key, options=options)  # type: ignore[arg-type]
        if tag and entity_tag(answer.meta["e_tag"]) != tag:
            raise Changed
        return answer

    # -- whom to ask ------------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return join(self._prefix, path) if self._prefix else path

    def _bucket(self, path: str) -> Bucket:
        """How the bucket is asked; where that is forgotten, something of it is listed."""
        while not (found := self._objects.buckets.known(self._name)):
            self._page(f"s3://{self._name}", {"Prefix": self._key(path), "MaxKeys": 1})
        return found


def _bytes(answer: Any, bucket: Bucket) -> memoryview:
    with told(bucket.secrets):
        return memoryview(answer.bytes())


def _next(chunks: Iterator[bytes], bucket: Bucket) -> bytes | None:
    with told(bucket.secrets):
        return next(chunks, None)
