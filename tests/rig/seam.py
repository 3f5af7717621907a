"""One seam under every effect of the daemon: files, locks, the C library, SQLite, sockets, and the origin's answers.

Law of this file: the daemon's rooms get copies of the standard library's own modules, in which every system call is a
step. A step is counted, and may fail before or after it was done; or the daemon dies there, and nothing that it does
from then on has an effect. The rooms know nothing of it, and whatever is written in them tomorrow comes by here too.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import io
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, NamedTuple, TypeVar, cast

from artifactcache.errors import OriginUnavailable
from cacheserver import libc
from tests.rig import errnos
from tests.rig.stand_ins import AtOnce, copy, copy_of

T = TypeVar("T")

PACKAGE = "cacheserver."
BEFORE, AFTER, HALF = "before", "after", "half"
KILL, ANY = 0, -1  # instead of an errno; ANY: one that the step may give, whatever the step is
_UNDONE = frozenset({"fsync", "fdatasync", "syncfs"})  # nobody cuts the power here, and a disk would take its time
_MISSING = object()
_UNDO: dict[str, Callable[[Any], object]] = {"scandir": lambda entries: entries.close()}


class Killed(BaseException):
    """The daemon has died here. Whoever swallows it dies at the next step again."""


class Step(NamedTuple):
    """Something that the daemon asked of its host."""

    name: str
    args: tuple[Any, ...]

    @property
    def errnos(self) -> tuple[int, ...]:
        """What it may fail with."""
        return errnos.of(self.name, self.args)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(_short(one) for one in self.args[:2])})"


class Fault(NamedTuple):
    """What happens at a step: an errno before or after it, or the daemon is killed before it. HALF: of a write a half
    is done, and the daemon is killed, or told so."""

    step: int
    when: str
    errno: int

    def __str__(self) -> str:
        what = "killed" if self.errno == KILL else "done" if self.when == HALF else os.strerror(self.errno)
        return f"step {self.step}, {self.when}: {what}"


class Seam:
    """The seam. Without a fault it only counts.

    Attributes:
        steps: those since `watching` began.
        fds: descriptors that the daemon has open, as far as they were opened here.
        is_dead: whether the daemon was killed.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.fds: set[int] = set()
        self._written: set[int] = set()  # those whose closing may tell of what was written
        self.is_dead = False
        self.has_fired = False
        self.depth = 0  # of calls under way: whatever reaches the system without one goes past the seam
        self._fault: Fault | None = None
        self._is_watching = False
        self._databases: dict[str, dict[Path, bytes]] = {}  # by path: the files as the death has left them
        self._connections: list[sqlite3.Connection] = []
        self._stand_ins: dict[int, Any] = {}
        self._make()

    # -- what happens at a step ---------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, fault: Fault | None = None) -> Iterator[None]:
        """Counts the steps of the block, and lets one of them fail."""
        self.steps, self._fault, self.has_fired, self._is_watching = [], fault, False, True
        try:
            yield
        finally:
            self._is_watching = False

    def call(
        self,
        name: str,
        args: tuple[Any, ...],
        real: Callable[[], T],
        failed: Callable[[int], T],
        undo: Callable[[Any], object] | None = None,
    ) -> T:
        """Does a step.

        Args:
            real: does it.
            failed: fails as it would, with an errno: raises, or returns what says so.
            undo: takes back what nobody is given who is told an error: a descriptor, a cursor.
        """
        if self.is_dead:
            raise Killed
        if not self._is_watching or self.depth:
            return self._really(real)
        name = "close clean" if name == "close" and args[0] not in self._written else name
        self.steps.append(Step(name, args))
        fault = self._fault
        if fault is None or fault.step != len(self.steps) - 1:
            return self._really(real)
        if fault.errno == ANY:
            some = [one for one in self.steps[-1].errnos if one != errno.EIO]  # which says that bytes are lost
            fault = fault._replace(errno=some[len(self.steps) % len(some)]) if some else None
        if fault is None:
            return self._really(real)
        self.has_fired = True
        result = self._really(real) if fault.when == HALF else None
        if fault.errno == KILL:
            self.kill()
            raise Killed
        if fault.when == HALF:
            return cast(T, result)
        if fault.when == AFTER or name == "close":  # that closes, whatever it says
            made = self._really(real)
            if undo:
                undo(made)
        return failed(fault.errno)

    def answer(self, name: str, real: Callable[[], T], failed: Callable[[int], T]) -> T:
        """A step that somebody else takes, of whom the daemon has asked something."""
        return self.call(name, (), real, failed)

    def _really(self, real: Callable[[], T]) -> T:
        self.depth += 1
        try:
            return real()
        finally:
            self.depth -= 1

    def kill(self) -> None:
        """The daemon is dead from here on."""
        if self.is_dead:
            return
        self.is_dead = True
        for path, files in self._databases.items():
            files.update({one: one.read_bytes() for one in Path(path).parent.glob(Path(path).name + "*")})

    def bury(self) -> None:
        """Ends what the kernel ends with a process: descriptors, locks, connections, nothing of it written back.

        Nobody may have anything of the dead daemon any more.
        """
        gc.collect()
        for connection in self._connections:
            sqlite3.Connection.close(connection)
        for path, files in self._databases.items():
            for one in Path(path).parent.glob(Path(path).name + "*"):
                one.unlink()
            for one, content in files.items():
                if not one.name.endswith("-shm"):  # of the dead process's locks: SQLite makes it anew
                    one.write_bytes(content)
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self._written.clear()
        self._connections.clear()
        self._databases.clear()
        self.is_dead = False

    def close(self, fd: int) -> None:
        """Closes a descriptor that the daemon has not, or has given away."""
        if fd >= 0:
            os.close(fd)
            self.fds.discard(fd)

    def passes(self) -> bool:
        """Whether what reaches the system now has not come by here."""
        return self._is_watching and not self.depth

    def is_in_use(self) -> bool:
        """Whether anything is open."""
        return bool(self.is_dead or self.fds or self._connections)

    # -- the stand-ins ------------------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For as long as this lasts, all rooms of the daemon go through here. They work in the caller's thread."""
        undo: list[tuple[Any, str, Any]] = [(libc, "_libc", libc._libc)]
        libc._libc = _Library(self, libc._libc)  # type: ignore[assignment]
        try:
            for name, room in list(sys.modules.items()):
                if not name.startswith(PACKAGE) or room is libc:
                    continue
                for attribute, value in list(vars(room).items()):
                    if id(value) in self._stand_ins:
                        undo.append((room, attribute, value))
                        setattr(room, attribute, self._stand_ins[id(value)])
                undo.append((room, "open", vars(room).get("open", _MISSING)))
                room.open = self.io.open  # type: ignore[attr-defined]
            yield
        finally:
            for room, attribute, value in reversed(undo):
                delattr(room, attribute) if value is _MISSING else setattr(room, attribute, value)

    def _make(self) -> None:
        """Copies of the standard library's modules that are written in Python, over system calls that are steps."""
        self.os = copy("os")
        for name, value in list(vars(self.os).items()):
            if isinstance(value, BuiltinFunctionType) and value.__module__ == "posix" and name not in errnos.HARMLESS:
                setattr(self.os, name, self._system_call(name, value))
        self.os.environ = os.environ
        generic, self.os.path = copy("genericpath"), copy("posixpath")
        generic.os = self.os.path.os = self.os
        for name in generic.__all__:
            setattr(self.os.path, name, getattr(generic, name))
        self.io = copy("_pyio")
        self.io.os = copy_of(self.os)
        self.io.os.fstat = os.fstat  # the real one looks at what it has opened, and does not mind an error
        self.shutil = copy("shutil")
        self.shutil.os = self.os
        locks = copy_of(fcntl)
        for name in ("flock", "lockf", "fcntl", "ioctl"):
            setattr(locks, name, self._system_call(name, getattr(fcntl, name)))
        database = copy_of(sqlite3)
        database.connect = self._connect
        for real, stand_in in (
            *((os, self.os), (io, self.io), (shutil, self.shutil), (fcntl, locks), (sqlite3, database)),
            (ThreadPoolExecutor, AtOnce),
        ):
            self._stand_ins[id(real)] = stand_in

    def _system_call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "close" and self.is_dead:
                return None  # the kernel does it; called by what is collected only now
            paths = [one for one in args[:2] if isinstance(one, str | bytes)]
            half = self._fault is not None and self._fault.when == HALF

            def do() -> Any:
                if name in _UNDONE:
                    return None
                if half and name in ("write", "pwrite") and self._is_at_fault():
                    return real(args[0], memoryview(args[1])[: max(1, len(args[1]) // 2)], *args[2:])
                result = real(*args, **kwargs)
                if name in errnos.OPENS:
                    self.fds.add(result)
                elif name == "close":
                    self.fds.discard(args[0])
                    self._written.discard(args[0])
                elif name in errnos.WRITES:
                    self._written.add(args[0])
                return result

            undo = self.close if name in errnos.OPENS else _UNDO.get(name)
            return self.call(name, args, do, lambda number: _raise(number, *paths), undo)

        return call

    def _is_at_fault(self) -> bool:
        return self._fault is not None and self._fault.step == len(self.steps) - 1

    def _connect(self, path: str, **options: Any) -> Any:
        seam = self

        class Connection(sqlite3.Connection):
            """Whose statements are steps."""

            def execute(self, *args: Any) -> Any:
                return seam._statement(self, args, lambda: super(Connection, self).execute(*args))

            def executemany(self, *args: Any) -> Any:
                return seam._statement(self, args, lambda: super(Connection, self).executemany(*args))

            def close(self) -> None:
                if not seam.is_dead:
                    super().close()
                    if self in seam._connections:  # to close one twice is no error
                        seam._connections.remove(self)

        def connect() -> sqlite3.Connection:
            made = sqlite3.connect(path, factory=Connection, **options)
            self._databases.setdefault(path, {})
            self._connections.append(made)
            return made

        def failed(number: int) -> Any:
            raise errnos.of_sqlite(number, ())

        return self.call("sql.open", (), connect, failed, lambda made: made.close())

    def _statement(self, connection: sqlite3.Connection, args: Any, real: Callable[[], sqlite3.Cursor]) -> Any:
        def failed(number: int) -> Any:
            if connection.in_transaction and number in (errno.ENOSPC, errno.EIO):
                sqlite3.Connection.execute(connection, "ROLLBACK")  # which SQLite may do by itself then
            raise errnos.of_sqlite(number, args)

        return self.call("sql." + str(args[0]).split()[0].lower(), args, real, failed, sqlite3.Cursor.close)


class Socket:
    """The daemon's end of a connection, whose calls are steps."""

    def __init__(self, seam: Seam, real: socket.socket) -> None:
        self._seam = seam
        self._real = real

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name not in errnos.OF_SOCKETS:
            return real

        def call(*args: Any) -> Any:
            return self._seam.call(name, args, lambda: self._received(real(*args)), _raise, self._take_back)

        return call

    def _received(self, result: Any) -> Any:
        self._seam.fds.update(_descriptors(result))
        return result

    def _take_back(self, result: Any) -> None:
        for fd in _descriptors(result):  # who is told an error is given none (recvmsg(2))
            self._seam.close(fd)


def _descriptors(result: Any) -> list[int]:
    beside = result[1] if isinstance(result, tuple) else ()
    rights = (data for level, kind, data in beside if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS))
    return [fd for data in rights for fd in array.array("i", data)]


class _Library:
    """The C library, whose calls tell an error by what they return."""

    def __init__(self, seam: Seam, real: Any) -> None:
        self._seam = seam
        self._real = real

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real, seam = getattr(self._real, name), self._seam
        if name in errnos.HARMLESS:
            return real  # type: ignore[no-any-return]
        name = "openat2" if name == "syscall" else name

        def call(*args: Any) -> Any:
            def do() -> Any:
                result = 0 if name in _UNDONE else real(*args)
                if name in errnos.OPENS and result >= 0:
                    seam.fds.add(result)
                return result

            def failed(number: int) -> Any:
                ctypes.set_errno(number)
                return ctypes.c_void_p(-1).value if name == "mmap" else -1

            return seam.call(name, args, do, failed, seam.close if name in errnos.OPENS else None)

        return call


def origin_failed(number: int) -> Any:
    """What an origin does whose answer does not come."""
    raise OriginUnavailable(f"the connection broke off ({os.strerror(number)})")


def _raise(number: int, *paths: str | bytes) -> Any:
    places = (paths[0], None, *paths[1:]) if len(paths) > 1 else paths
    raise OSError(number, os.strerror(number), *places)


def _short(arg: Any) -> str:
    text = os.fsdecode(arg) if isinstance(arg, str | bytes) else repr(arg)
    if text.startswith("/"):
        return text if len(text) <= 60 else f"…{text[-60:]}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"
