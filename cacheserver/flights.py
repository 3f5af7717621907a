"""Single flight: whoever asks for work that is under way waits for it instead of doing it again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cacheserver.words import Progress

V = TypeVar("V")


@dataclass(eq=False)
class Flight(Generic[V]):
    """Work under way: what it will give, how far it is, how many wait for that, or have not taken it yet, and the user
    IDs of those who have asked for it."""

    future: Future[V] = field(default_factory=Future)
    progress: Progress = field(default_factory=Progress)
    waiting: int = 0
    users: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _UnderWay(Generic[V]):
    """What has begun for a key, and what begins when that has ended, for those who must not get an older answer."""

    flight: Flight[V]
    following: list[tuple[Flight[V], Callable[[Progress], V]]] = field(default_factory=list)  # at most one


class Flights(Generic[V]):
    """Work under way, by key. The work belongs to nobody: it goes on when the first who asked goes away.

    Attributes:
        begun_count, joined_count: of those who have asked, who began work, and who waited for others'.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _UnderWay[V]] = {}
        self.begun_count = self.joined_count = 0

    def join(
        self,
        key: Hashable,
        work: Callable[[Progress], V],
        *,
        fresh: bool = False,
    ) -> tuple[Flight[V], bool]:
        """The flight under this key, and whether this call started it. Who has joined has to `leave`.

        Args:
            fresh: whether its answer must not be older than this call. Then a flight that has begun is not joined, but
                the one after it: however many ask, one runs and one waits.
        """
        with self._lock:
            ahead = self._under_way.get(key)
            if ahead is not None and not fresh:
                return self._joined(ahead.flight, started=False)
            if ahead is not None:
                started = not ahead.following
                if started:
                    ahead.following.append((Flight(), work))
                return self._joined(ahead.following[0][0], started=started)
            flight, _ = self._joined(Flight[V](), started=True)
            self._under_way[key] = _UnderWay(flight)
        self._start(key, work, flight)
        return flight, True

    def leave(self, flight: Flight[V]) -> bool:
        """One of those who have joined a flight has taken what it gave, or gives up. Returns whether it is over, and
        nobody else waits for it."""
        with self._lock:
            flight.waiting -= 1
            return not flight.waiting and flight.future.done()

    def count(self) -> int:
        """How many are under way."""
        with self._lock:
            return len(self._under_way)

    def under_way(self) -> list[tuple[Hashable, Flight[V]]]:
        """What is under way, the oldest first."""
        with self._lock:
            return [(key, one.flight) for key, one in self._under_way.items()]

    def _joined(self, flight: Flight[V], *, started: bool) -> tuple[Flight[V], bool]:
        flight.waiting += 1
        self.begun_count += started
        self.joined_count += not started
        return flight, started

    def _start(self, key: Hashable, work: Callable[[Progress], V], flight: Flight[V]) -> None:
        try:
            self._pool.submit(self._run, key, work, flight)
        except RuntimeError as error:  # the pool is shut down
            self._land(key)
            flight.future.set_exception(error)

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
            following = self._under_way.pop(key).following
            if not following:
                return
            flight, work = following[0]
            self._under_way[key] = _UnderWay(flight)
        self._start(key, work, flight)
