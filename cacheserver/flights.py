"""Single flight: whoever asks for work that is under way waits for it instead of doing it again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cacheserver.words import Progress

V = TypeVar("V")


@dataclass(frozen=True)
class Flight(Generic[V]):
    """Work under way: what it will give, and how far it is."""

    future: Future[V] = field(default_factory=Future)
    progress: Progress = field(default_factory=Progress)


class Flights(Generic[V]):
    """Work under way, by key. The work belongs to nobody: it goes on when the first who asked goes away."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, Flight[V]] = {}

    def join(self, key: Hashable, work: Callable[[Progress], V]) -> tuple[Flight[V], bool]:
        """The flight under this key, and whether this call started it."""
        with self._lock:
            if flight := self._under_way.get(key):
                return flight, False
            flight = self._under_way[key] = Flight()
        try:
            self._pool.submit(self._run, key, work, flight)
        except RuntimeError as error:  # the pool is shut down
            self._land(key)
            flight.future.set_exception(error)
        return flight, True

    def count(self) -> int:
        """How many are under way."""
        with self._lock:
            return len(self._under_way)

    def _run(self, key: Hashable, work: Callable[[Progress], V], flight: Flight[V]) -> None:
        try:
            result = work(flight.progress)
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._land(key)
            flight.future.set_exception(error)
        else:
            self._land(key)
            flight.future.set_result(result)

    def _land(self, key: Hashable) -> None:
        # Before the result is set: who comes after it starts anew, and finds what was brought.
        with self._lock:
            del self._under_way[key]
