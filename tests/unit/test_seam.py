"""The seam itself: it is under everything, and what it lets fail does fail, or is found."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheserver import disk, libc, staging
from cacheserver.departures import Departures
from cacheserver.holdings import Gone
from cacheserver.staging import Staged
from cacheserver.store import Store
from cacheserver.words import Arrived, Standing
from tests.rig.seam import AFTER, BEFORE, HALF, KILL, PACKAGE, Fault, Killed, Seam
from tests.unit.mortal import mortal
from tests.unit.survival import faults, steps_of, survive
from tests.unit.verbs import VERBS

_heard: list[str] = []
_listening: list[Seam] = []
# Audit events of what leaves the process (https://docs.python.org/3/library/audit_events.html).
_EFFECTS = ("open", "os.", "shutil.", "sqlite3.connect", "fcntl.", "socket.connect", "tempfile.", "subprocess.")
_BY_NAME = {verb.name: verb for verb in VERBS}


def _hear(event: str, args: tuple[Any, ...]) -> None:
    """For as long as the process lives: a hook cannot be taken away."""
    if _listening and event.startswith(_EFFECTS) and _listening[0].passes() and _is_by_a_room():
        _heard.append(f"{event}{args[:2]}")


def _is_by_a_room() -> bool:
    """Whether the daemon does it, and not the client that a verb has in the test."""
    frame = sys._getframe(2)
    while frame.f_back and not frame.f_globals["__name__"].startswith((PACKAGE, "tests.unit.")):
        frame = frame.f_back
    return bool(frame.f_globals["__name__"].startswith(PACKAGE))


sys.addaudithook(_hear)


@pytest.fixture(scope="module")
def seam(memory: Path) -> Iterator[Seam]:
    """The seam, in place."""
    seam = Seam()
    with mortal(seam, memory / "empty"):
        yield seam


def test_nothing_goes_past_it(seam: Seam, tmp_path: Path) -> None:
    """Whatever a verb opens, renames, removes or connects to, Python's own audit hears of nothing beside the steps."""
    for number, verb in enumerate(VERBS):
        for listening in ([], [seam]):  # the first time it may import something
            folder = tmp_path / f"{number}-{len(listening)}"
            folder.mkdir()
            _listening[:] = listening
            try:
                steps = steps_of(verb, folder, seam)
            finally:
                _listening.clear()
        assert steps and not _heard, f"{verb}: {_heard}"


def test_a_step_fails_before_it_is_done_and_after(seam: Seam, tmp_path: Path) -> None:
    """And is done, or not; what it would have made nobody has."""
    room: Any = disk
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    with seam.watching(Fault(0, BEFORE, errno.ENOSPC)), pytest.raises(OSError, match="No space") as raised:
        room.os.mkdir(before)
    assert raised.value.filename == before and seam.has_fired
    with seam.watching(Fault(0, AFTER, errno.EIO)), pytest.raises(OSError, match="Input/output"):
        room.os.mkdir(after)
    assert os.listdir(tmp_path) == ["after"]
    fds = os.listdir("/proc/self/fd")
    with seam.watching(Fault(0, AFTER, errno.EMFILE)), pytest.raises(OSError, match="Too many"):
        room.os.open(str(tmp_path / "file"), os.O_CREAT | os.O_WRONLY)
    assert os.listdir("/proc/self/fd") == fds and (tmp_path / "file").exists()


def test_files_the_c_library_and_sqlite_fail_as_they_do(seam: Seam, tmp_path: Path) -> None:
    """A file's close may tell of what was written; a call of the C library sets errno; SQLite has its own codes."""
    room: Any = disk
    with (
        seam.watching(Fault(2, BEFORE, errno.EDQUOT)),
        pytest.raises(OSError, match="quota"),
        room.open(tmp_path / "file", "w") as file,
    ):
        file.write("text")
    assert [step.name for step in seam.steps] == ["open", "write", "close"]
    with seam.watching(Fault(0, BEFORE, errno.EIO)), pytest.raises(OSError, match="Input/output"):
        libc.exchange("one", "other")
    tables: Any = sys.modules["cacheserver.database"]
    connection = tables.sqlite3.connect(str(tmp_path / "db"))
    with seam.watching(Fault(0, BEFORE, errno.ENOSPC)), pytest.raises(sqlite3.OperationalError) as raised:
        connection.execute("CREATE TABLE t (x)")
    assert raised.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    connection.close()


def test_who_is_dead_does_nothing(seam: Seam, tmp_path: Path) -> None:
    """However it tries: neither what cleans up nor what swallows the death has an effect; half of a write is there."""
    room: Any = staging
    path = str(tmp_path / "file")
    with seam.watching(Fault(1, HALF, KILL)), pytest.raises(Killed):
        fd = room.os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            room.os.write(fd, b"12345678")
        finally:
            for _ in range(2):
                with pytest.raises(Killed):
                    room.os.unlink(path)
    seam.bury()
    assert Path(path).read_bytes() == b"1234"


def test_rows_before_files_are_found(seam: Seam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that dies between the two leaves a row without bytes."""

    def record_first(self: Store, staged: dict[str, Staged], standing: Standing, now: float) -> None:
        arrived = {u: Arrived(s.row.digest, s.row.size, s.etag) for u, s in staged.items() if s.row.size}
        self.index.record_arrivals([s.row for s in staged.values() if s.row.size], arrived, standing, now)
        self._disk.place([s for s in staged.values() if s.row.size])

    monkeypatch.setattr(Store, "keep", record_first)
    with pytest.raises(AssertionError):
        _all_survived(seam, tmp_path, "cold fetch", "rename", KILL)


def test_files_before_rows_that_go_are_found(seam: Seam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one that removes the files first."""
    real = Departures._take_out

    def remove(
        self: Departures, decide: Callable[[], Gone], taken: Callable[[], None] = lambda: None, rest: object = None
    ) -> Gone:
        index = self._index
        real(self, Gone({}, dict.fromkeys(index.all_digests(), 0)), lambda: None)
        gone = decide()
        taken()
        return gone

    monkeypatch.setattr(Departures, "remove", remove)
    with pytest.raises(AssertionError):
        _all_survived(seam, tmp_path, "sweep", "sql.commit", KILL)


def test_an_error_that_is_not_ours_is_found(seam: Seam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a room lets an OSError through, that is told."""
    monkeypatch.setattr("cacheserver.store.trouble", lambda error, what: error)
    with pytest.raises(AssertionError, match="OSError"):
        _all_survived(seam, tmp_path, "cold fetch", "fsync", errno.EIO)


def _all_survived(seam: Seam, folder: Path, verb: str, name: str, number: int) -> None:
    """All faults of one kind, at the steps of one name."""
    (folder / "count").mkdir()
    steps = steps_of(_BY_NAME[verb], folder / "count", seam)
    for case, fault in enumerate(one for one in faults(steps) if (steps[one.step].name, one.errno) == (name, number)):
        (folder / str(case)).mkdir()
        survive(_BY_NAME[verb], fault, folder / str(case), seam)
