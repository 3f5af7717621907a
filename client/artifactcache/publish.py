"""The last step: what was staged gets the destination's name.

One rename does it wherever there is nothing to merge, so nobody ever sees it half-made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from artifactcache.errors import DestinationExists
from artifactcache.staging import FOLDER_FLAGS, entries_of

RENAME_NOREPLACE = 1  # renameat2(2)
RENAME_EXCHANGE = 2
ATTEMPTS_MAX = 100
_WITHOUT_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc since 2.28, musl not at all


def _rename(source: int, name: bytes, target: int, new_name: bytes, flags: int) -> None:
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _renameat2(source, name, target, new_name, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def exists_at(folder: int, name: bytes) -> bool:
    """Tell whether there is anything of that name, a symlink to nowhere included."""
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def publish_new(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Give it a name that nothing has. Raises FileExistsError."""
    try:
        _rename(source, name, target, new_name, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _WITHOUT_FLAGS:
            raise
        # A filesystem without the flag leaves a moment in which an empty folder could be overwritten, no more:
        # no rename replaces a folder that has something in it.
        if exists_at(target, new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)


def publish_replacing(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Exchange it with what has the name now, which is then where it was. Where nothing has, publish it as new."""
    for _ in range(ATTEMPTS_MAX):
        try:
            _rename(source, name, target, new_name, RENAME_EXCHANGE)
            return
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _WITHOUT_FLAGS:
                raise
            _replace_in_two_steps(source, name, target, new_name)
            return
        try:
            publish_new(source, name, target, new_name)
            return
        except FileExistsError:
            continue  # somebody has just put something there
    raise DestinationExists("the destination comes and goes: somebody else works on it")


def _replace_in_two_steps(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Move the old one aside, then the new one in: for filesystems that cannot exchange."""
    aside = b"replaced-" + os.urandom(8).hex().encode()
    try:
        os.rename(new_name, aside, src_dir_fd=target, dst_dir_fd=source)
    except FileNotFoundError:
        publish_new(source, name, target, new_name)
        return
    try:
        publish_new(source, name, target, new_name)
    except BaseException:
        os.rename(aside, new_name, src_dir_fd=source, dst_dir_fd=target)
        raise


def publish_merged(source: int, target: int) -> None:
    """Move everything in the folder `source` into the folder `target`, over files of the same names.

    Raises DestinationExists before anything is moved where a folder meets something that is none.
    """
    _check(source, target, b"")
    _move(source, target)


def _check(source: int, target: int, path: bytes) -> None:
    for name, is_folder in entries_of(source):
        try:
            there = os.lstat(name, dir_fd=target)
        except FileNotFoundError:
            continue
        where = os.path.join(path, name)
        if is_folder != (stat.S_ISDIR(there.st_mode)):
            wanted = "folder" if is_folder else "file"
            raise DestinationExists(
                f"{os.fsdecode(where)!r} is to be a {wanted}, and something else is there: remove it first"
            )
        if is_folder:
            with _opened(name, source) as inner, _opened(name, target) as inner_target:
                _check(inner.descriptor, inner_target.descriptor, where)


def _move(source: int, target: int) -> None:
    for name, is_folder in entries_of(source):
        if is_folder and exists_at(target, name):
            with _opened(name, source) as inner, _opened(name, target) as inner_target:
                _move(inner.descriptor, inner_target.descriptor)
        else:  # over a file, or to where nothing is: a whole folder at once
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


class _opened:
    """A folder's descriptor, for the length of a `with`."""

    def __init__(self, name: bytes, parent: int) -> None:
        self.descriptor = os.open(name, FOLDER_FLAGS, dir_fd=parent)

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
