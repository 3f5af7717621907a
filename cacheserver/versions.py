"""What an origin said of versions, and of the names that move between them.

Law of this file: an answer is remembered with its time; whether it is still worth anything is not decided here.
"""

from __future__ import annotations

import json

from cacheserver.database import Tables
from cacheserver.words import Resolved


class Versions:
    """The answers of one origin, by its number in the table `origins`."""

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def resolved(self, version: str) -> Resolved | None:
        """What the origin said of a version."""
        row = self._tables.row(
            "SELECT root, overlays, settled, stamp FROM versions WHERE origin = ? AND version = ?",
            self._origin,
            version,
        )
        if row is None:
            return None
        overlays = tuple((name, root) for name, root in json.loads(row[1]))
        return Resolved(version, row[0], overlays, bool(row[2]), row[3])

    def resolved_at(self, version: str) -> float:
        """When the origin was last asked for a version, in seconds since the epoch; 0 where it never was."""
        row = self._tables.row(
            "SELECT resolved_at FROM versions WHERE origin = ? AND version = ?", self._origin, version
        )
        return float(row[0]) if row else 0.0

    def record(self, resolved: Resolved, now: float) -> None:
        """Remembers what the origin said of a version."""
        with self._tables.transaction():
            self._tables.do(
                "INSERT OR REPLACE INTO versions (origin, version, root, overlays, settled, resolved_at, stamp)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                self._origin,
                resolved.version,
                resolved.root,
                json.dumps(resolved.overlays),
                resolved.settled,
                now,
                resolved.stamp,
            )

    def alias(self, uri: str) -> tuple[str, float] | None:
        """Which version an alias, a stage or `latest` stood for, and when the origin said so."""
        row = self._tables.row(
            "SELECT version, resolved_at FROM aliases WHERE origin = ? AND uri = ?", self._origin, uri
        )
        return (row[0], row[1]) if row else None

    def forget_alias(self, uri: str) -> None:
        """Forgets what an alias, a stage or `latest` stood for: the origin has no such thing any more."""
        with self._tables.transaction():
            self._tables.do("DELETE FROM aliases WHERE origin = ? AND uri = ?", self._origin, uri)

    def record_alias(self, uri: str, version: str, now: float) -> None:
        """Remembers which version an alias, a stage or `latest` stands for."""
        with self._tables.transaction():
            self._tables.do(
                "INSERT OR REPLACE INTO aliases (origin, uri, version, resolved_at) VALUES (?, ?, ?, ?)",
                self._origin,
                uri,
                version,
                now,
            )
