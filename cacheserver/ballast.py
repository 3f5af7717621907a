"""A file of no use, to be thrown overboard: on a disk without a byte left, SQLite cannot open the index.

Law of this file: it is there as long as the disk has room for it, and gone as soon as its room is needed.
"""

from __future__ import annotations

import contextlib
import os

from cacheserver.plain import open_plain

NAME = "ballast"
BYTES_MAX = 8 << 20
SHARE = 64  # of a disk it is at most the 64th part
NEED_BYTES = 1 << 20  # what opening the index takes: a log, and a file that is mapped into memory


def throw(root: str) -> bool:
    """Throws it overboard, where the disk has no room for the index otherwise. Returns whether it did.

    Raises OSError.
    """
    if _free(root) >= NEED_BYTES:
        return False
    try:
        os.unlink(os.path.join(root, NAME))
    except FileNotFoundError:
        return False
    return True


def take(root: str) -> None:
    """Takes it on board again, where the disk has room enough, and more, for it; else it is left for another time.

    Raises OSError.
    """
    path = os.path.join(root, NAME)
    found = os.statvfs(root)
    size = min(BYTES_MAX, found.f_blocks * found.f_frsize // SHARE)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_blocks * 512 >= size:  # less is what a daemon left that was killed
            return
    if _free(root) < 4 * size:
        return
    fd = open_plain(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:  # a filesystem that promises no room, or somebody who was faster
        os.unlink(path)
    finally:
        os.close(fd)


def _free(root: str) -> int:
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize
