"""The places of trees in the queues of a policy: given when they come, changed when they are used.

Law of this file: a rank is a policy's, of what is known at that moment; it does not change by itself.
"""

from __future__ import annotations

from typing import Any

from cacheserver.database import Tables
from cacheserver.eviction import Item, Policy, Usage, share_seconds
from cacheserver.holdings import ROW, item_of, rate_of, seconds_of


class Rankings:
    """The ranks of all trees, of all origins."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def arrived(self, tree: str, policy: Policy, *, seconds: float, fetched_bytes: int, now: float) -> None:
        """A tree was brought: what that took, and its place in the queues."""
        with self._tables.transaction():
            self._tables.do(
                "UPDATE trees SET recorded_at = ?1, fetch_seconds = ?2, fetch_bytes = ?3, use_count = use_count + 1,"
                " used_at = ?1 WHERE digest = ?4 AND (?3 OR NOT fetch_bytes)",
                now,
                seconds,
                fetched_bytes,
                tree,
            )
            if fetched_bytes:
                self._tables.do(
                    "UPDATE ranking SET fetch_seconds = fetch_seconds + ?, fetch_bytes = fetch_bytes + ?",
                    seconds,
                    fetched_bytes,
                )
            placed = self._tables.row("SELECT queue FROM trees WHERE digest = ?", tree)
            if placed is None or (placed[0] >= 0 and not fetched_bytes):
                return  # it was there already, and nothing came of it
            ghost = self._tables.row("SELECT queue, rank, counted, counted_at FROM ghosts WHERE tree = ?", tree)
            self._tables.do("DELETE FROM ghosts WHERE tree = ?", tree)
            self._rank(tree, lambda item: policy.arrived(item, Usage(*ghost) if ghost else None, self._age(), now))

    def used(self, uses: dict[str, tuple[int, float]], policy: Policy) -> None:
        """Trees were handed out so often, the last time then."""
        with self._tables.transaction():
            for tree, (times, at) in uses.items():
                self._tables.do(
                    "UPDATE trees SET use_count = use_count + ?, used_at = max(used_at, ?) WHERE digest = ?",
                    times,
                    at,
                    tree,
                )
                if times:
                    self._rank(tree, lambda item, times=times, at=at: policy.used(item, times, self._age(), at))

    def aged(self, age: float) -> None:
        """The policy's age, which never falls."""
        with self._tables.transaction():
            self._tables.do("UPDATE ranking SET age = max(age, ?)", age)

    def moved(self, spared: dict[str, Usage]) -> None:
        """Trees that a plan has moved to other places of the queues."""
        with self._tables.transaction():
            self._tables.many(
                "UPDATE trees SET queue = ?, rank = ?, counted = ?, counted_at = ? WHERE digest = ?",
                [(u.queue, u.rank, u.count, u.used_at, tree) for tree, u in spared.items()],
            )

    def rank_some(self, policy: Policy, limit: int) -> bool:
        """Gives trees that have no place in the policy's queues one. Returns whether there may be more.

        Ranks of another policy are worth nothing: all trees lose their place first.
        """
        if self._tables.one("SELECT policy FROM ranking")[0] != policy.name:
            with self._tables.transaction():
                self._tables.do("UPDATE trees SET queue = -1, counted = 0")
                self._tables.do("UPDATE ranking SET policy = ?, age = 0", policy.name)
                self._tables.do("DELETE FROM ghosts")
        rows = self._tables.survey("SELECT digest, used_at, use_count FROM trees WHERE queue = -1 LIMIT ?", limit)
        with self._tables.transaction():
            for tree, at, count in rows:
                self._rank(tree, lambda item, at=at, count=count: _from_history(policy, item, at, count))
        return len(rows) == limit

    def _rank(self, tree: str, usage: Any) -> None:
        """Places a tree anew, by its share of the bytes as it is now. Inside a transaction."""
        row = self._tables.row(ROW + "WHERE t.digest = ?", 0.0, tree)
        if row is None:
            return
        share = self._tables.one(
            "SELECT coalesce(sum(CAST(b.size AS REAL) / max(1, b.holder_count)), 0) FROM members m"
            " JOIN blobs b ON b.id = m.blob WHERE m.tree = ?",
            row[0],
        )[0]
        seconds = share_seconds(seconds_of(row, rate_of(self._tables)), row[5], share)
        placed: Usage = usage(item_of(row, rate_of(self._tables))._replace(share_bytes=share, seconds=seconds))
        self._tables.do(
            "UPDATE trees SET share_bytes = ?, queue = ?, rank = ?, counted = ?, counted_at = ? WHERE id = ?",
            share,
            placed.queue,
            placed.rank,
            placed.count,
            placed.used_at,
            row[0],
        )

    def _age(self) -> float:
        return float(self._tables.one("SELECT age FROM ranking")[0])


def _from_history(policy: Policy, item: Item, used_at: float, count: int) -> Usage:
    first = policy.arrived(item, None, 0.0, used_at)
    return policy.used(item._replace(usage=first), count - 1, 0.0, used_at) if count > 1 else first
