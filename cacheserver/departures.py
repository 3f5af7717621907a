"""What leaves the store: evicted trees, blobs that nothing needs, what unfinished downloads left.

Law of this file: row before unlink, both under the lock that everything takes that adds a blob. What is about to be
removed stands in the index until it is: a daemon that is killed in between leaves nothing that the next one forgets.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from artifactcache.errors import NoSpace
from cacheserver import ballast
from cacheserver.disk import Disk
from cacheserver.holdings import Gone
from cacheserver.index import Index
from cacheserver.planning import Blob


class Departures:
    """Departures from one store.

    Args:
        lock: held by everything that adds blobs.
        leave: told of each tree that is gone, before its files are.
    """

    def __init__(self, disk: Disk, index: Index, lock: threading.Lock, leave: Callable[[str], None]) -> None:
        self._disk = disk
        self._index = index
        self._lock = lock
        self._leave = leave

    def blobs_of(self, tree: str) -> list[Blob]:
        """The blobs of a tree, and what becomes of their bytes when their rows go."""
        found = [(blob, self._disk.link_count(digest) - 1) for blob, digest in self._index.holdings.blobs_of(tree)]
        if any(links > 0 for _, links in found):  # some are views': that is a slower question
            in_views = self._index.holdings.view_links(tree)
            found = [(blob, links - in_views[blob.key] if blob.key in in_views else 0) for blob, links in found]
        return [blob._replace(is_linked=True) if links > 0 else blob for blob, links in found]

    def evict(
        self,
        trees: Sequence[str],
        *,
        now: float,
        young_since: float,
        nameless: frozenset[str] = frozenset(),
        due: frozenset[str] = frozenset(),
        taken: Callable[[], None] = lambda: None,
    ) -> Gone:
        """Removes trees that nobody has leased, as far as nothing else keeps them. Returns what has gone.

        Args:
            now, young_since, nameless, due: as in `Holdings.evict`.
            taken: called when nothing of them has a name any more; what is left to be done keeps nobody waiting.
        """

        def evict() -> Gone:
            return self._index.holdings.evict(trees, now=now, young_since=young_since, nameless=nameless, due=due)

        with self._lock:
            try:
                gone = evict()
            except NoSpace:  # the index itself has no room to say what goes
                if not ballast.throw(self._disk.root):
                    raise
                gone = evict()
            aside, stuck = self._take_out(gone)
        taken()
        self._discard(gone, aside, stuck)
        return gone

    def drop_arrivals(self, before: float) -> int:
        """Removes what unfinished downloads left before a time. Returns how many blobs went."""
        with self._lock:
            self._disk.partials.drop(before)
            gone = Gone({}, self._index.holdings.drop_arrivals(before))
            aside, stuck = self._take_out(gone)
        self._discard(gone, aside, stuck)
        return len(gone.blobs)

    def tidy(self) -> None:
        """Removes blobs that nothing needs, and what an earlier daemon was about to remove when it ended."""
        with self._lock:
            self._index.holdings.remove_unheld()
            gone = self._index.holdings.leaving()
            aside, stuck = self._take_out(gone)
        self._discard(gone, aside, stuck)
        with contextlib.suppress(OSError):  # another time
            ballast.take(self._disk.root)

    def _take_out(self, gone: Gone) -> tuple[list[str], set[str]]:
        for tree in gone.trees:
            self._leave(tree)
        return self._disk.take_out(gone.trees, gone.blobs)

    def _discard(self, gone: Gone, aside: list[str], stuck: set[str]) -> None:
        for path in aside:
            self._disk.discard(path)
        if gone.trees or gone.blobs:
            self._index.holdings.left(
                Gone(
                    {tree: had for tree, had in gone.trees.items() if tree not in stuck},
                    {blob: size for blob, size in gone.blobs.items() if blob not in stuck},
                )
            )
