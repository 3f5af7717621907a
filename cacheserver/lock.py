"""A folder that one daemon has for itself.

Law of this file: the lock is on a file in it, for network filesystems lock no folders, and on the folder itself where
that can be had: then it stands though somebody has removed the file.
"""

from __future__ import annotations

import fcntl
import os

from artifactcache.errors import CacheError


def take(folder: str) -> tuple[int, ...]:
    """Takes a folder for this process, by flock on its file `lock` and on itself. The locks go with the descriptors.

    Raises CacheError where another daemon has it, or where locks do not work; OSError.
    """
    path = os.path.join(folder, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    itself = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not (_locked(fd) and _locked_too(itself)):
            raise CacheError(f"Another daemon uses {folder}: stop it, or use another folder.")
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
        os.close(itself)
        raise
    return fd, itself


def _locked_too(folder_fd: int) -> bool:
    try:
        return _locked(folder_fd)
    except OSError:  # NFS locks only what is open for writing
        return True


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
