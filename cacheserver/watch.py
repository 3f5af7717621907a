"""Notices at once when somebody meddles with the store through its folders.

Law of this file: the kernel queues an event before the write that caused it returns, so whoever asks for the generation
after that write hears of it. It cannot see writes through hard links elsewhere: only a look at the inode finds those.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable

from cacheserver import libc

WATCHES_MAX = 20_000  # about 20 MB of the kernel's memory; the limit of the user is shared with other programs
READ_BYTES = 65536

_MODIFY = 0x2
_OF_BLOBS = _MODIFY
_OF_VIEWS = (
    _MODIFY | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
)  # moved from, to; create; delete; its own delete, move
_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")  # of inotify(7), before the name


class Watch:
    """Watches folders of the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[bytes, int] = {}
        self._generation = 0
        self._fd = _open()

    def close(self) -> None:
        """Watches nothing any more."""
        with self._lock:
            self._forget()

    def blobs(self, folder: str) -> bool:
        """Watches a folder of blobs for writes. Returns False where it cannot be watched."""
        return self._add(os.fsencode(folder), _OF_BLOBS)

    def view(self, root: str, folders: Iterable[bytes]) -> bool:
        """Watches a view for any change. Returns False where it cannot be watched."""
        top = os.fsencode(root)
        return all(self._add(path, _OF_VIEWS) for path in (top, *(os.path.join(top, f) for f in folders)))

    def leave_view(self, root: str) -> None:
        """Does not watch a view any more: the daemon itself is about to remove it, and that is no meddling."""
        top = os.fsencode(root)
        with self._lock:
            for folder in [f for f in self._watched if f == top or f.startswith(top + b"/")]:
                number = self._watched.pop(folder)
                if self._fd is not None:
                    libc.inotify_leave(self._fd, number)

    def works(self) -> bool:
        """Whether anything can be watched."""
        return self._fd is not None

    def generation(self) -> int:
        """A number that has grown if anything has happened in a watched folder by now."""
        with self._lock:
            if self._fd is None or self._happened(self._fd):
                # A folder may have been replaced: all are watched anew, with a new descriptor. The old one would keep
                # its watches, of folders that nobody asks for any more, and only the kernel would know how many.
                self._generation += 1
                self._forget()
                self._fd = _open()
            return self._generation

    def _happened(self, fd: int) -> bool:
        try:
            events = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # then nobody knows
            return True
        place = 0
        while place < len(events):
            _, mask, _, name_bytes = _EVENT.unpack_from(events, place)
            if not mask & _IGNORED:  # that is the end of a watch, which follows whatever ended it
                return True
            place += _EVENT.size + name_bytes
        return self._happened(fd)

    def _forget(self) -> None:
        self._watched.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _add(self, folder: bytes, mask: int) -> bool:
        with self._lock:
            if folder in self._watched:
                return True
            if self._fd is None or len(self._watched) >= WATCHES_MAX:
                return False
            try:
                number = libc.inotify_watch(self._fd, folder, mask)
            except OSError:  # the limit of the user is reached, or the folder is gone: then files are looked at instead
                return False
            self._watched[folder] = number
            return True


def _open() -> int | None:
    """An inotify descriptor; None where the user has none left: then nothing is watched, and files are looked at."""
    try:
        return libc.inotify()
    except OSError:
        return None
