"""Brings what finished runs have logged on this host before anybody asks for it.

Law of this file: a folder is a hint; what is brought, the tracking server says, and the cache brings it as for a fetch.
Nobody waits for it: it makes no room for itself, has few threads of its own, and whatever fails is tried again later.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from itertools import chain
from typing import Protocol

from artifactcache.errors import CacheError, Corrupted, NoSpace, NotFound
from cacheserver import roots, runfolders, uris
from cacheserver.cache import Cache
from cacheserver.discovery import Discovery
from cacheserver.errands import Ask
from cacheserver.index import Index
from cacheserver.local import LOCAL_SCHEMES
from cacheserver.outcomes import Outcome, State
from cacheserver.runfolders import Spot
from cacheserver.selection import Selection
from cacheserver.settings import IngestConfig
from cacheserver.settling import RUNNING_SECONDS_MAX, Run
from cacheserver.tallies import Tally
from cacheserver.words import Brought, Standing

AT_ONCE = 2  # artifacts brought together
ASKED_TOGETHER = 100  # runs and logged models
WAITING_MAX = 20_000  # runs that are remembered; the others are found again by a look
WATCHED_MAX = 2_000  # runs whose folders are watched, those that came last
FULL_SECONDS = 30.0  # between two looks whether there is room again
TOLD_SECONDS = 6 * 3600.0  # between two lines of one trouble
DOUBT_SECONDS = 60.0  # when what is wrong each time is told: somebody may be writing there
AWAY_SECONDS = 10.0  # between two questions to a tracking server that does not answer
CLOCK_SECONDS = 0.05  # by which a filesystem's clock may be behind
PAUSE_EVERY = 20  # runs looked at; then others have their turn
TURN_SECONDS = 0.5  # how long downloads are waited for before folders are looked at again

# What becomes of an artifact: bytes came; all of it was here; it lies elsewhere than in the folder; a retention rule
# would let it go at once; an attempt failed.
RESULTS = BROUGHT, THERE, ELSEWHERE, DROPPED, FAILED = ("brought", "there", "elsewhere", "dropped", "failed")

_log = logging.getLogger(__name__)


class Tracking(Protocol):
    """A tracking server, as far as this room asks it."""

    def outcomes(self, asked: Sequence[tuple[str, str]]) -> dict[str, Outcome]:
        """As `Outcomes.of`."""


class Ingesting:
    """Of one cache.

    Args:
        has_spare: whether there is room that nobody had to be evicted for.
        would_drop: those of some versions that retention rules would let go at once.
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        pause: lets others have their turn.

    Attributes:
        counts: of what has become of artifacts, by RESULTS, with bytes.
    """

    def __init__(
        self,
        cache: Cache,
        index: Index,
        origin: Tracking,
        wanted: IngestConfig,
        *,
        has_spare: Callable[[], bool],
        would_drop: Callable[[Sequence[str]], set[str]],
        clock: Callable[[], float],
        ticks: Callable[[], float],
        pause: Callable[[], None],
    ) -> None:
        self._cache = cache
        self._index = index
        self._origin = origin
        self._wanted = wanted
        self._has_spare = has_spare
        self._would_drop = would_drop
        self._clock = clock
        self._ticks = ticks
        self._pause = pause
        self._discovery = Discovery(wanted, clock, ticks, pause)
        self._runs: dict[str, Run] = {}  # by path
        self._ready: list[Run] = []  # have finished, and their bytes lie there; the newest last
        self._flying: list[Run] = []
        self._watched: dict[str, None] = {}
        self._told: dict[tuple[str, type[Exception]], float] = {}
        self._is_away = False
        self._asked_at = -math.inf  # about those that are ready
        self._rest_until = -math.inf  # while the store is full, or the origin away
        self._has_changed = self._is_stopping = False
        self.counts = Tally((result,) for result in RESULTS)

    def become(self, wanted: IngestConfig) -> None:
        """Goes by this from the next look on."""
        self._wanted, self._has_changed = wanted, True

    def stop(self) -> None:
        """Begins nothing any more."""
        self._is_stopping = True

    def waiting_count(self) -> int:
        """How many runs and logged models are remembered that were not brought yet: most of them are running."""
        return len(self._runs)

    def watch_count(self) -> int:
        """How many folders are watched."""
        return self._discovery.events.count()

    def look(self) -> None:
        """Does what there is to do, and comes back when there is nothing more for now."""
        try:
            while not self._is_stopping:
                self._hear()
                self._take()
                if not self._begin():
                    return
        finally:
            if self._is_stopping:
                self._discovery.events.close()

    # -- what there is ----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Of what has come, and of another configuration."""
        if self._has_changed:
            self._has_changed = False  # before it is read: what changes from now on has another look
            self._discovery.become(self._wanted)
            self._told.clear()
            for run in [run for run in self._runs.values() if not self._discovery.root_of(run.spot.path)]:
                self._forget(run)
        for spot in self._discovery.look(wants_more=len(self._runs) < WAITING_MAX // 2):
            self._want(spot, is_doubtful=False)
        for spot in self._discovery.told():
            self._want(spot, is_doubtful=True)

    def _want(self, spot: Spot, *, is_doubtful: bool) -> None:
        settle, run = self._wanted.settle, self._runs.get(spot.path)
        if run is None:
            if len(self._runs) >= WAITING_MAX:
                self._forget_oldest()
            run = self._runs[spot.path] = Run(spot, self._ticks(), settle)
        run.spot, run.is_doubtful, run.wait = spot, run.is_doubtful or is_doubtful, settle
        if is_doubtful:
            run.due = self._ticks() + settle

    def _forget_oldest(self) -> None:
        """Makes room for others; a look finds them again when there is room for them."""
        idle = [run for run in self._runs.values() if run.flight is None]
        for run in heapq.nsmallest(max(1, WAITING_MAX // 20), idle, key=lambda run: run.spot.changed_at):
            self._forget(run)
            self._discovery.forgot(run.spot)

    def _watch(self, run: Run) -> None:
        """Watches a run's own folders; only the last ones are."""
        for folder in (run.spot.path, run.spot.artifacts):
            self._discovery.events.watch(folder)
        self._watched.pop(run.spot.path, None)
        self._watched[run.spot.path] = None
        while len(self._watched) > WATCHED_MAX:
            oldest = next(iter(self._watched))
            del self._watched[oldest]
            self._discovery.events.leave(oldest)
            self._discovery.events.leave(os.path.join(oldest, runfolders.ARTIFACTS))

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.spot.path, None)

    # -- what is to be brought --------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Begins to bring some, and waits a moment for those that are under way. Returns whether there may be more to
        do now."""
        if len(self._flying) < AT_ONCE and self._ticks() >= self._rest_until:
            if self._ready and not self._has_room():
                self._ready.clear()  # they are asked about anew, for others may have come by then
            elif self._ready:
                self._bring(self._ready.pop())
                return True
            elif self._ask():
                return True
        if self._flying:
            wait([run.flight.future for run in self._flying if run.flight], TURN_SECONDS, FIRST_COMPLETED)
        return bool(self._flying)

    def _has_room(self) -> bool:
        if self._has_spare():
            return True
        self._rest_until = self._ticks() + FULL_SECONDS
        self._tell_full("it is as full as sweeps leave it")
        return False

    def _ask(self) -> bool:
        """Asks about some of those whose time has come: which have finished. Returns whether there
        were any."""
        now, some = self._ticks(), list[Run]()
        self._asked_at = now
        due = [run for run in self._runs.values() if run.flight is None and run.due <= now]
        # In turns the newest and who waits for longest: whoever goes on making folders keeps nobody waiting for ever.
        newest, longest = sorted(due, key=lambda run: -run.spot.changed_at), sorted(due, key=lambda run: run.due)
        for number, run in enumerate(dict.fromkeys(chain.from_iterable(zip(newest, longest, strict=True))), start=1):
            if self._is_worth_asking(run):
                if not some and not self._has_room():  # the others' folders are not looked at for nothing
                    return False
                some.append(run)
            if len(some) == ASKED_TOGETHER or self._is_stopping:
                break
            if number % PAUSE_EVERY == 0:
                self._pause()
        if not some:
            return False
        try:
            found = self._origin.outcomes([(run.spot.experiment, run.spot.name) for run in some])
            done = [run for run in some if self._is_done(run, found.get(run.spot.name))]
            dropped = self._would_drop([run.spot.uri for run in done])
        except CacheError as error:
            self._rest_until = self._ticks() + AWAY_SECONDS
            if not self._is_away and not self._is_stopping:
                _log.warning("nothing is ingested until the tracking server can be asked: %s", error)
            self._is_away = True
            return False
        self._is_away = False
        for run in [run for run in done if run.spot.uri in dropped]:
            self.counts.add(DROPPED)
            self._forget(run)
        self._ready = self._settled([run for run in reversed(done) if run.spot.uri not in dropped])
        return True

    def _is_worth_asking(self, run: Run) -> bool:
        """Whether there may be something of it that is not held yet.

        Its files are not looked at before the tracking server has said that they are a finished run's: whoever may
        write there can make any number of folders, all of them symlinks to the same 200,000 files.
        """
        spot = runfolders.spot(run.spot.path)
        try:
            if spot:
                self._watch(run)
            if spot is None or not runfolders.has_files(spot.artifacts):
                self._forget(run)
                return False
        except OSError as error:
            self._cannot_look(run, error)
            return False
        run.spot = spot
        if not run.is_doubtful and spot.changed_at < self._seen_at(run):
            self._forget(run)
            return False
        return self._has_settled(run) if run.is_confirmed else self._is_written_no_more(run, spot.changed_at)

    def _settled(self, done: list[Run]) -> list[Run]:
        """Those that are to be brought now, of those that the tracking server has confirmed."""
        found = []
        for number, run in enumerate(done, start=1):
            if run.is_confirmed or self._has_settled(run):  # it was looked at before it was asked about again
                found.append(run)
            run.is_confirmed = True
            if number % PAUSE_EVERY == 0:
                self._pause()
        return found

    def _has_settled(self, run: Run) -> bool:
        """Whether something of it is not held yet, and is written no more."""
        try:
            newest = runfolders.newest(run.spot.artifacts)
        except OSError as error:
            self._cannot_look(run, error)
            return False
        if newest < self._seen_at(run):  # nothing was written since it was brought
            self._forget(run)
            return False
        return self._is_written_no_more(run, newest)

    def _is_written_no_more(self, run: Run, newest: float) -> bool:
        return run.has_settled(newest, self._wanted.settle, clock=self._clock(), now=self._ticks())

    def _seen_at(self, run: Run) -> float:
        """What was written before then is held, by the filesystem's clock."""
        held = self._index.held(run.spot.uri, "")
        is_held = held is not None and held.standing is Standing.FINISHED
        return held.checked_at - CLOCK_SECONDS if held and is_held else -math.inf

    def _cannot_look(self, run: Run, error: OSError) -> None:
        run.later(self._ticks())
        self._tell_words(run, OSError, f"{run.spot.artifacts!a}: {error.strerror}")

    def _is_done(self, run: Run, outcome: Outcome | None) -> bool:
        """Whether it is to be brought now."""
        state = outcome.state if outcome else State.REFUSED
        if outcome and state is State.DONE and self._lies_there(run.spot, outcome.root):
            return True
        run.is_confirmed = False
        if state in (State.DONE, State.ENDED):
            if state is State.DONE:
                self.counts.add(ELSEWHERE)
                _log.debug("%s is not ingested from %s: its bytes lie elsewhere", run.spot.uri, ascii(run.spot.path))
            self._forget(run)
        elif state is State.OPEN:
            run.later(self._ticks(), RUNNING_SECONDS_MAX)
        else:
            run.later(self._ticks())
            self._tell_words(run, PermissionError, outcome.why if outcome else "the tracking server does not say.")
        return False

    def _lies_there(self, spot: Spot, root: str) -> bool:
        """Whether a folder is where the tracking server has the bytes; or, of a server that hands them out itself,
        where it would put them."""
        if roots.scheme(root) in LOCAL_SCHEMES:
            return os.path.realpath(roots.local_path(root)) == os.path.realpath(spot.artifacts)
        inside = spot.artifacts[len(self._discovery.root_of(spot.path)) :]
        return roots.scheme(root) in ("mlflow-artifacts", "http", "https") and root.endswith(inside)

    # -- bringing ---------------------------------------------------------------------------------------------------

    def _bring(self, run: Run) -> None:
        if self._runs.get(run.spot.path) is not run or run.due > self._asked_at:
            return  # the configuration has changed, or it is written again: it waits for its time
        artifact = uris.parse(run.spot.uri)
        # What is held is of before the last change there: the origin is asked anew whatever is trusted still.
        ask = Ask.AGAIN if self._index.held(artifact.uri, "") else Ask.WHAT_IS_DUE
        run.is_doubtful = False
        run.flight = self._cache.bring(artifact, Selection(), ask, unasked=True)[0]
        self._flying.append(run)

    def _take(self) -> None:
        """Takes what has come."""
        for run in [run for run in self._flying if run.flight and run.flight.future.done()]:
            flight, run.flight = run.flight, None
            self._flying.remove(run)
            assert flight is not None
            try:
                self._brought(run, flight.future.result())
            except NotFound:
                self._forget(run)
            except CacheError as error:
                self._failed(run, error)
            except Exception:  # noqa: BLE001 - the others have their turn whatever becomes of this one
                _log.exception("ingesting %s failed", ascii(run.spot.uri))
                self._forget(run)
            finally:
                self._cache.leave(flight)

    def _brought(self, run: Run, brought: Brought) -> None:
        if brought.stale:  # it is as it was held before
            run.later(self._ticks())
            return
        self.counts.add(BROUGHT if brought.origin_bytes else THERE, amount=brought.origin_bytes)
        _log.info("ingested uri=%s bytes=%d files=%d", run.spot.uri, brought.origin_bytes, brought.held.file_count)
        if run.is_over(bool(brought.origin_bytes), self._wanted.settle, clock=self._clock(), now=self._ticks()):
            self._forget(run)

    def _failed(self, run: Run, error: CacheError) -> None:
        run.later(self._ticks())
        self.counts.add(FAILED)
        if isinstance(error, NoSpace):
            self._tell_full(str(error))
        elif isinstance(error, Corrupted) and run.wait < DOUBT_SECONDS:  # it was written to while it was read
            _log.debug("%s is not ingested yet: %s", run.spot.uri, error)
        else:
            self._tell_words(run, type(error), str(error))

    def _tell_words(self, run: Run, kind: type[Exception], words: str) -> None:
        if self._is_new(self._discovery.root_of(run.spot.path), kind):
            _log.warning("%s is not ingested now, and is tried again, as are others like it: %s", run.spot.uri, words)

    def _tell_full(self, words: str) -> None:
        if self._is_new("", NoSpace):
            _log.info("the store has no room to ingest more: %s. It goes on when there is; fetches go on", words)

    def _is_new(self, root: str, kind: type[Exception]) -> bool:
        """Whether a kind of trouble with a folder of the configuration is to be told: once in some hours."""
        now, told_at = self._ticks(), self._told.get((root, kind), -math.inf)
        if self._is_stopping or now - told_at < TOLD_SECONDS:
            return False
        self._told[root, kind] = now
        return True
