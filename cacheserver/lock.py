"""A folder that one daemon has for itself.

Law of this file: what is locked is something that nobody else can open; whoever can could hold the lock for ever.
"""

from __future__ import annotations

import fcntl
import os

from artifactcache.errors import CacheError


def take(folder: str) -> int:
    """Takes a folder for this process, by flock on its file `lock`. The lock goes with the descriptor.

    Raises CacheError where another daemon has it, or where locks do not work; OSError.
    """
    path = os.path.join(folder, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _locked(fd):
            raise _taken(folder)
        # On some network filesystems everybody gets the lock: a second descriptor must not.
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if _locked(second):
                raise CacheError(
                    f"Locks do not work on the filesystem of {folder}: two daemons could damage each other's work."
                    " Use a folder on a local filesystem."
                )
        finally:
            os.close(second)
    except BaseException:
        os.close(fd)
        raise
    return fd


def take_both(folder: str, inner: str) -> tuple[int, int]:
    """Takes a folder, and one inside it that is the daemon's alone: so it is taken though somebody has removed the
    file. Returns a descriptor of each. Raises CacheError as `take` does; OSError."""
    fd = take(folder)
    try:
        inner_fd = os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise
    try:
        is_ours = _locked(inner_fd)
    except OSError:  # NFS locks only what is open for writing
        is_ours = True
    if not is_ours:
        os.close(inner_fd)
        os.close(fd)
        raise _taken(folder)
    return fd, inner_fd


def _taken(folder: str) -> CacheError:
    return CacheError(f"Another daemon uses {folder}: stop it, or use another folder.")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
