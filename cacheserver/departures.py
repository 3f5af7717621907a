"""What leaves the store: evicted trees, and blobs that nothing needs.

Law of this file: row before unlink, both under the lock that everything takes that adds a blob. What is about to be
removed stands in the index until it is: a daemon that is killed in between leaves nothing that the next one forgets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from artifactcache.errors import NoSpace
from cacheserver import ballast
from cacheserver.disk import Disk
from cacheserver.holdings import Gone
from cacheserver.index import Index
from cacheserver.prospects import Prospects
from cacheserver.rests import Awaited


class Departures:
    """Departures from one store.

    Args:
        lock: held by everything that adds blobs.
        leave: told of each tree that is gone, before its files are.
    """

    def __init__(self, disk: Disk, index: Index, lock: Awaited, leave: Callable[[str], None]) -> None:
        self._disk = disk
        self._index = index
        self._lock = lock
        self._leave = leave

    def prospects(self) -> Prospects:
        """What would come back if trees went, for one plan."""
        return Prospects(self._disk, self._index.holdings)

    def evict(
        self,
        trees: Sequence[str],
        *,
        now: float,
        young_since: float,
        nameless: frozenset[str] = frozenset(),
        due: frozenset[str] = frozenset(),
        taken: Callable[[], None] = lambda: None,
        rest: Callable[[], None] = lambda: None,
    ) -> Gone:
        """Removes trees that nobody has leased, as far as nothing else keeps them. Returns what has gone.

        Args:
            now, young_since, nameless, due: as in `Holdings.evict`.
            taken: called when nothing of them has a name any more; what is left to be done keeps nobody waiting.
            rest: called after each file, unless somebody waits for this.
        """

        return self.remove(
            lambda: self._index.holdings.evict(trees, now=now, young_since=young_since, nameless=nameless, due=due),
            taken,
            rest,
        )

    def remove(
        self,
        decide: Callable[[], Gone],
        taken: Callable[[], None] = lambda: None,
        rest: Callable[[], None] = lambda: None,
    ) -> Gone:
        """Removes the files of what `decide` takes out of the index, in one durable transaction that says what is
        leaving. Returns what has gone. `decide` is called again where the index has no room for that.

        Args:
            taken, rest: as in `evict`.
        """
        with self._lock:
            try:
                gone = decide()
            except NoSpace:  # the index itself has no room to say what goes
                if not ballast.throw(self._disk.root):
                    raise
                gone = decide()
            aside, stuck = self._take_out(gone, lambda: None if self._lock.is_awaited else rest())
        taken()
        self._discard(gone, aside, stuck, rest)
        return gone

    def tidy(self, is_leased: Callable[[str], bool] = lambda tree: False) -> None:
        """Removes blobs that nothing needs, what an earlier daemon was about to remove when it ended, and what an index
        knew that was lost; a few at a time, so that whoever brings something has its turn in between.

        Args:
            is_leased: whether somebody has a tree, though it has no row any more: it stays as long.
        """
        after = self._tidy_some("", is_leased, self._index.holdings.remove_unheld)
        while after:
            after = self._tidy_some(after, is_leased, lambda: None)
        with contextlib.suppress(OSError):  # another time
            ballast.take(self._disk.root)

    def _tidy_some(self, after: str, is_leased: Callable[[str], bool], first: Callable[[], None]) -> str:
        """Of what is leaving, what comes after a name. Returns the name to go on after; none at the end."""
        last = ""

        def decide() -> Gone:
            nonlocal last
            first()
            gone, last = self._index.holdings.leaving(after)
            return Gone(
                {tree: had for tree, had in gone.trees.items() if not is_leased(tree)},
                {digest: self._size(digest) for digest in gone.blobs},
            )

        self.remove(decide)
        return last

    def _size(self, digest: str) -> int:
        with contextlib.suppress(OSError):  # its removal will tell
            return self._disk.blob_size(digest) or 0
        return 0

    def _take_out(self, gone: Gone, rest: Callable[[], None]) -> tuple[list[str], set[str]]:
        for tree in gone.trees:
            self._leave(tree)
        return self._disk.take_out(gone.trees, gone.blobs, rest)

    def _discard(self, gone: Gone, aside: list[str], stuck: set[str], rest: Callable[[], None]) -> None:
        for path in aside:
            self._disk.discard(path)
            rest()
        if gone.trees or gone.blobs:
            self._index.holdings.left(
                Gone(
                    {tree: had for tree, had in gone.trees.items() if tree not in stuck},
                    {blob: size for blob, size in gone.blobs.items() if blob not in stuck},
                )
            )
