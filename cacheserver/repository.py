"""Artifact stores as MLflow's own repositories have them: the way that always works.

Law of this file: MLflow writes where it is told by name, and hashes nothing; so what it wrote is opened, looked at and
hashed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from artifactcache.errors import Corrupted, InvalidRequest
from cacheserver import names
from cacheserver.listings import Entry, walk
from cacheserver.staging import Sink
from cacheserver.words import File, Listing, Location


class RepositoryFiles:
    """The files of one repository.

    Args:
        repository: an ArtifactRepository of MLflow's.
        sized: whether a file without a listed size is empty; else nobody knows.
        ask: gets one answer within its time, by what it is about.
    """

    transport = "mlflow"

    def __init__(self, repository: Any, sized: bool, ask: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._repository = repository
        self._sized = sized
        self._ask = ask

    def listing(self, location: Location) -> Listing:
        """All files at a location."""
        return walk(location, lambda folder: self._entries(location.uri, folder))

    def fill(self, file: File, sink: Sink) -> None:
        """Downloads one file."""
        sink.restart()  # nothing is known of what it will be
        self._repository._download_file(file.remote, sink.path)
        sink.written_by_name()

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
