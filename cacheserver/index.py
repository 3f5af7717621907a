"""The index: what is held, and where it came from. The one room that speaks SQL.

Law of this file: a row appears after its bytes are safe, and goes before they are removed. One connection, one lock;
every call is one short transaction, and `now` is an argument.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database

from artifactcache.errors import CacheError, NoSpace
from cacheserver.schema import MIGRATIONS, statements
from cacheserver.words import BlobRow, Held, Manifest, Resolved

BUSY_TIMEOUT_SECONDS = 30
VARIABLES_MAX = 900  # SQLite's oldest limit on bound variables is 999

_HELD = """
    SELECT a.uri, a.selection, t.digest, a.file_name, t.file_count, t.size_bytes, a.settled, a.fetched_at, a.used_at
    FROM artifacts a JOIN trees t ON t.id = a.tree WHERE a.origin = ?
"""


class MissingBlobs(Exception):
    """A tree cannot be recorded: some of its blobs have gone since they were counted on."""


class Index:
    """What the store holds for one origin, in SQLite; for none where `tracking_uri` is empty.

    Raises NoSpace from any method that writes where the disk is full.
    """

    def __init__(self, path: str, tracking_uri: str) -> None:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        self._db = Database(connection, execute_plugins=False)
        self._lock = threading.Lock()
        # NORMAL: a power cut may take the last rows, never order them before their bytes. Files without rows are fine.
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        self._migrate(path)
        self._origin = self._open_origin(tracking_uri) if tracking_uri else 0

    def close(self) -> None:
        """Writes the log back into the database and closes it."""
        with self._lock:
            self._db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    # -- what an origin said ----------------------------------------------------------------------------------------

    def resolved(self, version: str) -> Resolved | None:
        """What the origin said of a version."""
        with self._lock:
            row = self._row(
                "SELECT root, overlays, settled FROM versions WHERE origin = ? AND version = ?", self._origin, version
            )
        if row is None:
            return None
        overlays = tuple((name, root) for name, root in json.loads(row[1]))
        return Resolved(version, row[0], overlays, bool(row[2]))

    def record_version(self, resolved: Resolved, now: float) -> None:
        """Remembers what the origin said of a version."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?)",
                [
                    self._origin,
                    resolved.version,
                    resolved.root,
                    json.dumps(resolved.overlays),
                    resolved.settled,
                    now,
                ],
            )

    # -- what is held -----------------------------------------------------------------------------------------------

    def held(self, uri: str, selection: str) -> Held | None:
        """The artifact with exactly this URI and selection."""
        with self._lock:
            row = self._row(_HELD + "AND a.uri = ? AND a.selection = ?", self._origin, uri, selection)
        return _held(row) if row else None

    def above(self, uri: str) -> list[Held]:
        """All artifacts, with any selection, in whose folder `uri` lies or which are `uri` itself; the nearest last."""
        above = _with_parents(uri)
        with self._lock:
            rows = self._all(
                _HELD + f"AND a.uri IN ({','.join('?' * len(above))}) ORDER BY length(a.uri)", self._origin, *above
            )
        return [_held(row) for row in rows]

    def at_or_below(self, uri: str) -> list[Held]:
        """All artifacts at this URI, with any selection, and below it."""
        with self._lock:
            # "0" is the character after "/": the range holds all that begins with uri + "/".
            rows = self._all(
                _HELD + "AND (a.uri = ? OR (a.uri >= ? AND a.uri < ?))", self._origin, uri, uri + "/", uri + "0"
            )
        return [_held(row) for row in rows]

    def asked(self) -> list[Held]:
        """All artifacts that clients asked for, by URI."""
        with self._lock:
            rows = self._all(_HELD + "AND a.asked = 1 ORDER BY a.uri, a.selection", self._origin)
        return [_held(row) for row in rows]

    def holders(self, digests: Iterable[str]) -> list[str]:
        """The URIs of the artifacts, asked for by clients, that need one of these blobs."""
        with self._lock:
            uris: set[str] = set()
            for some in _chunks(digests):
                uris.update(
                    row[0]
                    for row in self._all(
                        "SELECT a.uri FROM artifacts a JOIN members m ON m.tree = a.tree JOIN blobs b ON b.id = m.blob"
                        f" WHERE a.asked = 1 AND b.digest IN ({','.join('?' * len(some))})",
                        *some,
                    )
                )
        return sorted(uris)

    def arrivals(self, uri: str) -> dict[str, tuple[str, int]]:
        """Files at or below this URI whose download is finished and whose tree is not: URI to digest and size."""
        with self._lock:
            rows = self._all(
                "SELECT r.uri, b.digest, b.size FROM arrivals r JOIN blobs b ON b.id = r.blob"
                " WHERE r.origin = ? AND (r.uri = ? OR (r.uri >= ? AND r.uri < ?))",
                self._origin,
                uri,
                uri + "/",
                uri + "0",
            )
        return {row[0]: (row[1], row[2]) for row in rows}

    def blobs(self, digests: Iterable[str]) -> dict[str, BlobRow]:
        """The rows of these blobs; those that are not held are left out."""
        found: dict[str, BlobRow] = {}
        with self._lock:
            for some in _chunks(digests):
                for row in self._all(
                    "SELECT digest, size, xxh3, inode, mtime_ns FROM blobs"
                    f" WHERE digest IN ({','.join('?' * len(some))})",
                    *some,
                ):
                    found[row[0]] = BlobRow(*row)
        return found

    def tree_blobs(self, tree: str) -> dict[str, BlobRow]:
        """The rows of the blobs that a tree needs, as far as they are held."""
        with self._lock:
            rows = self._all(
                "SELECT b.digest, b.size, b.xxh3, b.inode, b.mtime_ns FROM trees t JOIN members m ON m.tree = t.id"
                " JOIN blobs b ON b.id = m.blob WHERE t.digest = ?",
                tree,
            )
        return {row[0]: BlobRow(*row) for row in rows}

    def some_blobs(self, after: str, limit: int) -> list[BlobRow]:
        """Up to `limit` blobs whose digests come after `after`, in order: a walk over the whole store."""
        with self._lock:
            rows = self._all(
                "SELECT digest, size, xxh3, inode, mtime_ns FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?",
                after,
                limit,
            )
        return [BlobRow(*row) for row in rows]

    def has_view(self, tree: str) -> bool:
        """Whether the tree's view is complete."""
        with self._lock:
            row = self._row("SELECT has_view FROM trees WHERE digest = ?", tree)
        return bool(row and row[0])

    def totals(self) -> dict[str, int]:
        """Counts and sums of what is held."""
        with self._lock:
            artifacts = self._one(
                "SELECT count(*), coalesce(sum(t.size_bytes), 0) FROM artifacts a JOIN trees t ON t.id = a.tree"
                " WHERE a.asked = 1"
            )
            trees = self._one("SELECT count(*) FROM trees")
            blobs = self._one("SELECT count(*), coalesce(sum(size), 0) FROM blobs")
        return {
            "artifact_count": artifacts[0],
            "artifact_bytes": artifacts[1],
            "tree_count": trees[0],
            "blob_count": blobs[0],
            "blob_bytes": blobs[1],
        }

    # -- changes ----------------------------------------------------------------------------------------------------

    def record_arrivals(self, rows: Iterable[BlobRow], uris: dict[str, str], now: float) -> None:
        """Records blobs whose files are in place, and which file of the origin each one is (URI to digest)."""
        with self._transaction():
            self._upsert_blobs(rows)
            for uri, digest in uris.items():
                self._db.execute(
                    "INSERT OR REPLACE INTO arrivals SELECT ?, ?, id, ? FROM blobs WHERE digest = ?",
                    [self._origin, uri, now, digest],
                )

    def record_blob(self, row: BlobRow) -> None:
        """Records what a blob's inode looks like now, if the blob is still held."""
        with self._transaction():
            self._db.execute(
                "UPDATE blobs SET inode = ?, mtime_ns = ? WHERE digest = ?", [row.inode, row.mtime_ns, row.digest]
            )

    def record_tree(
        self,
        manifest: Manifest,
        artifacts: Iterable[tuple[str, str, str, bool, bool]],
        arrived: Iterable[str],
        now: float,
    ) -> None:
        """Records a tree whose manifest is in place, what it is the tree of, and ends its arrivals.

        Args:
            artifacts: (uri, selection, file_name, settled, asked) of each.
            arrived: the URIs of the files whose arrivals end here.

        Raises MissingBlobs where the index does not hold all its blobs.
        """
        digests = {e.digest for e in manifest.files if e.size}
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO trees (digest, file_count, size_bytes) VALUES (?, ?, ?)",
                [manifest.digest, len(manifest.files), manifest.size_bytes],
            )
            tree = self._one("SELECT id FROM trees WHERE digest = ?", manifest.digest)[0]
            for some in _chunks(digests):
                self._db.execute(
                    "INSERT OR IGNORE INTO members (tree, blob)"
                    f" SELECT ?, id FROM blobs WHERE digest IN ({','.join('?' * len(some))})",
                    [tree, *some],
                )
            if self._one("SELECT count(*) FROM members WHERE tree = ?", tree)[0] != len(digests):
                raise MissingBlobs(manifest.digest)
            for uri, selection, file_name, settled, asked in artifacts:
                self._db.execute(
                    "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (origin, uri, selection)"
                    " DO UPDATE SET tree = excluded.tree, file_name = excluded.file_name, settled = excluded.settled,"
                    " asked = max(asked, excluded.asked), fetched_at = excluded.fetched_at",
                    [self._origin, uri, selection, tree, file_name, settled, asked, now, now],
                )
            self._db.conn.executemany(
                "DELETE FROM arrivals WHERE origin = ? AND uri = ?", [(self._origin, uri) for uri in arrived]
            )

    def record_view(self, tree: str, *, exists: bool) -> None:
        """Records that a tree's view is complete, or gone."""
        with self._transaction():
            self._db.execute("UPDATE trees SET has_view = ? WHERE digest = ?", [exists, tree])

    def record_uses(self, uses: dict[tuple[str, str], float]) -> None:
        """Records when artifacts, by URI and selection, were last handed out."""
        with self._transaction():
            self._db.conn.executemany(
                "UPDATE artifacts SET used_at = max(used_at, ?), asked = 1"
                " WHERE origin = ? AND uri = ? AND selection = ?",
                [(at, self._origin, uri, selection) for (uri, selection), at in uses.items()],
            )

    def rejoin(self, tree: str, digests: Iterable[str]) -> dict[str, BlobRow]:
        """Makes blobs that are held members of a tree again, and returns their rows."""
        with self._transaction():
            for some in _chunks(digests):
                self._db.execute(
                    "INSERT OR IGNORE INTO members (tree, blob) SELECT t.id, b.id FROM trees t, blobs b"
                    f" WHERE t.digest = ? AND b.digest IN ({','.join('?' * len(some))})",
                    [tree, *some],
                )
        return self.blobs(digests)

    def forget_blob(self, digest: str) -> list[str]:
        """Removes a blob's row, before its file goes. Returns the digests of the trees that lack it from now on."""
        with self._transaction():
            trees = [
                row[0]
                for row in self._all(
                    "SELECT t.digest FROM trees t JOIN members m ON m.tree = t.id JOIN blobs b ON b.id = m.blob"
                    " WHERE b.digest = ?",
                    digest,
                )
            ]
            for table in ("members", "arrivals"):
                self._db.execute(f"DELETE FROM {table} WHERE blob = (SELECT id FROM blobs WHERE digest = ?)", [digest])
            self._db.execute("DELETE FROM blobs WHERE digest = ?", [digest])
        return trees

    def drop_arrivals(self, before: float) -> list[str]:
        """Ends arrivals older than `before`. Returns the digests of the blobs that nothing needs any more; their rows
        are gone, their files are the caller's to unlink."""
        with self._transaction():
            old = [row[0] for row in self._all("DELETE FROM arrivals WHERE arrived_at < ? RETURNING blob", before)]
            gone: list[str] = []
            for blob in old:
                gone += [
                    row[0]
                    for row in self._all(
                        "DELETE FROM blobs WHERE id = ? AND NOT EXISTS (SELECT 1 FROM members WHERE blob = blobs.id)"
                        " AND NOT EXISTS (SELECT 1 FROM arrivals WHERE blob = blobs.id) RETURNING digest",
                        blob,
                    )
                ]
            return gone

    def all_digests(self) -> list[str]:
        """The digest of every blob."""
        with self._lock:
            return [row[0] for row in self._all("SELECT digest FROM blobs")]

    def all_trees(self) -> list[tuple[str, str]]:
        """URI and tree of everything that is held, of all origins."""
        with self._lock:
            return self._all("SELECT a.uri, t.digest FROM artifacts a JOIN trees t ON t.id = a.tree")

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _open_origin(self, tracking_uri: str) -> int:
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO origins (tracking_uri) VALUES (?)", [tracking_uri])
            number: int = self._one("SELECT id FROM origins WHERE tracking_uri = ?", tracking_uri)[0]
            return number

    def _migrate(self, path: str) -> None:
        with self._transaction():
            seen: int = self._one("PRAGMA user_version")[0]
            if seen > len(MIGRATIONS):
                raise CacheError(
                    f"{path} was written by a newer release (schema {seen}, this one knows {len(MIGRATIONS)}):"
                    " install that release again, or give this one a store of its own."
                )
            for migration in MIGRATIONS[seen:]:
                for statement in statements(migration):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
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

    def _upsert_blobs(self, rows: Iterable[BlobRow]) -> None:
        self._db.conn.executemany(
            "INSERT INTO blobs (digest, size, xxh3, inode, mtime_ns) VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest)"
            " DO UPDATE SET inode = excluded.inode, mtime_ns = excluded.mtime_ns",
            rows,
        )

    def _all(self, sql: str, *values: Any) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def _row(self, sql: str, *values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()

    def _one(self, sql: str, *values: Any) -> Any:
        row = self._row(sql, *values)
        assert row is not None
        return row


def _held(row: Any) -> Held:
    uri, selection, tree, file_name, file_count, size_bytes, settled, fetched_at, used_at = row
    return Held(uri, selection, tree, file_name, file_count, size_bytes, bool(settled), fetched_at, used_at)


def _with_parents(uri: str) -> list[str]:
    found = [uri]
    while "/" in uri and len(found) < VARIABLES_MAX:
        uri = uri.rpartition("/")[0]
        found.append(uri)
    return found


def _chunks(digests: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(digests)
    for start in range(0, len(ordered), VARIABLES_MAX):
        yield ordered[start : start + VARIABLES_MAX]
