"""Threads that users share: who gets one, and who waits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from artifactcache.errors import CacheError, DaemonUnavailable
from cacheserver.peers import share
from cacheserver.shares import Shares
from tests.rig.until import until

SIZE = 12
SECONDS_MAX = 30


class Crowd:
    """Works that last until they are let go, and whose they are."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.running: Counter[int] = Counter()
        self.order: list[int] = []
        self.go = {owner: threading.Semaphore(0) for owner in range(20)}
        self._lock = threading.Lock()

    def add(self, owner: int, count: int) -> None:
        for _ in range(count):
            self.shares.submit(owner, self._work, owner)

    def settle(self, *, running: dict[int, int]) -> None:
        until(lambda: +self.running == Counter(running), f"{running} to run, and not {self.running}")

    def let_go(self, owner: int, count: int = 1) -> None:
        self.go[owner].release(count)

    def _work(self, owner: int) -> None:
        with self._lock:
            self.running[owner] += 1
            self.order.append(owner)
        assert self.go[owner].acquire(timeout=SECONDS_MAX)
        with self._lock:
            self.running[owner] -= 1


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Nobody, at first."""
    shares = Shares(SIZE, "test")
    crowd = Crowd(shares)
    yield crowd
    shares.close()
    for owner in crowd.go:
        crowd.let_go(owner, 1000)


def test_who_is_alone_leaves_half(crowd: Crowd) -> None:
    """However much he wants; and whoever comes then is served at once, though nobody has ended."""
    crowd.add(1, 100)
    crowd.settle(running={1: SIZE // 2})
    crowd.add(2, 100)
    crowd.settle(running={1: SIZE // 2, 2: SIZE // 4})
    for owner in range(3, 6):
        crowd.add(owner, 1)
    crowd.settle(running={1: 6, 2: 3, 3: 1, 4: 1, 5: 1})


def test_shares_become_equal_as_works_end(crowd: Crowd) -> None:
    """Who had most gets no new one until the others have as many."""
    crowd.add(1, 100)
    crowd.settle(running={1: 6})
    crowd.add(2, 100)
    crowd.settle(running={1: 6, 2: 3})
    crowd.let_go(1, 2)
    crowd.settle(running={1: 4, 2: 4})
    crowd.let_go(1, 1)
    crowd.let_go(2, 1)
    crowd.settle(running={1: 4, 2: 4})


def test_who_has_least_comes_first_and_each_in_his_order() -> None:
    """With one thread to go round users take turns, whoever asked for more, or first."""
    shares, order, held, freed = Shares(2, "test"), list[str](), threading.Event(), threading.Event()

    def note(what: str) -> Callable[[], None]:
        return lambda: order.append(what)

    try:
        shares.submit(8, held.wait, SECONDS_MAX)
        shares.submit(9, freed.wait, SECONDS_MAX)
        futures = [shares.submit(owner, note(f"{owner}{n}")) for owner in (1, 2, 3) for n in range(3)]
        freed.set()
        for future in futures:
            future.result(SECONDS_MAX)
    finally:
        held.set()
        freed.set()
        shares.close()
    assert order == ["10", "20", "30", "11", "21", "31", "12", "22", "32"]


def test_an_error_is_its_askers() -> None:
    """And the thread is free again."""
    shares = Shares(2, "test")
    try:
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                shares.submit(1, lambda: 1 // 0).result(SECONDS_MAX)
        assert shares.submit(1, int, "7").result(SECONDS_MAX) == 7
    finally:
        shares.close()


def test_each_of_several() -> None:
    """Results come in the order of the things; the first error ends it, and what has not begun does not begin."""
    shares, begun = Shares(2, "test"), list[int]()

    def work(number: int) -> int:
        begun.append(number)
        return 100 // (number - 3)

    try:
        assert shares.each(1, str, range(100)) == [str(number) for number in range(100)]
        with pytest.raises(ZeroDivisionError):
            shares.each(1, work, [1, 2, 3, *range(4, 1000)])
        assert len(begun) < 1000
    finally:
        shares.close()


def test_the_end() -> None:
    """Who waits is told, also where he asks for more at that moment; nothing is taken on any more."""
    shares, go, heard = Shares(2, "test"), threading.Event(), list[str]()
    first = shares.submit(1, go.wait, SECONDS_MAX)
    second = shares.submit(1, go.wait, SECONDS_MAX)

    def ask_again(_: object) -> None:
        with pytest.raises(DaemonUnavailable):
            shares.submit(1, go.wait)
        heard.append("stopped")

    second.add_done_callback(ask_again)
    shares.close()
    with pytest.raises(DaemonUnavailable):
        second.result(0)
    assert heard == ["stopped"]
    go.set()
    assert first.result(SECONDS_MAX)


def test_a_host_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is told so, and the work is not done behind his back when there are some again; then there is as much
    room as ever."""
    shares, done = Shares(SIZE, "shared"), list[int]()

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        futures = [shares.submit(1, done.append, number) for number in range(2 * SIZE)]
    for future in futures:
        with pytest.raises(CacheError, match="no thread") as told:
            future.result(SECONDS_MAX)
        assert not isinstance(told.value, DaemonUnavailable)
    crowd = Crowd(shares)
    crowd.add(2, SIZE)
    crowd.settle(running={2: SIZE // 2})
    crowd.let_go(2, SIZE)
    until(lambda: crowd.order == [2] * SIZE, "all to be done")
    shares.close()
    assert not done


def test_the_end_of_several() -> None:
    """Who waits for them is told that the daemon is being stopped."""
    shares, go, told = Shares(2, "test"), threading.Event(), list[str]()

    def ask() -> None:
        with pytest.raises(DaemonUnavailable):
            shares.each(1, lambda _: go.wait(SECONDS_MAX), range(3))
        told.append("stopped")

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: len(shares._waiting.get(1, ())) == 2, "two of three to wait")
    shares.close()
    go.set()
    asking.join(SECONDS_MAX)
    assert told == ["stopped"]


def test_who_gives_up_is_not_kept() -> None:
    """However often somebody asks again while his threads hang."""
    shares, go = Shares(2, "test"), threading.Event()
    try:
        shares.submit(1, go.wait, SECONDS_MAX)
        for _ in range(100):
            shares.submit(1, go.wait, SECONDS_MAX).cancel()
        assert len(shares._waiting[1]) == 1
    finally:
        go.set()
        shares.close()


def test_connections_are_shared_in_the_same_way() -> None:
    """Who is alone may keep half; however many want all, as many as each of them has are left for another one."""
    assert share([1000], 100) == 50 and share([3, 1000], 100) == 48 and share([1000, 1000], 100) == 33
    assert share([], 100) == 50 and share([1] * 10, 100) == 50 and share([1000] * 200, 100) == 1
