"""Temporary folders that do not stay: gone when their process ends, or when a later one starts after it was killed.

Each process has one folder of its own in the folder for temporary files, and all others in it. It is locked with flock
for as long as the process lives, or a child that it forked; what is not locked has no owner any more.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import threading

PREFIX = "artifactcache-mlflow-"
ENTRIES_MAX = 10_000  # names looked at for what killed processes left; a larger folder is not worth the time

_own: dict[tuple[int, str], tuple[str, int]] = {}
"""By process ID and folder for temporary files: this process's folder, and the descriptor that locks it."""
_locks = [threading.Lock()]


def make() -> str:
    """Make an empty folder, of mode 0700."""
    with _locks[0]:
        return tempfile.mkdtemp(dir=_folder_of_this_process())


def remove(folder: str) -> None:
    """Remove a folder before its time, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_all() -> None:
    """Remove the folders of this process, and of no process that it was forked from."""
    for (pid, parent), (folder, descriptor) in list(_own.items()):
        if pid == os.getpid():
            del _own[pid, parent]
            remove(folder)
            os.close(descriptor)


def _folder_of_this_process() -> str:
    key = os.getpid(), tempfile.gettempdir()
    if key in _own:
        folder, held = _own[key]
        if os.path.isdir(folder):
            return folder
        os.close(held)  # somebody has cleared the folder for temporary files
        del _own[key]
    if not any(pid == key[0] for pid, _ in _own):
        _at_exit()
    remove_abandoned(key[1])
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=key[1])
        locked = _locked(folder)
        if locked is not None:
            _own[key] = folder, locked
            return folder


def _locked(folder: str) -> int | None:
    """Lock a folder that was just made, and return its descriptor, or None if another process has swept it.

    Between its making and its lock it looks abandoned, so whoever begins at that moment may take it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    swept = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being swept, and may still be there
        swept = True
    except OSError:
        pass  # where there are no locks nobody takes it for abandoned either
    if swept or not os.path.isdir(folder):
        os.close(descriptor)
        return None
    return descriptor


def _at_exit() -> None:
    atexit.register(remove_all)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:  # its children run no functions of atexit
        util.Finalize(None, remove_all, exitpriority=0)


def remove_abandoned(parent: str) -> None:
    """Remove what this user's processes that were killed have left. Does what it can, and is silent."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for _, entry in zip(range(ENTRIES_MAX), entries, strict=False):
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
    finally:
        os.close(descriptor)


def _after_fork_in_child() -> None:
    _locks[:] = [threading.Lock()]


os.register_at_fork(after_in_child=_after_fork_in_child)
