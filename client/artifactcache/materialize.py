"""Places a leased tree at a destination: stage it, fill it, give it its name.

The order is what makes it safe. The manifest is decoded, and refused, before anything is made. Files are made where
only this user can see them. Folders get the modes of the caller's umask before the one rename that publishes. Until
that rename every failure, Ctrl-C included, leaves the destination as it was and deletes what was staged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from artifactcache import handoff, links, manifest, publish, staging
from artifactcache.deadline import Deadline
from artifactcache.errors import (
    CacheError,
    Corrupted,
    DestinationExists,
    InvalidRequest,
    ModeUnavailable,
    NoSpace,
    PermissionDenied,
    QuotaExceeded,
)
from artifactcache.request import KINDS

FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

MERGE_ATTEMPTS_MAX = 5  # into a folder that is replaced each time

# Whose move an error of the destination is. All others: the caller's, who has to choose another destination.
_BY_ERRNO: dict[int, type[CacheError]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.EEXIST: DestinationExists,
    errno.ENOTEMPTY: DestinationExists,
    errno.EMFILE: QuotaExceeded,
    errno.ENFILE: QuotaExceeded,
}


@dataclass(frozen=True, slots=True)
class Order:
    """Where a tree goes, and how."""

    destination: bytes
    mode: str
    exists: str
    writable: bool
    hardlink_for_root: bool
    file_name: bytes
    """Where the artifact is one file, that file's name; else empty."""
    file_count: int
    size_bytes: int


class _Moved(Exception):
    """The folder to merge into is not at the destination any more."""


class _NotHere(Exception):
    """This kind cannot be had at this destination; another may."""


def kinds_to_try(order: Order, uid: int) -> tuple[str, ...]:
    """Return the kinds to try, the preferred first.

    Without being asked for it a hard link goes only to a user whom file modes stop from writing through it.
    """
    if order.mode != "auto":
        return (order.mode,)
    if order.size_bytes == 0:
        return ("copy",)  # empty files are created, in every mode
    linkable = not order.writable and (uid != 0 or order.hardlink_for_root)
    return tuple(kind for kind in KINDS if kind != "hardlink" or linkable)


def refuse_existing(destination: bytes) -> None:
    """Raise DestinationExists where there is anything: early, before the origin is asked for bytes."""
    with _destination_errors(destination):
        if os.path.lexists(destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def place(connection: handoff.Handoff, lease: int, order: Order, deadline: Deadline) -> str:
    """Place the leased tree as ordered; return the kind that was used."""
    with contextlib.closing(_Descriptor(connection.manifest(lease, deadline))) as source:
        tree = _decode(source.number, order)
        with _destination_errors(order.destination):
            for _ in range(MERGE_ATTEMPTS_MAX):
                into = _folder_to_merge_into(order)
                with (
                    contextlib.suppress(_Moved),
                    staging.staged(into or os.path.dirname(order.destination)) as staged,
                    _watched(order, into, staged),
                ):
                    work = _Work(connection, lease, tree, staged, source.number, deadline)
                    kind = work.fill(kinds_to_try(order, os.geteuid()))
                    deadline.remaining()
                    if into:
                        publish.publish_merged(staged.tree, staged.beside)
                    else:
                        _publish(order, staged)
                    return kind
            raise DestinationExists(
                f"{os.fsdecode(order.destination)} was replaced by somebody else {MERGE_ATTEMPTS_MAX} times while this "
                "merged into it: let them finish, or choose another dst"
            )


@contextlib.contextmanager
def _watched(order: Order, into: bytes, staged: staging.Staging) -> Iterator[None]:
    """Raise _Moved where a merge went, or failed to go, into what is not at the destination any more.

    Whoever replaces the destination has deleted what they took away, with all that was merged into it; the caller is
    to find the artifact in what stands there in the end. The open descriptor keeps its inode's number from being used
    again meanwhile.
    """
    try:
        yield
    except (OSError, CacheError):
        if order.exists == "merge" and _has_moved(order, into, staged):
            raise _Moved from None
        raise
    if into and _has_moved(order, into, staged):
        raise _Moved


def _has_moved(order: Order, into: bytes, staged: staging.Staging) -> bool:
    if not into:  # nothing was there; now somebody else has made a folder
        return not order.file_name and os.path.isdir(order.destination)
    try:
        return not os.path.samestat(os.stat(into), os.fstat(staged.beside))
    except FileNotFoundError:
        return True


class _Descriptor:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


def _decode(source: int, order: Order) -> manifest.Manifest:
    with open(source, "rb", closefd=False) as file:
        tree = manifest.decode(file.read())
    if (tree.file_count, tree.size_bytes) != (order.file_count, order.size_bytes):
        raise Corrupted("the manifest does not describe the tree that the daemon promised")
    if order.file_name and (tree.paths + tree.empty_paths, tree.folders) != ([order.file_name], [b""]):
        raise Corrupted("the manifest does not describe the one file that the daemon promised")
    return tree


def _folder_to_merge_into(order: Order) -> bytes:
    """Return the folder that is there already, else b"".

    Its staging folder goes inside it: it may be a mount of its own, below a folder that is not the caller's.
    """
    if order.exists != "merge" or not os.path.isdir(order.destination):
        return b""
    if order.file_name:
        raise DestinationExists(f"{os.fsdecode(order.destination)} is a folder, and the artifact is a file")
    return os.path.realpath(order.destination)


def _publish(order: Order, staged: staging.Staging) -> None:
    name = os.path.basename(order.destination)
    # One file lies inside `tree`, a tree is `tree`.
    source, staged_name = (staged.tree, order.file_name) if order.file_name else (staged.folder, staging.TREE)
    if order.exists == "replace":
        publish.publish_replacing(source, staged_name, staged.beside, name)
        try:
            staged.discard()
        except OSError as error:
            where = os.path.join(os.path.dirname(order.destination), os.fsencode(staged.name))
            raise PermissionDenied(
                f"{os.fsdecode(order.destination)} is replaced, but what was there before cannot be deleted "
                f"({error.strerror}): its rest is in {os.fsdecode(where)}"
            ) from None
    elif order.exists == "merge" and order.file_name:
        os.replace(staged_name, name, src_dir_fd=source, dst_dir_fd=staged.beside)
    else:
        publish.publish_new(source, staged_name, staged.beside, name)


class _Work:
    """One tree on its way into one staging folder."""

    def __init__(
        self,
        connection: handoff.Handoff,
        lease: int,
        tree: manifest.Manifest,
        staged: staging.Staging,
        manifest_descriptor: int,
        deadline: Deadline,
    ) -> None:
        self._handoff = connection
        self._lease = lease
        self._tree = tree
        self._staged = staged
        self._manifest_descriptor = manifest_descriptor
        self._deadline = deadline

    def fill(self, kinds: tuple[str, ...]) -> str:
        """Make the tree in the first of the kinds that can be had, and return it."""
        ways: dict[str, Callable[[], None]] = {
            "reflink": self._reflink,
            "hardlink": self._hardlink,
            "copy": self._copy,
        }
        reasons = []
        for kind in kinds:
            try:
                if kind == "reflink":
                    self._probe_reflink()
                self._staged.make_tree()
                self._make_folders()
                ways[kind]()
                self._finish()
                return kind
            except _NotHere as reason:  # part of it may have been made: make_tree() begins afresh
                reasons.append(str(reason))
        raise ModeUnavailable(f"{'; '.join(reasons)}: mode 'copy' works everywhere, 'auto' finds what does")

    def _make_folders(self) -> None:
        mode = self._staged.open_mode

        def make(name: bytes, parent: int) -> None:
            # The chmod is by name, in a folder that nobody else can reach: with some umasks the folder could
            # not be opened before.
            os.mkdir(name, 0o777, dir_fd=parent)
            os.chmod(name, mode, dir_fd=parent)

        with staging.Descent(self._staged.tree, enter=make) as descent:
            for folder in self._tree.folders:
                descent.go(folder)

    def _finish(self) -> None:
        """Create the empty files, and give the folders the modes that they are to have."""
        mode = self._staged.folder_mode
        empty_files: dict[bytes, list[bytes]] = {}
        for path in self._tree.empty_paths:
            folder, _, name = path.rpartition(b"/")
            empty_files.setdefault(folder, []).append(name)
        with staging.Descent(self._staged.tree, leave=lambda folder: os.fchmod(folder, mode)) as descent:
            for folder in self._tree.folders:
                descriptor = descent.go(folder)
                for name in empty_files.get(folder, ()):
                    os.close(os.open(name, FILE_FLAGS, 0o666, dir_fd=descriptor))
        os.fchmod(self._staged.tree, mode)

    def _hardlink(self) -> None:
        if not self._tree.paths:
            return
        try:
            count = self._handoff.link(self._lease, self._staged.tree, self._deadline)
        except ModeUnavailable as error:
            raise _NotHere(f"no hard links ({error})") from None
        if count != len(self._tree.paths):
            raise Corrupted(f"the daemon linked {count} of {len(self._tree.paths)} files")

    def _probe_reflink(self) -> None:
        """Try with the manifest, which lies beside the blobs: cheaper than to have 128 of them opened in vain."""
        if not self._tree.paths:
            return
        self._staged.discard()
        name = b"probe"
        target = os.open(name, FILE_FLAGS, 0o600, dir_fd=self._staged.folder)
        try:
            _clone(self._manifest_descriptor, target)
        finally:
            os.close(target)
            os.unlink(name, dir_fd=self._staged.folder)

    def _reflink(self) -> None:
        def clone(source: int, target: int, _: int) -> None:
            _clone(source, target)

        self._from_blobs(clone)

    def _copy(self) -> None:
        def copy(source: int, target: int, size_bytes: int) -> None:
            links.copy(source, target, size_bytes, self._deadline)

        self._from_blobs(copy)

    def _from_blobs(self, make: Callable[[int, int, int], None]) -> None:
        """Make every file that is not empty with `make(blob, new file, size)`."""
        paths, sizes = self._tree.paths, self._tree.sizes
        depth = max(folder.count(b"/") for folder in self._tree.folders) + 1 if paths else 0  # open at the same time
        first = 0
        with staging.Descent(self._staged.tree) as descent:
            while first < len(paths):
                limit = handoff.descriptors_to_take(spare=depth)
                blobs = self._handoff.blobs(self._lease, first, limit, self._deadline)
                try:
                    if first + len(blobs) > len(paths):
                        raise Corrupted("the daemon sent more blobs than the tree has")
                    for number, blob in enumerate(blobs, start=first):
                        self._deadline.remaining()
                        size_bytes = sizes[number]
                        there = os.fstat(blob)
                        if there.st_size != size_bytes or not stat.S_ISREG(there.st_mode):
                            shown = os.fsdecode(paths[number])
                            raise Corrupted(f"{shown!r} has {there.st_size} bytes instead of {size_bytes}")
                        folder, _, name = paths[number].rpartition(b"/")
                        target = os.open(name, FILE_FLAGS, 0o666, dir_fd=descent.go(folder))
                        try:
                            make(blob, target, size_bytes)
                        finally:
                            os.close(target)
                finally:
                    handoff.close_all(blobs)
                first += len(blobs)


def _clone(source: int, target: int) -> None:
    try:
        links.clone(source, target)
    except OSError as error:
        if error.errno in links.TRY_NEXT_AFTER_CLONE:
            raise _NotHere(f"no reflinks from the store to here ({error.strerror})") from None
        raise


@contextlib.contextmanager
def _destination_errors(destination: bytes) -> Iterator[None]:
    """Turn an OSError into the error that says whose move it is."""
    try:
        yield
    except OSError as error:
        kind = _BY_ERRNO.get(error.errno or 0, InvalidRequest)
        words = error.strerror or str(error)
        if kind is DestinationExists:
            words = 'exists; choose another dst, or exists="replace" or "merge"'
        raise kind(f"{os.fsdecode(destination)}: {words}") from None
