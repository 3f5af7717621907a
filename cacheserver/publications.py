"""What is to be written into the shared tier, as the index remembers it.

Law of this file: a row stays until all of it is there, or the host does not have it any more.
"""

from __future__ import annotations

from cacheserver.database import Tables


class Publications:
    """The rows of what waits.

    Args:
        origin: whose.
    """

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def waiting(self) -> list[tuple[str, str]]:
        """URI and selection of all that waits, the oldest first."""
        return self._tables.all(
            "SELECT uri, selection FROM publications WHERE origin = ? ORDER BY since, uri", self._origin
        )

    def add(self, uri: str, selection: str, now: float) -> None:
        """One more waits."""
        with self._tables.transaction():
            self._tables.do(
                "INSERT OR REPLACE INTO publications (origin, uri, selection, since) VALUES (?, ?, ?, ?)",
                self._origin,
                uri,
                selection,
                now,
            )

    def end(self, uri: str, selection: str) -> None:
        """One waits no more."""
        with self._tables.transaction():
            self._tables.do(
                "DELETE FROM publications WHERE origin = ? AND uri = ? AND selection = ?",
                self._origin,
                uri,
                selection,
            )
