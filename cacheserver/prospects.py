"""What would come back to the disk if trees went: their blobs, and which of these are hard-linked elsewhere.

Law of this file: it only looks; and a plan that goes through thousands of trees asks for few things often, not for one
tree at a time: each question is a moment in which others wait for the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from cacheserver.disk import Disk
from cacheserver.holdings import Holdings
from cacheserver.planning import Blob, Candidate
from cacheserver.views import names_below

AHEAD_TREES_MAX = 64  # read at a time, of a queue
AHEAD_BLOBS_MAX = 50_000  # read and not asked for yet: some 15 MB


class Prospects:
    """The blobs of the trees of one plan, read ahead in the order in which their turns will come."""

    def __init__(self, disk: Disk, holdings: Holdings) -> None:
        self._disk = disk
        self._holdings = holdings
        self._next: dict[str, None] = {}  # those that will be asked for soon
        self._read: dict[str, list[Blob]] = {}
        self._read_blobs = 0

    def ahead(self, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
        """The same candidates. Ever more are read together, so that a small plan looks at no more than it needs."""
        count = 1
        while some := list(islice(candidates, count)):
            self._next |= {one.item.tree: None for one in some if not one.kept}
            yield from some
            self._next.clear()
            count = min(count * 2, AHEAD_TREES_MAX)

    def blobs_of(self, tree: str) -> list[Blob]:
        """The blobs of a tree."""
        if tree not in self._read:
            if self._read_blobs > AHEAD_BLOBS_MAX:  # of those whose turn has not come: they are read again then
                self._read.clear()
                self._read_blobs = 0
            found = self._look([tree, *(one for one in self._next if one != tree and one not in self._read)])
            self._read |= found
            self._read_blobs += sum(map(len, found.values()))
            self._next.clear()
        found_blobs = self._read.pop(tree)
        self._read_blobs -= len(found_blobs)
        return found_blobs

    def _look(self, trees: Sequence[str]) -> dict[str, list[Blob]]:
        found: dict[str, list[Blob]] = {tree: [] for tree in trees}
        links: dict[object, tuple[int, int]] = {}  # of each blob, its inode and its names outside blobs/
        linked: dict[str, None] = {}  # trees with such blobs
        for tree, blob, digest in self._holdings.blobs_of(trees):
            if blob.key not in links:
                links[blob.key] = self._disk.links(digest)
            if links[blob.key][1] > 0:
                linked[tree] = None
            found[tree].append(blob)
        if linked:  # by views, most of them: that is a slower question
            in_views = self._holdings.view_links(list(linked))
            outside = {key: (inode, n - in_views.get(key, n)) for key, (inode, n) in links.items()}
            for tree in linked:
                found[tree] = self._marked(tree, found[tree], outside)
        return found

    def _marked(self, tree: str, blobs: list[Blob], links: dict[object, tuple[int, int]]) -> list[Blob]:
        if all(links[blob.key][1] <= 0 for blob in blobs):
            return blobs
        # A view of which a file was damaged, or that a daemon was killed behind, is no view, but goes with its tree all
        # the same.
        names = names_below(self._disk.at("views", holder) for holder in self._holdings.without_view(tree))
        return [
            blob._replace(is_linked=True) if links[blob.key][1] > names[links[blob.key][0]] else blob for blob in blobs
        ]
