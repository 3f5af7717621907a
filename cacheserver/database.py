"""One SQLite file: how it is opened and migrated, and what a transaction is.

Law of this file: one connection writes, another one reads, and a third reads what takes long; each has its lock. A
transaction happens as a whole or not at all; who reads outside of it waits for no writer, and sees what was committed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database

from artifactcache.errors import CacheError, NoSpace
from cacheserver.schema import MIGRATIONS, statements

BUSY_TIMEOUT_SECONDS = 30
VARIABLES_MAX = 900  # of one statement: SQLite's oldest limit on bound variables is 999
# SQLite says "disk I/O error" where the disk has no room for a file that it maps into memory (32 KiB at a time).
ROOM_BYTES_MIN = 1 << 20

_DAMAGED = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_PERHAPS_FULL = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_OF_THE_DISK = _DAMAGED | _PERHAPS_FULL | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


class Tables:
    """The tables of one file, in the newest schema.

    Raises CacheError where the file is damaged, of a newer release, or cannot be read; where the disk is full, NoSpace.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._reading, self._surveying = threading.Lock(), threading.Lock()
        self._writer = 0  # the thread that has a transaction open
        with contextlib.ExitStack() as opened:
            try:
                self._db = self._open(opened)
                # NORMAL: a power cut may take the last rows, never order them before their bytes; files without rows
                # are fine.
                for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                    self._db.execute(f"PRAGMA {pragma}")
                self._migrate()
                self._reader, self._surveyor = self._open_reader(opened), self._open_reader(opened)
            except sqlite3.DatabaseError as error:
                raise _refusal(error, path) from None
            opened.pop_all()

    def _open(self, opened: contextlib.ExitStack) -> Database:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        opened.callback(connection.close)
        return Database(connection, execute_plugins=False)

    def _open_reader(self, opened: contextlib.ExitStack) -> Database:
        reader = self._open(opened)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("SELECT 1 FROM sqlite_schema")  # opens its files now, not when they run out
        return reader

    def close(self) -> None:
        """Writes the log back into the database and closes it."""
        with self._lock, self._reading, self._surveying:
            self._reader.close()
            self._surveyor.close()
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk: the log stays, and is read next time
                self._db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All that is done inside is done together, or not at all. Raises NoSpace.

        Args:
            durable: when it ends without an error, it survives a power cut.
        """
        if self._writer == threading.get_ident():  # part of a larger one
            yield
            return
        with self._lock:
            # What follows a removal of rows is the removal of their files, and a disk may take that first. So the log
            # is synced, with all that was committed before. SQLite takes this setting only between transactions.
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            try:
                # IMMEDIATE: a deferred one fails at once when it turns from reading to writing beside another writer.
                self._db.execute("BEGIN IMMEDIATE")
                self._writer = threading.get_ident()
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.conn.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError) and _kind(error) in _OF_THE_DISK:
                    raise _refusal(error, self._path) from None
                raise
            finally:
                self._writer = 0

    def all(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a statement's result; inside a transaction, as the transaction has made them."""
        if self._writer == threading.get_ident():
            return self._db.execute(sql, values).fetchall()
        return self._read(self._reader, self._reading, sql, values)

    def survey(self, sql: str, *values: Any) -> list[Any]:
        """The same, for what may take long: whoever hands something out does not wait for it."""
        return self._read(self._surveyor, self._surveying, sql, values)

    def _read(self, reader: Database, lock: threading.Lock, sql: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            with lock:
                return reader.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            if _kind(error) in _OF_THE_DISK:
                raise _refusal(error, self._path) from None
            raise

    def row(self, sql: str, *values: Any) -> Any:
        """The first row of a statement's result, or None."""
        return next(iter(self.all(sql, *values)), None)

    def one(self, sql: str, *values: Any) -> Any:
        """The row of a statement that always has one."""
        row = self.row(sql, *values)
        assert row is not None
        return row

    def do(self, sql: str, *values: Any) -> None:
        """A statement of a transaction whose result nobody wants."""
        self._db.execute(sql, values)

    def many(self, sql: str, rows: Iterable[Any]) -> None:
        """One statement of a transaction for each of many rows of values."""
        self._db.conn.executemany(sql, rows)

    def _migrate(self) -> None:
        with self.transaction():
            seen: int = self.one("PRAGMA user_version")[0]
            if seen > len(MIGRATIONS):
                raise CacheError(
                    f"{self._path} was written by a newer release (schema {seen}, this one knows {len(MIGRATIONS)}):"
                    " install that release again, or give this one a store of its own."
                )
            for migration in MIGRATIONS[seen:]:
                for statement in statements(migration):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _kind(error: sqlite3.Error) -> int:
    """The error's primary code: the lower byte of what SQLite says (https://sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors that the module raises itself have none


def _refusal(error: sqlite3.DatabaseError, path: str) -> CacheError:
    """What SQLite said, by whose move it is. Only who has a damaged index is told to part with it: nothing else does
    what the index says of the store."""
    kind = _kind(error)
    if kind in _DAMAGED:
        return CacheError(
            f"The index {path} cannot be used: {error}. It is damaged: move it away, with its -wal and -shm; what was"
            " held is downloaded again."
        )
    if kind == sqlite3.SQLITE_FULL or (kind in _PERHAPS_FULL and not _has_room(path)):
        return NoSpace(
            f"The store's disk is full: its index {path} cannot be written. Free some space; what is held stays held."
        )
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return CacheError(
        f"The index {path} cannot be used: {error} ({name}). Leave it where it is, it may be sound: look at the disk"
        " and at who may write there, and try again."
    )


def _has_room(path: str) -> bool:
    try:
        found = os.statvfs(os.path.dirname(path))
    except OSError:
        return True  # then it is not for want of room that the disk fails
    return found.f_bavail * found.f_frsize >= ROOM_BYTES_MIN and (found.f_favail > 0 or not found.f_files)
