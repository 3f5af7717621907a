"""How far the scrub has come, as the index remembers it.

Law of this file: what is recorded was looked at; a daemon that is killed looks at the last few blobs once more.
"""

from __future__ import annotations

from typing import NamedTuple

from cacheserver.database import Tables


class Scrub(NamedTuple):
    """One pass over all blobs and manifests, in the order of their digests, under way or ended.

    Attributes:
        position: the last digest of which all was checked; empty between two passes.
        began_at: this pass, or the last one; seconds since the epoch.
        ended_at: the last whole pass; 0 before there was one.
        blob_count, byte_count: blobs checked in this pass, or in the last one.
        wrong_count: blobs and manifests, wrong, gone, or not to be looked at.
    """

    position: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0
    blob_count: int = 0
    byte_count: int = 0
    wrong_count: int = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a pass has begun and not ended."""
        return self.position != "" or self.ended_at < self.began_at


TREES_AT_A_TIME = 500


class Scrubs:
    """The row of the scrub, and what it is about."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def last(self) -> Scrub:
        """The pass under way, or the last one."""
        return Scrub(
            *self._tables.one("SELECT position, began_at, ended_at, blob_count, byte_count, wrong_count FROM scrub")
        )

    def lacking(self, after: int) -> tuple[list[str], int | None]:
        """Of the next trees, in order of their rows, those that lack a blob; and the last row that was looked at, None
        where there are no more."""
        rows = self._tables.survey(
            "SELECT t.id, t.digest, t.size_bytes, coalesce(sum(m.path_count * b.size), 0), min(m.path_count)"
            " FROM (SELECT id, digest, size_bytes FROM trees WHERE id > ? ORDER BY id LIMIT ?) t"
            " LEFT JOIN members m ON m.tree = t.id LEFT JOIN blobs b ON b.id = m.blob GROUP BY t.id ORDER BY t.id",
            after,
            TREES_AT_A_TIME,
        )
        # An older release did not say how many files of a tree a blob is: then nobody can tell.
        lacking = [tree for _, tree, size, found, paths in rows if found != size and paths != 0]
        return lacking, rows[-1][0] if rows else None

    def record(self, scrub: Scrub) -> None:
        """How far it is now."""
        with self._tables.transaction():
            self._tables.do(
                "UPDATE scrub SET position = ?, began_at = ?, ended_at = ?, blob_count = ?, byte_count = ?,"
                " wrong_count = ?",
                *scrub,
            )
