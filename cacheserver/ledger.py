"""Whose account holds how much.

Law of this file: what is shared is split: each blob among the trees that have it, and each tree's part among the users
who have fetched it. So all accounts together are never more than what the store holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cacheserver.database import VARIABLES_MAX, Tables

_SHARE = """
    coalesce(sum(
        CAST(b.size AS REAL) / b.holder_count / (SELECT count(*) FROM accounts x WHERE x.tree = a.tree)
    ), 0)
"""
_CHARGE = f"SELECT {_SHARE} FROM accounts a JOIN members m ON m.tree = a.tree JOIN blobs b ON b.id = m.blob WHERE "


class Ledger:
    """The accounts of all users."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def charge(self, users: dict[tuple[str, int], float]) -> None:
        """Trees, by digest and user ID, that users have fetched then come on their accounts."""
        with self._tables.transaction():
            self._tables.many(
                "INSERT INTO accounts (tree, uid, used_at) SELECT id, ?, ? FROM trees WHERE digest = ?"
                " ON CONFLICT (tree, uid) DO UPDATE SET used_at = max(used_at, excluded.used_at)",
                [(uid, at, tree) for (tree, uid), at in users.items()],
            )

    def of_user(self, uid: int) -> float:
        """Bytes on a user's account."""
        return float(self._tables.survey(_CHARGE + "a.uid = ?", uid)[0][0])

    def usage(self, uid: int | None) -> list[tuple[int, int, float]]:
        """User ID, trees and bytes of a user's account, None for each that there is, the fullest first."""
        rows = self._tables.survey(
            f"SELECT a.uid, count(DISTINCT a.tree), {_SHARE} AS held FROM accounts a"
            " LEFT JOIN members m ON m.tree = a.tree LEFT JOIN blobs b ON b.id = m.blob"
            " WHERE ? IS NULL OR a.uid = ? GROUP BY a.uid ORDER BY held DESC, a.uid",
            uid,
            uid,
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def trees(self, uid: int) -> set[str]:
        """The digests of the trees on a user's account."""
        rows = self._tables.all("SELECT t.digest FROM accounts a JOIN trees t ON t.id = a.tree WHERE a.uid = ?", uid)
        return {row[0] for row in rows}

    def users_of(self, trees: Sequence[str]) -> dict[str, list[int]]:
        """On whose accounts trees are, user IDs by the trees' digests."""
        found: dict[str, list[int]] = {}
        for start in range(0, len(trees), VARIABLES_MAX):
            some = trees[start : start + VARIABLES_MAX]
            for tree, uid in self._tables.survey(
                "SELECT t.digest, a.uid FROM trees t JOIN accounts a ON a.tree = t.id"
                f" WHERE t.digest IN ({','.join('?' * len(some))}) ORDER BY a.used_at DESC",
                *some,
            ):
                found.setdefault(tree, []).append(uid)
        return found

    def of_group(self, gid: int) -> float:
        """Bytes on the accounts of all users who were seen in a group, together."""
        where = "a.uid IN (SELECT uid FROM memberships WHERE gid = ?)"
        return float(self._tables.survey(_CHARGE + where, gid)[0][0])

    def parts(self, tree: str, users: Sequence[int]) -> list[tuple[int, int, int, float]]:
        """The blobs of a tree: number, size, how many trees have each, how many of them are on the users' accounts: one
        that is on others' as well counts in part."""
        some = ",".join("?" * len(users))
        return self._tables.survey(
            "SELECT b.id, b.size, b.holder_count, (SELECT sum("
            f"(SELECT count(*) FROM accounts x WHERE x.tree = o.tree AND x.uid IN ({some})) * 1.0 /"
            " max(1, (SELECT count(*) FROM accounts y WHERE y.tree = o.tree))) FROM members o WHERE o.blob = b.id)"
            " FROM trees t JOIN members m ON m.tree = t.id JOIN blobs b ON b.id = m.blob WHERE t.digest = ?",
            *users,
            tree,
        )

    def members(self, gid: int) -> list[int]:
        """The users who were seen in a group."""
        return [row[0] for row in self._tables.survey("SELECT uid FROM memberships WHERE gid = ?", gid)]

    def record_members(self, members: Mapping[int, tuple[frozenset[int], frozenset[int]]]) -> None:
        """Users are in these groups now, of all those that count."""
        with self._tables.transaction():
            for uid, (mine, known) in members.items():
                gone = [(uid, gid) for gid in known - mine]
                self._tables.many("DELETE FROM memberships WHERE uid = ? AND gid = ?", gone)
                self._tables.many(
                    "INSERT OR IGNORE INTO memberships (uid, gid) VALUES (?, ?)", [(uid, gid) for gid in mine]
                )
