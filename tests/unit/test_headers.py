"""What is remembered of what requests need beside their URL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cacheserver.caller import is_of_api
from cacheserver.headers import SECONDS, Accesses
from cacheserver.http import Access, same_server
from tests.unit.house import PATIENCE_SECONDS

URL = "http://mlflow.example:5000/a/b"


class Clock:
    """A time that stands still, and what is asked for at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.find: Callable[[], str] = lambda: str(self.asked)
        self.accesses = Accesses(self._find, lambda url: "/a/" in url, lambda: self.now)

    def _find(self, url: str) -> Access:
        self.asked += 1
        return Access({"Authorization": self.find()}, True, None, is_signed="signed" in url)

    def header(self, url: str = URL) -> str:
        """What a request would have now."""
        return self.accesses.of(url).headers["Authorization"]


def test_it_is_asked_for_once_in_a_while() -> None:
    """For each server by itself; what is a signature is never remembered."""
    clock = Clock()
    assert [clock.header(), clock.header(URL + "/c")] == ["1", "1"]
    assert clock.header("http://mlflow.example:5001/") == "2"
    assert clock.header(URL.replace("a/b", "a/signed")) == "1", "one server, one answer"
    assert [clock.header("http://other/signed"), clock.header("http://other/signed")] == ["3", "4"]
    assert clock.header(URL.replace("a/b", "elsewhere")) == "5", "what is on the same host is another server"
    clock.now += SECONDS
    assert clock.header() == "6"


def test_credentials_that_cannot_be_had_any_more_are_not_used_for_ever() -> None:
    """What is remembered has an end, also where asking again fails."""
    clock = Clock()
    clock.header()

    def fail() -> str:
        raise OSError("the file is gone")

    clock.find = fail
    clock.now += 2 * SECONDS
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            clock.header()


@contextmanager
def one_who_waits(clock: Clock, answer: str) -> Iterator[None]:
    """In this block somebody asks anew, and has no answer; at its end it comes."""
    here, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        here.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return answer

    clock.header()
    clock.find = slow
    clock.now += SECONDS
    one = threading.Thread(target=clock.header)
    one.start()
    try:
        assert here.wait(PATIENCE_SECONDS)
        yield
    finally:
        go_on.set()
        one.join(PATIENCE_SECONDS)


def test_one_asks_and_the_others_go_on() -> None:
    """While the new one is not here yet, the old one is good for a moment more."""
    clock = Clock()
    with one_who_waits(clock, "new"):
        assert [clock.header() for _ in range(5)] == ["1"] * 5
    assert clock.header() == "new" and clock.asked == 2


def test_one_who_asks_in_vain_keeps_nobody() -> None:
    """What is older than two such moments is used by nobody, and what comes late replaces nothing that is newer."""
    clock = Clock()
    with one_who_waits(clock, "late"):
        clock.find = lambda: "newer"
        clock.now += SECONDS
        assert clock.header() == "newer"
    assert clock.header() == "newer" and clock.asked == 3


@pytest.mark.parametrize("base", ["http://mlflow.example", "http://mlflow.example:80/", "http://mlflow.example/base"])
def test_which_urls_are_of_the_tracking_server(base: str) -> None:
    """Those below its REST API: an application beside it, on the same host, is somebody else's."""
    assert is_of_api(f"{base.rstrip('/')}/api/2.0/mlflow/runs/get?run_id=../x", base)
    for path in ("", "/", "/elsewhere/api/2.0/x", "/api/2.0", "/api/2.0x/y", "/api/2.0/../../x", "/api/2.0/%2E%2e/x"):
        assert not is_of_api(f"{base.rstrip('/')}{path}", base)
    assert not is_of_api("http://mlflow.example:5001/api/2.0/x", base)
    assert is_of_api("http://mlflow.example/api/2.0/x", base) == (not base.endswith("base"))


def test_which_urls_are_of_one_server() -> None:
    """Credentials go to the tracking server: the same scheme, host and port, whoever the user in it is."""
    assert same_server("http://ada:pw@mlflow.example:5000/x", "http://MLFLOW.example:5000")
    for other in ("https://mlflow.example:5000", "http://mlflow.example:5001", "http://mlflow.example.evil:5000"):
        assert not same_server(other, URL)
    assert same_server("https://mlflow.example:443/x", "https://mlflow.example")
    assert not same_server("https://mlflow.example:80", "https://mlflow.example")
    assert not same_server("http://mlflow.example:many", URL)
