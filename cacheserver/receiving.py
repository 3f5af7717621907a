"""A file on its way into the store, from wherever: staged, hashed and counted.

Law of this file: whatever happens, the file is handed over, put aside for whoever brings the rest of it, or gone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from artifactcache.errors import DaemonUnavailable
from cacheserver.faults import trouble
from cacheserver.partials import Noted
from cacheserver.staging import Sink, Staged
from cacheserver.store import Store
from cacheserver.words import Progress


class Receiver:
    """What takes files into one store.

    Args:
        broken_off: errors after which the rest of a file may come, beside that the daemon stops.
        whence: what could not be written where that fails: `a download`.
        is_shared: whether other hosts' bytes come, and not the origin's.
    """

    def __init__(self, store: Store, broken_off: type[Exception], whence: str, *, is_shared: bool = False) -> None:
        self._store = store
        self._broken_off = (broken_off, DaemonUnavailable)
        self._whence = whence
        self._is_shared = is_shared

    def receive(
        self,
        shown: str,
        size: int | None,
        fill: Callable[[Sink], Staged],
        progress: Progress,
        spend: Callable[[int], None],
        resumable: str = "",
    ) -> Staged:
        """Takes one file.

        Args:
            shown: what it is, for messages.
            fill: fills a sink, finishes it and looks at what has come; whatever it raises leaves nothing in the store
                but a beginning.
            spend: told of bytes that have come; may raise where no more are to.
            resumable: under which name a beginning of it waits for the rest; empty for what begins anew each time.
        """
        begun = (self._store.partials.take(resumable) if resumable else None) or Noted(self._store.stage(), "", 0, "")
        path = begun.path
        note = partial(self._store.partials.note, path, resumable) if resumable else None
        progress.active[path] = size or 0
        try:
            with Sink(path, size, shown, etag=begun.etag, proven=begun[2:], note=note, spend=spend) as sink:
                staged = fill(sink)
        except self._broken_off:
            if not self._store.partials.set_aside(path):
                self._store.discard(path)
            raise
        except OSError as error:
            self._store.discard(path)
            raise trouble(error, f"{self._whence} could not be written") from None
        except BaseException:
            self._store.discard(path)
            raise
        finally:
            del progress.active[path]
        progress.received(staged.row.size, sink.resumed, is_shared=self._is_shared)
        return staged
