"""Waiting for work, and telling how far it is.

Law of this file: who waits looks every so often whether its caller is there still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.stopping import Stopping
from cacheserver.store import Store
from cacheserver.words import Progress

PROGRESS_SECONDS = 0.1


def wait(
    future: Future[Any], progress: Progress, store: Store, is_active: Callable[[], bool], stopping: Stopping
) -> Iterator[pb.Progress]:
    """Gives how far the work is, whenever that has changed, until it is done or the caller has gone.

    Raises DaemonUnavailable where the daemon is being stopped before it is done.
    """
    last = None
    while True:
        try:
            future.exception(timeout=PROGRESS_SECONDS)
            return
        except FutureTimeout:
            pass
        if not is_active():
            return
        stopping.refuse()
        now = (
            progress.bytes_done + store.written(progress),
            progress.bytes_total,
            progress.files_done,
            progress.files_total,
        )
        if now != last:
            yield pb.Progress(bytes_done=now[0], bytes_total=now[1], files_done=now[2], files_total=now[3])
            last = now
