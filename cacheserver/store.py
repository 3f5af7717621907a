"""The store: files and index together, in the order that keeps a crash harmless.

Law of this file: file before row, row before unlink. Whatever adds or removes blobs does so under one lock, so that a
blob that one side has just counted on is never unlinked by the other.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from artifactcache.errors import CacheError, NoSpace
from cacheserver import restoring
from cacheserver.bounded import Bounded
from cacheserver.departures import Departures
from cacheserver.disk import Disk, Space
from cacheserver.faults import GONE_ERRNOS, LOST_ERRNOS, SHORT_ERRNOS, changed, full, trouble
from cacheserver.index import Index
from cacheserver.leftovers import Leftovers
from cacheserver.links import link_tree
from cacheserver.probing import Probe
from cacheserver.rests import Awaited
from cacheserver.staging import Staged
from cacheserver.trees import Tree
from cacheserver.turns import Turns
from cacheserver.verify import Verified, Verifier
from cacheserver.views import Views
from cacheserver.watch import Watch
from cacheserver.words import Arrived, Held, Manifest, Progress, Record, Standing

CACHED_ENTRIES_MAX = 100_000  # about 50 MB of manifests and rows in memory
# A view of more files than this is not looked at file by file each time, but watched. What no watch can see, a write
# through a hard link elsewhere, is then found after so many seconds at the latest.
ALWAYS_CHECKED_FILES_MAX = 100
WATCHED_SECONDS = 60
LOOKS_MAX = 100_000  # trees whose last look is remembered: about 20 MB
MEND_SECONDS = 30  # between two attempts to make a damaged index anew
DESCRIPTORS_MAX = 128  # per packet; the kernel takes 253


class Store:
    """Blobs, trees and views on one disk.

    Args:
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, disk: Disk, index: Index, ticks: Callable[[], float]) -> None:
        self._disk = disk
        self._views = Views(disk)
        self.probe = Probe(disk)
        self.ticks = ticks
        self.index = index
        self.partials = disk.partials
        self._blobs_lock = Awaited()
        self._building = Turns()
        self._renew_lock = threading.Lock()
        self._trees: Bounded[str, Tree] = Bounded(CACHED_ENTRIES_MAX)
        self._watch = Watch()
        self._checked: dict[str, tuple[float, int]] = {}  # views: when, and in which generation of the watch
        self._looks: Bounded[str, float] = Bounded(LOOKS_MAX)  # trees: when their blobs were last looked at
        self._mend_after = -math.inf
        self._linkers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="link")
        self.verifier = Verifier(disk, index, self._blobs_lock, self.tree, self._lost)
        self.departures = Departures(disk, index, self._blobs_lock, self._leave)
        self.leftovers = Leftovers(disk, index, self.departures, ticks)

    def close(self) -> None:
        """Closes the index and lets another daemon have the store."""
        self._linkers.shutdown()
        self._watch.close()
        self.index.close()
        self._disk.close()

    # -- bringing in ------------------------------------------------------------------------------------------------

    def stage(self) -> str:
        """A path for a file that is about to be written."""
        return self._disk.stage()

    def measure(self, path: str) -> Staged:
        """Hashes a file that was written to a staged path."""
        try:
            return self._disk.measure(path)
        except OSError as error:
            raise trouble(error, "a download could not be read back") from None

    def discard(self, path: str) -> None:
        """Removes a staged file."""
        self._disk.discard(path)

    def keep(self, staged: dict[str, Staged], standing: Standing, now: float) -> None:
        """Takes finished files, by the origin's URI of each, into the store. Raises NoSpace."""
        ones = {one.row.digest: one for one in staged.values() if one.row.size}
        placed = set[str]()
        try:
            self._disk.sync(list(ones.values()))
            with self._blobs_lock:
                known = self.index.blobs(ones)
                wrong = {row.digest for row in self._disk.suspects(known.values())}
                new = [one for digest, one in ones.items() if digest not in known or digest in wrong]
                for digest in wrong:  # its views have the wrong one, which goes from its own name now
                    self.index.lose_views(digest)
                rows = self._disk.place(new)
                placed = {one.path for one in new if not one.is_noted}
                arrived = {u: Arrived(s.row.digest, s.row.size, s.etag) for u, s in staged.items() if s.row.size}
                self.index.record_arrivals(rows, arrived, standing, now)
            if wrong:
                self._forget_cached()
        except OSError as error:
            raise trouble(error, "a download could not be kept") from None
        finally:
            for one in staged.values():
                if one.path not in placed:
                    self._disk.discard(one.path)

    def commit(self, manifest: Manifest, artifacts: Iterable[Record], arrived: Iterable[str], now: float) -> None:
        """Records a tree whose blobs are kept, and what it is the tree of. Raises NoSpace, MissingBlobs."""
        self._write_manifest(manifest)
        with self._blobs_lock:  # what is tidied away is not held, and stays so until it is away
            if not self._disk.has_manifest(manifest.digest):
                self._write_manifest(manifest)
            self.index.record_tree(manifest, artifacts, arrived, now)
        self._forget_cached(manifest.digest)

    # -- handing out ------------------------------------------------------------------------------------------------

    def tree(self, digest: str) -> Tree | None:
        """A tree, or None where its manifest is gone."""
        found = self._trees.get(digest)
        if found and not found.missing:
            return found
        manifest = found.manifest if found else self._disk.read_manifest(digest)
        if manifest is None:
            return None
        tree = Tree(digest, manifest, self.index.tree_blobs(digest))
        # A blob that was in quarantine may be back, brought for another tree, or for this one by a fetch that failed.
        if tree.missing and self.index.blobs(tree.missing):
            tree = Tree(digest, manifest, tree.rows | self.index.rejoin(digest, tree.missing))
        self._trees.put(digest, tree, weight=len(tree.manifest.entries))
        return tree

    def unsound(self, tree: Tree) -> frozenset[str]:
        """Checks every blob of a tree by its inode, and by its bytes where the inode has changed.

        Returns the digests of blobs that are missing; those that are wrong are in quarantine by then.
        """
        now = self.ticks()
        suspects = self._disk.suspects(tree.rows.values())
        wrong = frozenset(tree.missing) | {row.digest for row in suspects if not self.verifier.recheck(row)}
        if not wrong:
            self._looks.put(tree.digest, now)
        return wrong

    def view_is_sound(self, digest: str) -> bool:
        """Whether a tree's view is complete and its files are what they should be.

        Takes no time per file where the view was checked a moment ago and is watched since.
        """
        if not self.index.has_view(digest):
            return False
        now, generation = self.ticks(), self._watch.generation()
        checked_at, checked_in = self._checked.get(digest, (0.0, -1))
        if checked_in == generation and now - checked_at < WATCHED_SECONDS:
            return True
        tree = self.tree(digest)
        if tree is None or tree.missing:
            return False
        watched = len(tree.manifest.files) > ALWAYS_CHECKED_FILES_MAX and self._watch_view(tree)
        if not self._views.is_intact(tree.manifest, tree.rows):
            self.index.record_view(digest, exists=False)
            return False
        if watched:  # the generation from before the look: what happens between the two makes it grow
            self._checked[digest] = (now, generation)
        return True

    def _watch_view(self, tree: Tree) -> bool:
        fans = {digest[:2] for digest in tree.rows}
        return all(self._watch.blobs(self._disk.at("blobs", fan)) for fan in fans) and self._watch.view(
            self._views.path(tree.digest), tree.manifest.folders
        )

    def check_views(self) -> None:
        """Raises ModeUnavailable where no views are given out."""
        self._views.check_given()

    def view(self, digest: str, uid: int | None = None) -> str:
        """The path of a tree's view, built where there is none, for a user who is let in; None: the daemon's own.

        Raises ModeUnavailable, NoSpace, Corrupted.
        """
        self.check_views()
        if not self.index.has_view(digest):
            with self._building.of(digest):  # others build theirs meanwhile: one of 2,000,000 files takes a while
                if not self.index.has_view(digest):
                    self._build_view(self._leased(digest))
        if uid is not None:
            self._views.let_in(digest, uid)
        return self._views.path(digest)

    def link(self, digest: str, folder_fd: int, owner: int) -> int:
        """Links a tree's blobs into a folder of a client. Returns how many.

        Raises ModeUnavailable, InvalidRequest, Corrupted.
        """
        manifest = self._looked_at(digest).manifest
        try:
            return link_tree(manifest, self._disk.blobs_fd, folder_fd, owner, self._renew, self._linkers)
        except OSError as error:
            raise trouble(error, f"the tree {digest} could not be linked") from None

    def open_blobs(self, digest: str, first: int, limit: int = DESCRIPTORS_MAX) -> list[int]:
        """Read-only descriptors of the blobs of a tree's files that are not empty, from the `first` on.

        At most `limit` of them, and at most DESCRIPTORS_MAX.
        """
        tree = self._looked_at(digest)
        filled = tree.filled[first : first + min(limit, DESCRIPTORS_MAX)]
        fds: list[int] = []
        try:
            for entry in filled:
                fds.append(self._disk.open_blob(entry.digest))
        except OSError as error:
            for fd in fds:
                os.close(fd)
            if error.errno == errno.EACCES and not self.verifier.recheck(tree.rows[entry.digest]):
                raise changed(f"The blob {entry.digest}") from None
            raise _unopened(f"The blob {entry.digest}", error) from None
        return fds

    def open_blob(self, digest: str) -> int:
        """A read-only descriptor of a blob, which nobody has looked at. Raises OSError."""
        return self._disk.open_blob(digest)

    def open_manifest(self, digest: str) -> int:
        """A read-only descriptor of a tree's manifest, which was hashed just now: what is in memory of it is no proof
        of what is handed out. 3 ms per 100,000 files. Raises Corrupted where it is wrong or gone."""
        fd = self._disk.open_manifest(digest)
        if fd is None:
            self.verifier.lost_manifest(digest)
            raise changed(f"The manifest {digest}")
        return fd

    # -- looking after ----------------------------------------------------------------------------------------------

    def verify(self, held: Held | None, progress: Progress) -> Verified:
        """Hashes the blobs of one artifact, or all, again, and quarantines those that are wrong.

        What an artifact lacks counts as wrong until it was fetched again, whenever it went.
        """
        return self.verifier.verify(held, progress)

    def mend_index(self) -> bool:
        """Makes the index anew where SQLite has met damage in it, and the mirror where that lacks something. Returns
        whether it did the former; nobody is served meanwhile."""
        if not (self.index.is_damaged or self.index.is_behind) or self.ticks() < self._mend_after:
            return False
        self._mend_after = self.ticks() + MEND_SECONDS
        with self._blobs_lock:
            was_damaged = restoring.mend(self.index, self._disk)
        self._forget_cached()
        return was_damaged

    def lost_manifests(self, trees: Iterable[str]) -> None:
        """The manifests of these trees are wrong or gone: nothing in memory stands for them any more."""
        for tree in trees:
            self._trees.forget(tree)

    def written(self, progress: Progress) -> int:
        """How many bytes of the files being downloaded now are on the disk."""
        return sum(self._disk.size(path) for path in list(progress.active))

    @property
    def root(self) -> str:
        """The store's folder."""
        return self._disk.root

    def space(self) -> Space:
        """How full the store's filesystem is."""
        return self._disk.space()

    def watches(self) -> bool:
        """Whether it notices by itself when somebody meddles with a view."""
        return self._watch.works()

    def quarantine_count(self) -> int:
        """How many files are in quarantine."""
        return self._disk.quarantine.count()

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _leased(self, digest: str) -> Tree:
        tree = self.tree(digest)
        if tree is None:
            raise changed(f"The tree {digest}")
        return tree

    def _looked_at(self, digest: str) -> Tree:
        """A leased tree whose blobs were looked at a moment ago: by the fetch, or now where that was longer ago.

        A client links and copies right after its fetch has looked: a second look would cost it 35 ms per 10,000 files.
        """
        tree = self._leased(digest)
        looked = self._looks.get(digest)
        if looked is not None and self.ticks() - looked < WATCHED_SECONDS:
            return tree
        if wrong := self.unsound(tree):
            raise changed(f"The blob {min(wrong)}")
        return tree

    def _renew(self, digest: str) -> None:
        """Gives a blob that has all its links a second inode. The copy, however large, is made without the lock."""
        seen = self.index.blobs([digest]).get(digest)
        with self._renew_lock:
            row = self.index.blobs([digest]).get(digest)
            if row is None:
                raise changed(f"The blob {digest}")
            if row != seen:
                return  # another thread has done it
            try:
                staged = self._disk.copy(digest)
            except OSError as error:
                # Where reading failed its bytes are gone; where writing did, they are not.
                if error.errno in GONE_ERRNOS or (error.errno in LOST_ERRNOS and not self.verifier.recheck(row)):
                    raise changed(f"The blob {digest}") from None
                raise trouble(error, "a blob that has all its links needs a second inode") from None
            try:
                if staged.row.digest != digest:
                    self.verifier.put_aside(row)
                    raise changed(f"The blob {digest}")
                with self._blobs_lock:
                    if self.index.blobs([digest]).get(digest) == row:
                        self.index.record_blob(self._disk.place([staged])[0])
            finally:
                self._disk.discard(staged.path)
        self._forget_cached()

    def _build_view(self, tree: Tree) -> None:
        path = self._disk.stage()
        try:
            self._views.start(path, tree.manifest)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                link_tree(tree.manifest, self._disk.blobs_fd, fd, os.geteuid(), self._renew, self._linkers)
            finally:
                os.close(fd)
            self._views.finish(path, tree.manifest)
        except NoSpace:  # of links, which speak of a destination
            raise full("a view could not be built") from None
        except OSError as error:
            raise trouble(error, "a view could not be built") from None
        finally:
            self._disk.discard(path)  # or the one that was replaced, of which something may stay
        self.index.record_view(tree.digest, exists=True)

    def _write_manifest(self, manifest: Manifest) -> None:
        try:
            self._disk.write_manifest(manifest)
        except OSError as error:
            raise trouble(error, "a manifest could not be written") from None

    def _leave(self, digest: str) -> None:
        """A tree is gone: its view's removal is no meddling, and nothing in memory speaks of it any more."""
        self._watch.leave_view(self._views.path(digest))
        self._views.forget(digest)
        self._checked.pop(digest, None)
        self._looks.forget(digest)
        self._trees.forget(digest)

    def _lost(self, trees: Iterable[str]) -> None:
        for tree in trees:
            self._looks.forget(tree)
        self._forget_cached()

    def _forget_cached(self, digest: str | None = None) -> None:
        if digest is None:
            self._trees.clear()
        else:
            self._trees.forget(digest)


def _unopened(what: str, error: OSError) -> CacheError:
    if error.errno in GONE_ERRNOS:
        return changed(what)
    if error.errno in SHORT_ERRNOS:
        return trouble(error, f"{what[0].lower()}{what[1:]} cannot be opened")
    return CacheError(f"{what} cannot be opened: {error.strerror}. Look at the store's disk, and fetch again.")
