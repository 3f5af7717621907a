"""Which folders of runs and logged models have come, or have changed: by what the kernel tells, and by looking.

Law of this file: what the kernel does not tell, a look finds: when the daemon starts, every so often, and at once where
events were lost. What cannot be looked at is told once, and tried again; memory does not grow with what there is.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cacheserver import folderevents, runfolders
from cacheserver.folderevents import FolderEvents
from cacheserver.runfolders import MODELS, Spot
from cacheserver.settings import IngestConfig

FOUND_MAX = 10_000  # runs that one look gives; the next one goes on where it ended
PAUSE_EVERY = 50  # folders looked at; then others have their turn
RETRY_SECONDS = 10.0  # between two looks at a folder that is not there, or cannot be read
MARGIN_SECONDS = 2.0  # clocks of filesystems are coarse
LOST_SECONDS = 3600.0  # between two lines about events that were lost
TROUBLES_MAX = 10  # folders of which it is told that they cannot be looked at: anybody may make any number of them

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Root:
    """One folder of the configuration.

    Attributes:
        identity: which folder it is that is watched; None where none is.
        known: experiments of which all was seen once, by device and inode. One that was moved here has old runs.
        seen: those of the look that is under way.
        began_at, latest: when the look that is under way began, and what has changed last of all that was found: the
            filesystem's clock may be ahead, or behind.
        since: what has not changed since then was seen; of what has, that which has not since it is one of `recent`.
        before: what has changed since then was seen by the look that is under way, which found more than it gives.
        due: when it is looked at again.
        again_at: not sooner than then because of lost events, of which anybody can see to any number.
        is_lost: whether some were.
        troubles: what was told of it, or of an experiment in it, by path.
    """

    folder: str
    identity: tuple[int, int] | None = None
    known: set[tuple[int, int]] = field(default_factory=set)
    seen: set[tuple[int, int]] = field(default_factory=set)
    since: float = -math.inf
    before: float = math.inf
    began_at: float = math.inf
    latest: float = -math.inf
    recent: dict[str, float] = field(default_factory=dict)
    due: float = -math.inf
    again_at: float = -math.inf
    is_lost: bool = False
    troubles: dict[str, str] = field(default_factory=dict)


class Discovery:
    """Of all folders of a configuration.

    Args:
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        pause: lets others have their turn.
    """

    def __init__(
        self, wanted: IngestConfig, clock: Callable[[], float], ticks: Callable[[], float], pause: Callable[[], None]
    ) -> None:
        self.events = FolderEvents(self._subject)
        self._clock = clock
        self._ticks = ticks
        self._pause = pause
        self._roots: dict[str, _Root] = {}
        self._tell_lost_at = -math.inf
        self._told_short: set[str] = set()
        self._noted: set[str] = set()
        self._wanted = wanted
        self.become(wanted)

    def become(self, wanted: IngestConfig) -> None:
        """Looks at these folders from now on, and at no others."""
        folders = [os.path.normpath(folder) for folder in wanted.folders]
        before, self._wanted = self._wanted, wanted
        for gone in self._roots.keys() - set(folders):
            self._leave(gone)
        for root in self._roots.values():
            if (before.every, before.max_age) != (wanted.every, wanted.max_age):
                root.due = -math.inf
            if before.max_age < wanted.max_age:  # there are older ones to be found
                root.known.clear()
        self._roots = {folder: self._roots.get(folder) or _Root(folder) for folder in folders}
        if not folders:
            self.events.close()

    def root_of(self, path: str) -> str:
        """The folder of the configuration that a path lies in; empty where it is none of them any more."""
        return max((f for f in self._roots if path.startswith(f + "/")), key=len, default="")

    def look(self, *, wants_more: bool) -> list[Spot]:
        """What a look at those folders finds whose time has come, the newest first.

        Args:
            wants_more: whether what an earlier look has left may be given now.
        """
        found: list[Spot] = []
        noted, is_much = self.events.take()
        self._noted = set(noted)
        if is_much and self._ticks() >= self._tell_lost_at:
            self._tell_lost_at = self._ticks() + LOST_SECONDS
            _log.warning("events of the folders that are ingested were lost: all of them are looked at")
        for root in list(self._roots.values()):
            root.is_lost = root.is_lost or is_much
            if root.is_lost and self._ticks() >= root.again_at:
                root.due, root.is_lost = -math.inf, False
            found += self._attempt(root, wants_more)
        self._tell_short()
        return found

    def told(self) -> list[Spot]:
        """What the kernel has told of until the last look."""
        found: list[Spot] = []
        noted, self._noted = self._noted, set()
        for path in sorted(noted):
            if root := self._roots.get(self.root_of(path)):
                found += self._told_of(root, path)
        return found

    def forgot(self, spot: Spot) -> None:
        """One that there was no place for: a look is to find it again."""
        if root := self._roots.get(self.root_of(spot.path)):
            root.recent.pop(spot.path, None)
            root.since = min(root.since, spot.changed_at)
            if root.before < math.inf:
                root.before = max(root.before, spot.changed_at)

    def _leave(self, gone: str) -> None:
        """Watches a folder no more. Those that lie in it, or around it, are looked at again, and watched: some of what
        was watched was theirs as well."""
        self.events.leave(gone, below=True)
        for folder, root in self._roots.items():
            if folder.startswith(gone + "/") or gone.startswith(folder + "/"):
                root.due = -math.inf

    def _subject(self, path: str) -> str:
        root = self.root_of(path)
        return runfolders.owner(root, path) if root else ""

    def _attempt(self, root: _Root, wants_more: bool) -> list[Spot]:
        """Looks at a folder where that is due, or another one stands in its place."""
        is_waiting = root.before < math.inf and not wants_more
        try:
            now_there = runfolders.identity(root.folder)
            if root.identity != now_there:
                if root.identity is not None:
                    self._leave(root.folder)
                self._roots[root.folder] = root = _Root(root.folder, now_there, troubles=root.troubles)
            if self._ticks() < root.due or (is_waiting and root.due > -math.inf):
                return []
            found = self._scan(root)
            self._is_well(root, root.folder)
            return found
        except OSError as error:
            if root.identity is not None:
                self._leave(root.folder)
            root.identity, root.due = None, self._ticks() + RETRY_SECONDS
            self._tell(root, root.folder, error)
            return []

    def _scan(self, root: _Root) -> list[Spot]:
        root.again_at = self._ticks() + RETRY_SECONDS
        if root.before == math.inf:
            root.began_at = self._clock()
        oldest = self._clock() - self._wanted.max_age
        found = heapq.nlargest(FOUND_MAX, self._all(root, oldest), key=lambda spot: spot.changed_at)
        root.latest = max(root.latest, found[0].changed_at if found else root.since)
        margin = min(root.latest, root.began_at) - MARGIN_SECONDS
        recent = root.recent | {spot.path: spot.changed_at for spot in found}
        root.recent = {path: at for path, at in recent.items() if at >= margin}
        if len(found) == FOUND_MAX:  # the rest when these are done
            root.before = min(found[-1].changed_at, math.nextafter(root.before, -math.inf))
            root.due = self._ticks() + RETRY_SECONDS
        else:
            root.known, root.seen = root.seen, set()
            root.troubles = {path: words for path, words in root.troubles.items() if os.path.lexists(path)}
            root.since, root.before = margin, math.inf
            root.due = self._ticks() + self._wanted.every
        return found

    def _all(self, root: _Root, oldest: float) -> Iterator[Spot]:
        self.events.watch(root.folder)
        for number, folder in enumerate(runfolders.experiments(root.folder)):
            if number % PAUSE_EVERY == 0:
                self._pause()
            try:
                identity = runfolders.identity(folder)
                since = root.since if identity in root.known else -math.inf
                for spot in self._spots(folder):
                    is_due = max(since, oldest) <= spot.changed_at <= root.before and spot.changed_at
                    if is_due and root.recent.get(spot.path) != spot.changed_at:
                        yield spot
                root.seen.add(identity)
                self._is_well(root, folder)
            except FileNotFoundError:
                continue
            except OSError as error:  # the other experiments can be read all the same
                self._tell(root, folder, error)

    def _spots(self, experiment: str) -> Iterator[Spot]:
        """Those of one experiment, which is watched from now on."""
        for folder in (experiment, os.path.join(experiment, MODELS)):
            if folder != experiment and not os.path.isdir(folder):
                return
            self.events.watch(folder)
            for number, spot in enumerate(runfolders.spots(folder)):
                if number % PAUSE_EVERY == 0:
                    self._pause()
                yield spot

    def _told_of(self, root: _Root, path: str) -> list[Spot]:
        """What has to be looked at because something has changed there."""
        if runfolders.is_spot(os.path.basename(path)):
            return [spot] if (spot := runfolders.spot(path)) else []
        oldest = self._clock() - self._wanted.max_age
        try:
            is_models = os.path.basename(path) == MODELS and os.path.dirname(path) != root.folder
            if is_models:
                self.events.watch(path)
            some = runfolders.spots(path) if is_models else self._spots(path)
            found = heapq.nlargest(FOUND_MAX, some, key=lambda spot: spot.changed_at)
            if len(found) == FOUND_MAX:  # it is not known: the next look at all goes through the rest
                root.due = -math.inf
            elif not is_models:
                root.known.add(runfolders.identity(path))
            return [spot for spot in found if spot.changed_at > oldest]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._tell(root, path, error)
            return []

    def _tell(self, root: _Root, path: str, error: OSError) -> None:
        words, known = error.strerror or str(error), root.troubles.get(path)
        if known is None and path != root.folder and len(root.troubles) >= TROUBLES_MAX:
            return
        if words != known:
            _log.warning(
                "%a cannot be looked at for what to ingest (%s): it is tried again. It has to be a folder that the"
                " daemon's user can list.",
                path,
                words,
            )
        root.troubles[path] = words

    def _is_well(self, root: _Root, path: str) -> None:
        if root.troubles.pop(path, None):
            _log.info("%a can be looked at again for what to ingest", path)

    def _tell_short(self) -> None:
        shortages = {
            "Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances.": self.events.is_short,
            f"There are more than {folderevents.WATCHES_MAX:,} folders, and no more are watched.": self.events.is_full,
        }
        for words in [words for words, is_so in shortages.items() if is_so and words not in self._told_short]:
            self._told_short.add(words)
            _log.warning(
                "not all folders that are ingested can be watched: what comes there is found by a look every %g s. %s",
                self._wanted.every,
                words,
            )
