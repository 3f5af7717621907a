"""What the daemon does by itself, now and then, in threads of their own.

Law of this file: what fails is told, once, and tried again later; it ends neither the thread nor the daemon.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence

from artifactcache.errors import CacheError

ROUND_SECONDS = 1.0
STOP_SECONDS = 3.0

_log = logging.getLogger(__name__)


class Upkeep:
    """A thread that does some chores, each every so many seconds.

    Args:
        name: of the thread.
        chores: what is done, with the seconds between two times.
    """

    def __init__(self, name: str, chores: Sequence[tuple[float, Callable[[], object]]]) -> None:
        self._chores = chores
        self._told: dict[Callable[[], object], str] = {}  # what is wrong is told once, and not each second
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Does them from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Begins nothing any more."""
        self._stopping.set()

    @staticmethod
    def stop_all(threads: Sequence[Upkeep], left: Callable[[float], float]) -> None:
        """Stops several, and gives what they have begun a moment to end: all of them together what is left of one."""
        for one in threads:
            one.stop()
        for one in threads:
            one._thread.join(left(STOP_SECONDS))

    def _run(self) -> None:
        for number in itertools.count():
            for seconds, chore in self._chores:
                if number % max(1, round(seconds / ROUND_SECONDS)) == 0:
                    self._attempt(chore)
            if self._stopping.wait(ROUND_SECONDS):
                return

    def _attempt(self, chore: Callable[[], object]) -> None:
        if self._stopping.is_set():
            return
        try:
            chore()
            self._told.pop(chore, None)
        except CacheError as error:  # a full disk, or one that does not work: it says itself what can be done
            if not self._stopping.is_set() and str(error) != self._told.get(chore):  # else it was broken off
                self._told[chore] = str(error)
                _log.warning("%s", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next time it may go well
            if not self._stopping.is_set() and repr(error) != self._told.get(chore):  # else it was closed under it
                self._told[chore] = repr(error)
                _log.exception("a chore failed")
