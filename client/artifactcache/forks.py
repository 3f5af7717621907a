"""What happens to calls and sessions when the process forks.

grpc survives a fork only where no thread is inside it at that moment. So before a fork the calls that run are
cancelled and no new ones begin; when all threads are out, the process forks; then the cancelled calls are made
again. The parent keeps its channels. (Closing them instead was tried and lost: grpc takes a channel down in threads
of its own, and a fork in the middle of that leaves a child that hangs.) The child closes its copies of the
sessions' sockets and never touches the parent's channels again, nor frees them: that would talk to the daemon on
the parent's connection.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Protocol

from artifactcache import handoff

QUIESCE_SECONDS_MAX = 2.0  # a thread that is not out by then is stuck in a signal handler or in the kernel


class Cancellable(Protocol):
    """A call that can be broken off from another thread."""

    def cancel(self) -> object:
        """Break it off."""


class Gate:
    """Knows which threads are inside grpc, and keeps them out while the process forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()
        self._calls: set[Cancellable] = set()
        self._forks_under_way = 0
        self.epoch = 0
        """How many forks there were; a call that was cancelled while it grew is to be made again."""

    def enter(self) -> None:
        """Go inside, as soon as nobody forks."""
        with self._changed:
            while self._forks_under_way:
                self._changed.wait()
            self._inside.add(threading.get_ident())

    def leave(self) -> None:
        """Come out."""
        with self._changed:
            self._inside.discard(threading.get_ident())
            if self._forks_under_way:
                self._changed.notify_all()

    def began(self, call: Cancellable) -> None:
        """Remember a call, to cancel it before a fork. Called from inside."""
        with self._changed:
            self._calls.add(call)
            late = self._forks_under_way
        if late:  # the fork has already cancelled what it knew of
            call.cancel()

    def ended(self, call: Cancellable) -> None:
        """Forget a call."""
        with self._changed:
            self._calls.discard(call)

    def before_fork(self) -> None:
        """Get all other threads out. Returns without the lock: nothing is held across the fork."""
        with self._changed:
            self._forks_under_way += 1
            self.epoch += 1
            calls = list(self._calls)
        for call in calls:
            call.cancel()
        with self._changed:
            self._changed.wait_for(lambda: self._inside <= {threading.get_ident()}, timeout=QUIESCE_SECONDS_MAX)

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        with self._changed:
            self._forks_under_way -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Begin afresh: the other threads, and whatever locks they held, are not here any more."""
        never_free(self._calls)
        self._changed = threading.Condition()
        self._inside = set()
        self._calls = set()
        self._forks_under_way = 0
        for connection in list(handoff.open_connections):
            connection.close()


def never_free(value: object) -> None:
    """Give an object a reference that nothing takes back, not even the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


gate = Gate()
os.register_at_fork(
    before=gate.before_fork,
    after_in_parent=gate.after_fork_in_parent,
    after_in_child=gate.after_fork_in_child,
)
