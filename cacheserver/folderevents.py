"""Single folders, watched by watchdog's inotify: not all that lies below them.

Law of this file: an event says only where to look. What could not be watched, and events that were lost, are told: who
asked looks by himself then.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

WATCHES_MAX = 8192  # a KiB of the kernel's memory each; the limit of the user is shared with other programs
THREAD = "folderevents"  # its name, by which its lines in watchdog's log are known
NOTED_MAX = 50_000  # paths; with more than that, all is to be looked at
_OF = InotifyConstants
WRITTEN = _OF.IN_CLOSE_WRITE  # of the kinds of events that `take` tells of
_SELF = _OF.IN_MOVE_SELF | _OF.IN_DELETE_SELF
# Not IN_MODIFY: who writes closes the file some time.
_MASK = Mask(
    _OF.IN_CREATE | _OF.IN_MOVED_TO | _OF.IN_MOVED_FROM | _OF.IN_DELETE | _OF.IN_CLOSE_WRITE | _OF.IN_ONLYDIR | _SELF
)
_FULL = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)

_WATCHDOG = logging.getLogger("watchdog.observers.inotify_c")


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
        self._noted: dict[str, int] = {}
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

    def watch(self, folder: str, *, follows: bool = False, anew: bool = False) -> None:
        """Watches a folder from now on, if that can be had.

        Args:
            follows: whether a folder that comes in it is watched too, from a moment after it has come.
            anew: also where one of this name is watched: it may be another one by now.
        """
        with self._lock:
            if anew or folder not in self._watched:
                self._add(folder, follows=follows)

    def _add(self, folder: str, *, follows: bool) -> None:
        if folder not in self._watched and len(self._watched) >= WATCHES_MAX:
            self.is_full = True
            return
        told = _Folder(folder, follows, self)
        try:
            inotify = self._inotify = self._inotify or _begun()
            number = inotify.add_callback(os.fsencode(folder), _MASK, told, CallbackId(id(told)))
        except OSError as error:
            self.is_short = self.is_short or error.errno in _FULL
            return
        if number < 0:  # it may not be read: watchdog keeps silent of that
            inotify.remove_callbacks([(number, CallbackId(id(told)))])
            return
        self._leave([folder])
        self._watched[folder] = number, told

    def leave(self, folder: str, *, below: bool = False) -> None:
        """Watches a folder no more; with `below` nor what lies below it."""
        with self._lock:
            self._leave([folder, *([p for p in self._watched if p.startswith(folder + "/")] if below else ())])

    def take(self) -> tuple[dict[str, int], bool]:
        """What has to be looked at since the last time, each with the kinds of its events; and whether that is not all:
        events were lost."""
        with self._lock:
            noted, self._noted = self._noted, {}
            is_much, self._is_much = self._is_much, False
        return noted, is_much

    def lose(self) -> None:
        """Events were lost."""
        with self._lock:
            self._is_much = True

    def told(self, by: _Folder, event: InotifyEvent) -> None:
        """Something has happened in a folder, or to it."""
        whole = os.path.join(by.path, os.fsdecode(event.name))
        has_come = event.mask & _OF.IN_ISDIR and event.mask & (_OF.IN_CREATE | _OF.IN_MOVED_TO)
        with self._lock:
            if by.follows and has_come and self._inotify:
                self._add(whole, follows=False)  # over one that is watched: what is told of that may come later
            if event.mask & _SELF and self._is_watched_by(by):
                # What was moved away would tell of another place under this name. This one may be what was moved here
                # before it was watched, or another is there by now: whatever is there is watched.
                self._leave([by.path, *(p for p in self._watched if p.startswith(by.path + "/"))])
                if self._inotify:
                    self._add(by.path, follows=by.follows)
            path = self._subject(whole)
            # What somebody has written must not be crowded out by what only has come and gone.
            most = 2 * NOTED_MAX if event.mask & WRITTEN else NOTED_MAX
            if path and (path in self._noted or len(self._noted) < most):
                self._noted[path] = self._noted.get(path, 0) | event.mask
            elif path:
                self._is_much = True

    def gone(self, by: _Folder) -> None:
        """The kernel watches a folder no more: it is not there."""
        with self._lock:
            if self._is_watched_by(by):
                del self._watched[by.path]

    def _is_watched_by(self, by: _Folder) -> bool:
        found = self._watched.get(by.path)
        return found is not None and found[1] is by

    def _leave(self, folders: list[str]) -> None:
        found = [self._watched.pop(folder) for folder in folders if folder in self._watched]
        if self._inotify and found:
            self._inotify.remove_callbacks([(number, CallbackId(id(told))) for number, told in found])


class _Folder:
    """One of them, as watchdog calls it."""

    def __init__(self, path: str, follows: bool, events: FolderEvents) -> None:
        self.path = path
        self.follows = follows
        self._events = events

    def on_event(self, event: InotifyEvent) -> None:
        """In it, or of itself."""
        self._events.told(self, event)

    def on_watch_deleted(self, _: WatchDescriptor) -> None:
        """It is gone."""
        self._events.gone(self)

    def on_queue_overflow(self) -> None:
        """The kernel has let go events that nobody has read in time."""
        self._events.lose()


class _Known(logging.Filter):
    """Keeps out of the log what was told to whoever asked for these folders: that the kernel's queue has run over."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.threadName != THREAD or "overflowed" not in str(record.msg)


_KNOWN = _Known()


def _begun() -> InotifyFD:
    """A descriptor of its own, with its thread. Raises OSError."""
    _WATCHDOG.addFilter(_KNOWN)
    inotify = InotifyFD()
    inotify.name = THREAD
    try:
        inotify.start()
    except RuntimeError:  # no thread is to be had
        inotify._close_resources()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
    return inotify
