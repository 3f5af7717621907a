"""Which errors a step may give: what the kernel, SQLite or the origin can say there, and nothing else.

Law of this file: an error is listed where a disk, a quota, a limit or a mount can bring it about; what Python itself
tries again (PEP 475: EINTR of open, read, write, fsync and the like) never comes out, and is not listed.
"""

from __future__ import annotations

import os
import sqlite3
from errno import EACCES, ECONNRESET, EDQUOT, EINTR, EIO, EMFILE, ENOBUFS, ENOSPC, EPIPE, EROFS
from typing import Any

_ROOM = (ENOSPC, EDQUOT)
_CHANGES = (*_ROOM, EIO, EROFS, EACCES, EINTR)
_LOOKS = (EIO, EACCES, EINTR)
_FOLDERS = (EMFILE, EIO, EACCES, EINTR)

_BY_CALL: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("read", "pread", "preadv", "readv", "fstat", "flock", "ioctl", "fcntl"), (EIO,)),
    **dict.fromkeys(("write", "pwrite", "fsync", "fdatasync", "ftruncate", "posix_fallocate"), (*_ROOM, EIO)),
    "syncfs": (*_ROOM, EIO, EINTR),
    **dict.fromkeys(("rename", "replace", "link", "symlink", "mkdir", "renameat2", "truncate"), _CHANGES),
    **dict.fromkeys(("unlink", "remove", "rmdir"), (ENOSPC, EIO, EROFS, EACCES, EINTR)),  # btrfs needs room to remove
    **dict.fromkeys(("chmod", "chown", "utime", "setxattr", "removexattr"), _CHANGES),
    "fchmod": (*_ROOM, EIO, EROFS, EACCES),
    **dict.fromkeys(("stat", "lstat", "statvfs", "access", "readlink", "getxattr"), _LOOKS),
    **dict.fromkeys(("scandir", "listdir"), _FOLDERS),
    **dict.fromkeys(("dup", "pipe2", "memfd_create", "inotify_init1", "eventfd"), (EMFILE,)),
    "inotify_add_watch": (ENOSPC, EACCES),
    "mmap": (EMFILE, EACCES),
    "close": (*_ROOM, EIO, EINTR),  # of what was written; the descriptor is closed all the same
    "close clean": (),
    **dict.fromkeys(("recv", "recvmsg"), (ECONNRESET, EMFILE)),
    **dict.fromkeys(("send", "sendmsg"), (EPIPE, ECONNRESET, ENOBUFS, EMFILE)),
}
# Answers that never come late or wrong by the disk's doing: what the process knows itself, or has in memory.
HARMLESS = frozenset(
    {
        *(
            "fspath",
            "strerror",
            "umask",
            "urandom",
            "lseek",
            "isatty",
            "cpu_count",
            "sched_getaffinity",
            "device_encoding",
        ),
        *(
            "getpid",
            "getppid",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getgroups",
            "getresuid",
            "getresgid",
            "getcwd",
        ),
        *("get_inheritable", "set_inheritable", "get_blocking", "set_blocking", "get_terminal_size", "major", "minor"),
        *(
            "kill",
            "fork",
            "waitpid",
            "register_at_fork",
            "times",
            "sysconf",
            "pathconf",
            "fpathconf",
            "makedev",
            "_exit",
        ),
        *("sync_file_range", "inotify_rm_watch", "munmap", "mallopt", "getpwuid_r", "getgrgid_r"),
    }
)
OF_SOCKETS = frozenset({"recv", "recvmsg", "send", "sendmsg"})
WRITES = frozenset({"write", "pwrite", "ftruncate", "posix_fallocate"})
# What makes a descriptor: an error gives none, whatever had been done before it.
OPENS = frozenset({"open", "openat2", "dup", "memfd_create", "inotify_init1", "eventfd"})

# What SQLite says where the system has said that: os_unix.c tells ENOSPC of a write apart, and nothing else of one.
_SQLITE_WRITES = {
    ENOSPC: sqlite3.SQLITE_FULL,
    EDQUOT: sqlite3.SQLITE_IOERR_WRITE,
    EIO: sqlite3.SQLITE_IOERR_FSYNC,
    EMFILE: sqlite3.SQLITE_CANTOPEN,
    EROFS: sqlite3.SQLITE_READONLY,
    EACCES: sqlite3.SQLITE_IOERR_ACCESS,
}
_SQLITE_READS = {
    ENOSPC: sqlite3.SQLITE_IOERR_SHMSIZE,
    EIO: sqlite3.SQLITE_IOERR_READ,
    EMFILE: sqlite3.SQLITE_CANTOPEN,
    EACCES: sqlite3.SQLITE_IOERR_ACCESS,
}
ORIGIN_DOWN = ECONNRESET  # stands for whatever keeps the origin's answer away


def of(name: str, args: tuple[Any, ...]) -> tuple[int, ...]:
    """The errnos that a step may give."""
    if name in ("open", "openat2"):
        if str(args[0]).startswith("/proc/"):
            return (EMFILE,)
        flags = next((one for one in args[1:] if isinstance(one, int)), 0)
        creates = (*_ROOM, EROFS) if flags & os.O_CREAT else ()
        return (EMFILE, EIO, EACCES, *creates, *((EINTR,) if name == "openat2" else ()))
    if name.startswith("origin."):
        return (ORIGIN_DOWN,)
    if name.startswith("sql."):
        return tuple(_sqlite(args))
    return _BY_CALL.get(name, (EIO,))


def _sqlite(args: tuple[Any, ...]) -> dict[int, int]:
    word = str(args[0]).split()[0].upper() if args else "OPEN"
    if word == "ROLLBACK":  # it always ends the transaction (sqlite3RollbackAll)
        return {}
    return _SQLITE_READS if word in ("SELECT", "OPEN") else _SQLITE_WRITES


def of_sqlite(number: int, args: tuple[Any, ...]) -> sqlite3.OperationalError:
    """What Python's sqlite3 raises where the system has said `number` to SQLite."""
    code = _sqlite(args)[number]
    error = sqlite3.OperationalError(f"disk I/O error ({os.strerror(number)})")
    error.sqlite_errorcode = code
    error.sqlite_errorname = next(n for n in dir(sqlite3) if n.startswith("SQLITE_") and getattr(sqlite3, n) == code)
    return error
