"""People who wait for an origin: processes with threads that fetch what they are told, once or until they have it.

How many threads ask at a time is what matters here; what they got is compared by the test, by the views' paths.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import artifactcache
from tests.rig.caller import Caller, Job

AGAIN_SECONDS = 0.3  # between a client's attempts
_JOIN = "from tests.rig import waiting\nwaiting.serve(hear, say)"


class Crowd:
    """The processes, as the tests' own sees them. Each order is one URI for each of their threads."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def fetch(self, uris: Sequence[str], seconds: float) -> dict[str, list[str]]:
        """Everybody fetches once. What each URI came to: the name of an error, or the view's path; they are kept."""
        self._tell(uris, seconds, persists=False)
        return self._hear(uris)

    def wait_for(self, uris: Sequence[str], seconds: float) -> Callable[[], dict[str, list[str]]]:
        """Everybody fetches until they have it. Returns once each of them has been answered, be it with an error; what
        is returned waits for the rest."""
        self._tell(uris, seconds, persists=True)
        for job in self._jobs:
            assert job.hear() == "waiting"
        return lambda: self._hear(uris)

    def release(self) -> None:
        """Nobody keeps anything."""
        self._tell([], 0, persists=False)
        self._hear([])

    def _tell(self, uris: Sequence[str], seconds: float, *, persists: bool) -> None:
        for number, job in enumerate(self._jobs):
            job.say({"uris": uris[number :: len(self._jobs)], "seconds": seconds, "persists": persists})

    def _hear(self, uris: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {uri: [] for uri in uris}
        for job in self._jobs:
            for uri, came in job.hear():
                found[uri].append(came)
        return found


@contextlib.contextmanager
def crowd(callers: Sequence[Caller]) -> Iterator[Crowd]:
    """A process for each caller."""
    with contextlib.ExitStack() as stack:
        yield Crowd([stack.enter_context(caller.start(_JOIN)) for caller in callers])


# -- inside a caller's process ----------------------------------------------------------------------------------------


def serve(hear: Callable[[], Any], say: Callable[[Any], None]) -> None:
    """Does what it is told, until that is nothing. Views are kept until the next order."""
    client, kept = artifactcache.Client(), list[artifactcache.Fetched]()
    while order := hear():
        while kept:
            kept.pop().release()
        uris, until = order["uris"], time.monotonic() + order["seconds"]
        answered = threading.Semaphore(0)

        def ask(uri: str, persists: bool, until: float = until, answered: threading.Semaphore = answered) -> str:
            while True:
                try:
                    fetched = client.fetch(uri, timeout=max(until - time.monotonic(), 0.001))
                except artifactcache.CacheError as error:
                    answered.release()
                    if not persists or time.monotonic() > until:
                        return f"{type(error).__name__}: {error}"
                    time.sleep(AGAIN_SECONDS)
                else:
                    kept.append(fetched)
                    answered.release()
                    return str(Path(fetched.path))

        with ThreadPoolExecutor(max_workers=max(len(uris), 1)) as pool:
            futures = [pool.submit(ask, uri, order["persists"]) for uri in uris]
            if order["persists"]:
                for _ in uris:  # somebody's second answer may count for another's first, who then waits still
                    answered.acquire()
                say("waiting")
        say([(uri, future.result()) for uri, future in zip(uris, futures, strict=True)])
