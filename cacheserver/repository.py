"""Artifact stores as MLflow's own repositories have them: the way that always works.

Law of this file: MLflow writes where it is told by name, and hashes nothing; so what it wrote is opened, looked at and
hashed here. A name is written to once only: a client that hangs may come back to it at any time.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from artifactcache.errors import Corrupted, InvalidRequest, OriginUnavailable
from cacheserver import names
from cacheserver.listings import Entry, walk
from cacheserver.removal import remove
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location

TRANSFERS_MAX = 16  # of one store, those that hang included: nobody can end a thread
CREWS_MAX = 32  # stores that are asked at a time; more than that only where all of them hang at once

T = TypeVar("T")


class _Crew:
    """Threads for one store, and how much they have to do."""

    def __init__(self, size: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        self.under_way = 0


class Crews:
    """Threads for work that may never end: each store has its own, so that one that hangs keeps no other waiting.

    Args:
        size: threads of one crew.
        name: of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._crews: dict[str, _Crew] = {}

    def close(self) -> None:
        """Starts nothing any more."""
        with self._lock:
            crews = list(self._crews.values())
        for crew in crews:  # without the lock: what is cancelled ends here
            crew.pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, store: str, work: Callable[..., T], *args: object) -> Future[T]:
        """Has the work done by the crew of a store. Raises OriginUnavailable where too many stores hang already."""
        with self._lock:
            crew = self._crews.pop(store, None) or self._new()
            self._crews[store] = crew  # the last one: the first has not been needed for the longest time
            crew.under_way += 1
            future = crew.pool.submit(work, *args)
        future.add_done_callback(lambda _: self._ended(crew))
        return future

    def _new(self) -> _Crew:
        if len(self._crews) >= CREWS_MAX:
            idle = next((store for store, crew in self._crews.items() if not crew.under_way), None)
            if idle is None:
                raise OriginUnavailable(
                    f"{CREWS_MAX} artifact stores are being asked and have not answered yet, so no other is. Try again"
                    " in a moment."
                )
            self._crews.pop(idle).pool.shutdown(wait=False)
        return _Crew(self._size, self._name)

    def _ended(self, crew: _Crew) -> None:
        with self._lock:
            crew.under_way -= 1


class Transfers:
    """Downloads by clients that may have no timeout of their own.

    Args:
        patience: seconds without progress after which one is left behind.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._crews = Crews(TRANSFERS_MAX, "transfer")
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Starts no download any more."""
        self._crews.close()

    def run(self, store: str, what: str, beside: str, download: Callable[[str], None]) -> str:
        """Has a file of a store downloaded to a name beside another one. Returns that name, which the caller has to
        remove.

        Raises what the download raises, and OriginUnavailable where nothing comes any more.
        """
        path = f"{beside}.{next(self._numbers)}.part"
        future = self._crews.submit(store, download, path)
        try:
            seen = _written(path)
            while not _ended(future, self._patience):
                seen, before = _written(path), seen
                if seen == before:
                    raise OriginUnavailable(
                        f"{what}: nothing of it has come for {self._patience:g} s. Try again, or ask whoever runs its"
                        " artifact store."
                    )
            future.result()
        except BaseException:
            future.cancel()
            future.add_done_callback(lambda _: _remove_all(path))
            raise
        return path


class RepositoryFiles:
    """The files of one repository.

    Args:
        repository: an ArtifactRepository of MLflow's.
        sized: whether a file without a listed size is empty; else nobody knows.
        ask: gets one answer within its time, by what it is about.
        store: which store it is of, for `transfers`.
    """

    transport = "mlflow"

    def __init__(
        self,
        repository: Any,
        sized: bool,
        ask: Callable[[str, Callable[[], Any]], Any],
        transfers: Transfers,
        store: str = "",
    ) -> None:
        self._store = store
        self._repository = repository
        self._sized = sized
        self._ask = ask
        self._transfers = transfers

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        return walk(location, lambda folder: self._entries(location.uri, folder))

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file."""
        what = names.show(file.remote)
        path = self._transfers.run(
            self._store, what, sink.path, lambda path: self._repository._download_file(file.remote, path)
        )
        try:
            sink.take_over(path)
        except BaseException:
            remove(path)
            raise

    def _entries(self, what: str, folder: str) -> list[Entry]:
        try:
            found = self._ask(what, lambda: self._repository.list_artifacts(folder or None))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"{error}. MLflow refuses to list a folder that holds a name with '#', '?' or '%', a '..' or an"
                " absolute path: whoever logged it has to rename it."
            ) from None
        return [Entry(str(info.path), bool(info.is_dir), self._size(info)) for info in found]

    def _size(self, info: Any) -> int | None:
        if info.file_size is None:
            return 0 if self._sized else None
        size = int(info.file_size)
        if size < 0:
            raise Corrupted(f"The origin lists {names.show(str(info.path))} with {size} bytes.")
        return size


def _ended(future: Future[None], seconds: float) -> bool:
    """Waits for the end, but no longer than that."""
    try:
        future.exception(timeout=seconds)
    except FutureTimeout:
        pass
    return future.done()


def _written(path: str) -> set[tuple[str, int, int]]:
    """What there is under a name, or under one that begins like it: some clients write beside it at first."""
    folder, name = os.path.split(path)
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(name):
                seen = entry.stat(follow_symlinks=False)
                found.add((entry.name, seen.st_size, seen.st_mtime_ns))
    return found


def _remove_all(path: str) -> None:
    for name, *_ in _written(path):
        remove(os.path.join(os.path.dirname(path), name))
