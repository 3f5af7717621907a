"""One SQLite file: how it is opened and migrated, and what a transaction is.

Law of this file: one connection writes, another one reads, and a third reads what takes long; each has its lock. Who
reads outside of a transaction waits for no writer, and sees what was committed.

A transaction happens as a whole or not at all, in the index. SQLite commits to two files with logs of their own one
after the other, the index first: where the disk fails between the two, COMMIT says that it has failed, and the index
has all of it. So the changes of names that the index counts are looked at then. Where it has them the transaction has
happened, whatever COMMIT said, and the mirror is behind until it was made anew; a transaction without names is in one
file only, and that has all or nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database

from artifactcache.errors import CacheError, NoSpace
from cacheserver import mirror
from cacheserver.plain import open_plain
from cacheserver.schema import MIGRATIONS, schema_after, schema_in, statements

BUSY_TIMEOUT_SECONDS = 30
VARIABLES_MAX = 900  # of one statement: SQLite's oldest limit on bound variables is 999
# SQLite says "disk I/O error" where the disk has no room for a file that it maps into memory (32 KiB at a time).
ROOM_BYTES_MIN = 1 << 20

# Where a row breaks a constraint, or has something of another type, a disk has changed what it stands beside: nothing
# of ours writes such rows.
_DAMAGED = frozenset(
    {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
)
# Damage in other words: of a schema, of text, and of the number that says how tables are written.
_WORDS_OF_DAMAGE = (
    "no such table",
    "no such column",
    "has no column named",
    "Could not decode to UTF-8",
    "unsupported file format",
)
# The module itself raises UnicodeDecodeError where what SQLite says of a damaged schema is no text.
_SAID = (sqlite3.DatabaseError, UnicodeDecodeError)
_WRITE_VERSION_AT, _WRITE_VERSION_MAX = 18, 2  # https://sqlite.org/fileformat2.html: SQLite only reads a file of more
_PERHAPS_FULL = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_OF_THE_DISK = _DAMAGED | _PERHAPS_FULL | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


class IndexDamaged(CacheError):
    """The index cannot be read, and has to be made anew."""


class Tables:
    """The tables of one file, in the newest schema.

    Attributes:
        is_damaged: something in the file cannot be read, or not be right; whoever else finds out sets it.
        is_behind: the mirror lacks what the index has, as far as is known: it is to be made anew.

    Raises IndexDamaged where the file is damaged; CacheError where it is of a newer release, or cannot be read; where
    the disk is full, NoSpace.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._reading, self._surveying = threading.Lock(), threading.Lock()
        self._writer = 0  # the thread that has a transaction open
        self.is_damaged = self.is_behind = False
        self._open_all()

    def _open_all(self) -> None:
        self._has_mirror = False
        with contextlib.ExitStack() as opened:
            try:
                self._db = self._open(opened)
                # NORMAL: a power cut may take the last rows, never order them before their bytes; files without rows
                # are fine.
                for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                    self._db.execute(f"PRAGMA {pragma}")
                self._migrate()
                self._reader, self._surveyor = self._open_reader(opened), self._open_reader(opened)
                mirror.attach(self._db, self._path)
                self._has_mirror = True
            except _SAID as error:
                raise _refusal(error, self._path) from None
            opened.pop_all()

    @contextmanager
    def renewed(self, catch_up: Callable[[], None]) -> Iterator[None]:
        """Closes the file for as long as this lasts, opens what stands there then, and has `catch_up` fill it; whoever
        asks meanwhile waits. Where it cannot be filled it stays closed: an index that was begun anew would say of
        everything that it is not held."""
        with self._lock, self._reading, self._surveying:
            self.is_damaged = True  # until the end of this: what is closed says so
            self._close_all()
            try:
                yield
            finally:  # whatever became of it: the old one is better than none
                self._open_all()
            try:
                catch_up()
            except BaseException:
                self._close_all()
                raise
            self.is_damaged = False

    def _close_all(self) -> None:
        for connection in (self._reader, self._surveyor, self._db):
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def find_damage(self) -> list[str]:
        """As `find_damage` below, of this index; thoroughly where there seems to be damage."""
        return find_damage(self._path, thorough=self.is_damaged)

    def is_sound(self) -> bool:
        """Whether each entry of SQLite's own indexes is that of its row. Rows are not read one by one for it: that
        would take the interpreter from whoever is served meanwhile."""
        return _passes(self._path, "integrity_check", reads_rows=False)

    def _open(self, opened: contextlib.ExitStack) -> Database:
        connection = self._connect()
        opened.callback(connection.close)
        return Database(connection, execute_plugins=False)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)

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
            # A full disk: the log stays, and is read next time. One that is damaged may be closed already.
            with contextlib.suppress(sqlite3.Error if self.is_damaged else sqlite3.OperationalError):
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
            try:
                # What follows a removal of rows is the removal of their files, and a disk may take that first. So the
                # log is synced, with all that was committed before. SQLite takes this setting only between two of them.
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                # IMMEDIATE: a deferred one fails at once when it turns from reading to writing beside another writer.
                self._db.execute("BEGIN IMMEDIATE")
                self._writer = threading.get_ident()
                before = self._change_count()
                yield
                self._commit(before)
            except BaseException as error:
                with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                    if self._db.conn.in_transaction:
                        self._db.execute("ROLLBACK")
                if isinstance(error, _SAID):
                    raise self._told(error) from None
                raise
            finally:
                self._writer = 0

    def _commit(self, before: int) -> None:
        """Commits, and knows by how many changes of names there were before whether that has happened."""
        after = self._change_count()
        try:
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError:
            if self._db.conn.in_transaction:
                self._db.execute("ROLLBACK")
            if before == after or self._change_count() != after:
                raise
            self.is_behind = True

    def _change_count(self) -> int:
        """How many changes of names the index has counted."""
        return int(self._db.execute("SELECT changes FROM mirrored").fetchone()[0]) if self._has_mirror else 0

    def all(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a statement's result; inside a transaction, as the transaction has made them."""
        if self._writer == threading.get_ident():
            return self._db.execute(sql, values).fetchall()
        return self._read(lambda: self._reader, self._reading, sql, values)

    def survey(self, sql: str, *values: Any) -> list[Any]:
        """The same, for what may take long: whoever hands something out does not wait for it."""
        return self._read(lambda: self._surveyor, self._surveying, sql, values)

    def _read(
        self, reader: Callable[[], Database], lock: threading.Lock, sql: str, values: tuple[Any, ...]
    ) -> list[Any]:
        try:
            with lock:  # and only then looked which connection it is: it may have been renewed
                return reader().execute(sql, values).fetchall()
        except _SAID as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> Exception:
        """An error in words, where there are any; and whether it is one of damage."""
        if self.is_damaged and isinstance(error, sqlite3.ProgrammingError):  # it could not even be opened again
            return IndexDamaged(f"The index {self._path} is damaged, and cannot be made anew now: look at its disk.")
        is_damage = _is_damage(error, self._path)
        self.is_damaged |= is_damage
        return _refusal(error, self._path) if is_damage or _kind(error) in _OF_THE_DISK else error

    def both(self, statements: Iterable[str]) -> list[list[Any]]:
        """All rows of statements on the index and the mirror, `names`, where both know the same changes; nothing where
        one is ahead just now. Whoever surveys waits for it, and nobody else."""
        try:
            with self._surveying, contextlib.closing(self._connect()) as alone:
                alone.execute("ATTACH ? AS names", (mirror.path_of(self._path),))
                alone.execute("BEGIN")  # what is read from here on is of one moment
                counts = alone.execute("SELECT changes FROM mirrored UNION SELECT changes FROM mirror").fetchall()
                return [alone.execute(one).fetchall() for one in statements] if len(counts) == 1 else []
        except _SAID as error:
            raise self._told(error) from None

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
            if not _counts_rightly(self._db, seen):
                raise IndexDamaged(
                    f"The index {self._path} is damaged (schema {seen}, with the tables of {len(MIGRATIONS)}). It is"
                    " made anew from what is in the store: try again in a moment."
                )
            if seen > len(MIGRATIONS):
                raise CacheError(
                    f"{self._path} was written by a newer release (schema {seen}, this one knows {len(MIGRATIONS)}):"
                    " install that release again, or give this one a store of its own."
                )
            for migration in MIGRATIONS[seen:]:
                for statement in statements(migration):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def find_damage(path: str, *, thorough: bool) -> list[str]:
    """Which of an index's two files are damaged: "main", and "names" for the mirror. Reads them as the disk has them,
    whatever is remembered. Raises CacheError where a file cannot be read for another reason.

    Args:
        thorough: where that finds nothing, each entry of SQLite's own indexes is compared with its row too.
    """
    files = {"main": path, "names": mirror.path_of(path)}
    for check in ("quick_check", "integrity_check")[: 1 + thorough]:
        if found := [name for name, one in files.items() if not _passes(one, check)]:
            return found
    return []


def _passes(path: str, check: str, *, reads_rows: bool = True) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)) as alone:
            if alone.execute(f"PRAGMA {check}(1)").fetchone()[0] != "ok" or not _is_writable(path):
                return False
            if not _has_its_tables(alone, is_mirror=path.endswith(mirror.path_of(""))):
                return False
            if check == "integrity_check" and reads_rows:  # which does not look whether text is text
                for kind, name, _ in schema_in(alone):
                    for _ in alone.execute(f'SELECT * FROM "{name}"') if kind == "table" else ():
                        pass
            return True
    except _SAID as error:
        if not _is_damage(error, path):
            raise _refusal(error, path) from None
        return False


def _has_its_tables(db: sqlite3.Connection, *, is_mirror: bool) -> bool:
    """Whether a file has what its migrations have made, or has nothing yet."""
    found = schema_in(db)
    if is_mirror:
        return not found or schema_after(one.replace("names.", "") for one in mirror.tables()) <= found
    seen: int = db.execute("PRAGMA user_version").fetchone()[0]
    wanted = schema_after(one for migration in MIGRATIONS[:seen] for one in statements(migration))
    return _counts_rightly(db, seen) and (wanted <= found or seen > len(MIGRATIONS))


def _counts_rightly(db: Any, seen: int) -> bool:
    """Whether an index does not have the tables of this release with the number of another one, which would be refused
    for ever, or be migrated twice."""
    return seen == len(MIGRATIONS) or schema_in(db) != schema_after(
        one for migration in MIGRATIONS for one in statements(migration)
    )


def _is_writable(path: str) -> bool:
    """Whether a file does not say of itself that it is of a newer SQLite, which this one may only read."""
    try:
        with open(open_plain(path), "rb") as file:
            header = file.read(_WRITE_VERSION_AT + 1)
    except OSError:
        return True  # then this is not why it cannot be written
    return len(header) <= _WRITE_VERSION_AT or header[_WRITE_VERSION_AT] <= _WRITE_VERSION_MAX


def _is_damage(error: Exception, path: str) -> bool:
    """Whether an error says that one of an index's files, or of its mirror's, is damaged."""
    kind = _kind(error)
    if kind == sqlite3.SQLITE_READONLY:
        return not (_is_writable(path) and _is_writable(mirror.path_of(path)))
    if isinstance(error, UnicodeDecodeError) or kind in _DAMAGED:
        return True
    return isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in _WORDS_OF_DAMAGE)


def _kind(error: Exception) -> int:
    """The error's primary code: the lower byte of what SQLite says (https://sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors that the module raises itself have none


def _refusal(error: Exception, path: str) -> CacheError:
    """What SQLite said, by whose move it is. Only an index that is damaged is parted with."""
    kind = _kind(error)
    if _is_damage(error, path):
        return IndexDamaged(
            f"The index {path} is damaged ({error}). It is made anew from what is in the store: try again in a moment."
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
