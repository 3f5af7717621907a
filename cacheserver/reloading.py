"""The configuration is read anew: on SIGHUP, and when its file has changed.

Law of this file: what cannot be used, or waits for a restart, changes nothing, and is told with its reason; and who is
told that something has changed can rely on all of it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from cacheserver.advice import warnings
from cacheserver.changes import changed, show, waiting
from cacheserver.config import ConfigError
from cacheserver.settings import Config

_log = logging.getLogger(__name__)


class Reloading:
    """Of one daemon.

    Args:
        path: the configuration's; empty where there is none, and nothing to read anew.
        config: what it serves by now.
        read: reads a configuration's file. Raises ConfigError.
        become: has the daemon serve by another one. Raises ConfigError where it cannot, and then has changed nothing.
        begins, ends: told before and after a configuration is read anew.

    Attributes:
        problem: why the file as it is now is not what the daemon serves by; empty where it is.
    """

    def __init__(
        self,
        path: str,
        config: Config,
        *,
        read: Callable[[str], Config],
        become: Callable[[Config], None],
        begins: Callable[[], None],
        ends: Callable[[], None],
    ) -> None:
        self._path = os.path.abspath(path) if path else ""
        self._config = config
        self._read = read
        self._become = become
        self._begins = begins
        self._ends = ends
        self.problem = ""
        self._is_asked = threading.Event()  # by SIGHUP: then it is said, too, that nothing has changed
        self._has_moved = threading.Event()  # something in the file's folder
        self._is_due = False
        self._observer = Observer()

    def start(self) -> None:
        """Watches the file from now on: its folder, for editors replace files, and Kubernetes replaces what they link
        to."""
        if not self._path:
            return
        try:
            self._observer.schedule(
                _Handler(self._path, self._has_moved.set), os.path.dirname(self._path), recursive=False
            )
            self._observer.start()
        except OSError as error:
            _log.warning(
                "the folder of %s cannot be watched (%s): after a change send SIGHUP.", self._path, error.strerror
            )
        self._is_due = True  # it may have changed since it was read

    def stop(self) -> None:
        """Watches nothing any more."""
        if self._observer.is_alive():
            self._observer.stop()

    def ask(self) -> None:
        """Has it read anew by the next look, whether or not it has changed."""
        self._is_asked.set()

    def look(self) -> None:
        """Reads it anew where that was asked for, or its folder had changed at the last look."""
        is_asked, has_moved = self._is_asked.is_set(), self._has_moved.is_set()
        self._is_asked.clear()
        self._has_moved.clear()
        # Whoever writes it has until the next look to come to an end.
        was_due, self._is_due = self._is_due, has_moved
        if not is_asked and not was_due:
            return
        self._begins()
        try:
            self._take(is_asked)
        finally:
            self._ends()

    def _take(self, is_asked: bool) -> None:
        if not self._path:
            _log.info("there is no configuration to read anew: the daemon was started without --config")
            return
        try:
            found = self._read(self._path)
            keys = changed(self._config, found)
            if late := waiting(keys):
                raise ConfigError(
                    f"{self._path}: {show(late)} cannot change while the daemon serves. Restart it, or put back what"
                    " was there."
                )
            if keys:
                self._become(found)
        except ConfigError as error:
            if str(error) != self.problem or is_asked:
                _log.error("the configuration stays as it was, as a whole: %s", error)
            self.problem = str(error)
            return
        self.problem = ""
        self._config = found
        if keys:
            _log.info("the configuration was read anew: %s", show(keys))
            for words in warnings(found):
                _log.warning("%s", words)
        elif is_asked:
            _log.info("the configuration was read anew: nothing has changed")


class _Handler(FileSystemEventHandler):
    def __init__(self, path: str, told: Callable[[], Any]) -> None:
        self._path = path
        self._told = told

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Names in the folder have changed, whichever, for a link may lead through them; or the file was written."""
        names_change = event.event_type in ("created", "deleted", "moved")
        is_written = event.event_type in ("modified", "closed") and os.fsdecode(event.src_path) == self._path
        if names_change or is_written:
            self._told()
