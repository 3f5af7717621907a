"""Single folders, watched by watchdog's inotify: not all that lies below them.

Law of this file: an event says only where to look. What could not be watched, and events that were lost, are told: who
asked looks by himself then.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

WATCHES_MAX = 8192  # a KiB of the kernel's memory each; the limit of the user is shared with other programs
THREAD = "folderevents"  # its name: watchdog's log does not tell whose queue has run over
NOTED_MAX = 20_000  # paths; with more than that, all is to be looked at
_OF = InotifyConstants
_SELF = _OF.IN_MOVE_SELF | _OF.IN_DELETE_SELF
# Not IN_MODIFY: who writes closes the file some time.
_MASK = Mask(
    _OF.IN_CREATE | _OF.IN_MOVED_TO | _OF.IN_MOVED_FROM | _OF.IN_DELETE | _OF.IN_CLOSE_WRITE | _OF.IN_ONLYDIR | _SELF
)
_FULL = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)


class FolderEvents:
    """Some folders.

    Args:
        subject: what has to be looked at when something has changed at a path; empty for nothing.

    Attributes:
        is_short: whether a folder could not be watched because the kernel gives no more watches.
        is_full: whether one could not because there are WATCHES_MAX.
    """

    def __init__(self, subject: Callable[[str], str]) -> None:
        self._subject = subject
        self._lock = threading.Lock()
        self._inotify: InotifyFD | None = None
        self._watched: dict[str, tuple[WatchDescriptor, _Folder]] = {}
        self._noted: set[str] = set()
        self._is_much = self.is_short = self.is_full = False

    def close(self) -> None:
        """Watches nothing any more."""
        with self._lock:
            inotify, self._inotify = self._inotify, None
            self._watched.clear()
        if inotify:
            inotify.stop()

    def count(self) -> int:
        """How many folders are watched."""
        return len(self._watched)

    def watch(self, folder: str) -> None:
        """Watches a folder from now on, if that can be had."""
        with self._lock:
            if folder in self._watched:
                return
            if len(self._watched) >= WATCHES_MAX:
                self.is_full = True
                return
            try:
                inotify = self._inotify = self._inotify or _begun()
                told = _Folder(folder, self)
                number = inotify.add_callback(os.fsencode(folder), _MASK, told, CallbackId(id(told)))
            except OSError as error:
                self.is_short = self.is_short or error.errno in _FULL
                return
            if number < 0:  # it may not be read: watchdog keeps silent of that
                inotify.remove_callbacks([(number, CallbackId(id(told)))])
                return
            self._watched[folder] = number, told

    def leave(self, folder: str, *, below: bool = False) -> None:
        """Watches a folder no more; with `below` nor what lies below it."""
        with self._lock:
            self._leave([folder, *([p for p in self._watched if p.startswith(folder + "/")] if below else ())])

    def take(self) -> tuple[set[str], bool]:
        """What has to be looked at since the last time, and whether that is not all: events were lost."""
        with self._lock:
            noted, self._noted = self._noted, set()
            is_much, self._is_much = self._is_much, False
        return noted, is_much

    def lose(self) -> None:
        """Events were lost."""
        with self._lock:
            self._is_much = True

    def told(self, folder: str, event: InotifyEvent) -> None:
        """Something has happened in a folder, or to it."""
        with self._lock:
            if event.mask & _SELF:  # what was moved away would tell of another place under this name
                self._leave([folder, *(p for p in self._watched if p.startswith(folder + "/"))])
            path = self._subject(os.path.join(folder, os.fsdecode(event.name)))
            if path and len(self._noted) < NOTED_MAX:
                self._noted.add(path)
            elif path:
                self._is_much = True

    def gone(self, folder: str, by: object) -> None:
        """The kernel watches a folder no more: it is not there."""
        with self._lock:
            found = self._watched.get(folder)
            if found and found[1] is by:
                del self._watched[folder]

    def _leave(self, folders: list[str]) -> None:
        found = [self._watched.pop(folder) for folder in folders if folder in self._watched]
        if self._inotify and found:
            self._inotify.remove_callbacks([(number, CallbackId(id(told))) for number, told in found])


class _Folder:
    """One of them, as watchdog calls it."""

    def __init__(self, path: str, events: FolderEvents) -> None:
        self._path = path
        self._events = events

    def on_event(self, event: InotifyEvent) -> None:
        """In it, or of itself."""
        self._events.told(self._path, event)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """It is gone."""
        self._events.gone(self._path, self)

    def on_queue_overflow(self) -> None:
        """The kernel has let go events that nobody has read in time."""
        self._events.lose()


def _begun() -> InotifyFD:
    """A descriptor of its own, with its thread. Raises OSError."""
    inotify = InotifyFD()
    inotify.name = THREAD
    inotify.start()
    return inotify
