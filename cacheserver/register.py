"""The register of views handed out: which process has which tree, for the daemon that comes after this one.

Law of this file: a line is written before a view's path is given out, in one write that is there at once for whoever
reads the file after this process was killed. It is never synced: a crash of the host ends the processes as well. Where
it cannot be written, a lease is worth as much as its connection, and views are given out all the same.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
from collections import Counter
from typing import NamedTuple

from cacheserver.plain import open_plain

COMPACT_BYTES_MIN = 1 << 20  # a register that has grown to this, and to four times what counts, is written anew
# In /proc/PID/stat, counted behind the name: fields 3, 20 and 22 of proc_pid_stat(5).
_STATE, _THREADS, _STARTED = 0, 17, 19
_LINE = re.compile(r"([+-]) ([0-9]{1,10}) ([0-9]{1,20}) ([0-9a-f]{64})")

_log = logging.getLogger(__name__)


class Process(NamedTuple):
    """A process of this boot: a number alone is given to another one later."""

    pid: int
    started: int  # clock ticks since the host booted


def process(pid: int) -> Process | None:
    """The process that has this number now; None where there is none, or the daemon may not see it.

    One whose first thread has ended has the state of a zombie for as long as its other threads live, and counts them.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        lives = fields[_STATE] not in (b"Z", b"X") or int(fields[_THREADS]) > 1
        return Process(pid, int(fields[_STARTED])) if pid > 0 and lives else None
    except (OSError, IndexError, ValueError):
        return None


def sees_others() -> bool:
    """Whether this process may see those of other users: not where /proc is mounted with hidepid. By the host's first
    process, which is always there, and root's."""
    return process(1) is not None


class Register:
    """One file that grows by a line for each tree that a process gets a view of, or gives back.

    Args:
        path: its file.
        boot: what tells this boot of the host from others.
    """

    def __init__(self, path: str, boot: str) -> None:
        self._path = path
        self._boot = boot
        self._lock = threading.Lock()
        self._trees = {one: trees for one, trees in self._read().items() if process(one.pid) == one}
        self._fd, self._is_closed = -1, False
        try:
            self._fd = self._write_anew()
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        """Writes nothing any more: what is in it stays, for the next daemon."""
        with self._lock:
            self._is_closed = True
            fd, self._fd = self._fd, -1
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError as error:  # of what was written: it is closed all the same
                    self._failed(error)

    def trees(self) -> dict[Process, set[str]]:
        """The processes that have views, with the trees."""
        with self._lock:
            return {one: set(trees) for one, trees in self._trees.items()}

    def forget(self, one: Process) -> None:
        """A process has ended: its number says so to whoever reads the file."""
        with self._lock:
            self._trees.pop(one, None)

    def add(self, one: Process, tree: str) -> None:
        """A process is about to get a view of a tree."""
        with self._lock:
            mine = self._trees.setdefault(one, Counter())
            mine[tree] += 1
            if mine[tree] == 1:
                self._append("+", one, tree)

    def remove(self, one: Process, tree: str) -> None:
        """A process has given a view back, as often as it had got it."""
        with self._lock:
            mine = self._trees.get(one)
            if mine is None:  # it has ended
                return
            mine[tree] -= 1
            if mine[tree] > 0:
                return
            del mine[tree]
            if not mine:
                del self._trees[one]
            self._append("-", one, tree)

    def _append(self, sign: str, one: Process, tree: str) -> None:
        if self._is_closed:
            return
        try:
            if self._fd < 0:
                self._fd = self._write_anew()
            else:
                _write(self._fd, _line(sign, one, tree))
                self._compact()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        _log.warning("%s cannot be written (%s): views are leased by connections only", self._path, error.strerror)

    def _compact(self) -> None:
        size = os.fstat(self._fd).st_size
        if size > COMPACT_BYTES_MIN and size > 4 * 100 * sum(map(len, self._trees.values())):
            before, self._fd = self._fd, self._write_anew()
            os.close(before)

    def _read(self) -> dict[Process, Counter[str]]:
        try:
            with open(open_plain(self._path), encoding="ascii", errors="replace") as file:
                lines = file.read().split("\n")
        except OSError:
            return {}
        if lines[0] != self._boot:
            return {}
        found: dict[Process, Counter[str]] = {}
        for line in lines[1:]:
            if one := _LINE.fullmatch(line):  # else half of a line that a full disk left
                trees = found.setdefault(Process(int(one[2]), int(one[3])), Counter())
                trees[one[4]] = int(one[1] == "+")
        return {one: +trees for one, trees in found.items() if +trees}

    def _write_anew(self) -> int:
        fresh = self._path + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)  # of a daemon that was killed, or whatever somebody has put there
        fd = open_plain(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            text = b"".join(_line("+", one, tree) for one, trees in self._trees.items() for tree in trees)
            _write(fd, self._boot.encode() + text)
            os.rename(fresh, self._path)
        except OSError:
            os.close(fd)
            raise
        return fd


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):  # what a full disk, or a limit, leaves room for
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(sign: str, one: Process, tree: str) -> bytes:
    # The newline first: what follows half of a line, which a full disk has left, is a line all the same.
    return f"\n{sign} {one.pid} {one.started} {tree}".encode()
