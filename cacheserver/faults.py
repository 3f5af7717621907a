"""What the store's disk may say, by whose move it is, and the words for it.

Law of this file: that bytes are wrong or gone is said only where the disk said so; what the daemon itself ran out of is
no damage, and condemns nothing.
"""

from __future__ import annotations

import errno

from artifactcache.errors import CacheError, Corrupted, NoSpace

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# What opening a file of the store says where it is gone, or is a symlink, a folder, a pipe, a socket or below a file by
# now.
GONE_ERRNOS = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})
# What reading says where the disk has the bytes no more: a bad sector, or a checksum of the filesystem's own that does
# not match. Reading again does not help.
LOST_ERRNOS = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA})
# What any call says where the daemon or the host has too much open, or too little memory, for the moment.
SHORT_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class Short(CacheError):
    """The daemon or the host is short of something for the moment: it says nothing of what was looked at."""


def trouble(error: OSError, what: str) -> CacheError:
    """The error to raise instead of one of the store's disk; `what` could not be done."""
    if error.errno in FULL_ERRNOS:
        return full(what)
    if error.errno in SHORT_ERRNOS:
        return Short(
            f"The daemon is short of open files or memory: {what} ({error.strerror}). Try again in a moment; where that"
            " does not help, its administrator has to raise its limits."
        )
    return CacheError(f"The store's disk does not work: {what} ({error.strerror}). Its administrator has to look.")


def full(what: str) -> NoSpace:
    """The error where the store's disk has no room left; `what` could not be done."""
    return NoSpace(f"The store's disk is full: {what}. Free some space, or raise its capacity.")


def changed(what: str) -> Corrupted:
    """The error where something was right a moment ago, and is gone, or another, when it is handed out."""
    return Corrupted(f"{what} changed in the store while it was handed out: fetch again.")
