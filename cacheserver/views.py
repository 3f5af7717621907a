"""Views: read-only folders of hard links to blobs, one for a tree.

Law of this file: a view is built in staging/ and appears whole; one that is replaced is exchanged in one step.
"""

from __future__ import annotations

import io
import os
import stat

from cacheserver.bounded import Bounded
from cacheserver.disk import Disk
from cacheserver.faults import SHORT_ERRNOS, trouble
from cacheserver.hashing import xxh3_of
from cacheserver.libc import exchange
from cacheserver.words import BlobRow, Manifest

PROVEN_MAX = 100_000  # about 30 MB


class Views:
    """The views of a store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        # Inodes of blobs that have another inode by now, hashed once: device, inode, mtime and size to digest.
        self._proven: Bounded[tuple[int, int, int, int], str] = Bounded(PROVEN_MAX)

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
        with io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)) as file:
            inode = _inode(os.fstat(file.fileno()))  # before the bytes: a write in between shows as another mtime
            if xxh3_of(file, row.size) != row.xxh3:
                return False
        self._proven.put(inode, row.digest)
        return True

    def start(self, path: str, manifest: Manifest) -> None:
        """Makes a view's folders and empty files at a staged path; its blobs are linked in next."""
        os.mkdir(path, 0o755)
        for folder in manifest.folders:
            os.mkdir(os.path.join(os.fsencode(path), folder), 0o755)
        for entry in manifest.files:
            if entry.size == 0:
                fd = os.open(os.path.join(os.fsencode(path), entry.path), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                os.fchmod(fd, 0o444)
                os.close(fd)

    def finish(self, path: str, manifest: Manifest) -> None:
        """Puts a finished view in place, read-only; one that is there already is exchanged for it in one step, and is
        the caller's to discard."""
        for folder in manifest.folders:
            os.chmod(os.path.join(os.fsencode(path), folder), 0o555)
        target = self.path(manifest.digest)
        if os.path.lexists(target):
            os.chmod(target, 0o755)  # a folder that cannot be written cannot be renamed either
            exchange(path, target)
        else:
            os.rename(path, target)
        os.chmod(target, 0o555)


def _inode(seen: os.stat_result) -> tuple[int, int, int, int]:
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size
