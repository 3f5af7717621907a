"""The store's files: the one room that changes the filesystem, with links.py for folders of others.

Law of this file: bytes are hashed, synced and renamed into place, in this order; only then may a row speak of them.
A crash at any point leaves files without rows, which cost space and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver import ballast, hashing, lock
from cacheserver.doors import FOLDERS, Doors, make_way, settle
from cacheserver.faults import FULL_ERRNOS, GONE_ERRNOS, LOST_ERRNOS, full, trouble
from cacheserver.libc import syncfs
from cacheserver.partials import NOTE, Partials
from cacheserver.plain import open_plain
from cacheserver.quarantine import Quarantine
from cacheserver.removal import remove
from cacheserver.staging import Staged, fsync
from cacheserver.words import BlobRow, Manifest

SYNC_ONE_BY_ONE_MAX = 8  # 2,000 files of 4 KiB: fsync each 0.2 to 3.6 s, syncfs 0.01 to 0.08 s (ext4, XFS, btrfs)
LARGE_BYTES_MIN = 64 << 20  # a file whose removal takes ext4 more than some milliseconds
MANIFEST_BYTES_MAX = 64 << 20  # a larger one is hashed before it is read: of half a million files
_FAN, _REST = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{62}")
_NUMBER = re.compile(r"[0-9]{1,20}")  # one that is longer was never given, and never will be

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Space:
    """The store's filesystem, in bytes."""

    total: int
    free: int


class Disk:
    """The store's folder.

    Args:
        root: made where it does not exist.
        shared: whether other users of the host may reach views; None leaves that as it is, and the doors.
        doors: which of them may enter a view.

    Raises CacheError where the folder cannot be used, or another daemon uses it.
    """

    def __init__(self, root: str, *, shared: bool | None, doors: Doors = Doors.OPEN) -> None:
        self.root = os.path.abspath(root)
        self.doors = doors
        self._sync_lock = threading.Lock()
        self._lost_before = 0  # what was staged before this number may be among the bytes that the disk has lost
        try:
            make_way(self.root, shared=bool(shared))
            os.makedirs(self.at("blobs"), exist_ok=True)
            self._lock_fd, self.blobs_fd = lock.take_both(self.root, self.at("blobs"))
            if ballast.throw(self.root):
                _log.warning(
                    "the disk of %s is full: its ballast is thrown overboard, so that it can be served", self.root
                )
            for name in FOLDERS:
                os.makedirs(self.at(name), exist_ok=True)
            if shared is not None:
                settle(self.root, doors, shared=shared)
            self.quarantine = Quarantine(self.root)
            self.partials = Partials(self.at("staging"))
            self.partials.load()
            self._numbers = itertools.count(self._empty_staging())
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise full(f"the store {self.root} cannot be opened") from None
            raise CacheError(f"The store {self.root} cannot be used: {error.strerror}.") from None

    def close(self) -> None:
        """Lets another daemon have the store."""
        os.close(self.blobs_fd)
        os.close(self._lock_fd)

    @property
    def index_path(self) -> str:
        """Where the index is."""
        return self.at("index.db")

    def space(self) -> Space:
        """How full the filesystem is, as an ordinary user sees it. Raises CacheError where it does not say."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise trouble(error, "nobody can say how full it is") from None
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    # -- blobs ------------------------------------------------------------------------------------------------------

    def stage(self) -> str:
        """A path in staging/ that nothing has yet; it ends with a number that has grown since the last one."""
        return self.at("staging", str(next(self._numbers)))

    def measure(self, path: str) -> Staged:
        """Hashes a finished file in staging/ with both hashes in one pass, and gives it its final mode.

        Raises CacheError where it is not a plain file of one name: a file that has another name could be changed there.
        """
        with io.FileIO(open_plain(path)) as file:
            found = os.fstat(file.fileno())
            if found.st_nlink != 1 or found.st_uid != os.geteuid():
                raise CacheError(f"{path} is not a file of the daemon's own.")
            os.fchmod(file.fileno(), 0o444)
            blake, xxh3, size = hashing.both_of(hashing.chunks(file, found.st_size))
        return Staged(path, BlobRow(blake, size, xxh3, found.st_ino, found.st_mtime_ns))

    def size(self, path: str) -> int:
        """How long a file in staging/ is by now; 0 where it is gone."""
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    def sync(self, staged: list[Staged]) -> None:
        """Makes sure that staged bytes survive a power cut."""
        if len(staged) > SYNC_ONE_BY_ONE_MAX:
            self._syncfs()
        else:
            for one in staged:
                fsync(one.path)
        self._refuse_lost(staged)

    def _syncfs(self) -> None:
        """Syncs the filesystem, and sees to it that every batch hears of lost bytes, not only the first that asks.

        The kernel tells of a lost write once per open file (errseq_t), and a file that is opened after somebody was
        told hears nothing: neither sharing `blobs_fd` nor opening it anew for each sync tells a second batch. A
        descriptor for each batch, opened before its first byte, would; but files become a batch only when they are
        here. So syncs take turns, and one that fails condemns all that was staged until then.
        """
        with self._sync_lock:
            try:
                syncfs(self.blobs_fd)
            except OSError:
                self._lost_before = next(self._numbers)
                raise

    def _refuse_lost(self, staged: list[Staged]) -> None:
        if any(int(os.path.basename(one.path)) < self._lost_before for one in staged):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def place(self, staged: list[Staged]) -> list[BlobRow]:
        """Renames synced files to their names, and syncs the names. Returns the rows that may be recorded now."""
        folders: set[str] = set()
        for one in staged:
            target = self.at("blobs", _fan(one.row.digest))
            if os.path.dirname(target) not in folders:
                folders.add(os.path.dirname(target))
                _make_fan(os.path.dirname(target))
            os.rename(one.path, target)
        self._sync_folders(folders | {self.at("blobs")})
        self._refuse_lost(staged)
        return [one.row for one in staged]

    def take_out(
        self, trees: Iterable[str], blobs: Mapping[str, int], rest: Callable[[], None]
    ) -> tuple[list[str], set[str]]:
        """Takes trees, and blobs with their sizes, whose rows are gone away from their names; rests after each.

        Returns what is in staging/ now, for the caller to discard without the lock that others wait for: it may take
        the disk a while. And the digests of those of which something stays: that is told.
        """
        aside, stuck = list[str](), set[str]()
        for tree in trees:
            self._away(tree, self.at("views", tree), aside, stuck, by_name=False)
            self._away(tree, self.at("manifests", _fan(tree)), aside, stuck, by_name=True)
            rest()
        for digest, size in blobs.items():
            self._away(digest, self.at("blobs", _fan(digest)), aside, stuck, by_name=size < LARGE_BYTES_MIN)
            rest()
        return aside, stuck

    def _away(self, digest: str, path: str, aside: list[str], stuck: set[str], *, by_name: bool) -> None:
        try:
            if by_name:
                return os.unlink(path)
            if os.path.isdir(path):
                os.chmod(path, 0o700)  # a folder that cannot be written cannot be renamed either; nobody else enters it
            os.rename(path, other := self.stage())
            aside.append(other)
        except FileNotFoundError:
            pass
        except OSError as error:
            stuck.add(digest)
            _log.warning("%s cannot be removed, and stays (%s): remove it as root", path, error.strerror)

    def suspect(self, row: BlobRow) -> None:
        """Has a blob hashed by whoever is to hand it out next: it looks changed from now on. Raises OSError."""
        os.utime(_fan(row.digest), ns=(0, row.mtime_ns + 1), dir_fd=self.blobs_fd, follow_symlinks=False)

    def links(self, digest: str) -> tuple[int, int]:
        """A blob's inode, and how many names it has beside its own; none where it is gone."""
        try:
            found = os.stat(_fan(digest), dir_fd=self.blobs_fd, follow_symlinks=False)
        except OSError:
            return 0, 0
        return found.st_ino, found.st_nlink - 1

    def discard(self, path: str) -> bool:
        """Removes something from staging/, whatever it is. Returns False where it stays: that is told, and no error."""
        why = remove(path)
        remove(path + NOTE)
        if why is not None:
            # A fetch, or the start of the daemon, has nothing to do with it: no later file gets its name.
            _log.warning("%s cannot be removed, and stays (%s): remove it as root", why.filename or path, why.strerror)
        return why is None

    def unwanted(self) -> list[str]:
        """Paths of what is in staging/ and does not wait to go on: while nothing is being brought, what could not be
        removed."""
        found = (self.at("staging", name) for name in sorted(os.listdir(self.at("staging"))))
        return [path for path in found if not self.partials.keeps(path)]

    def fans(self, kind: str) -> list[str]:
        """The folders of two letters in blobs/ or manifests/; what else stands there is none of the store's."""
        with os.scandir(self.at(kind)) as entries:
            return [e.name for e in entries if _FAN.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]

    def digests(self, kind: str) -> Iterator[str]:
        """What has a name of the store's in blobs/ or manifests/."""
        for fan in self.fans(kind):
            yield from (fan + name for name in os.listdir(self.at(kind, fan)) if _REST.fullmatch(name))

    def blob_size(self, digest: str) -> int | None:
        """How long a blob's file is; None where there is none, or the disk has lost it. Raises CacheError where nobody
        can say: who is short of memory, or may not look, has lost no blob."""
        try:
            found = os.stat(_fan(digest), dir_fd=self.blobs_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in GONE_ERRNOS | LOST_ERRNOS:
                return None
            raise trouble(error, f"the blob {digest} cannot be looked at") from None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open_blob(self, digest: str) -> int:
        """A read-only descriptor of a blob. Raises OSError, of GONE_ERRNOS where there is none."""
        return open_plain(_fan(digest), dir_fd=self.blobs_fd)

    def suspects(self, rows: Iterable[BlobRow]) -> list[BlobRow]:
        """Those blobs whose inode does not look as the index says, or is gone."""
        found, fd, look = [], self.blobs_fd, os.stat
        for row in rows:  # the one loop that every warm fetch by link or copy goes through: 2 µs a blob
            digest, size, _, inode, mtime_ns = row
            try:
                seen = look(f"{digest[:2]}/{digest[2:]}", dir_fd=fd, follow_symlinks=False)
            except OSError:
                found.append(row)
                continue
            if seen.st_ino != inode or seen.st_mtime_ns != mtime_ns or seen.st_size != size:
                found.append(row)
        return found

    def recheck(self, row: BlobRow, spend: Callable[[int], None] | None = None) -> BlobRow | None:
        """Hashes a blob again. Returns its row as of now, or None where the bytes are wrong or gone.

        Args:
            spend: called with how much was read, each time something was; with it the disk is read and not what the
                kernel remembers of it.

        Raises CacheError where nobody can say: a daemon that has too many files open condemns no blob.
        """
        with self._telling("blob", row.digest), io.FileIO(self.open_blob(row.digest)) as file:
            # Taken before the bytes are read: a write in between shows as another mtime next time.
            before, chunks = os.fstat(file.fileno()), hashing.read(file, spend)
            if before.st_size != row.size:
                return None
            blake, xxh3, _ = hashing.both_of(chunks) if not row.xxh3 else ("", hashing.xxh3_of(chunks), 0)
            if (blake or row.digest) != row.digest or (row.xxh3 or xxh3) != xxh3:
                return None
            if stat.S_IMODE(before.st_mode) != 0o444 and before.st_uid == os.geteuid():
                os.fchmod(file.fileno(), 0o444)
            return row._replace(xxh3=xxh3, inode=before.st_ino, mtime_ns=before.st_mtime_ns)
        return None

    def copy(self, digest: str) -> Staged:
        """Copies a blob to an inode of its own in staging/, synced. What it is by now, its row says."""
        path = self.stage()
        try:
            with open(self.open_blob(digest), "rb") as source, open(path, "xb") as target:
                shutil.copyfileobj(source, target, hashing.READ_BYTES)
            staged = self.measure(path)
            self.sync([staged])
            return staged
        except BaseException:
            self.discard(path)
            raise

    # -- manifests --------------------------------------------------------------------------------------------------

    def write_manifest(self, manifest: Manifest) -> None:
        """Puts a manifest in place, synced."""
        target = self.at("manifests", _fan(manifest.digest))
        path = self.stage()
        try:
            with open(path, "wb") as file:
                file.write(manifest.encode())
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            _make_fan(os.path.dirname(target))
            os.rename(path, target)
            self._sync_folders({os.path.dirname(target), self.at("manifests")})
        finally:
            self.discard(path)

    def has_manifest(self, tree: str) -> bool:
        """Whether a manifest is there, whatever is in it."""
        return os.path.exists(self.at("manifests", _fan(tree)))

    def open_manifest(self, tree: str) -> int | None:
        """A read-only descriptor of a manifest, through which it was hashed just now; None where it is gone or is not
        what its name says. Raises CacheError as `recheck` does."""
        with self._telling("manifest", tree), self._manifest(tree) as file:
            if hashing.blake3_of(hashing.read(file)) == tree:
                file.seek(0)
                return os.dup(file.fileno())
        return None

    def is_manifest_right(self, tree: str, spend: Callable[[int], None] | None = None) -> bool:
        """Whether a manifest is what its name says; it is read as `recheck` reads a blob."""
        with self._telling("manifest", tree), self._manifest(tree) as file:
            return hashing.blake3_of(hashing.read(file, spend)) == tree
        return False

    def read_manifest(self, tree: str) -> Manifest | None:
        """A manifest, or None where it is gone or is not what its name says. Raises CacheError as `recheck` does."""
        with self._telling("manifest", tree), self._manifest(tree) as file:
            if os.fstat(file.fileno()).st_size > MANIFEST_BYTES_MAX and hashing.blake3_of(hashing.read(file)) != tree:
                return None  # one that somebody has made huge is not read into memory
            file.seek(0)
            text = file.readall()
            return Manifest.decode(text) if blake3(text).hexdigest() == tree else None
        return None

    def _manifest(self, tree: str) -> io.FileIO:
        return io.FileIO(open_plain(self.at("manifests", _fan(tree))))

    @contextlib.contextmanager
    def _telling(self, kind: str, digest: str) -> Iterator[None]:
        """Passes over what says that bytes are gone; raises CacheError where nobody can say. A file that may not be
        opened, in a folder where it can be looked for, is somebody else's: it is gone, and its name is the store's."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EACCES and os.path.lexists(self.at(f"{kind}s", _fan(digest))):
                return
            if error.errno not in GONE_ERRNOS | LOST_ERRNOS:
                raise trouble(error, f"the {kind} {digest} cannot be looked at") from None

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def at(self, *parts: str) -> str:
        """A path in the store."""
        return os.path.join(self.root, *parts)

    def _empty_staging(self) -> int:
        """Returns the first number that nothing in it has."""
        for path in self.unwanted():
            self.discard(path)
        return max((int(n) + 1 for n in os.listdir(self.at("staging")) if _NUMBER.fullmatch(n)), default=0)

    def _sync_folders(self, folders: set[str]) -> None:
        if len(folders) > SYNC_ONE_BY_ONE_MAX:
            self._syncfs()
            return
        for folder in folders:
            fsync(folder)


def _make_fan(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise CacheError(
            f"{folder} is no folder, and the store needs one there: move it away, it is none of the store's."
        ) from None


def _fan(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"
