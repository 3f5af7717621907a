"""Notices within a moment when somebody else writes into blobs/ or manifests/, or removes something there.

Law of this file: an event says only where to look. What the daemon itself does looks right when it is looked at: its
rows come after its files and go before them. It never writes into a blob that has its name: who does is somebody else,
and what he wrote is hashed, whatever time and size he has given the file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from watchdog.events import (
    DirCreatedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from artifactcache.errors import CacheError
from cacheserver import folderevents
from cacheserver.disk import Disk
from cacheserver.index import Index
from cacheserver.verify import Verifier
from cacheserver.words import BlobRow

NOTED_MAX = 50_000  # names; with more than that, all are looked at
ROWS = 500
FAN_LENGTH = 2  # of the names of the folders in blobs/ and manifests/
# Not FileModifiedEvent: the kernel tells of a changed link count in the same way, and each hard link that is handed out
# is one. Who writes closes the file some time. Of a folder that is made the watch hears, and watches it a moment later:
# what happened in it until then is looked for.
EVENTS: list[Any] = [DirCreatedEvent, FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileMovedEvent]

_log = logging.getLogger(__name__)
_WATCHDOG = logging.getLogger("watchdog.observers.inotify_c")


class Meddling:
    """Watches one store.

    Args:
        lost: told of trees whose manifests are wrong or gone.
    """

    def __init__(self, disk: Disk, index: Index, verifier: Verifier, lost: Callable[[list[str]], None]) -> None:
        self._disk = disk
        self._index = index
        self._verifier = verifier
        self._lost = lost
        self._lock = threading.Lock()
        self._noted: set[str] = set()
        self._written: set[str] = set()
        self._is_much = False
        self._observer = Observer()
        self._overflow = _Overflow(self._note_much)

    def start(self) -> None:
        """Watches from now on; where that cannot be had, says so once."""
        handler = _Handler(self._note, self._note_written)
        try:
            for kind in ("blobs", "manifests"):
                self._observer.schedule(handler, self._disk.at(kind), recursive=True, event_filter=EVENTS)
            self._observer.start()
            _WATCHDOG.addFilter(self._overflow)
        except OSError as error:
            self._observer.unschedule_all()  # one of the two may run already, and nobody would read what it hears
            _log.warning(
                "the store's folders cannot be watched (%s): what somebody changes there is found when it is handed"
                " out, or by the scrub. Raise fs.inotify.max_user_watches.",
                error.strerror,
            )

    def stop(self) -> None:
        """Watches nothing any more."""
        _WATCHDOG.removeFilter(self._overflow)
        if self._observer.is_alive():
            self._observer.stop()

    def look(self) -> None:
        """Looks at everything of which was told since the last time. Raises CacheError where some of it could not be
        looked at: the next look does."""
        (noted, written), failed = self._take(), dict[str, CacheError]()
        try:
            suspects = self._suspects(self._below("blobs", noted))
            for row in (*self._rows(self._below("blobs", written)), *suspects):
                try:
                    self._recheck(row)
                except CacheError as error:  # no descriptor left, say: the others have their turn all the same
                    failed[self._disk.at("blobs", row.digest)] = error
            self._look_at_manifests(self._below("manifests", noted | written), failed)
        except BaseException:
            self._note_all(noted)
            for path in written:
                self._note_written(path)
            raise
        for path in failed:
            (self._note_written if path in written else self._note)(path)
        if failed:
            raise next(iter(failed.values()))

    def _take(self) -> tuple[set[str], set[str]]:
        """Where to look, and what was written into."""
        with self._lock:
            noted, self._noted = self._noted, set()
            written, self._written = self._written, set()
            is_much, self._is_much = self._is_much, False
        return {self._disk.at(kind, "") for kind in ("blobs", "manifests")} if is_much else noted, written

    def _below(self, kind: str, noted: Iterable[str]) -> set[str]:
        """The digests of files, the first letters of all in a folder, and nothing for all."""
        top = self._disk.at(kind, "")
        return {path.removeprefix(top).replace("/", "") for path in noted if path.startswith(top)}

    def _note_all(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._note(path)

    def _note(self, path: str) -> None:
        with self._lock:
            if len(self._noted) < NOTED_MAX:
                self._noted.add(path)
            else:
                self._is_much = True

    def _note_written(self, path: str) -> None:
        with self._lock:
            if len(self._written) < NOTED_MAX:
                self._written.add(path)
            else:  # the scrub finds what a look does not
                self._is_much = True

    def _note_much(self) -> None:
        with self._lock:
            self._is_much = True

    def _suspects(self, names: set[str]) -> Iterator[BlobRow]:
        """Blobs with these digests, or whose digests begin like this, that do not look as they did."""
        yield from self._disk.suspects(self._rows(names))
        for first in (name for name in names if len(name) <= FAN_LENGTH):
            after = first
            while after.startswith(first) and (rows := self._index.some_blobs(after, ROWS)):
                yield from self._disk.suspects([row for row in rows if row.digest.startswith(first)])
                after = rows[-1].digest

    def _rows(self, names: set[str]) -> Iterator[BlobRow]:
        """Blobs with these digests."""
        whole = [name for name in names if len(name) > FAN_LENGTH]
        for start in range(0, len(whole), ROWS):
            yield from self._index.blobs(whole[start : start + ROWS]).values()

    def _recheck(self, row: BlobRow) -> None:
        if not self._verifier.recheck(row):
            _log.warning("the blob %s was changed or removed by somebody else than the daemon", row.digest)

    def _look_at_manifests(self, names: set[str], failed: dict[str, CacheError]) -> None:
        lost: dict[str, None] = {}
        for tree in (tree for name in names for tree in self._index.holdings.beginning_with(name)):
            try:
                if self._disk.read_manifest(tree) is None:
                    lost[tree] = None
            except CacheError as error:
                failed[self._disk.at("manifests", tree)] = error
        if lost:
            _log.warning(
                "manifests were changed or removed by somebody else than the daemon: %s", ", ".join(list(lost)[:3])
            )
            self._lost(list(lost))


class _Overflow(logging.Filter):
    """Hears that the kernel's queue has run over, and events are lost: watchdog tells it in its log only, and there of
    all queues of this process. One that others may fill (`folderevents`) has words of its own, and says nothing of the
    store."""

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self._told = told

    def filter(self, record: logging.LogRecord) -> bool:
        is_overflow, is_others = "overflowed" in str(record.msg), record.threadName == folderevents.THREAD
        if is_overflow and not is_others:
            self._told()
        return not (is_overflow and is_others)


class _Handler(FileSystemEventHandler):
    def __init__(self, note: Callable[[str], None], note_written: Callable[[str], None]) -> None:
        self._note = note
        self._note_written = note_written

    def dispatch(self, event: FileSystemEvent) -> None:
        note = self._note_written if isinstance(event, FileClosedEvent) else self._note
        for path in (event.src_path, event.dest_path):
            if path:
                note(os.fsdecode(path))
