"""The circuit breaker: who is asked, who looks, and who waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from artifactcache.errors import DaemonUnavailable, OriginUnavailable
from cacheserver import breaker
from cacheserver.breaker import Breaker
from tests.rig.until import until
from tests.unit.house import PATIENCE_SECONDS


class Server:
    """A server that is there or not; a look at it takes `seconds` of the breaker's clock, and may be held up."""

    def __init__(self) -> None:
        self.up = True
        self.seconds = 0.0
        self.looks = 0
        self.now = 0.0
        self.go = threading.Event()
        self.go.set()
        self.breaker = Breaker("http://x", self.answers, lambda: self.now)

    def answers(self) -> bool:
        """One look."""
        self.looks += 1
        assert self.go.wait(PATIENCE_SECONDS)
        self.now += self.seconds
        return self.up

    def is_away(self) -> bool:
        """Whether a caller is told so."""
        try:
            self.breaker.check()
        except OriginUnavailable:
            return True
        return False


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose breaker looks every hundredth of a second."""
    monkeypatch.setattr(breaker, "LOOK_SECONDS", 0.01)
    server = Server()
    yield server
    server.breaker.close()
    server.go.set()


def test_one_failure_condemns_nobody(server: Server) -> None:
    """A question that was not answered by a server that answers others changes nothing."""
    server.breaker.failed()
    server.breaker.check()
    assert server.looks == 1


def test_who_comes_while_it_is_looked_at_waits(server: Server) -> None:
    """For the outcome of the first look, and no longer."""
    server.go.clear()
    server.up, server.seconds = False, 5.0
    server.breaker.failed()
    told: list[bool] = []
    caller = threading.Thread(target=lambda: told.append(server.is_away()))
    caller.start()
    assert told == []
    server.go.set()
    caller.join(PATIENCE_SECONDS)
    assert told == [True]


def test_a_look_that_never_ends_holds_up_nobody_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the first look is told in time, who comes then is told at once, and both until it ends."""
    monkeypatch.setattr(breaker, "DOUBT_SECONDS_MAX", 0.05)
    server.go.clear()
    server.breaker.failed()
    told: list[bool] = []
    caller = threading.Thread(target=lambda: told.extend(server.is_away() for _ in range(3)))
    caller.start()
    caller.join(PATIENCE_SECONDS / 2)
    assert told == [True] * 3 and server.looks == 1
    server.go.set()
    until(lambda: not server.is_away(), "the breaker to close")


def test_a_server_that_hangs_is_looked_at_by_nobody_but_one_thread(server: Server) -> None:
    """Callers are told at once that it is away, and let through soon after it is back."""
    server.up, server.seconds = False, 5.0
    server.breaker.failed()
    assert server.is_away()
    server.go.clear()  # a caller that looked itself would hang here
    assert all(server.is_away() for _ in range(100))
    server.up = True
    server.go.set()
    until(lambda: not server.is_away(), "the breaker to close")


def test_a_server_that_refuses_is_asked_by_every_caller(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which costs nothing, so that nobody is told that it is away when it is back."""
    monkeypatch.setattr(breaker, "LOOK_SECONDS", 3600.0)
    server.up = False
    server.breaker.failed()
    assert server.is_away() and server.is_away()
    server.up = True
    assert not server.is_away()


def test_a_look_that_begins_to_hang_holds_up_one_caller(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server refused, and then hangs: who looks finds out, and all others are told that it is away meanwhile."""
    monkeypatch.setattr(breaker, "LOOK_SECONDS", 3600.0)
    server.up = False
    server.breaker.failed()
    assert server.is_away()
    server.go.clear()
    looks = server.looks
    caller = threading.Thread(target=server.is_away)
    caller.start()
    until(lambda: server.looks > looks, "the caller to look")
    assert all(server.is_away() for _ in range(10)) and server.looks == looks + 1
    server.go.set()
    caller.join(PATIENCE_SECONDS)


def test_without_a_thread_to_look_everybody_asks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that can have no more threads must not take its server for doubtful for ever."""

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    server.breaker.failed()
    assert not server.is_away() and server.looks == 0


def test_the_daemons_end(server: Server) -> None:
    """Nobody waits for a look any longer, and is told why."""
    server.up = False
    server.go.clear()
    server.breaker.failed()
    told = threading.Event()

    def call() -> None:
        with pytest.raises(DaemonUnavailable):
            server.breaker.check()
        told.set()

    caller = threading.Thread(target=call)
    caller.start()
    server.breaker.close()
    assert told.wait(breaker.DOUBT_SECONDS_MAX / 2), "it waits for the look"
    server.go.set()
    caller.join()
