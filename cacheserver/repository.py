"""Artifact stores as MLflow's own repositories have them: the way that always works.

Law of this file: MLflow writes where it is told by name, and hashes nothing; so what it wrote is opened, looked at and
hashed here. A name is written to once only: a client that hangs may come back to it at any time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from artifactcache.errors import Corrupted, InvalidRequest, OriginUnavailable
from cacheserver import names
from cacheserver.crews import Crews
from cacheserver.listings import Entry, walk
from cacheserver.removal import remove
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location

TRANSFERS_MAX = 32  # of one store, of one user half of them, those that hang included: nobody can end a thread


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

    def run(self, store: str, owner: Hashable, what: str, beside: str, download: Callable[[str], None]) -> str:
        """Has a file of a store downloaded to a name beside another one. Returns that name, which the caller has to
        remove.

        Raises what the download raises, and OriginUnavailable where nothing comes any more.
        """
        path = f"{beside}.{next(self._numbers)}.part"
        future = self._crews.submit(store, owner, download, path)
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
        store: which store it is of, and for whom, for `transfers`.
    """

    transport = "mlflow"

    def __init__(
        self,
        repository: Any,
        sized: bool,
        ask: Callable[[str, Callable[[], Any]], Any],
        transfers: Transfers,
        store: str = "",
        owner: Hashable = None,
    ) -> None:
        self._owner = owner
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
            self._store, self._owner, what, sink.path, lambda to: self._repository._download_file(file.remote, to)
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
                with contextlib.suppress(FileNotFoundError):  # it is renamed just now
                    seen = entry.stat(follow_symlinks=False)
                    found.add((entry.name, seen.st_size, seen.st_mtime_ns))
    return found


def _remove_all(path: str) -> None:
    for name, *_ in _written(path):
        remove(os.path.join(os.path.dirname(path), name))
