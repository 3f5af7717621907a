"""One SQLite file: how it is opened and migrated, and what a transaction is.

Law of this file: one connection, one lock; a transaction happens as a whole or not at all.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database

from artifactcache.errors import CacheError, NoSpace
from cacheserver.schema import MIGRATIONS, statements

BUSY_TIMEOUT_SECONDS = 30


class Tables:
    """The tables of one file, in the newest schema.

    Raises CacheError where the file is damaged or of a newer release; a transaction NoSpace where the disk is full.
    """

    def __init__(self, path: str) -> None:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        self._db = Database(connection, execute_plugins=False)
        self._lock = threading.RLock()
        try:
            # NORMAL: a power cut may take the last rows, never order them before their bytes; files without rows are
            # fine.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            self._migrate(path)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise CacheError(
                f"The index {path} cannot be used: {error}. Where it is damaged, move it away, with its -wal and -shm:"
                " what was held is downloaded again."
            ) from None

    def close(self) -> None:
        """Writes the log back into the database and closes it."""
        with self._lock:
            self._db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside is done together, or not at all. Raises NoSpace."""
        with self._lock:
            try:
                # IMMEDIATE: a deferred one fails at once when it turns from reading to writing beside another writer.
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.conn.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                    raise NoSpace("The store's disk is full: its index cannot be written.") from None
                raise

    def all(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a statement's result."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> Any:
        """The first row of a statement's result, or None."""
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def one(self, sql: str, *values: Any) -> Any:
        """The row of a statement that always has one."""
        row = self.row(sql, *values)
        assert row is not None
        return row

    def do(self, sql: str, *values: Any) -> None:
        """A statement whose result nobody wants."""
        with self._lock:
            self._db.execute(sql, values)

    def many(self, sql: str, rows: Iterable[Any]) -> None:
        """One statement for each of many rows of values."""
        with self._lock:
            self._db.conn.executemany(sql, rows)

    def _migrate(self, path: str) -> None:
        with self.transaction():
            seen: int = self.one("PRAGMA user_version")[0]
            if seen > len(MIGRATIONS):
                raise CacheError(
                    f"{path} was written by a newer release (schema {seen}, this one knows {len(MIGRATIONS)}):"
                    " install that release again, or give this one a store of its own."
                )
            for migration in MIGRATIONS[seen:]:
                for statement in statements(migration):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
