"""The audit log: every attempt to read an artifact is written down, and operators can read that.

Law of this file: nobody who fetches waits for it. Attempts go into a queue, of which one thread writes; where that is
full, or the file cannot be written, lines are lost, and counted. A plain write would do where it is quick (8 µs of the
50 to 100 that a line takes, against 10 for the queue), but the calls' ends come from the one thread of gRPC that serves
all of them: a disk or a name service that hangs would keep every user waiting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from artifactcache.errors import CacheError
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.alarms import WINDOW_SECONDS, Alarm
from cacheserver.answers import group_name, user_name
from cacheserver.attempts import GRANTED, REFUSED, WAYS, Attempt, Wanted, line, lost, named
from cacheserver.auditfile import AuditFile, AuditReader
from cacheserver.journald import Journal
from cacheserver.programs import program
from cacheserver.sessions import Peer
from cacheserver.settings import AuditConfig
from cacheserver.tallies import Spread, Tally

QUEUE_MAX = 20_000  # attempts; about 1 KB each
NAMES_SECONDS = 60.0  # for which the names of a user and its groups are kept
NAMES_MAX = 10_000
FOLLOW_SECONDS = 0.25  # between two looks of somebody who waits for more
STOP_SECONDS = 3.0

_UNUSUAL = {"refusals": "attempts of %s were refused", "downloads": "downloads were made by %s"}

_log = logging.getLogger(__name__)


class AuditLog:
    """The log, its thread, and what it counts.

    Args:
        path: of its file.
        journal: systemd's, where it gets every attempt too.
        clock: seconds since the epoch.
        ticks: seconds since any moment.
    """

    def __init__(
        self,
        path: str,
        told: AuditConfig,
        journal: Journal | None,
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self._path = path
        self._files_max = told.files
        self._file = AuditFile(path, int(told.max_bytes.number), told.files)
        self._journal = journal
        self._clock = clock
        self._ticks = ticks
        self._queue: SimpleQueue[Attempt | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._stopping = threading.Event()
        # Of what is counted; a hit does not take it.
        self._lock = threading.Lock()
        self._refused_count = self._lost_count = 0
        self._overflowed = 0
        self._refusals = Alarm(told.warn_refusals)
        self._downloads = Alarm(told.warn_downloads)
        self.alarms = Tally((kind,) for kind in _UNUSUAL)
        self.fetch_seconds = Spread(WAYS)
        # The thread's own:
        self._lost = 0
        self._why = ""
        self._names: dict[Peer, tuple[float, str, list[str]]] = {}

    def become(self, told: AuditConfig) -> None:
        """Goes by this from now on; its file stays the same."""
        self._files_max = told.files
        self._file.become(int(told.max_bytes.number), told.files)
        with self._lock:
            self._refusals.threshold, self._downloads.threshold = told.warn_refusals, told.warn_downloads

    def start(self) -> None:
        """Writes from now on."""
        self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Writes what is in the queue, as far as that takes no time. Whoever follows is told no more."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(seconds)

    def refused_count(self) -> int:
        """How many attempts were refused."""
        return self._refused_count

    def lost_count(self) -> int:
        """How many attempts are missing in the log."""
        return self._lost_count

    @contextmanager
    def attempt(
        self, verb: str, asked: pb.ArtifactSelection, later: Callable[[Callable[[], None]], bool]
    ) -> Iterator[Attempt]:
        """An attempt that is made in this block, and is written down when it is over.

        Args:
            later: calls something when the caller has its answer; returns False where nobody waits any more. What
                was granted is noted only then: it is not to cost a hit its time.
        """
        attempt, began = Attempt(verb, named(asked)), self._ticks()
        try:
            yield attempt
        except CacheError as error:
            attempt.error = error
            raise
        except Exception as error:  # a defect; `statuses` tells the caller and the log of it
            attempt.error = CacheError(f"{type(error).__name__} in the daemon; its log says more")
            raise
        finally:
            attempt.at, attempt.seconds = self._clock(), self._ticks() - began
            if attempt.decision != GRANTED or not later(partial(self._note, attempt)):
                self._note(attempt)

    def hello(self, peer: Peer, error: CacheError) -> None:
        """Somebody got no session. It is written down where that was refused to them."""
        attempt = Attempt("Hello", "", "", peer, program(peer.pid), error=error, at=self._clock())
        if attempt.decision == REFUSED:
            self._note(attempt)

    def events(self, request: pb.AuditRequest, is_wanted: Callable[[], bool]) -> Iterator[pb.AuditEvent]:
        """The lines that somebody asks for, an empty event before all; with `follow` those to come too, while they are
        wanted. Nothing is read ahead of what has been taken. Raises InvalidRequest."""
        wanted = Wanted(
            user=request.user, artifact=request.artifact, refused_only=request.refused_only, since=request.since
        )
        yield pb.AuditEvent()
        for lines in AuditReader(self._path, self._files_max, request.since).batches():
            if found := list(wanted.of(lines)):
                yield pb.AuditEvent(lines=found)
            if not is_wanted() or self._stopping.is_set():
                return
            if not lines:
                if not request.follow:
                    return
                self._stopping.wait(FOLLOW_SECONDS)

    # -- whoever makes an attempt -----------------------------------------------------------------------------------

    def _note(self, attempt: Attempt) -> None:
        if attempt.decision == REFUSED:
            self._count(attempt, self._refusals, "refusals", refused=1)
        elif attempt.decision == GRANTED and attempt.is_download:
            self._count(attempt, self._downloads, "downloads")
        if attempt.way:
            self.fetch_seconds.add(attempt.way, attempt.seconds)
        if self._queue.qsize() < QUEUE_MAX:
            self._queue.put(attempt)
            return
        with self._lock:
            self._overflowed += 1

    def _count(self, attempt: Attempt, alarm: Alarm, kind: str, refused: int = 0) -> None:
        uid = attempt.peer.uid if attempt.peer else None
        with self._lock:
            self._refused_count += refused
            is_unusual = alarm.count(uid, attempt.at)
        if is_unusual:
            self.alarms.add(kind)
            who = "somebody without a session" if uid is None else f"uid {uid}"
            _log.warning(
                f"%d {_UNUSUAL[kind]} within %d minutes; `artifactcache audit` shows them",
                alarm.threshold,
                who,
                WINDOW_SECONDS // 60,
            )

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (attempt := self._queue.get()) is not None:
            try:
                self._write(attempt)
            except Exception:  # noqa: BLE001 - this thread is the only one: without it nothing is written any more
                self._lose(1, "a defect")
                _log.exception("an attempt could not be written down")
        self._file.close()
        if self._lost:
            _log.warning("%s lacks the last %d attempts: %s", self._path, self._lost, self._why)

    def _write(self, attempt: Attempt) -> None:
        record = attempt.record(*self._called(attempt.peer))
        if self._journal:
            self._journal.send(record)
        with self._lock:
            overflowed, self._overflowed = self._overflowed, 0
        if overflowed:
            self._lose(overflowed, "too many at once")
        try:
            if self._lost:
                self._file.append(line(lost(self._lost, self._why, attempt.at)))
                _log.warning("%s is written again; %d attempts are missing in it", self._path, self._lost)
                self._lost = 0
            self._file.append(line(record))
        except OSError as error:
            if not self._lost:
                _log.warning("%s cannot be written, attempts are missing there: %s", self._path, error.strerror)
            self._lose(1, str(error.strerror))

    def _lose(self, count: int, why: str) -> None:
        self._lost, self._why = self._lost + count, why
        self._lost_count += count

    def _called(self, peer: Peer | None) -> tuple[str | None, list[str]]:
        """The names of a user and its groups."""
        if peer is None:
            return None, []
        key, now = Peer(peer.uid, peer.gid, 0, peer.groups), self._ticks()
        kept = self._names.get(key)
        if kept is None or kept[0] < now:
            groups = [group_name(gid) for gid in dict.fromkeys((peer.gid, *peer.groups))]
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            kept = self._names[key] = (now + NAMES_SECONDS, user_name(peer.uid), groups)
        return kept[1], kept[2]
