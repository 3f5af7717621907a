"""How much of the store each model, run and other place has: sums, made by the database.

Law of this file: it reads aside, so that no hit waits for it; however much is held, few rows come out.
"""

from __future__ import annotations

from typing import NamedTuple

from cacheserver.database import Tables

# What an artifact's URI begins with: "models:/<name>", "runs:/<id>"; of a bare URI its scheme and first name.
_PLACE = """
    CASE
        WHEN a.uri GLOB 'models:/*' THEN substr(a.uri, 1, 7 + instr(substr(a.uri, 9) || '/', '/'))
        WHEN a.uri GLOB 'runs:/*' THEN substr(a.uri, 1, 5 + instr(substr(a.uri, 7) || '/', '/'))
        WHEN instr(a.uri, '://') THEN
            substr(a.uri, 1, instr(a.uri, '://') + 1 + instr(substr(a.uri, instr(a.uri, '://') + 3) || '/', '/'))
        ELSE substr(a.uri, 1, instr(a.uri, ':/') + instr(substr(a.uri, instr(a.uri, ':/') + 2) || '/', '/'))
    END
"""
# A tree that is held by several names is divided among them, so that all of it together is what the disk has.
_HELD = f"""
    WITH held AS (
        SELECT {_PLACE} AS place, a.uri, a.selection, t.digest, t.size_bytes, t.file_count, a.used_at,
            coalesce(nullif(t.share_bytes, 0.0), t.size_bytes) * 1.0
                / (SELECT count(*) FROM artifacts x WHERE x.tree = t.id AND x.asked) AS share
        FROM artifacts a JOIN trees t ON t.id = a.tree
        WHERE a.origin = ? AND a.asked AND (? IS NULL OR t.id IN (SELECT tree FROM accounts WHERE uid = ?))
    )
"""


class Group(NamedTuple):
    """What is held with URIs that begin alike."""

    name: str
    artifact_count: int
    share_bytes: float
    used_at: float


class Part(NamedTuple):
    """One artifact, its tree, and what it takes on the disk."""

    group: str
    uri: str
    selection: str
    tree: str
    share_bytes: float
    size_bytes: int
    file_count: int
    used_at: float


class Extent(NamedTuple):
    """All of it, as one group without a name; how many groups there are; and the largest ones with their parts."""

    held: Group
    group_count: int
    groups: list[Group]
    parts: list[Part]


class Extents:
    """What is held of one origin, by place."""

    def __init__(self, tables: Tables, origin: int) -> None:
        self._tables = tables
        self._origin = origin

    def of(self, uid: int | None, *, groups_max: int, parts_max: int) -> Extent:
        """What is on a user's account, None for all that is held.

        Args:
            groups_max: how many groups come out, the largest first.
            parts_max: how many parts of each.
        """
        whose = (self._origin, uid, uid)
        rows = self._tables.survey(
            _HELD + "SELECT place, count(*), sum(share) AS taken, max(used_at), count(*) OVER (),"
            " sum(count(*)) OVER (), sum(sum(share)) OVER (), max(max(used_at)) OVER ()"
            " FROM held GROUP BY place ORDER BY taken DESC, place LIMIT ?",
            *whose,
            groups_max,
        )
        if not rows:
            return Extent(Group("", 0, 0.0, 0.0), 0, [], [])
        groups = [Group(*row[:4]) for row in rows]
        marks = ",".join("?" * len(groups))
        parts = self._tables.survey(
            _HELD + ", ranked AS (SELECT *, row_number() OVER (PARTITION BY place ORDER BY share DESC, uri, selection)"
            f" AS number FROM held WHERE place IN ({marks}))"
            " SELECT place, uri, selection, digest, share, size_bytes, file_count, used_at FROM ranked"
            " WHERE number <= ? ORDER BY place, number",
            *whose,
            *(one.name for one in groups),
            parts_max,
        )
        return Extent(Group("", *rows[0][5:8]), rows[0][4], groups, [Part(*row) for row in parts])
