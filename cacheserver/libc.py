"""The system calls, and answers of the C library, that Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_M_ARENA_MAX = -8
_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_NSS_BYTES_MIN = 4096
_NSS_BYTES_MAX = 64 << 20  # of one entry: a group's names all its members


def syncfs(fd: int) -> None:
    """Writes all that the filesystem of `fd` has not written yet. Raises OSError (syncfs(2); errors since 5.8)."""
    _check(_libc.syncfs(fd))


def begin_writing(fd: int, begin: int, length: int) -> None:
    """Has the kernel begin to write a part of a file to the disk (sync_file_range(2), SYNC_FILE_RANGE_WRITE).

    It waits only where the disk's queue is full, and promises nothing: who syncs later has less to wait for, and hears
    of errors.
    """
    _libc.sync_file_range(fd, ctypes.c_int64(begin), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def exchange(one: str, other: str) -> None:
    """Swaps two names in one step: nobody sees either of them missing. Raises OSError (renameat2(2))."""
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE))


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(folder_fd: int, path: str, flags: int) -> int:
    """Opens a path below a folder; symlinks are followed as long as they stay below it.

    Raises OSError, with EXDEV where the path leads out (openat2(2), RESOLVE_BENEATH).
    """
    return _openat2(folder_fd, os.fsencode(path), flags, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)


def open_here(folder_fd: int, name: bytes, flags: int) -> int:
    """Opens a name in a folder, without following a symlink or entering another mount.

    Raises OSError, with ELOOP or EXDEV where it is one (openat2(2)).
    """
    return _openat2(folder_fd, name, flags, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV)


def _openat2(folder_fd: int, path: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags, 0, resolve)
    fd: int = _libc.syscall(_SYS_OPENAT2, folder_fd, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how))
    _check(min(fd, 0))
    return fd


def inotify() -> int:
    """A descriptor that tells of changes in folders; reading it never waits. Raises OSError (inotify(7))."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    _check(min(fd, 0))
    return fd


def inotify_watch(fd: int, folder: str | bytes, mask: int) -> int:
    """Watches a folder; returns the watch's number. Raises OSError, with ENOSPC where the user has no watch left."""
    number: int = _libc.inotify_add_watch(fd, ctypes.c_char_p(os.fsencode(folder)), ctypes.c_uint32(mask))
    _check(min(number, 0))
    return number


def inotify_leave(fd: int, number: int) -> None:
    """Ends a watch, which may have ended by itself."""
    _libc.inotify_rm_watch(fd, number)


class _User(ctypes.Structure):
    _fields_ = (
        *(("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32)),
        *(("gecos", ctypes.c_char_p), ("folder", ctypes.c_char_p), ("shell", ctypes.c_char_p)),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        *(("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("gid", ctypes.c_uint32)),
        ("members", ctypes.c_void_p),
    )


def user(uid: int) -> tuple[str, int] | None:
    """A user's name and first group, by the host's name service; None where it knows no such user.

    Raises OSError where one of its sources does not answer, which pwd.getpwuid does not tell apart (getpwuid_r(3)).
    """
    found: tuple[str, int] | None = _entry(
        _libc.getpwuid_r, uid, _User(), lambda entry: (os.fsdecode(entry.name), entry.gid)
    )
    return found


def group(gid: int) -> str | None:
    """A group's name, as `user` gives that of a user (getgrgid_r(3))."""
    name: str | None = _entry(_libc.getgrgid_r, gid, _Group(), lambda found: os.fsdecode(found.name))
    return name


def _entry(ask: Any, number: int, room: ctypes.Structure, read: Callable[[Any], Any]) -> Any:
    size = _NSS_BYTES_MIN
    while True:
        texts, found = ctypes.create_string_buffer(size), ctypes.c_void_p()
        failure = ask(ctypes.c_uint32(number), ctypes.byref(room), texts, ctypes.c_size_t(size), ctypes.byref(found))
        if failure == errno.ERANGE and size < _NSS_BYTES_MAX:
            size *= 4
        elif failure not in (0, errno.EINTR):
            raise OSError(failure, os.strerror(failure))
        elif not failure:
            return read(room) if found.value else None


def share_heaps(count: int) -> None:
    """Lets all threads share `count` heaps of glibc's malloc (mallopt(3)); another C library is left as it is."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)


_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_shared(fd: int, length: int) -> int:
    """Maps the beginning of a file, to be read and written; returns the address. Raises OSError (mmap(2)).

    mmap.mmap keeps a descriptor of its own for each mapping, which counts against the open files that the daemon may
    have.
    """
    address: int | None = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        _check(-1)
    assert address is not None
    return address


def memory(address: int, length: int) -> memoryview:
    """What is mapped at an address. Nobody may look once it is unmapped."""
    return memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")


def unmap(address: int, length: int) -> None:
    """Ends a mapping (munmap(2))."""
    _libc.munmap(address, length)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
