"""Linking blobs into a folder, relative to descriptors, following no symlink.

Law of this file: a folder that the expected user does not own gets nothing, whatever stands at its name by now.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import Executor

from artifactcache.errors import CacheError, InvalidRequest, ModeUnavailable, NoSpace
from cacheserver import names
from cacheserver.faults import FULL_ERRNOS, SHORT_ERRNOS, changed, trouble
from cacheserver.libc import open_here
from cacheserver.words import Entry, Manifest

LINK_ATTEMPTS = 3  # a blob that got another inode may have all its links again by the next attempt
PARALLEL_FILES_MIN = 2000  # below this the second thread costs more than it brings

# Where linkat(2) says one of these, links cannot be had at this destination; another mode may still work.
NO_LINKS = {
    errno.EXDEV: "it is on another filesystem or mount than the store",
    errno.EPERM: "its filesystem or its kernel refuses links to the store's files",
    errno.EACCES: "the daemon's user may not reach it",
    errno.EROFS: "it is read-only",
    errno.EOPNOTSUPP: "its filesystem has no hard links",
    errno.ENOSYS: "its filesystem has no hard links",
}

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def link_tree(
    manifest: Manifest,
    blobs_fd: int,
    folder_fd: int,
    owner: int,
    renew: Callable[[str], None],
    pool: Executor | None = None,
) -> int:
    """Links the blobs of all files that are not empty into a folder that has the tree's folders already.

    Args:
        blobs_fd: the folder of blobs.
        folder_fd: the tree's folder.
        owner: the user ID that must own it, and every folder inside it.
        renew: called with a blob's digest where its inode has as many links as the filesystem allows.
        pool: a second thread to work in, where the tree is large.

    Returns the number of links. Raises ModeUnavailable where links cannot be had there, InvalidRequest where the
    folder is not what it should be, Corrupted where a blob has gone.
    """
    _check_destination(blobs_fd, folder_fd, owner)
    work = _by_folder(manifest)
    if pool is None or len(manifest.entries) < PARALLEL_FILES_MIN or len(work) < 2:
        return _link(work, blobs_fd, folder_fd, owner, renew)
    half = pool.submit(_link, work[1::2], blobs_fd, folder_fd, owner, renew)
    try:
        count = _link(work[0::2], blobs_fd, folder_fd, owner, renew)
        if half.cancel():  # the pool is busy with others' trees: nobody waits for those
            return count + _link(work[1::2], blobs_fd, folder_fd, owner, renew)
        return count + half.result()
    finally:
        if not half.cancel():
            half.exception()  # the descriptors are the caller's: nobody uses them when this returns


def link_file(
    source: str, name: bytes, blobs_fd: int, folder_fd: int, owner: int, renew: Callable[[str], None]
) -> None:
    """Links one file of the store into a folder, by the same checks; arguments and errors are those of `link_tree`.

    Args:
        source: its path, relative to the folder of blobs.
    """
    _check_destination(blobs_fd, folder_fd, owner)
    _link_one(source, name, blobs_fd, folder_fd, renew)


def _check_destination(blobs_fd: int, folder_fd: int, owner: int) -> None:
    if mount_of(folder_fd) != mount_of(blobs_fd):  # before anything else is asked of it: it may never answer
        raise ModeUnavailable(f"Hard links cannot be had at the destination: {NO_LINKS[errno.EXDEV]}.")
    check_folder(folder_fd, owner)


def check_folder(fd: int, owner: int) -> None:
    """Raises InvalidRequest where a descriptor is not a folder of this user."""
    found = os.fstat(fd)
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidRequest("The descriptor to link into is not that of a folder.")
    if found.st_uid != owner:
        raise InvalidRequest("The folder to link into does not belong to the user who asks.")


def mount_of(fd: int) -> str:
    """The number of the mount that a descriptor lies in; empty where the kernel does not say. Asks the kernel alone
    (proc_pid_fdinfo(5)), never the filesystem itself."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")


def _by_folder(manifest: Manifest) -> list[tuple[bytes, list[Entry]]]:
    folders: dict[bytes, list[Entry]] = {}
    for entry in manifest.entries:
        if entry.size:
            folders.setdefault(entry.path.rpartition(b"/")[0], []).append(entry)
    return list(folders.items())


def _link(
    work: list[tuple[bytes, list[Entry]]], blobs_fd: int, root_fd: int, owner: int, renew: Callable[[str], None]
) -> int:
    count = 0
    for folder, entries in work:
        fd = _descend(root_fd, folder, owner)
        try:
            skip = len(folder) + 1 if folder else 0
            for path, digest, _ in entries:
                _link_one(f"{digest[:2]}/{digest[2:]}", path[skip:], blobs_fd, fd, renew)
            count += len(entries)
        finally:
            os.close(fd)
    return count


def _link_one(source: str, name: bytes, blobs_fd: int, fd: int, renew: Callable[[str], None]) -> None:
    for more in reversed(range(LINK_ATTEMPTS)):
        try:
            os.link(source, name, src_dir_fd=blobs_fd, dst_dir_fd=fd, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno != errno.EMLINK or not more:
                raise _refusal(error, source.replace("/", ""), name, _exists(source, blobs_fd)) from None
        renew(source.replace("/", ""))


def _exists(source: str, blobs_fd: int) -> bool:
    try:
        os.stat(source, dir_fd=blobs_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _refusal(error: OSError, digest: str, name: bytes, blob_is_there: bool) -> CacheError:
    """What linkat(2) said, by whose move it is. ENOENT stands for a blob that is gone and for a folder that is."""
    if error.errno == errno.EMLINK or (error.errno == errno.ENOENT and not blob_is_there):
        return changed(f"The blob {digest}")
    if error.errno in NO_LINKS:
        return ModeUnavailable(
            f"Hard links cannot be had at the destination: {NO_LINKS[error.errno]} ({error.strerror})."
        )
    if error.errno in FULL_ERRNOS:
        return NoSpace(f"The destination's disk is full: {names.show(name)} could not be linked.")
    return InvalidRequest(f"{names.show(name)} cannot be linked into the destination: {error.strerror}.")


def _descend(root_fd: int, folder: bytes, owner: int) -> int:
    fd = os.dup(root_fd)
    for component in folder.split(b"/") if folder else ():
        try:
            inner = open_here(fd, component, _OPEN_FOLDER)
        except OSError as error:
            if error.errno in SHORT_ERRNOS:
                raise trouble(error, f"the folder {names.show(folder)} to link into cannot be entered") from None
            raise InvalidRequest(
                f"The folder {names.show(folder)} to link into cannot be entered: {error.strerror}."
            ) from None
        finally:
            os.close(fd)
        fd = inner
        try:
            check_folder(fd, owner)
        except BaseException:
            os.close(fd)
            raise
    return fd
