"""What several workers bring together, given in batches that are worth a sync.

Law of this file: what has been brought is given, also after a failure, and nobody waits for what no worker does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from cacheserver.staging import Staged

BATCH_FILES = 1000  # kept together: one sync for all
BATCH_BYTES = 1 << 30

PIECES_PER_TURN = 50  # then a worker turns to another artifact; a future for each would cost more than a small file

T = TypeVar("T")
Submit = Callable[..., object]


class Work(Generic[T]):
    """Pieces of one artifact, on their way through several workers into batches of files.

    Args:
        pieces: what there is to do, by names.
        bring: does one: gives the files that it has brought, by the origin's URI of each.
    """

    def __init__(self, pieces: Mapping[str, T], bring: Callable[[str, T], dict[str, Staged]]) -> None:
        self._waiting = iter(list(pieces.items()))
        self._bring = bring
        self._missing = len(pieces)  # pieces that nobody has done yet
        self._active = 0
        self._done: dict[str, Staged] = {}
        self._bytes = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def _step(self) -> bool:
        """Does one piece. Returns whether there may be more."""
        with self._changed:
            following = None if self._error else next(self._waiting, None)
            if following is None:
                return False
            self._active += 1
        brought: dict[str, Staged] = {}
        error = None
        try:
            brought = self._bring(*following)
        except BaseException as caught:  # noqa: BLE001 - whoever waits for the batch must hear of it
            error = caught
        with self._changed:
            self._active -= 1
            self._error = self._error or error
            self._missing -= error is None
            self._done |= brought
            self._bytes += sum(staged.row.size for staged in brought.values())
            self._changed.notify()
        return error is None

    def batches(self, submit: Submit, workers: int) -> Iterator[dict[str, Staged]]:
        """Has it done, and gives what is finished in batches that are worth a sync; after a failure what there is, for
        the next attempt need not bring it again. Raises what a worker raised.

        Args:
            submit: gives work to a thread.
        """
        try:
            for _ in range(workers):
                submit(self._run, submit)
            while batch := self._batch():
                yield batch
        except Exception:
            if left := self.abandon():
                yield left
            raise

    def _run(self, submit: Submit) -> None:
        """Does some pieces, and then lets those of other artifacts have their turn."""
        for _ in range(PIECES_PER_TURN):
            if not self._step():
                return
        try:
            submit(self._run, submit)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the batch must hear of it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Nobody is left to do the rest."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify()

    def _batch(self) -> dict[str, Staged]:
        """Waits for files that are worth keeping together; none once all are given. Raises what a worker raised."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._missing or len(self._done) >= BATCH_FILES or self._bytes >= BATCH_BYTES
            )
            if self._error:
                raise self._error
            batch, self._done, self._bytes = self._done, {}, 0
            return batch

    def abandon(self) -> dict[str, Staged]:
        """Begins nothing any more, waits for what is under way, and gives what is in no batch."""
        with self._changed:
            self._waiting = iter(())
            self._changed.wait_for(lambda: not self._active)
            return self._done
