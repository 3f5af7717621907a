"""Views: read-only folders of hard links to blobs, one for a tree.

Law of this file: a view is built in staging/ and appears whole, with its door as it has to be; one that is replaced is
exchanged in one step, and lets in whom the old one did.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable

from artifactcache.errors import CacheError, ModeUnavailable
from cacheserver import doors
from cacheserver.bounded import Bounded
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from cacheserver.faults import GONE_ERRNOS, SHORT_ERRNOS, changed, trouble
from cacheserver.hashing import chunks, xxh3_of
from cacheserver.libc import exchange
from cacheserver.plain import open_plain
from cacheserver.turns import Turns
from cacheserver.words import BlobRow, Manifest

PROVEN_MAX = 100_000  # about 30 MB
INSIDE_MAX = 100_000  # users, of all views together: about 20 MB
ROOT = 0  # no mode stops root from reading
# What a filesystem says where an ACL gets too long: ext4 takes 503 users, btrfs 1,958, XFS 5,457, tmpfs 8,187.
_TOO_MANY = frozenset({errno.E2BIG, errno.EFBIG, errno.EOVERFLOW, errno.ERANGE})


class Views:
    """The views of a store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        # Inodes of blobs that have another inode by now, hashed once: device, inode, mtime and size to digest.
        self._proven: Bounded[tuple[int, int, int, int], str] = Bounded(PROVEN_MAX)
        self._inside: Bounded[str, frozenset[int]] = Bounded(INSIDE_MAX)  # trees: users whom the view lets in
        self._turns = Turns()  # of changing a view's door
        self._own = os.geteuid()

    def path(self, tree: str) -> str:
        """Where a tree's view is, or will be."""
        return self._disk.at("views", tree)

    def is_intact(self, manifest: Manifest, rows: dict[str, BlobRow]) -> bool:
        """Whether a view has every file of its tree, with the right bytes, and nothing else.

        Raises CacheError where the daemon is short of descriptors or memory: that says nothing of a view.
        """
        try:
            fd = os.open(self.path(manifest.digest), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self._has_no_strays(fd, manifest) and self._has_its_files(fd, manifest, rows)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in SHORT_ERRNOS:
                raise trouble(error, f"the view {manifest.digest} cannot be looked at") from None
            return False  # whatever it is: a view is built again from blobs, which are looked at themselves

    def _has_no_strays(self, fd: int, manifest: Manifest) -> bool:
        for folder, count in manifest.child_counts.items():
            inner = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                if len(os.listdir(inner)) != count:
                    return False
            finally:
                os.close(inner)
        return True

    def _has_its_files(self, fd: int, manifest: Manifest, rows: dict[str, BlobRow]) -> bool:
        for path, digest, size in manifest.entries:
            if digest == "-":
                continue
            seen = os.stat(path, dir_fd=fd, follow_symlinks=False)
            if not size:
                if seen.st_size or not stat.S_ISREG(seen.st_mode):
                    return False
                continue
            row = rows[digest]
            if (seen.st_ino, seen.st_mtime_ns, seen.st_size) == (row.inode, row.mtime_ns, row.size):
                continue
            # A blob has had a second inode since it got all its links: then the bytes decide, once.
            if not stat.S_ISREG(seen.st_mode) or seen.st_size != size:
                return False
            if self._proven.get(_inode(seen)) != digest and not self._prove(fd, path, row):
                return False
        return True

    def _prove(self, fd: int, path: bytes, row: BlobRow) -> bool:
        with io.FileIO(open_plain(path, dir_fd=fd)) as file:
            inode = _inode(os.fstat(file.fileno()))  # before the bytes: a write in between shows as another mtime
            if xxh3_of(chunks(file, row.size)) != row.xxh3:
                return False
        self._proven.put(inode, row.digest)
        return True

    def start(self, path: str, manifest: Manifest) -> None:
        """Makes a view's folders and empty files at a staged path; its blobs are linked in next."""
        os.mkdir(path, 0o700)
        for folder in manifest.folders:
            os.mkdir(os.path.join(os.fsencode(path), folder), 0o755)
        for entry in manifest.files:
            if entry.size == 0:
                fd = os.open(os.path.join(os.fsencode(path), entry.path), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                try:
                    os.fchmod(fd, 0o444)
                finally:
                    os.close(fd)

    def finish(self, path: str, manifest: Manifest) -> None:
        """Puts a finished view in place, read-only; one that is there already is exchanged for it in one step, and is
        the caller's to discard.

        Who has a file of the old one open reads on. By its path they are in the new one, which lets in the same users;
        what they have open of its folders, and their working directory, is empty soon.
        """
        for folder in manifest.folders:
            os.chmod(os.path.join(os.fsencode(path), folder), 0o555)
        target = self.path(manifest.digest)
        with self._turns.of(manifest.digest):
            is_there = os.path.lexists(target)
            if self._disk.doors is Doors.OPEN:
                doors.open_to_all(path)
            else:
                given = doors.let_in(target) if is_there else frozenset()
                doors.let_in_only(path, given | self._inside_of(manifest.digest))
            doors.movable(path, True)
            if is_there:
                doors.movable(target, True)
                exchange(path, target)
            else:
                os.rename(path, target)
            doors.movable(target, False)

    # -- who may enter ----------------------------------------------------------------------------------------------

    def check_given(self) -> None:
        """Raises ModeUnavailable where views are not given out here."""
        if self._disk.doors is Doors.SHUT:
            raise ModeUnavailable(
                "This host gives out no views: give a dst. Hard links and clones to the store's filesystem cost no more"
                " room than a view."
            )

    def let_in(self, tree: str, uid: int) -> None:
        """Lets a user into a tree's view, where not everybody is. Raises ModeUnavailable, NoSpace, Corrupted."""
        if self._disk.doors is not Doors.GUARDED or uid in (ROOT, self._own) or uid in self._inside_of(tree):
            return
        with self._turns.of(tree):
            path = self.path(tree)
            try:
                inside = doors.let_in(path)
                if uid not in inside:
                    inside |= {uid}
                    doors.let_in_only(path, inside)
            except OSError as error:
                raise self._not_let_in(tree, error) from None
            self._inside.put(tree, inside, len(inside))

    def forget(self, tree: str) -> None:
        """A view is about to be removed: nobody is let in any more."""
        self._inside.forget(tree)

    def _inside_of(self, tree: str) -> frozenset[int]:
        return self._inside.get(tree) or frozenset()

    def _not_let_in(self, tree: str, error: OSError) -> CacheError:
        if error.errno in GONE_ERRNOS:
            return changed(f"The view {tree}")
        if error.errno == errno.EOPNOTSUPP:
            return ModeUnavailable(
                "The store's filesystem has no ACLs, by which a view is given to you alone: give a dst, or have the"
                " store moved to ext4, XFS, btrfs or tmpfs."
            )
        # ENOSPC is said of an ACL that is too long, too, by ext4 and btrfs, while the disk has room.
        if error.errno in _TOO_MANY or (error.errno == errno.ENOSPC and self._disk.space().free):
            return ModeUnavailable(
                "The view was given to as many users as the store's filesystem takes until it is evicted: give a dst."
            )
        return trouble(error, f"the view {tree} could not be given out")


def names_below(folders: Iterable[str]) -> Counter[int]:
    """How many names each inode has in some folders and below them, as far as they are there."""
    found, left = Counter[int](), list(folders)
    for folder in left:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    found[entry.inode()] += 1
    return found


def _inode(seen: os.stat_result) -> tuple[int, int, int, int]:
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size
