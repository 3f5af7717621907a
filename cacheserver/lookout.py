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
NOTED_MAX = 20_000  # paths; with more than that, all is to be looked at
THREAD = "ingest-events"  # whose lost events are told in watchdog's log as those of the store are
_OF = InotifyConstants
_SELF = _OF.IN_MOVE_SELF | _OF.IN_DELETE_SELF
# Not IN_MODIFY: who writes closes the file some time.
_MASK = Mask(
    _OF.IN_CREATE | _OF.IN_MOVED_TO | _OF.IN_MOVED_FROM | _OF.IN_DELETE | _OF.IN_CLOSE_WRITE | _OF.IN_ONLYDIR | _SELF
)
_FULL = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)


class Lookout:
    """Some folders.

    Args:
        subject: what has to be looked at when something has changed at a path; empty for nothing.

    Attributes:
        is_short: whether a folder could not be watched for want of watches.
    """

    def __init__(self, subject: Callable[[str], str]) -> None:
        self._subject = subject
        self._lock = threading.Lock()
        self._inotify: InotifyFD | None = None
        self._watched: dict[str, tuple[WatchDescriptor, _Folder]] = {}
        self._noted: set[str] = set()
        self._is_much = self.is_short = False

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

    def watch(self, folder: str) -> bool:
        """Watches a folder from now on. Returns False where that cannot be had."""
        with self._lock:
            if folder in self._watched:
                return True
            try:
                if len(self._watched) >= WATCHES_MAX:
                    raise OSError(errno.ENOSPC, "too many folders")
                inotify = self._inotify = self._inotify or _begun()
                told = _Folder(folder, self)
                number = inotify.add_callback(os.fsencode(folder), _MASK, told, CallbackId(id(told)))
            except OSError as error:
                self.is_short = self.is_short or error.errno in _FULL
                return False
            if number < 0:  # it may not be read: watchdog keeps silent of that
                inotify.remove_callbacks([(number, CallbackId(id(told)))])
                return False
            self._watched[folder] = number, told
            return True

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

    def __init__(self, path: str, lookout: Lookout) -> None:
        self._path = path
        self._lookout = lookout

    def on_event(self, event: InotifyEvent) -> None:
        """In it, or of itself."""
        self._lookout.told(self._path, event)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """It is gone."""
        self._lookout.gone(self._path, self)

    def on_queue_overflow(self) -> None:
        """The kernel has let go events that nobody has read in time."""
        self._lookout.lose()


def _begun() -> InotifyFD:
    """A descriptor of its own, with its thread. Raises OSError."""
    inotify = InotifyFD()
    inotify.name = THREAD
    inotify.start()
    return inotify
