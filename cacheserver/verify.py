"""Blobs are looked at again: those of one artifact, or all, or a few after the others in the background.

Law of this file: what is said to be fine was read just now; what is wrong is in quarantine before anybody hears of it;
what an artifact lacks is said as long as it lacks it. What cannot be looked at, or put aside, keeps nobody from looking
at the rest.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from artifactcache.errors import CacheError, NotFound
from cacheserver.disk import Disk
from cacheserver.faults import Short, trouble
from cacheserver.index import Index
from cacheserver.rests import Awaited
from cacheserver.trees import Tree
from cacheserver.words import BlobRow, Held, Progress

BATCH_BLOBS = 500
TOLD_MAX = 1000  # blobs and manifests that cannot be looked at: those beyond are counted, and not told

_log = logging.getLogger(__name__)


class Ended(Exception):
    """Raised where what is being read is not to be read to its end."""


@dataclass(frozen=True)
class Verified:
    """What a verification found: how much it hashed, which blobs were wrong or are gone, which artifacts need them.

    Attributes:
        manifests: trees whose manifests were wrong or are gone.
        unseen: blobs and trees that nobody could look at; they are among the others too.
    """

    blobs_checked: int
    bytes_checked: int
    corrupted: tuple[str, ...]
    affected: tuple[str, ...]
    manifests: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass
class _Findings:
    """What was found until now; the blobs in the order in which they were found."""

    blobs_checked: int = 0
    bytes_checked: int = 0
    corrupted: dict[str, None] = field(default_factory=dict)
    affected: set[str] = field(default_factory=set)
    manifests: dict[str, None] = field(default_factory=dict)
    unseen: dict[str, None] = field(default_factory=dict)

    def lacks(self, uris: Iterable[str], digests: Iterable[str]) -> None:
        """Counts blobs that are wrong or gone, and the artifacts that need them."""
        self.corrupted.update(dict.fromkeys(digests))
        self.affected.update(uris)

    def all(self) -> Verified:
        """As a result."""
        return Verified(
            self.blobs_checked,
            self.bytes_checked,
            tuple(self.corrupted),
            tuple(sorted(self.affected)),
            tuple(self.manifests),
            tuple(self.unseen),
        )


class Verifier:
    """Looks at the bytes of one store.

    Args:
        lock: held by everything that adds blobs.
        tree: a tree by its digest; None where its manifest is gone.
        lost: told of trees that lack a blob from now on; and with none that something in memory may be old.

    Attributes:
        damaged: told of artifacts, by URI and selection, that lack bytes, or their manifest, from now on.
    """

    def __init__(
        self,
        disk: Disk,
        index: Index,
        lock: Awaited,
        tree: Callable[[str], Tree | None],
        lost: Callable[[Sequence[str]], None],
    ) -> None:
        self._disk = disk
        self._index = index
        self._lock = lock
        self._tree = tree
        self._lost = lost
        self.damaged: Callable[[Sequence[tuple[str, str]]], None] = lambda names: None
        self._told: set[str] = set()  # what cannot be looked at

    def recheck(self, row: BlobRow) -> bool:
        """Hashes a blob again. Returns False where it is wrong or gone: then it is in quarantine."""
        fine = self._disk.recheck(row)
        if fine is None:
            self.put_aside(row)
            return False
        self._take_back(fine)
        return True

    def put_aside(self, row: BlobRow) -> list[tuple[str, str]] | None:
        """Puts a wrong blob into quarantine. Returns the artifacts that need it, by URI and selection; None where its
        row is another by now: somebody else has dealt with it."""
        holders: list[tuple[str, str]] = []
        try:
            with self._lock:
                if self._index.blobs([row.digest]).get(row.digest) != row:
                    return None
                holders = self._index.holders([row.digest])  # before its row goes, and with it who needs it
                trees = self._index.forget_blob(row.digest)
                for tree in trees:
                    self._index.record_view(tree, exists=False)
                self._lost(trees)
                self._disk.quarantine.put(row.digest)
        except OSError as error:
            raise trouble(error, f"the wrong blob {row.digest} could not be put into quarantine") from None
        finally:
            self._lost(())  # in any case: trees in memory may still have the row as it was
            self.damaged(holders)
        return holders

    def lost_manifest(self, tree: str) -> list[tuple[str, str]]:
        """A tree's manifest is wrong or gone: nothing in memory stands for it any more. Returns the artifacts that are
        the tree, by URI and selection."""
        names = self._index.names_of([tree])
        self._lost([tree])
        self.damaged(names)
        return names

    def verify(self, held: Held | None, progress: Progress) -> Verified:
        """Hashes the blobs and the manifest of one artifact, or all, again, and quarantines blobs that are wrong.

        What an artifact lacks counts as wrong until it was fetched again, whenever it went.
        """
        found = _Findings()
        blobs = (self._check(rows, found, progress) for rows in self._batches(held, progress))
        if all(blobs) and self._check_manifests(self._trees(held), found, progress):
            for uri, digest in self._index.asked_trees() if held is None else [(held.uri, held.tree)]:
                if digest not in found.unseen and (tree := self._tree(digest)) and tree.missing:
                    found.lacks([uri], sorted(tree.missing))
        return found.all()

    def some(
        self, after: str, limit: int, spend: Callable[[int], None], is_enough: Callable[[], bool]
    ) -> tuple[str | None, Verified]:
        """Hashes up to `limit` blobs and manifests whose digests come after `after`, as the disk has them. Returns the
        digest up to which all were hashed, `after` where none was, and what was found; None where there are no more.

        Args:
            spend: called with what was read, each time something was. It may raise Ended.
            is_enough: asked after each blob and manifest: whether to end early.
        """
        rows = {row.digest: row for row in self._index.some_blobs(after, limit)}
        trees, found = set(self._index.some_trees(after, limit)), _Findings()
        digests = sorted(rows.keys() | trees)[:limit]
        last = after if digests else None
        with contextlib.suppress(Ended):
            for digest in digests:
                if digest in rows:
                    self._check_blob(rows[digest], found, spend)
                if digest in trees:
                    self._check_manifest(digest, found, spend)
                last = digest
                if is_enough():
                    break
        return last, found.all()

    def _check(self, rows: Iterable[BlobRow], found: _Findings, progress: Progress) -> bool:
        """Hashes blobs. Returns False where it ended because nobody waits for it any more."""
        for row in rows:
            if not progress.is_wanted:  # a large store takes minutes, and another verification may wait
                return False
            self._check_blob(row, found)
            progress.files_done, progress.bytes_done = progress.files_done + 1, progress.bytes_done + row.size
        return True

    def _check_blob(self, row: BlobRow, found: _Findings, spend: Callable[[int], None] | None = None) -> None:
        holders: list[tuple[str, str]] | None = None
        fine: BlobRow | None = row
        try:
            fine = self._disk.recheck(row, spend)
            self._told.discard(row.digest)
        except Short:
            raise
        except CacheError as error:
            self._cannot_look_at(row.digest, error, found)
            holders = self._index.holders([row.digest])
        found.blobs_checked, found.bytes_checked = found.blobs_checked + 1, found.bytes_checked + row.size
        if fine is None:
            holders = self._condemn(row)
        elif fine != row:
            self._take_back(fine)
        if holders is not None:
            found.lacks((uri for uri, _ in holders), [row.digest])

    def _condemn(self, row: BlobRow) -> list[tuple[str, str]] | None:
        """As `put_aside`. Where that fails, on a full disk say, the others have their turn all the same: the blob looks
        changed from now on, so that it is hashed before it is handed out, and healing tries again."""
        holders = self._index.holders([row.digest])
        try:
            return self.put_aside(row)
        except CacheError as error:
            _log.warning("%s It is hashed before it is handed out.", error)
        with contextlib.suppress(OSError):
            self._disk.suspect(row)
        self.damaged(holders)
        return holders

    def _check_manifests(self, trees: Iterable[str], found: _Findings, progress: Progress) -> bool:
        """Hashes manifests. Returns False where it ended because nobody waits for it any more."""
        for tree in trees:
            if not progress.is_wanted:
                return False
            self._check_manifest(tree, found)
        return True

    def _check_manifest(self, tree: str, found: _Findings, spend: Callable[[int], None] | None = None) -> None:
        try:
            right = self._disk.is_manifest_right(tree, spend)
            self._told.discard(tree)
        except Short:
            raise
        except CacheError as error:
            self._cannot_look_at(tree, error, found)
            names = self._index.names_of([tree])
        else:
            if right or not self._index.holdings.has(tree):  # what was evicted meanwhile, nobody misses
                return
            names = self.lost_manifest(tree)
        found.manifests[tree] = None
        found.affected.update(uri for uri, _ in names)

    def _cannot_look_at(self, digest: str, error: CacheError, found: _Findings) -> None:
        """Counts what nobody can look at, and tells it once."""
        found.unseen[digest] = None
        if digest not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(digest)
            _log.warning("%s It is not checked; the others are.", error)

    def _trees(self, held: Held | None) -> Iterable[str]:
        if held is not None:
            yield held.tree
            return
        after = ""
        while trees := self._index.some_trees(after, BATCH_BLOBS):
            yield from trees
            after = trees[-1]

    def _batches(self, held: Held | None, progress: Progress) -> Iterable[list[BlobRow]]:
        if held is not None:
            tree = self._tree(held.tree)
            if tree is None:
                raise NotFound(f"The manifest of {held.uri} is gone: fetch it again.")
            rows = list(tree.rows.values())
            progress.files_total, progress.bytes_total = len(rows), sum(row.size for row in rows)
            yield rows
            return
        totals = self._index.totals()
        progress.files_total, progress.bytes_total = totals["blob_count"], totals["blob_bytes"]
        after = ""
        while rows := self._index.some_blobs(after, BATCH_BLOBS):
            yield rows
            after = rows[-1].digest

    def _take_back(self, fine: BlobRow) -> None:
        """Records a blob whose bytes are right and whose inode is another."""
        self._index.record_blob(fine)
        self._lost(())
