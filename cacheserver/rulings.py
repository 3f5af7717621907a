"""What retention rules have said of trees, and what the origin has said for them.

Law of this file: a ruling stands until there is another one; what the origin said is remembered with its time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from cacheserver.database import VARIABLES_MAX, Tables
from cacheserver.retention import Verdict


class Named(NamedTuple):
    """An artifact that is a tree: by which name, of which origin (its tracking URI), when it was fetched and used."""

    uri: str
    tracking_uri: str
    fetched_at: float
    used_at: float


class Rulings:
    """The rulings on all trees, and the facts of one origin, by its number in the table `origins`."""

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def some_trees(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Up to `limit` trees, by number and digest, whose numbers come after `after`: a walk over all."""
        return self._tables.survey("SELECT id, digest FROM trees WHERE id > ? ORDER BY id LIMIT ?", after, limit)

    def artifacts(self, trees: Iterable[str]) -> dict[str, list[Named]]:
        """What some trees are held as."""
        found: dict[str, list[Named]] = {tree: [] for tree in trees}
        names = list(found)
        for start in range(0, len(names), VARIABLES_MAX):
            some = names[start : start + VARIABLES_MAX]
            for tree, *rest in self._tables.survey(
                "SELECT t.digest, a.uri, o.tracking_uri, a.fetched_at, a.used_at FROM trees t"
                " JOIN artifacts a ON a.tree = t.id JOIN origins o ON o.id = a.origin"
                f" WHERE t.digest IN ({','.join('?' * len(some))})",
                *some,
            ):
                found[tree].append(Named(*rest))
        return found

    def record(self, verdicts: dict[str, Verdict]) -> None:
        """What the rules say of trees from now on."""
        with self._tables.transaction():
            self._tables.many(
                "UPDATE trees SET level = ?1, kept_until = ?2, drop_at = ?3 WHERE digest = ?4"
                " AND (level, kept_until, ifnull(drop_at, -1)) != (?1, ?2, ifnull(?3, -1))",
                [
                    (v.priority, v.kept_until, None if v.drop_at == math.inf else v.drop_at, tree)
                    for tree, v in verdicts.items()
                ],
            )

    def forget_drops(self) -> None:
        """What is to go is for the rules of today to say."""
        with self._tables.transaction():
            self._tables.do("UPDATE trees SET drop_at = NULL WHERE drop_at IS NOT NULL")

    def forget_all(self) -> None:
        """There are no rules."""
        with self._tables.transaction():
            self._tables.do(
                "UPDATE trees SET level = 0, kept_until = 0, drop_at = NULL"
                " WHERE level OR kept_until OR drop_at IS NOT NULL"
            )

    def facts(self, versions: Iterable[str]) -> dict[str, tuple[str, float]]:
        """What the origin said of versions, as JSON, and when."""
        found = {}
        names = list(dict.fromkeys(versions))
        for start in range(0, len(names), VARIABLES_MAX):
            some = names[start : start + VARIABLES_MAX]
            for version, facts, at in self._tables.survey(
                "SELECT version, facts, asked_at FROM facts WHERE origin = ?"
                f" AND version IN ({','.join('?' * len(some))})",
                self._origin,
                *some,
            ):
                found[version] = facts, at
        return found

    def asked_at(self, versions: Iterable[str]) -> dict[str, float]:
        """When the origin was asked about versions."""
        found: dict[str, float] = {}
        names = list(dict.fromkeys(versions))
        for start in range(0, len(names), VARIABLES_MAX):
            some = names[start : start + VARIABLES_MAX]
            found.update(
                self._tables.survey(
                    "SELECT version, asked_at FROM facts WHERE origin = ?"
                    f" AND version IN ({','.join('?' * len(some))})",
                    self._origin,
                    *some,
                )
            )
        return found

    def record_facts(self, facts: dict[str, str], now: float) -> None:
        """What the origin says of versions now, as JSON."""
        with self._tables.transaction():
            self._tables.many(
                "INSERT OR REPLACE INTO facts (origin, version, facts, asked_at) VALUES (?, ?, ?, ?)",
                [(self._origin, version, text, now) for version, text in facts.items()],
            )

    def forget_facts(self, before: float) -> None:
        """Forgets what was asked long ago: nothing of it is held any more."""
        with self._tables.transaction():
            self._tables.do("DELETE FROM facts WHERE origin = ? AND asked_at < ?", self._origin, before)
