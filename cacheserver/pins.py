"""Pins: promises of operators, and of the configuration, not to evict an artifact.

Law of this file: what is pinned is held at that moment; a pin whose time is over promises nothing, whether or not
somebody has taken it away.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from cacheserver.database import Tables

EXPIRED_SECONDS = 30 * 86_400.0
CONFIGURATION = -1  # the owner of what the configuration keeps warm


class Pin(NamedTuple):
    """A pin: of a version, or bare artifact URI, by whom, by which URI, until when (seconds since the epoch)."""

    uri: str
    owner: int
    asked: str
    expires_at: float


class Pins:
    """The pins of one origin, by its number in the table `origins`."""

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def pin(self, uri: str, selection: str, *, owner: int, asked: str, now: float, seconds: float = math.inf) -> bool:
        """Pins an artifact that is held, once for each owner. Returns False where it is not held."""
        with self._tables.transaction():
            self._tables.do(
                "DELETE FROM pins WHERE origin = ? AND uri = ? AND selection = ? AND owner = ?",
                self._origin,
                uri,
                selection,
                owner,
            )
            return self._insert(uri, selection, owner, asked, now, seconds)

    def unpin(self, names: list[str], selection: str, now: float) -> list[str]:
        """Ends all pins of operators on artifacts by these URIs, or that were pinned by these URIs, of any origin.

        Returns the URIs of the artifacts that were pinned until now.
        """
        some = ",".join("?" * len(names))
        with self._tables.transaction():
            rows = self._tables.all(
                f"DELETE FROM pins WHERE selection = ? AND owner >= 0 AND (uri IN ({some}) OR asked IN ({some}))"
                " RETURNING uri, expires_at",
                selection,
                *names,
                *names,
            )
        return sorted({uri for uri, expires_at in rows if expires_at > now})

    def keep_warm(self, asked: str, selection: str, uri: str, *, now: float) -> bool:
        """Keeps the version that a URI of the configuration stands for now, and not the one before any more.

        Returns False where it is not held.

        Args:
            now: when the look that has found it began; 0 where that counts for none.
        """
        with self._tables.transaction():
            if not self._insert(uri, selection, CONFIGURATION, asked, now, math.inf):
                return False
            self._tables.do(
                "DELETE FROM pins WHERE origin = ? AND owner = ? AND asked = ? AND selection = ? AND uri != ?",
                self._origin,
                CONFIGURATION,
                asked,
                selection,
                uri,
            )
        return True

    def warmed_at(self, asked: str, selection: str) -> float:
        """When a URI of the configuration was last looked at with success; minus infinity where nothing is kept for
        it."""
        (at,) = self._tables.one(
            "SELECT max(pinned_at) FROM pins WHERE origin = ? AND owner = ? AND asked = ? AND selection = ?",
            self._origin,
            CONFIGURATION,
            asked,
            selection,
        )
        return -math.inf if at is None else float(at)

    def forget_warm(self, wanted: set[tuple[str, str]]) -> None:
        """Keeps nothing warm any more but by these URIs and selections: the configuration may have changed."""
        rows = self._tables.all(
            "SELECT DISTINCT asked, selection FROM pins WHERE origin = ? AND owner = ?", self._origin, CONFIGURATION
        )
        with self._tables.transaction():
            # Of another origin the configuration names nothing.
            self._tables.do("DELETE FROM pins WHERE owner = ? AND origin != ?", CONFIGURATION, self._origin)
            self._tables.many(
                "DELETE FROM pins WHERE origin = ? AND owner = ? AND asked = ? AND selection = ?",
                [(self._origin, CONFIGURATION, *row) for row in rows if tuple(row) not in wanted],
            )

    def expire(self, now: float) -> None:
        """Takes away those whose time has been over for long: a clock may be ahead for a while."""
        with self._tables.transaction():
            self._tables.do("DELETE FROM pins WHERE expires_at <= ?", now - EXPIRED_SECONDS)

    def of_artifact(self, uri: str, selection: str, now: float) -> list[Pin]:
        """The pins on one artifact, the longest first."""
        rows = self._tables.all(
            "SELECT uri, owner, asked, expires_at FROM pins WHERE origin = ? AND uri = ? AND selection = ?"
            " AND expires_at > ? ORDER BY expires_at DESC",
            self._origin,
            uri,
            selection,
            now,
        )
        return [Pin(*row) for row in rows]

    def of_tree(self, tree: str, now: float) -> list[Pin]:
        """The pins on all artifacts that are one tree, the longest first."""
        rows = self._tables.all(
            "SELECT p.uri, p.owner, p.asked, p.expires_at FROM pins p JOIN artifacts a USING (origin, uri, selection)"
            " JOIN trees t ON t.id = a.tree WHERE t.digest = ? AND p.expires_at > ? ORDER BY p.expires_at DESC",
            tree,
            now,
        )
        return [Pin(*row) for row in rows]

    def untils(self, now: float) -> dict[tuple[str, str], float]:
        """Until when artifacts are pinned, by URI and selection."""
        rows = self._tables.all(
            "SELECT uri, selection, max(expires_at) FROM pins WHERE origin = ? AND expires_at > ?"
            " GROUP BY uri, selection",
            self._origin,
            now,
        )
        return {(row[0], row[1]): row[2] for row in rows}

    def count(self, now: float) -> int:
        """How many artifacts are pinned."""
        pinned = "SELECT DISTINCT uri, selection FROM pins WHERE origin = ? AND expires_at > ?"
        return int(self._tables.one(f"SELECT count(*) FROM ({pinned})", self._origin, now)[0])

    def held_bytes(self, now: float) -> int:
        """The sum of the sizes of all trees that are pinned."""
        rows = self._tables.survey(
            "SELECT coalesce(sum(size_bytes), 0) FROM trees WHERE id IN (SELECT a.tree FROM artifacts a"
            " JOIN pins p USING (origin, uri, selection) WHERE p.expires_at > ?)",
            now,
        )
        return int(rows[0][0])

    def _insert(self, uri: str, selection: str, owner: int, asked: str, now: float, seconds: float) -> bool:
        held = self._tables.row(
            "SELECT 1 FROM artifacts WHERE origin = ? AND uri = ? AND selection = ?", self._origin, uri, selection
        )
        if held:
            self._tables.do(
                "INSERT OR REPLACE INTO pins (origin, uri, selection, owner, asked, pinned_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                self._origin,
                uri,
                selection,
                owner,
                asked,
                now,
                now + seconds,
            )
        return held is not None
