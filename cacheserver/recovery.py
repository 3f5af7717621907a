"""The rows of an index that was lost: what its mirror says of names, and what the disk says of bytes.

Law of this file: what is put back was held once, and is there; a blob's bytes were not looked at, and its row says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cacheserver.database import Tables
from cacheserver.holdings import leave_unheld
from cacheserver.mirror import TABLES
from cacheserver.words import Manifest

NAMES = ("artifacts", "versions", "aliases", "pins", "accounts")
ASKED_AGAIN = ("artifacts", "versions", "aliases")  # of names: what the origin says again where it is not known


class LostTree(NamedTuple):
    """A tree that the mirror names and the index does not know: when it was brought, and what that took."""

    digest: str
    recorded_at: float
    fetch_seconds: float
    fetch_bytes: int


class Recovery:
    """The rows of one index.

    Args:
        origin: the number by which the daemon knows its origin; 0 for none.
    """

    def __init__(self, tables: Tables, origin: int, tracking_uri: str) -> None:
        self._tables = tables
        self._origin = origin
        self._tracking_uri = tracking_uri

    def lag(self) -> int:
        """How many changes of names the mirror has seen and the index has not; less than none where the mirror has
        missed some."""
        with self._tables.transaction():
            ours, theirs = (
                self._tables.one("SELECT changes FROM mirrored"),
                self._tables.one("SELECT changes FROM mirror"),
            )
            return int(theirs[0] - ours[0])

    def mirror_all(self) -> None:
        """Makes the mirror anew, of what the index has."""
        self._tables.is_behind = True
        with self._tables.transaction():
            for name, table in TABLES.items():
                values = ", ".join(text.format("x") for text in table.columns.values())
                self._tables.do(f"DELETE FROM mirrored_{name}")
                self._tables.do(
                    f"INSERT INTO mirrored_{name} ({', '.join(table.columns)}) SELECT {values} FROM {name} x"
                )
            # One more than either: a mirror of nothing knows of less than an index has that has just been made, any
            # other of more; and an index from before, that somebody puts back, is known for an older one.
            self._tables.do("UPDATE mirrored SET changes = 1 + max(changes, (SELECT changes FROM mirror))")
            self._tables.do("UPDATE mirror SET changes = (SELECT changes FROM mirrored)")
        self._tables.is_behind = self.lag() != 0

    def keep_origin(self) -> None:
        """In an index that was made anew: the daemon's origin has the number by which everything knows it."""
        if self._origin:
            with self._tables.transaction():
                self._tables.do(
                    "INSERT OR IGNORE INTO origins (id, tracking_uri) VALUES (?, ?)", self._origin, self._tracking_uri
                )

    def lost(self) -> list[LostTree]:
        """Trees that the mirror has names for and that the index does not know."""
        with self._tables.transaction():
            rows = self._tables.all(
                "SELECT DISTINCT a.tree, coalesce(m.recorded_at, a.fetched_at), coalesce(m.fetch_seconds, 0),"
                " coalesce(m.fetch_bytes, 0) FROM mirrored_artifacts a LEFT JOIN mirrored_trees m ON m.tree = a.tree"
                " WHERE NOT EXISTS (SELECT 1 FROM trees t WHERE t.digest = a.tree) GROUP BY a.tree"
            )
            return [LostTree(*row) for row in rows]

    def put_back(self, tree: LostTree, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Records a tree whose manifest is there.

        Args:
            sizes: of its blobs, as far as the disk has them in the size that the manifest says.
        """
        counts = Counter(entry.digest for entry in manifest.files if entry.size)
        self._tables.do(
            "INSERT OR IGNORE INTO trees (digest, file_count, size_bytes, share_bytes, recorded_at, used_at, use_count,"
            " fetch_seconds, fetch_bytes) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?)",
            tree.digest,
            len(manifest.files),
            manifest.size_bytes,
            manifest.size_bytes,
            tree.recorded_at,
            tree.recorded_at,
            tree.fetch_seconds,
            tree.fetch_bytes,
        )
        # Of no inode and with no XXH3: whoever hands it out hashes it first, with the hash that is its name.
        self._tables.many(
            "INSERT OR IGNORE INTO blobs (digest, size, xxh3, inode, mtime_ns) VALUES (?, ?, '', 0, 0)", sizes.items()
        )
        self._tables.many(
            "INSERT OR IGNORE INTO members (tree, blob, path_count) SELECT t.id, b.id, ? FROM trees t, blobs b"
            " WHERE t.digest = ? AND b.digest = ?",
            [(count, tree.digest, digest) for digest, count in counts.items()],
        )

    def put_back_names(self) -> int:
        """Makes all names of trees and versions that are known what the mirror says of them, and removes those that it
        lacks. Returns how many artifacts were something else.

        Rows are changed where they are, and not removed first: the triggers would take the mirror's row along.
        """
        changed = int(self._tables.one(f"SELECT count(*) FROM ({_differing('artifacts')})")[0])
        self._remove_unmirrored()
        self._tables.do(
            "INSERT OR IGNORE INTO origins (tracking_uri) SELECT tracking_uri FROM mirrored_artifacts"
            " UNION SELECT tracking_uri FROM mirrored_versions UNION SELECT tracking_uri FROM mirrored_aliases"
            " UNION SELECT tracking_uri FROM mirrored_pins"
        )
        self._tables.do(
            "UPDATE trees SET (recorded_at, fetch_seconds, fetch_bytes) = (SELECT m.recorded_at, m.fetch_seconds,"
            " m.fetch_bytes FROM mirrored_trees m WHERE m.tree = trees.digest)"
            " WHERE digest IN (SELECT tree FROM mirrored_trees)"
        )
        self._tables.do(
            "INSERT INTO artifacts (origin, uri, selection, tree, file_name, standing, asked, fetched_at,"
            " used_at, checked_at, etags) SELECT o.id, m.uri, m.selection, t.id, m.file_name, m.standing, m.asked,"
            " m.fetched_at, m.fetched_at, m.checked_at, m.etags FROM mirrored_artifacts m"
            " JOIN origins o USING (tracking_uri) JOIN trees t ON t.digest = m.tree WHERE true"
            + _otherwise("artifacts", "origin, uri, selection")
        )
        for name, columns in (
            ("versions", "version, root, overlays, settled, resolved_at, stamp"),
            ("aliases", "uri, version, resolved_at"),
            ("pins", "uri, selection, owner, asked, pinned_at, expires_at"),
        ):
            key = ", ".join(["origin", *list(TABLES[name].key)[1:]])
            self._tables.do(
                f"INSERT INTO {name} (origin, {columns}) SELECT o.id, {columns} FROM mirrored_{name}"
                f" JOIN origins o USING (tracking_uri) WHERE true{_otherwise(name, key)}"
            )
        self._tables.do(
            "INSERT OR IGNORE INTO accounts (tree, uid, used_at) SELECT t.id, m.uid, t.recorded_at"
            " FROM mirrored_accounts m JOIN trees t ON t.digest = m.tree"
        )
        return changed

    def _remove_unmirrored(self) -> None:
        """Removes names that the mirror has not, and those that it has of a tree that nobody can tell any more."""
        for name in NAMES:
            same = " AND ".join(f"m.{column} = {text.format('x')}" for column, text in TABLES[name].key.items())
            if "tree" in TABLES[name].columns:
                same += " AND m.tree IN (SELECT digest FROM trees)"
            self._tables.do(
                f"DELETE FROM main.{name} AS x WHERE NOT EXISTS (SELECT 1 FROM mirrored_{name} m WHERE {same})"
            )

    def drop_unexplained(self) -> list[str]:
        """Removes names, from both, of which the two say different things although neither has just lost, or missed, so
        many changes: for use before one of them is copied to the other. Returns what they name."""
        lag = self.lag()
        with self._tables.transaction():
            found = {name: self._tables.all(_differing(name)) for name in ASKED_AGAIN}
            if lag > 0:  # each change that the index has lost explains one difference; one that is empty has lost all
                if self.is_empty() or sum(map(len, found.values())) <= lag:
                    return []
            else:  # names that the mirror has missed are in the index only: it has all the others as the index has them
                found = {name: keys for name, keys in found.items() if self._tables.all(f"{_theirs(name)} LIMIT 1")}
            return self._drop_all(found)

    def drop_differing(self) -> list[str]:
        """Removes names, from both, of which the index and the mirror say different things: one of them has rotted, and
        nothing tells which. Returns what they name."""
        return self._drop_all(dict(zip(ASKED_AGAIN, self._tables.both(map(_differing, ASKED_AGAIN)), strict=False)))

    def _drop_all(self, found: Mapping[str, Iterable[tuple[Any, ...]]]) -> list[str]:
        return [str(key[1]) for name, keys in found.items() for key in keys if self._drop(name, key)]

    def _drop(self, name: str, key: tuple[Any, ...]) -> bool:
        """Removes one name, if there is still a difference. Returns whether there was."""
        columns = list(TABLES[name].key)
        is_it = " AND ".join(f"{column} = ?" for column in columns)
        with self._tables.transaction():
            if not self._tables.all(f"SELECT 1 FROM ({_differing(name)}) WHERE {is_it}", *key):
                return False
            rest = " AND ".join(f"{column} = ?" for column in columns[1:])
            of_origin = "origin = (SELECT id FROM origins WHERE tracking_uri = ?)"
            self._tables.do(f"DELETE FROM main.{name} WHERE {of_origin} AND {rest}", *key)
            self._tables.do(f"DELETE FROM mirrored_{name} WHERE {is_it}", *key)
        return True

    def is_empty(self) -> bool:
        """Whether the index knows of nothing on the disk, as one that was just made."""
        with self._tables.transaction():
            found = self._tables.one("SELECT EXISTS (SELECT 1 FROM trees) OR EXISTS (SELECT 1 FROM blobs)")
            return not found[0]

    def leave_unknown(self, trees: Iterable[str], blobs: Iterable[str]) -> None:
        """Writes down as leaving what is on the disk and has no row: the next tidying removes it."""
        with self._tables.transaction():
            leave_unheld(self._tables, trees, blobs)


def _differing(name: str) -> str:
    """A statement that has the keys of all rows of a table that the mirror has not like this, and the other way."""
    key, mine, theirs = _both_sides(name)
    return f"SELECT {key} FROM ({mine} EXCEPT {theirs}) UNION SELECT {key} FROM ({theirs} EXCEPT {mine})"


def _theirs(name: str) -> str:
    """A statement that has the keys of rows that the mirror has, and the index has not like this."""
    key, mine, theirs = _both_sides(name)
    return f"SELECT {key} FROM ({theirs} EXCEPT {mine})"


def _both_sides(name: str) -> tuple[str, str, str]:
    table = TABLES[name]
    columns = ", ".join(table.columns)
    ours = ", ".join(f"{text.format('x')} AS {column}" for column, text in table.columns.items())
    return ", ".join(table.key), f"SELECT {ours} FROM main.{name} x", f"SELECT {columns} FROM mirrored_{name}"


def _otherwise(name: str, key: str) -> str:
    """The end of an INSERT: a row that is there already becomes what the mirror says."""
    return f" ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{one} = excluded.{one}" for one in TABLES[name].rest)
