"""Notices within a moment when somebody else writes into blobs/ or manifests/, or removes something there.

Law of this file: an event says only where to look. What the daemon itself does looks right when it is looked at: its
rows come after its files and go before them. It never writes into a blob that has its name: who does is somebody else,
and what he wrote is hashed, whatever time and size he has given the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator

from artifactcache.errors import CacheError
from cacheserver.disk import Disk
from cacheserver.folderevents import WRITTEN, FolderEvents
from cacheserver.index import Index
from cacheserver.verify import Verifier
from cacheserver.words import BlobRow

ROWS = 500
FAN_LENGTH = 2  # of the names of the folders in blobs/ and manifests/
KINDS = ("blobs", "manifests")
LEFT_MAX = 200_000  # paths that could not be looked at; with more, all are looked at

_log = logging.getLogger(__name__)


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
        self.events = FolderEvents(lambda path: path)
        self._tops = {disk.at(kind, "").rstrip("/") for kind in KINDS}
        self._left: dict[str, int] = {}  # what could not be looked at
        self._has_warned = self._is_stopped = False

    def start(self) -> None:
        """Watches from now on; where the kernel gives no watches, says so once."""
        self._watch()

    def stop(self) -> None:
        """Watches nothing any more."""
        self._is_stopped = True
        self.events.close()

    def look(self) -> None:
        """Looks at everything of which was told since the last time. Raises CacheError where some of it could not be
        looked at: the next look does."""
        told, is_much = self.events.take()
        if is_much:
            _log.warning("more has happened in the store's folders than was told of: all of it is looked at")
            told |= dict.fromkeys(self._tops, 0)
        if self.events.is_short or not self._tops.isdisjoint(path.rstrip("/") for path in told):
            self._watch()
        for path, kinds in told.items():
            self._left[path] = self._left.get(path, 0) | kinds
        if len(self._left) > LEFT_MAX:
            self._left = dict.fromkeys(self._tops, 0)
        failed = self._look_at(self._left)
        self._left = {path: self._left.get(path, 0) for path in failed}
        if failed:
            raise next(iter(failed.values()))

    def _watch(self) -> None:
        """Watches all folders, whichever they are by now; each before those in it: of one that comes between, its event
        tells."""
        if self._is_stopped:
            return
        self.events.is_short = False
        for top in self._tops:
            self.events.watch(top, follows=True, anew=True)
            with contextlib.suppress(OSError):
                for entry in os.scandir(top):
                    self.events.watch(entry.path, anew=True)
        if self.events.is_short and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "not all of the store's folders can be watched: what somebody changes there is found when it is handed"
                " out, or by the scrub. Raise fs.inotify.max_user_watches, and max_user_instances."
            )

    def _look_at(self, told: dict[str, int]) -> dict[str, CacheError]:
        """Looks at paths, by the kinds of events that there were. Returns what could not be looked at, by path."""
        failed = dict[str, CacheError]()
        written = {path for path, kinds in told.items() if kinds & WRITTEN}
        suspects = self._suspects(self._below("blobs", told.keys() - written))
        for row in (*self._rows(self._below("blobs", written)), *suspects):
            try:
                self._recheck(row)
            except CacheError as error:  # no descriptor left, say: the others have their turn all the same
                failed[self._at("blobs", row.digest)] = error
        self._look_at_manifests(self._below("manifests", told), failed)
        return failed

    def _below(self, kind: str, paths: Iterable[str]) -> set[str]:
        """The digests of files, the first letters of all in a folder, and nothing for all."""
        top = self._disk.at(kind, "").rstrip("/")
        return {path.removeprefix(top).replace("/", "") for path in paths if f"{path}/".startswith(f"{top}/")}

    def _at(self, kind: str, digest: str) -> str:
        return self._disk.at(kind, digest[:FAN_LENGTH], digest[FAN_LENGTH:])

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
                failed[self._at("manifests", tree)] = error
        if lost:
            _log.warning(
                "manifests were changed or removed by somebody else than the daemon: %s", ", ".join(list(lost)[:3])
            )
            self._lost(list(lost))
