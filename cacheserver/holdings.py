"""What the index knows of trees for eviction: their places in the queues, what holds them, what goes with them.

Law of this file: what is planned is read aside, so that no hit waits for it; what goes is decided in one transaction,
which looks again at pins and rules, and returns what it has really removed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from cacheserver.database import VARIABLES_MAX, Tables
from cacheserver.eviction import Item, Usage, refetch_seconds, share_seconds
from cacheserver.planning import Blob, Candidate

CHUNK_TREES = 256  # read at a time: a millisecond
SECONDS_PER_BYTE = 1e-8  # before anything was fetched: 100 MB/s
DROPS_MAX = 5_000  # at a time, of what is due and of what has no name
LEAVING_STEP = 256  # names of what is leaving that are looked at together: as many files go in one hold of the lock
GHOSTS_MAX = 100_000  # evicted trees that are remembered: about 15 MB
LINK_CHECK_HOLDERS_MAX = 100  # whose views are counted, to tell which links are outside the store

YOUNG = "younger than the grace time"
PINNED = "pinned"
DUE = "a retention rule wants it gone"
NOBODYS = "no artifact is this tree any more: the origin has something else, or nothing"
RULED = "kept by a retention rule"

ROW = """
    SELECT t.id, t.digest, t.share_bytes, t.fetch_seconds, t.fetch_bytes, t.size_bytes, t.queue, t.rank, t.counted,
        t.counted_at, t.recorded_at, t.kept_until,
        EXISTS (SELECT 1 FROM artifacts a JOIN pins p USING (origin, uri, selection)
            WHERE a.tree = t.id AND p.expires_at > ?),
        t.drop_at, t.has_view, t.file_count
    FROM trees t
"""

# Of a name in `leaving`: "tree:" or "blob:", and the digest.
_HELD = (
    "CASE substr(name, 1, 5) WHEN 'tree:' THEN EXISTS (SELECT 1 FROM trees WHERE digest = substr(name, 6))"
    " ELSE EXISTS (SELECT 1 FROM blobs WHERE digest = substr(name, 6)) END"
)


class Gone(NamedTuple):
    """What a transaction has removed: trees, with whether each had a view, and blobs with their sizes."""

    trees: dict[str, bool]
    blobs: dict[str, int]


class Tree(NamedTuple):
    """What is known of one tree; `seconds` is what it would take to fetch all of it again."""

    item: Item
    seconds: float
    level: int
    kept: str
    use_count: int
    recorded_at: float
    kept_until: float
    drop_at: float | None


class Holdings:
    """Trees of all origins, as something to be evicted."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    # -- planning ---------------------------------------------------------------------------------------------------

    def levels(self) -> list[int]:
        """The levels of priority that trees have, the lowest first."""
        return [row[0] for row in self._tables.survey("SELECT DISTINCT level FROM trees ORDER BY level")]

    def queued_bytes(self, queue_count: int) -> list[float]:
        """Bytes in each queue of the policy."""
        found = dict(self._tables.survey("SELECT queue, sum(share_bytes) FROM trees GROUP BY queue"))
        return [found.get(queue, 0.0) for queue in range(queue_count)]

    def queue(self, level: int, queue: int, *, now: float, young_since: float) -> Iterator[Candidate]:
        """One queue of a level, in the order of ranks, read as it is needed.

        Args:
            young_since: what was brought since then must stay.
        """
        rate, last = rate_of(self._tables), (-math.inf, -1)
        while True:
            rows = self._tables.survey(
                ROW + "WHERE t.level = ? AND t.queue = ? AND (t.rank, t.id) > (?, ?) ORDER BY t.rank, t.id LIMIT ?",
                now,
                level,
                queue,
                *last,
                CHUNK_TREES,
            )
            for row in rows:
                yield Candidate(item_of(row, rate), _kept(row, now, young_since))
            if len(rows) < CHUNK_TREES:
                return
            last = rows[-1][7], rows[-1][0]

    def drops(self, *, now: float, young_since: float) -> list[tuple[Candidate, str]]:
        """What is to go whether or not room is needed, each with the reason."""
        rate = rate_of(self._tables)
        due = self._tables.survey(ROW + "WHERE t.drop_at <= ? LIMIT ?", now, now, DROPS_MAX)
        nameless = self._tables.survey(
            ROW + "WHERE NOT EXISTS (SELECT 1 FROM artifacts WHERE tree = t.id) LIMIT ?",
            now,
            DROPS_MAX,
        )
        found = {row[1]: (row, NOBODYS) for row in nameless}
        found |= {row[1]: (row, DUE) for row in due}
        return [(Candidate(item_of(row, rate), _kept(row, now, young_since)), why) for row, why in found.values()]

    def of_users(self, users: Sequence[int], *, now: float, young_since: float) -> Iterator[Candidate]:
        """What is on these users' accounts and on nobody else's, in the order in which it goes."""
        some, rate = ",".join("?" * len(users)), rate_of(self._tables)
        rows = self._tables.survey(
            ROW + f"WHERE t.id IN (SELECT tree FROM accounts WHERE uid IN ({some}))"
            f" AND NOT EXISTS (SELECT 1 FROM accounts x WHERE x.tree = t.id AND x.uid NOT IN ({some}))"
            " ORDER BY t.level, t.queue, t.rank, t.id",
            now,
            *users,
            *users,
        )
        return (Candidate(item_of(row, rate), _kept(row, now, young_since)) for row in rows)

    def blobs_of(self, trees: Sequence[str]) -> Iterator[tuple[str, Blob, str]]:
        """The blobs of some trees, each with the tree and its own digest."""
        for some in _chunks(trees):
            for tree, key, size, holders, digest in self._tables.survey(
                "SELECT t.digest, b.id, b.size, b.holder_count, b.digest FROM trees t JOIN members m ON m.tree = t.id"
                f" JOIN blobs b ON b.id = m.blob WHERE t.digest IN ({_marks(some)})",
                *some,
            ):
                yield tree, Blob(key, size, holders), digest

    def view_links(self, trees: Sequence[str]) -> dict[Hashable, int]:
        """How many links views have to each blob of some trees, by the blob's number; without those that too many trees
        have to count them, or of which an older release has not said how many files they are."""
        links: dict[Hashable, int] = {}
        for some in _chunks(trees):
            links |= self._tables.survey(
                "SELECT b.id, (SELECT CASE WHEN min(x.path_count) <= 0 THEN -1 ELSE coalesce(sum(x.path_count), 0) END"
                " FROM members x JOIN trees y ON y.id = x.tree WHERE x.blob = b.id AND y.has_view)"
                " FROM blobs b WHERE b.holder_count <= ? AND b.id IN (SELECT m.blob FROM trees t"
                f" JOIN members m ON m.tree = t.id WHERE t.digest IN ({_marks(some)}))",
                LINK_CHECK_HOLDERS_MAX,
                *some,
            )
        return {blob: count for blob, count in links.items() if count >= 0}

    def without_view(self, tree: str) -> list[str]:
        """The trees that have a blob of a tree, itself among them, and no view that counts; without those of blobs that
        too many trees have."""
        rows = self._tables.survey(
            "SELECT DISTINCT y.digest FROM trees t JOIN members m ON m.tree = t.id JOIN blobs b ON b.id = m.blob"
            " JOIN members x ON x.blob = b.id JOIN trees y ON y.id = x.tree"
            " WHERE t.digest = ? AND b.holder_count <= ? AND NOT y.has_view",
            tree,
            LINK_CHECK_HOLDERS_MAX,
        )
        return [digest for (digest,) in rows]

    def age(self) -> float:
        """The policy's age."""
        return float(self._tables.one("SELECT age FROM ranking")[0])

    def tree(self, digest: str, *, now: float, young_since: float) -> Tree | None:
        """What is known of one tree."""
        row = self._tables.row(ROW + "WHERE t.digest = ?", now, digest)
        if row is None:
            return None
        level, *more = self._tables.one(
            "SELECT level, use_count, recorded_at, kept_until, drop_at FROM trees WHERE id = ?", row[0]
        )
        rate = rate_of(self._tables)
        return Tree(item_of(row, rate), seconds_of(row, rate), level, _kept(row, now, young_since), *more)

    def place(self, tree: Tree) -> tuple[int, int]:
        """How many trees stand before this one, and how many there are; by the ranks alone, whatever keeps them."""
        usage = tree.item.usage
        before = self._tables.survey(
            "SELECT count(*) FROM trees WHERE level < ? OR (level = ? AND (queue, rank) < (?, ?))",
            tree.level,
            tree.level,
            usage.queue,
            usage.rank,
        )
        return before[0][0], self._tables.one("SELECT tree_count FROM counters")[0]

    def described(self, trees: Iterable[str]) -> dict[str, tuple[tuple[str, ...], int, int, Item]]:
        """Of each tree that is held: the URIs that clients asked for and that are it, its files' sizes in all, how many
        these are, and how a policy sees it."""
        wanted, rate = list(trees), rate_of(self._tables)
        found: dict[str, tuple[tuple[str, ...], int, int, Item]] = {}
        for some in _chunks(wanted):
            rows = {row[0]: row for row in self._tables.survey(ROW + f"WHERE t.digest IN ({_marks(some)})", 0.0, *some)}
            names: dict[int, dict[str, None]] = {tree: {} for tree in rows}
            for tree, uri in self._tables.survey(
                f"SELECT tree, uri FROM artifacts WHERE tree IN ({_marks(rows)}) AND asked ORDER BY uri", *rows
            ):
                names[tree][uri] = None
            found |= {row[1]: (tuple(names[tree]), row[5], row[15], item_of(row, rate)) for tree, row in rows.items()}
        return found

    def as_traced(self, tree: str) -> tuple[float, list[tuple[str, int]]] | None:
        """What fetching a tree takes, in seconds, and its blobs with their sizes; None where it is not held."""
        row = self._tables.survey(ROW + "WHERE t.digest = ?", 0.0, tree)
        if not row:
            return None
        blobs = self._tables.survey(
            "SELECT b.digest, b.size FROM members m JOIN blobs b ON b.id = m.blob WHERE m.tree = ?", row[0][0]
        )
        return round(seconds_of(row[0], rate_of(self._tables)), 3), blobs

    def has(self, tree: str) -> bool:
        """Whether a tree is held."""
        return self._tables.row("SELECT 1 FROM trees WHERE digest = ?", tree) is not None

    def beginning_with(self, first: str) -> list[str]:
        """The trees whose digests begin like this."""
        past = f"{first}g"  # after every hexadecimal digit
        return [
            row[0] for row in self._tables.all("SELECT digest FROM trees WHERE digest >= ? AND digest < ?", first, past)
        ]

    # -- going ------------------------------------------------------------------------------------------------------

    def evict(
        self,
        trees: Sequence[str],
        *,
        now: float,
        young_since: float,
        nameless: frozenset[str] = frozenset(),
        due: frozenset[str] = frozenset(),
    ) -> Gone:
        """Removes trees with all that is held as them, and the blobs that nothing needs then.

        Pinned ones stay, and those that a rule keeps, whatever was planned. Their files are the caller's to remove.

        Args:
            young_since: what was brought since then stays.
            nameless: those of the trees that stay where an artifact is one of them again.
            due: those that stay where no retention rule wants them gone any more.
        """
        gone = Gone({}, {})
        with self._tables.transaction(durable=True):
            for some in _chunks(list(trees)):
                rows = self._tables.all(ROW + f"WHERE t.digest IN ({_marks(some)})", now, *some)
                rows = [row for row in rows if not _kept(row, now, young_since)]
                rows = [row for row in rows if row[1] not in due or (row[13] is not None and row[13] <= now)]
                named = {
                    row[0]
                    for row in self._tables.all(
                        f"SELECT DISTINCT tree FROM artifacts WHERE tree IN ({_marks(rows)})", *(row[0] for row in rows)
                    )
                }
                rows = [row for row in rows if row[1] not in nameless or row[0] not in named]
                gone.trees.update({row[1]: bool(row[14]) for row in rows})
                gone.blobs.update(self._remove(rows, now))
            self._tables.do(
                "DELETE FROM ghosts WHERE rowid IN (SELECT rowid FROM ghosts ORDER BY gone_at"
                " LIMIT max(0, (SELECT count(*) FROM ghosts) - ?))",
                GHOSTS_MAX,
            )
            leave(self._tables, gone.trees, gone.blobs)
        return gone

    def remove_unheld(self) -> None:
        """Removes blobs that no tree and no download needs; `leaving` has them then."""
        with self._tables.transaction(durable=True):
            rows = self._tables.all(
                "DELETE FROM blobs WHERE holder_count = 0"
                " AND NOT EXISTS (SELECT 1 FROM arrivals WHERE blob = blobs.id) RETURNING digest"
            )
            leave(self._tables, (), [digest for (digest,) in rows])

    def left(self, gone: Gone) -> None:
        """The files of what has gone are removed."""
        with self._tables.transaction():
            self._tables.many("DELETE FROM leaving WHERE name = ?", _names(gone.trees, gone.blobs))

    def leaving(self, after: str = "") -> tuple[Gone, str]:
        """Some of what was about to be removed when a daemon ended, or an index was lost, and is not held again; and
        the name to go on after, empty where these were the last ones. What is held again is not leaving any more."""
        with self._tables.transaction():
            names = self._tables.all(
                "SELECT name FROM leaving WHERE name > ? ORDER BY name LIMIT ?", after, LEAVING_STEP
            )
            last = names[-1][0] if names else after
            self._tables.do(f"DELETE FROM leaving WHERE name > ? AND name <= ? AND {_HELD}", after, last)
            rows = self._tables.all("SELECT name FROM leaving WHERE name > ? AND name <= ?", after, last)
        found = [row[0].split(":") for row in rows]
        trees = {digest: True for kind, digest in found if kind == "tree"}
        blobs = {digest: 0 for kind, digest in found if kind == "blob"}
        return Gone(trees, blobs), last if len(names) == LEAVING_STEP else ""

    def _remove(self, rows: Sequence[Any], now: float) -> dict[str, int]:
        """Removes trees, by their rows, and returns the blobs that went with them. All at once: each statement is a
        moment in which others have the interpreter."""
        self._tables.many(
            "INSERT OR REPLACE INTO ghosts (tree, queue, rank, counted, counted_at, gone_at) VALUES (?, ?, ?, ?, ?, ?)",
            [(row[1], *row[6:10], now) for row in rows],
        )
        trees, marks = [row[0] for row in rows], _marks(rows)
        blobs = [b for (b,) in self._tables.all(f"SELECT DISTINCT blob FROM members WHERE tree IN ({marks})", *trees)]
        for table, column in (("artifacts", "tree"), ("accounts", "tree"), ("members", "tree"), ("trees", "id")):
            self._tables.do(f"DELETE FROM {table} WHERE {column} IN ({marks})", *trees)
        gone: dict[str, int] = {}
        for some in _chunks(blobs):
            gone.update(
                self._tables.all(
                    f"DELETE FROM blobs WHERE id IN ({_marks(some)}) AND holder_count = 0"
                    " AND NOT EXISTS (SELECT 1 FROM arrivals WHERE blob = blobs.id) RETURNING digest, size",
                    *some,
                )
            )
        return gone


def leave(tables: Tables, trees: Iterable[str], blobs: Iterable[str]) -> None:
    """Writes down, in the transaction that removes their rows, whose files are about to be removed."""
    tables.many("INSERT OR IGNORE INTO leaving (name) VALUES (?)", _names(trees, blobs))


def leave_unheld(tables: Tables, trees: Iterable[str], blobs: Iterable[str]) -> None:
    """The same for what is on the disk, as far as it has no row; one by one, for there may be millions."""
    for kind, digests in (("tree", trees), ("blob", blobs)):
        tables.many(
            f"INSERT OR IGNORE INTO leaving (name) SELECT '{kind}:' || ?1"
            f" WHERE NOT EXISTS (SELECT 1 FROM {kind}s WHERE digest = ?1)",
            ((digest,) for digest in digests),
        )


def _names(trees: Iterable[str], blobs: Iterable[str]) -> list[tuple[str]]:
    return [(f"tree:{tree}",) for tree in trees] + [(f"blob:{blob}",) for blob in blobs]


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), VARIABLES_MAX - 1):
        yield values[start : start + VARIABLES_MAX - 1]


def _marks(values: Collection[Any]) -> str:
    return ",".join("?" * len(values))


def item_of(row: Any, rate: float) -> Item:
    """A tree as a policy sees it, from a row of ROW."""
    digest, share, size = row[1], row[2], row[5]
    return Item(digest, share, share_seconds(seconds_of(row, rate), size, share), Usage(*row[6:10]))


def seconds_of(row: Any, rate: float) -> float:
    """What it would take to fetch all of it again."""
    return refetch_seconds(row[3], row[4], row[5], rate)


def _kept(row: Any, now: float, young_since: float) -> str:
    recorded_at, kept_until, pinned = row[10:13]
    if pinned:
        return PINNED
    if kept_until > now:
        return RULED
    # A time that is yet to come is that of a clock which was set back since: it says nothing.
    return YOUNG if young_since < recorded_at <= now else ""


def rate_of(tables: Tables) -> float:
    """Seconds that a byte takes, of all that was fetched."""
    seconds, count = tables.one("SELECT fetch_seconds, fetch_bytes FROM ranking")
    return seconds / count if count else SECONDS_PER_BYTE
