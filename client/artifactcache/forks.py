"""What happens to calls and sessions when the process forks.

grpc survives a fork only where no thread is inside it at that moment. So before a fork the calls that run are
cancelled and no new ones begin; when all threads are out, the process forks; then the cancelled calls are made
again. The parent keeps its channels. (Closing them instead was tried and lost: grpc takes a channel down in threads
of its own, and a fork in the middle of that leaves a child that hangs.) The child closes its copies of the
sessions' sockets and never touches the parent's channels again, nor frees them: that would talk to the daemon on
the parent's connection.

So is it with imports: a fork waits for those that are under way here. That is why this room is loaded with the package,
before all others.
"""

from __future__ import annotations

import os
import sys
import threading

TYPE_CHECKING = False  # as in `__init__`, which imports this: `typing` is too dear
if TYPE_CHECKING:
    from typing import Protocol

    class Cancellable(Protocol):
        """A call that can be broken off from another thread."""

        def cancel(self) -> object:
            """Break it off."""


QUIESCE_SECONDS_MAX = 2.0  # a thread that is not out by then is stuck in a signal handler or in the kernel
IMPORT_SECONDS_MAX = 30.0  # an import cannot be cancelled; it takes 0.2 s, or as long as a cold disk needs


class Gate:
    """Knows which threads are inside grpc, and keeps them out while the process forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()
        self._importing: set[int] = set()
        self._calls: set[Cancellable] = set()
        self._forking: set[int] = set()
        self.epoch = 0
        """How many forks there were; a call that was cancelled while it grew is to be made again."""

    def enter(self, is_import: bool = False) -> None:
        """Go inside, as soon as nobody forks: to call grpc, or to import what calls it.

        In a child, a module that another thread was importing is locked for ever.
        """
        with self._changed:
            while self._forking:
                self._changed.wait()
            (self._importing if is_import else self._inside).add(threading.get_ident())

    def leave(self) -> None:
        """Come out."""
        with self._changed:
            for inside in (self._inside, self._importing):
                inside.discard(threading.get_ident())
            if self._forking:
                self._changed.notify_all()

    def began(self, call: Cancellable) -> None:
        """Remember a call, to cancel it before a fork. Called from inside."""
        with self._changed:
            self._calls.add(call)
            late = bool(self._forking)
        if late:  # the fork has already cancelled what it knew of
            call.cancel()

    def ended(self, call: Cancellable) -> None:
        """Forget a call."""
        with self._changed:
            self._calls.discard(call)

    def before_fork(self) -> None:
        """Get all other threads out. Returns without the lock: nothing is held across the fork."""
        with self._changed:
            if threading.get_ident() in self._forking:  # registered twice
                return
            self._forking.add(threading.get_ident())
            self.epoch += 1
            calls = list(self._calls)
        for call in calls:
            call.cancel()
        me = {threading.get_ident()}
        with self._changed:
            if not self._importing <= me:
                lent = _lend_logging_lock()
                self._changed.wait_for(lambda: self._importing <= me, timeout=IMPORT_SECONDS_MAX)
                if lent is not None:
                    lent.acquire()
            self._changed.wait_for(lambda: self._inside <= me, timeout=QUIESCE_SECONDS_MAX)

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        with self._changed:
            # It may not be there: this was imported by one thread while another was forking already.
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Begin afresh: the other threads, and whatever locks they held, are not here any more."""
        never_free(self._calls)
        self._changed = threading.Condition()
        self._inside = set()
        self._importing = set()
        self._calls = set()
        self._forking = set()


def _lend_logging_lock() -> threading.RLock | None:
    """Give back the lock that logging's hook has taken for this fork, where an import was not done with logging yet."""
    lock = getattr(sys.modules.get("logging"), "_lock", None)
    try:
        lock.release()  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):  # logging is not there, or the lock is not ours
        return None
    return lock


def never_free(value: object) -> None:
    """Give an object a reference that nothing takes back, not even the end of the interpreter."""
    import ctypes  # `publish` has it loaded, long before there is anything to keep

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def before_imports() -> None:
    """Be asked before a fork earlier than logging and futures are.

    Hooks run in the reverse of their order: logging's, which takes its lock, would run first, and the thread that is to
    come out of grpc may want that lock. (A fork that waits for this very import finds hooks that give back what their
    first half never took: Python says so on standard error, and goes on.)
    """
    import logging  # noqa: F401

    os.register_at_fork(before=gate.before_fork)  # at once: futures, which have a hook as well, use logging

    import concurrent.futures.thread  # noqa: F401

    os.register_at_fork(before=gate.before_fork)


gate = Gate()
os.register_at_fork(
    before=gate.before_fork,
    after_in_parent=gate.after_fork_in_parent,
    after_in_child=gate.after_fork_in_child,
)
