"""Arrivals: files whose download is finished and whose tree is not, as the index knows them.

Law of this file: what may go is read aside, so that no hit waits for it; what goes is decided in one transaction, which
asks of each arrival once more whether somebody counts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cacheserver.database import VARIABLES_MAX, Tables
from cacheserver.holdings import leave
from cacheserver.words import Arrived, Standing

CHUNK_ROWS = 256  # read at a time: a millisecond


class Finished(NamedTuple):
    """A blob, and arrivals of it that are to end: without others, and without trees, it goes with them.

    Attributes:
        arrived_at: when the last of them came, seconds since the epoch; 0 where none is left.
        keys: the origin's number and the key of each.
    """

    digest: str
    size_bytes: int
    arrived_at: float
    keys: tuple[tuple[int, str], ...]


class Arrivals:
    """The arrivals of all origins; what comes is of one."""

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def at_or_below(self, uri: str) -> dict[str, tuple[Arrived, Standing, float]]:
        """Files at or below this URI whose download is finished and whose tree is not, by URI.

        With what they are worth as evidence, and when they arrived.
        """
        rows = self._tables.all(
            "SELECT r.uri, b.digest, b.size, r.etag, r.standing, r.arrived_at FROM arrivals r JOIN blobs b"
            " ON b.id = r.blob WHERE r.origin = ? AND (r.uri = ? OR (r.uri >= ? AND r.uri < ?))",
            self._origin,
            uri,
            uri + "/",
            uri + "0",
        )
        return {row[0]: (Arrived(*row[1:4]), Standing(row[4]), row[5]) for row in rows}

    def record(self, arrived: dict[str, Arrived], standing: Standing, now: float) -> None:
        """Records which file of the origin each blob is, by the file's key."""
        with self._tables.transaction():
            self._tables.many(
                "INSERT OR REPLACE INTO arrivals (origin, uri, blob, standing, arrived_at, etag)"
                " SELECT ?, ?, id, ?, ?, ? FROM blobs WHERE digest = ?",
                [(self._origin, key, standing, now, one.etag, one.digest) for key, one in arrived.items()],
            )

    def end(self, keys: Iterable[str]) -> None:
        """Ends arrivals: their files are part of a tree."""
        with self._tables.transaction():
            self._tables.many(
                "DELETE FROM arrivals WHERE origin = ? AND uri = ?", [(self._origin, key) for key in keys]
            )

    # -- going ------------------------------------------------------------------------------------------------------

    def unheld(self) -> Iterator[Finished]:
        """The blobs that no tree has, in the order in which they came, read as they are needed."""
        last = -1
        while True:
            # Their numbers grow: an order by time would have all of them sorted before the first is known.
            rows = self._tables.survey(
                "SELECT b.id, b.digest, b.size, r.arrived_at, r.origin, r.uri FROM"
                " (SELECT id, digest, size FROM blobs WHERE holder_count = 0 AND id > ? ORDER BY id LIMIT ?) b"
                " LEFT JOIN arrivals r ON r.blob = b.id ORDER BY b.id",
                last,
                CHUNK_ROWS,
            )
            if not rows:
                return
            for (_, digest, size), some in groupby(rows, key=lambda row: row[:3]):
                found = [row[3:] for row in some]
                keys = tuple((origin, key) for _, origin, key in found if key is not None)
                yield Finished(digest, size, max(at or 0.0 for at, _, _ in found), keys)
            last = rows[-1][0]

    def older(self, before: float) -> Iterator[Finished]:
        """What arrived before a time, in seconds since the epoch, read as it is needed."""
        last = (-1, "")
        while True:
            rows = self._tables.survey(
                "SELECT b.digest, b.size, r.arrived_at, r.origin, r.uri FROM arrivals r JOIN blobs b ON b.id = r.blob"
                " WHERE r.arrived_at < ? AND (r.origin, r.uri) > (?, ?) ORDER BY r.origin, r.uri LIMIT ?",
                before,
                *last,
                CHUNK_ROWS,
            )
            for digest, size, at, *key in rows:
                yield Finished(digest, size, at, ((key[0], key[1]),))
            if len(rows) < CHUNK_ROWS:
                return
            last = rows[-1][3:]

    def drop(self, some: Iterable[Finished], is_counted_on: Callable[[str], bool]) -> dict[str, int]:
        """Ends arrivals, but those that somebody counts on by now, and removes those of their blobs that nothing needs
        then. Returns these with their sizes: their files are the caller's to remove.

        Args:
            is_counted_on: told an arrival's key.
        """
        some, gone = list(some), dict[str, int]()
        with self._tables.transaction(durable=True):
            self._tables.many(
                "DELETE FROM arrivals WHERE origin = ? AND uri = ?",
                [(origin, key) for one in some for origin, key in one.keys if not is_counted_on(key)],
            )
            digests = [one.digest for one in some]
            for start in range(0, len(digests), VARIABLES_MAX):
                chunk = digests[start : start + VARIABLES_MAX]
                gone.update(
                    self._tables.all(
                        f"DELETE FROM blobs WHERE digest IN ({','.join('?' * len(chunk))}) AND holder_count = 0"
                        " AND NOT EXISTS (SELECT 1 FROM arrivals WHERE blob = blobs.id) RETURNING digest, size",
                        *chunk,
                    )
                )
            leave(self._tables, (), gone)
        return gone
