"""Questions to the origin, each of which comes to an end for whoever asks.

Law of this file: nobody can end a thread that waits for an answer. So who asks does not wait with it, and who does not
answer keeps no thread waiting but those that are for its own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from artifactcache.errors import CacheError, OriginUnavailable
from cacheserver.crews import Crews
from cacheserver.refusals import translated, without_credentials
from cacheserver.shares import Shares
from cacheserver.stopping import stopped

QUESTIONS_MAX = 32  # at a time, to the tracking server, of one user half of them; as many to each artifact store
LOCAL_QUESTIONS_MAX = 8  # listings of folders of this host, which may take long and keep no other question waiting
LOCAL_PATIENCE_SECONDS = 600.0  # a large folder on a busy disk is not an origin that does not answer

T = TypeVar("T")


class Questions:
    """Threads for questions.

    Args:
        patience: seconds that an answer may take.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._pool = Shares(QUESTIONS_MAX, "origin")
        self._local_pool = Shares(LOCAL_QUESTIONS_MAX, "local")
        self._stores = Crews(QUESTIONS_MAX, "store")
        self._end: Future[None] = Future()

    def close(self) -> None:
        """Asks nothing any more, and lets nobody wait for an answer any longer: they get DaemonUnavailable."""
        if not self._end.done():
            self._end.set_result(None)
        for pool in (self._pool, self._local_pool):
            pool.close()
        self._stores.close()

    def ask(
        self,
        what: str,
        question: Callable[[], T],
        *,
        of_answer: bool = False,
        is_local: bool = False,
        store: str = "",
        owner: Hashable = None,
        patience: float | None = None,
    ) -> T:
        """One answer, within its time, which begins when it is asked. Raises errors of ours only.

        Args:
            what: it is about, for messages.
            of_answer: whether an error that nobody knows was one of the origin's answer.
            is_local: whether it is about a folder of this host.
            store: which artifact store is asked; empty for the tracking server.
            owner: for whom (`Shares.submit`).
            patience: seconds that the answer may take, where that is not the usual.
        """
        pool, patience = self._pool, min(patience or self._patience, self._patience)
        if is_local:
            pool, patience = self._local_pool, max(patience, LOCAL_PATIENCE_SECONDS)
        asked: Future[None] = Future()

        def ask() -> T:
            asked.set_result(None)
            return question()

        try:
            future = self._stores.submit(store, owner, ask) if store else pool.submit(owner, ask)
            if self._comes(asked, patience):
                if self._comes(future, patience):
                    return future.result()
                raise OriginUnavailable(
                    f"{without_credentials(what)}: the origin has not answered within {patience:g} s, and this"
                    " cannot be given without it."
                )
            future.cancel()
            raise OriginUnavailable(
                f"{without_credentials(what)}: too many other questions to the origin have kept this one"
                f" waiting for {patience:g} s, and this cannot be given without it. Try again in a moment."
            )
        except Exception as error:  # noqa: BLE001 - MLflow and its clients raise anything
            if self._end.done() and not isinstance(error, CacheError):
                raise stopped() from None
            raise translated(error, what, of_answer=of_answer) from None

    def _comes(self, awaited: Future[Any], seconds: float) -> bool:
        """Waits for it. Returns whether it came in that time; raises DaemonUnavailable where the daemon ends first."""
        wait({awaited, self._end}, seconds, FIRST_COMPLETED)
        if not awaited.done() and self._end.done():
            raise stopped()
        return awaited.done()
