"""Objects of S3, GCS and Azure, downloaded with obstore: it needs a sixth of the work that boto3 needs for each.

Law of this file: what there is, MLflow's own client is asked, and whatever obstore cannot do as that client would is
left to it; what is downloaded is the very object that was listed, or another one from its beginning, never parts of
both. Memory is bounded however many objects come at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from artifactcache.errors import Corrupted, NotFound, Unauthenticated
from cacheserver import names
from cacheserver.buckets import Bucket, Buckets, Changed, Listed, ObjectError, Page, Unfit, sayable, told
from cacheserver.hashing import READ_BYTES
from cacheserver.listings import ENTRIES_MAX, Entry, flat, one_file
from cacheserver.refusals import translated
from cacheserver.repository import RepositoryFiles
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location, join

PART_BYTES = 4 << 20
PARTS_MAX = 5  # in memory, of all objects of all stores together
WINDOW = 4  # of one object
WHOLE_BYTES_MAX = 2 * PART_BYTES  # larger ones are asked for in parts
PAGES_MAX = ENTRIES_MAX // 100  # of one listing: a page has 1,000 names or more, seldom fewer


class Parts:
    """What all downloads share: room for parts, and who fetches them."""

    def __init__(self) -> None:
        self.room = threading.Semaphore(PARTS_MAX)
        self.pool = ThreadPoolExecutor(max_workers=PARTS_MAX, thread_name_prefix="part")

    def close(self) -> None:
        """Starts no download any more."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class ObjectFiles:
    """The files below one root.

    Args:
        root: `<scheme>://<bucket>/<prefix>`, taken literally.
        repository: gives MLflow's own for it.
        buckets: how buckets of this kind are asked.
        ask: gets one answer within its time, by what it is about.
        otherwise: what lists and downloads where obstore cannot.
    """

    def __init__(
        self,
        root: str,
        repository: Callable[[], Any],
        buckets: Buckets,
        parts: Parts,
        ask: Callable[[str, Callable[[], Any]], Any],
        otherwise: RepositoryFiles,
    ) -> None:
        self.transport = buckets.transport
        self._name, _, prefix = root.partition("://")[2].partition("/")
        self._prefix = prefix.rstrip("/")
        self._repository = repository
        self._buckets = buckets
        self._parts = parts
        self._ask = ask
        self._otherwise = otherwise

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        try:
            return self._listing(location)
        except Unauthenticated:  # what was good when it was read may have been replaced since
            self._buckets.renew(None)
            return self._listing(location)

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file."""
        key = self._key(file.remote)
        for is_last in (False, True):
            bucket = self._bucket(file.remote)
            if bucket.store is None or file.size is None or not sayable(key):
                break
            try:
                self._bring(bucket, key, file, sink)
                return
            except Unfit as why:  # known by an answer only
                self._buckets.leave(self._name, why)
                sink.restart()
                break
            except Exception as error:
                if is_last or not isinstance(translated(error, key), Unauthenticated):
                    raise
                self._buckets.renew(bucket)
                sink.restart()
        self._otherwise.fill(file, sink)

    # -- what there is ----------------------------------------------------------------------------------------------

    def _listing(self, location: Location) -> Listing:
        found = flat(location, self._below(location))
        if found is None and location.path:
            itself = self._itself(location)
            if itself is None:
                raise NotFound(f"{location.uri}: the origin has no file or folder there.")
            found = None if itself.is_folder else one_file(location, itself)
        found = found or Listing([], "")
        if self._bucket(location.path).store is None:
            self.transport = self._otherwise.transport
            # MLflow's client does not say which object it has brought: the tags would prove nothing of the bytes.
            found = found._replace(files=[file._replace(etag="") for file in found.files])
        return found

    def _below(self, location: Location) -> Iterator[Entry]:
        """All objects in a folder and below it."""
        key = self._key(location.path)
        after = ""
        for _ in range(PAGES_MAX):
            page = self._page(location.uri, f"{key}/" if key else "", after)
            for found in page.found:
                yield self._entry(location.uri, found)
            if page.following is None:
                return
            if page.following in ("", after):
                raise Corrupted(f"{location.uri}: the origin lists more than it lets itself be asked for.")
            after = page.following
        raise Corrupted(f"{location.uri}: the origin lists it in more than {PAGES_MAX} pages.")

    def _itself(self, location: Location) -> Entry | None:
        """The object at a location; of all whose keys begin like its own, it is the first."""
        key = self._key(location.path)
        found = self._page(location.uri, key, most=1).found
        return self._entry(location.uri, found[0]) if found and found[0].key == key else None

    def _page(self, what: str, prefix: str, after: str = "", most: int | None = None) -> Page:
        """One page of a listing, by which it is learnt how the bucket is asked."""
        page: Page = self._ask(what, lambda: self._buckets.page(self._repository(), self._name, prefix, after, most))
        return page

    def _entry(self, what: str, found: Listed) -> Entry:
        """An object as a path below the root; a name with a slash at its end says that there is a folder."""
        inside = f"{self._prefix}/" if self._prefix else ""
        is_folder, size = found.is_folder or found.key.endswith("/"), found.size
        if not found.key.startswith(inside) or (size is not None and size < 0) or (is_folder and size):
            raise Corrupted(f"{what}: the origin lists {names.show(found.key)} with {size} bytes, which cannot be.")
        path = found.key[len(inside) :].removesuffix("/") if is_folder else found.key[len(inside) :]
        return Entry(path, is_folder, size, found.tag if sayable(found.key) else "")

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
        sink.begin(self._buckets.tag(answer.meta))
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
        begin, room = sink.size, self._parts.room
        try:
            while sink.size < size:
                while begin < size and len(parts) < WINDOW and room.acquire(blocking=not parts):
                    length = min(PART_BYTES, size - begin)
                    try:
                        parts.append(self._parts.pool.submit(self._part, bucket, key, begin, length, tag))
                    except BaseException:
                        room.release()
                        raise
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
            chunks = list(answer.stream(min_chunk_size=READ_BYTES))
        if sum(map(len, chunks)) != length:  # what follows it would be written where it does not belong
            raise ObjectError("", "", "the endpoint has sent less than it said")
        return chunks, self._buckets.tag(answer.meta)

    def _get(self, bucket: Bucket, key: str, begin: int, length: int | None, tag: str) -> Any:
        """One request; its answer is of the object that was meant. Raises Changed where there is another."""
        import obstore

        options = self._buckets.condition(tag) if tag else {}
        if length is not None:
            options["range"] = (begin, begin + length)
        elif begin:
            options["range"] = {"offset": begin}
        assert bucket.store is not None
        bucket.ready()
        try:
            with told(bucket.secrets):
                answer = obstore.get(bucket.store, key, options=options)  # type: ignore[arg-type]
        except ObjectError as error:
            if tag and error.is_missing:  # perhaps another one is there
                raise Changed from None
            raise
        if tag and self._buckets.tag(answer.meta) != tag:
            raise Changed
        return answer

    # -- whom to ask ------------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return join(self._prefix, path) if self._prefix else path

    def _bucket(self, path: str) -> Bucket:
        """How the bucket is asked; where that is forgotten, something of it is listed."""
        while not (found := self._buckets.known(self._name)):
            self._page(f"{self._buckets.scheme}://{self._name}", self._key(path), most=1)
        return found


def _bytes(answer: Any, bucket: Bucket) -> memoryview:
    with told(bucket.secrets):
        return memoryview(answer.bytes())


def _next(chunks: Iterator[bytes], bucket: Bucket) -> bytes | None:
    with told(bucket.secrets):
        return next(chunks, None)
