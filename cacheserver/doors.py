"""Doors: what others than the daemon's user can reach of a store, which is views and nothing else.

Law of this file: a guarded view lets in those only to whom it was given, at any moment: what changes a door never goes
by way of a wider one, and a store is said to be guarded only when all of its views are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
from collections.abc import Iterable
from enum import Enum

from artifactcache.errors import CacheError
from cacheserver.libc import syncfs
from cacheserver.plain import open_plain

FOLDERS = ("blobs", "manifests", "views", "staging", "quarantine")
MARKER = "doors"  # says which doors all views have
_INDEX = ("index.db", "index.db-wal", "index.db-shm")
_DIGEST = re.compile(r"[0-9a-f]{64}")

# The access ACL of acl(5), as the kernel takes it (linux/posix_acl_xattr.h): a version, then entries in this order.
_ACL = "system.posix_acl_access"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")  # tag, permissions, ID
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_ENTER = 0o5  # r-x
_NO_ACL = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class Doors(Enum):
    """Who may enter the views of a store."""

    OPEN = "open"  # every user who knows a view's path
    GUARDED = "guarded"  # the users to whom it was given
    SHUT = "shut"  # nobody: none is given out


def make_way(root: str, *, shared: bool) -> None:
    """Makes a store's folder and those above it, where they do not exist. Raises OSError."""
    missing: list[str] = []
    while not os.path.exists(root):
        missing.insert(0, root)
        root = os.path.dirname(root)
    for folder in missing:
        os.makedirs(folder, exist_ok=True)
        if shared:  # others pass through it to views, whatever the umask
            os.chmod(folder, 0o755)


def settle(root: str, doors: Doors, *, shared: bool) -> None:
    """Gives everything in a store the modes that it has to have, whatever an earlier daemon was told.

    Args:
        shared: whether other users may pass through to views.

    Raises CacheError where a view cannot be closed, OSError.
    """
    for name in FOLDERS:
        if name != "views":
            os.chmod(os.path.join(root, name), 0o700)
    for name in _INDEX:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(os.path.join(root, name), 0o600)
    _settle_views(root, doors)  # before anybody may pass through to them
    # Others may pass through to a view whose name they were given; nobody but the daemon can list anything.
    for name in ("", "views"):
        os.chmod(os.path.join(root, name), 0o711 if shared else 0o700)


def _settle_views(root: str, doors: Doors) -> None:
    """Opens or closes all views, where they are not so already. A crash in between has the next start do it again."""
    marker = os.path.join(root, MARKER)
    if _read(marker) == doors.value:
        return
    with os.scandir(os.path.join(root, "views")) as entries:
        views = [e.path for e in entries if _DIGEST.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(marker)
        if views:
            syncfs(fd)  # the marker is gone before the first view changes, and back after the last, in a power cut too
            for view in views:
                _settle_view(view, doors)
            syncfs(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # on a full disk: then the next start looks at every view again
        with contextlib.suppress(FileNotFoundError):
            os.unlink(marker + ".new")
        with open(marker + ".new", "x", encoding="ascii", opener=open_plain) as file:
            file.write(doors.value)
        os.rename(marker + ".new", marker)


def _settle_view(path: str, doors: Doors) -> None:
    try:
        open_to_all(path) if doors is Doors.OPEN else let_in_only(path, ())
    except OSError as error:
        if doors is not Doors.OPEN:
            raise CacheError(
                f"The view {path} cannot be closed to other users ({error.strerror}): remove it as root."
            ) from None


def _read(marker: str) -> str:
    try:
        with open(open_plain(marker), encoding="ascii", errors="replace") as file:
            return file.read(100)
    except OSError:
        return ""


# -- one view ---------------------------------------------------------------------------------------------------------


def open_to_all(path: str) -> None:
    """Lets every user into a folder, to read. Raises OSError."""
    _remove_acl(path)
    os.chmod(path, 0o555)


def let_in_only(path: str, uids: Iterable[int]) -> None:
    """Lets its owner and some users into a folder, to read, and nobody else.

    Raises OSError: EOPNOTSUPP where the filesystem has no ACLs; ENOSPC or E2BIG where one takes no more entries.
    """
    if uids := sorted(uids):
        os.setxattr(path, _ACL, encode(uids))  # the mode too, in one step; its group bits then show the mask
    else:
        os.chmod(path, 0o500)  # the mask too: nobody of an ACL is let in from here on
        _remove_acl(path)


def let_in(path: str) -> frozenset[int]:
    """The users, beside its owner, who are let into a guarded folder. Raises OSError."""
    try:
        return decode(os.getxattr(path, _ACL))
    except OSError as error:
        if error.errno in _NO_ACL:
            return frozenset()
        raise


def movable(path: str, able: bool) -> None:
    """Lets a folder be moved, or not: for that its owner has to have the right to write. Nothing else changes."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, mode | stat.S_IWUSR if able else mode & ~stat.S_IWUSR)


def _remove_acl(path: str) -> None:
    try:
        os.removexattr(path, _ACL)
    except OSError as error:
        if error.errno not in _NO_ACL:
            raise


def encode(uids: Iterable[int]) -> bytes:
    """An ACL that lets in the owner and these users, to read."""
    entries = [
        (_USER_OBJ, _ENTER, _NO_ID),
        *((_USER, _ENTER, uid) for uid in sorted(uids)),
        (_GROUP_OBJ, 0, _NO_ID),
        (_MASK, _ENTER, _NO_ID),
        (_OTHER, 0, _NO_ID),
    ]
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def decode(acl: bytes) -> frozenset[int]:
    """The users whom an ACL lets in; none where its mask does not, as after a chmod that has closed the folder."""
    entries = list(_ENTRY.iter_unpack(acl[_VERSION.size :]))
    if any(tag == _MASK and perm & _ENTER != _ENTER for tag, perm, _ in entries):
        return frozenset()
    return frozenset(uid for tag, perm, uid in entries if tag == _USER and perm & _ENTER == _ENTER)
