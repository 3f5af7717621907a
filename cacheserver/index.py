"""The index: what is held, and where it came from.

Law of this file: a row appears after its bytes are safe, and goes before they are removed. Every call is
one short transaction, and `now` is an argument.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from cacheserver.arrivals import Arrivals
from cacheserver.database import VARIABLES_MAX, Tables
from cacheserver.extents import Extents
from cacheserver.holdings import Holdings
from cacheserver.ledger import Ledger
from cacheserver.pins import Pins
from cacheserver.publications import Publications
from cacheserver.rankings import Rankings
from cacheserver.recovery import Recovery
from cacheserver.rulings import Rulings
from cacheserver.scrubs import Scrubs
from cacheserver.versions import Versions
from cacheserver.words import Arrived, BlobRow, Held, Manifest, Record, Standing

_HELD = """
    SELECT a.uri, a.selection, t.digest, a.file_name, t.file_count, t.size_bytes, a.standing, a.fetched_at, a.used_at,
        a.checked_at
    FROM artifacts a JOIN trees t ON t.id = a.tree WHERE a.origin = ?
"""


class MissingBlobs(Exception):
    """A tree cannot be recorded: some of its blobs have gone since they were counted on."""


class Index:
    """What the store holds for one origin, in SQLite; for none where `tracking_uri` is empty.

    Raises NoSpace from any method that writes where the disk is full.
    """

    def __init__(self, path: str, tracking_uri: str) -> None:
        self._tables = Tables(path)
        self._origin = self._open_origin(tracking_uri) if tracking_uri else 0
        self.versions = Versions(self._tables, self._origin)
        self.holdings = Holdings(self._tables)
        self.arrivals = Arrivals(self._tables, self._origin)
        self.rankings = Rankings(self._tables)
        self.ledger = Ledger(self._tables)
        self.pins = Pins(self._tables, self._origin)
        self.rulings = Rulings(self._tables, self._origin)
        self.extents = Extents(self._tables, self._origin)
        self.scrubs = Scrubs(self._tables)
        self.publications = Publications(self._tables, self._origin)
        self.recovery = Recovery(self._tables, self._origin, tracking_uri)

    @property
    def is_damaged(self) -> bool:
        """Whether something in it, or in its mirror, could not be read."""
        return self._tables.is_damaged

    @property
    def is_behind(self) -> bool:
        """Whether its mirror lacks something that it has."""
        return self._tables.is_behind

    def suspect(self) -> None:
        """What it says cannot be right: it is to be looked at, and made anew where it is damaged."""
        self._tables.is_damaged = True

    def is_sound(self) -> bool:
        """Whether its rows can be found by all that they are known by. For whoever looks while it serves."""
        return self._tables.is_sound()

    def find_damage(self) -> list[str]:
        """Which of both are damaged: "main" for itself, "names" for its mirror. Reads all of them."""
        return self._tables.find_damage()

    def renewed(self, catch_up: Callable[[], None]) -> AbstractContextManager[None]:
        """Closes it for as long as this lasts, and opens what stands in its place then, for `catch_up` to fill; whoever
        asks meanwhile waits."""
        return self._tables.renewed(catch_up)

    def transaction(self) -> AbstractContextManager[None]:
        """What is written inside is written together, or not at all."""
        return self._tables.transaction()

    def close(self) -> None:
        """Writes the log back into the database and closes it."""
        self._tables.close()

    # -- what is held -----------------------------------------------------------------------------------------------

    def held(self, uri: str, selection: str) -> Held | None:
        """The artifact with exactly this URI and selection."""
        row = self._tables.row(_HELD + "AND a.uri = ? AND a.selection = ?", self._origin, uri, selection)
        return _held(row) if row else None

    def above(self, uri: str) -> list[Held]:
        """All artifacts, with any selection, in whose folder `uri` lies or which are `uri` itself; the nearest last."""
        above = _with_parents(uri)
        rows = self._tables.all(
            _HELD + f"AND a.uri IN ({','.join('?' * len(above))}) ORDER BY length(a.uri)", self._origin, *above
        )
        return [_held(row) for row in rows]

    def at_or_below(self, uri: str) -> list[Held]:
        """All artifacts at this URI, with any selection, and below it."""
        # "0" is the character after "/": the range holds all that begins with uri + "/".
        rows = self._tables.all(
            _HELD + "AND (a.uri = ? OR (a.uri >= ? AND a.uri < ?))", self._origin, uri, uri + "/", uri + "0"
        )
        return [_held(row) for row in rows]

    def etags(self, held: Held) -> tuple[str, ...]:
        """The origin's entity tags of the files of an artifact, in the manifest's order; none where it gave none."""
        row = self._tables.row(
            "SELECT etags FROM artifacts WHERE origin = ? AND uri = ? AND selection = ?",
            self._origin,
            held.uri,
            held.selection,
        )
        return tuple(zlib.decompress(row[0]).decode().split("\n")) if row and row[0] else ()

    def asked(self) -> list[Held]:
        """All artifacts that clients asked for, by URI."""
        rows = self._tables.all(_HELD + "AND a.asked = 1 ORDER BY a.uri, a.selection", self._origin)
        return [_held(row) for row in rows]

    def holders(self, digests: Iterable[str]) -> list[tuple[str, str]]:
        """The artifacts, asked for by clients, that need one of these blobs: URI and selection."""
        return self._asked("members m JOIN blobs b ON b.id = m.blob JOIN artifacts a ON a.tree = m.tree", "b", digests)

    def names_of(self, trees: Iterable[str]) -> list[tuple[str, str]]:
        """The artifacts, asked for by clients, that are one of these trees: URI and selection."""
        return self._asked("trees t JOIN artifacts a ON a.tree = t.id", "t", trees)

    def _asked(self, joined: str, of: str, digests: Iterable[str]) -> list[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for some in _chunks(digests):
            found.update(
                self._tables.all(
                    f"SELECT a.uri, a.selection FROM {joined} WHERE a.asked = 1 AND ? IN (0, a.origin)"
                    f" AND {of}.digest IN ({','.join('?' * len(some))})",
                    self._origin,
                    *some,
                )
            )
        return sorted(found)

    def blobs(self, digests: Iterable[str]) -> dict[str, BlobRow]:
        """The rows of these blobs; those that are not held are left out."""
        found: dict[str, BlobRow] = {}
        for some in _chunks(digests):
            for row in self._tables.all(
                f"SELECT digest, size, xxh3, inode, mtime_ns FROM blobs WHERE digest IN ({','.join('?' * len(some))})",
                *some,
            ):
                found[row[0]] = BlobRow(*row)
        return found

    def tree_blobs(self, tree: str) -> dict[str, BlobRow]:
        """The rows of the blobs that a tree needs, as far as they are held."""
        rows = self._tables.all(
            "SELECT b.digest, b.size, b.xxh3, b.inode, b.mtime_ns FROM trees t JOIN members m ON m.tree = t.id"
            " JOIN blobs b ON b.id = m.blob WHERE t.digest = ?",
            tree,
        )
        return {row[0]: BlobRow(*row) for row in rows}

    def some_blobs(self, after: str, limit: int) -> list[BlobRow]:
        """Up to `limit` blobs whose digests come after `after`, in order: a walk over the whole store."""
        rows = self._tables.all(
            "SELECT digest, size, xxh3, inode, mtime_ns FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?",
            after,
            limit,
        )
        return [BlobRow(*row) for row in rows]

    def some_trees(self, after: str, limit: int) -> list[str]:
        """The same of trees: their digests."""
        rows = self._tables.all("SELECT digest FROM trees WHERE digest > ? ORDER BY digest LIMIT ?", after, limit)
        return [digest for (digest,) in rows]

    def has_view(self, tree: str) -> bool:
        """Whether the tree's view is complete."""
        row = self._tables.row("SELECT has_view FROM trees WHERE digest = ?", tree)
        return bool(row and row[0])

    def totals(self) -> dict[str, int]:
        """Counts and sums of what is held, of all origins: one row that the database itself keeps."""
        names = ("artifact_count", "artifact_bytes", "tree_count", "blob_count", "blob_bytes")
        return dict(zip(names, self._tables.one(f"SELECT {', '.join(names)} FROM counters"), strict=True))

    # -- changes ----------------------------------------------------------------------------------------------------

    def record_arrivals(
        self, rows: Iterable[BlobRow], arrived: dict[str, Arrived], standing: Standing, now: float
    ) -> None:
        """Records blobs whose files are in place, and which file of the origin each one is, by its URI."""
        with self._tables.transaction():
            self._upsert_blobs(rows)
            self.arrivals.record(arrived, standing, now)

    def record_blob(self, row: BlobRow) -> None:
        """Records what a blob's inode looks like now, if the blob is still held."""
        with self._tables.transaction():
            self._tables.do(
                "UPDATE blobs SET xxh3 = ?, inode = ?, mtime_ns = ? WHERE digest = ?",
                row.xxh3,
                row.inode,
                row.mtime_ns,
                row.digest,
            )

    def record_tree(
        self,
        manifest: Manifest,
        artifacts: Iterable[Record],
        arrived: Iterable[str],
        now: float,
    ) -> None:
        """Records a tree whose manifest is in place, what it is the tree of, and ends its arrivals.

        Args:
            arrived: the URIs of the files whose arrivals end here.

        Raises MissingBlobs where the index does not hold all its blobs.
        """
        digests = Counter(e.digest for e in manifest.files if e.size)
        with self._tables.transaction():
            self._tables.do(
                "INSERT OR IGNORE INTO trees (digest, file_count, size_bytes) VALUES (?, ?, ?)",
                manifest.digest,
                len(manifest.files),
                manifest.size_bytes,
            )
            tree = self._tables.one("SELECT id FROM trees WHERE digest = ?", manifest.digest)[0]
            self._tables.many(
                "INSERT INTO members (tree, blob, path_count) SELECT ?, id, ? FROM blobs WHERE digest = ?"
                " ON CONFLICT (tree, blob) DO UPDATE SET path_count = excluded.path_count",
                [(tree, paths, digest) for digest, paths in digests.items()],
            )
            if self._tables.one("SELECT count(*) FROM members WHERE tree = ?", tree)[0] != len(digests):
                raise MissingBlobs(manifest.digest)
            for record in artifacts:
                self._tables.do(
                    "INSERT INTO artifacts (origin, uri, selection, tree, file_name, standing, asked, fetched_at,"
                    " used_at, checked_at, etags) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (origin, uri, selection)"
                    " DO UPDATE SET tree = excluded.tree, file_name = excluded.file_name, standing = excluded.standing,"
                    " asked = max(asked, excluded.asked), fetched_at = excluded.fetched_at,"
                    " checked_at = excluded.checked_at, etags = excluded.etags"
                    # What was seen later stays, unless the clock was set back since.
                    " WHERE excluded.checked_at >= artifacts.checked_at OR artifacts.checked_at > excluded.fetched_at",
                    self._origin,
                    record.uri,
                    record.selection,
                    tree,
                    record.file_name,
                    record.standing,
                    record.asked,
                    now,
                    now,
                    record.checked_at,
                    zlib.compress("\n".join(record.etags).encode(), 1) if any(record.etags) else None,
                )
            self.arrivals.end(arrived)

    def forget(self, uri: str) -> None:
        """Forgets an artifact, and all below it, that the origin does not have any more.

        What is pinned stays, for that was promised, and so does what a retention rule keeps; but it proves nothing any
        more, and is asked about each time.
        """
        below = "origin = ? AND (uri = ? OR (uri >= ? AND uri < ?))"
        values = (self._origin, uri, uri + "/", uri + "0")
        pinned = (
            "((origin, uri, selection) IN (SELECT origin, uri, selection FROM pins)"
            " OR tree IN (SELECT id FROM trees WHERE kept_until > 0))"
        )
        with self._tables.transaction():
            self._tables.do("DELETE FROM versions WHERE origin = ? AND version = ?", self._origin, uri)
            self._tables.do(f"DELETE FROM artifacts WHERE {below} AND NOT {pinned}", *values)
            self._tables.do(
                f"UPDATE artifacts SET checked_at = 0, standing = ?, etags = NULL WHERE {below}", Standing.OPEN, *values
            )

    def record_view(self, tree: str, *, exists: bool) -> None:
        """Records that a tree's view is complete, or gone."""
        with self._tables.transaction():
            self._tables.do("UPDATE trees SET has_view = ? WHERE digest = ?", exists, tree)

    def lose_views(self, digest: str) -> None:
        """Records that no view with this blob is complete."""
        of_blob = "SELECT x.tree FROM members x JOIN blobs b ON b.id = x.blob WHERE b.digest = ?"
        with self._tables.transaction():
            self._tables.do(f"UPDATE trees SET has_view = 0 WHERE has_view AND id IN ({of_blob})", digest)

    def record_uses(self, uses: dict[tuple[str, str], float]) -> None:
        """Records when artifacts, by URI and selection, were last handed out."""
        with self._tables.transaction():
            self._tables.many(
                "UPDATE artifacts SET used_at = max(used_at, ?), asked = 1"
                " WHERE origin = ? AND uri = ? AND selection = ?",
                [(at, self._origin, uri, selection) for (uri, selection), at in uses.items()],
            )

    def record_checks(self, held: Iterable[tuple[str, str, str]], checked_at: float) -> None:
        """Records when the origin was last seen to have artifacts (URI, selection, tree), if that is what is held."""
        with self._tables.transaction():
            self._tables.many(
                "UPDATE artifacts SET checked_at = ? WHERE origin = ? AND uri = ? AND selection = ?"
                " AND tree = (SELECT id FROM trees WHERE digest = ?)",
                [(checked_at, self._origin, *one) for one in held],
            )

    def rejoin(self, tree: str, path_counts: Mapping[str, int]) -> dict[str, BlobRow]:
        """Makes blobs that are held, each so many files of a tree, members of it again; returns their rows."""
        with self._tables.transaction():
            self._tables.many(
                "INSERT OR IGNORE INTO members (tree, blob, path_count) SELECT t.id, b.id, ? FROM trees t, blobs b"
                " WHERE t.digest = ? AND b.digest = ?",
                [(count, tree, digest) for digest, count in path_counts.items()],
            )
        return self.blobs(path_counts)

    def forget_blob(self, digest: str) -> list[str]:
        """Removes a blob's row, before its file goes. Returns the digests of the trees that lack it from now on."""
        with self._tables.transaction(durable=True):
            trees = [
                row[0]
                for row in self._tables.all(
                    "SELECT t.digest FROM trees t JOIN members m ON m.tree = t.id JOIN blobs b ON b.id = m.blob"
                    " WHERE b.digest = ?",
                    digest,
                )
            ]
            for table in ("members", "arrivals"):
                self._tables.do(f"DELETE FROM {table} WHERE blob = (SELECT id FROM blobs WHERE digest = ?)", digest)
            self._tables.do("DELETE FROM blobs WHERE digest = ?", digest)
        return trees

    def all_digests(self) -> list[str]:
        """The digest of every blob."""
        return [row[0] for row in self._tables.all("SELECT digest FROM blobs")]

    def tree_digests(self) -> list[str]:
        """The digest of every tree."""
        return [row[0] for row in self._tables.all("SELECT digest FROM trees")]

    def asked_trees(self) -> list[tuple[str, str]]:
        """URI and tree of everything that clients asked for, of all origins."""
        return self._tables.all("SELECT a.uri, t.digest FROM artifacts a JOIN trees t ON t.id = a.tree WHERE a.asked")

    def all_trees(self) -> list[tuple[str, str]]:
        """URI and tree of everything that is held, of all origins."""
        return self._tables.all("SELECT a.uri, t.digest FROM artifacts a JOIN trees t ON t.id = a.tree")

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _open_origin(self, tracking_uri: str) -> int:
        with self._tables.transaction():
            self._tables.do("INSERT OR IGNORE INTO origins (tracking_uri) VALUES (?)", tracking_uri)
            number: int = self._tables.one("SELECT id FROM origins WHERE tracking_uri = ?", tracking_uri)[0]
            return number

    def _upsert_blobs(self, rows: Iterable[BlobRow]) -> None:
        self._tables.many(
            "INSERT INTO blobs (digest, size, xxh3, inode, mtime_ns) VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest)"
            " DO UPDATE SET xxh3 = excluded.xxh3, inode = excluded.inode, mtime_ns = excluded.mtime_ns",
            rows,
        )


def _held(row: Any) -> Held:
    uri, selection, tree, file_name, file_count, size_bytes, standing, *times = row
    return Held(uri, selection, tree, file_name, file_count, size_bytes, Standing(standing), *times)


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
