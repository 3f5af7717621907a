"""The page of metrics: what is on it when something cannot be read, and how often it is made."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cacheserver import visitors
from cacheserver.assembly import Parts
from cacheserver.metrics import ACCOUNTS_MAX, OTHERS, Accounts, Metrics
from cacheserver.scraping import Page
from cacheserver.visitors import CLIENTS_MAX, HEAD_BYTES_MAX, Visitors
from tests.rig.scraped import Scrape
from tests.unit.house import House

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Counting(Collector):
    """How often it was read."""

    times = 0

    def collect(self) -> Iterator[Metric]:
        """One metric."""
        self.times += 1
        yield GaugeMetricFamily("cacheserver_times", "How often.", self.times)


def test_a_page_is_made_once_a_second() -> None:
    """Whoever asks sooner gets the same; in each of the two formats. `HEAD` gets no body."""
    counting = Counting()
    page = Page(counting)
    first = page.answer(GET, 100.0)
    assert first == page.answer(GET, 100.9) and counting.times == 1
    assert page.answer(b"HEAD /metrics HTTP/1.1\r\n\r\n", 100.9) == first[: first.index(b"\r\n\r\n") + 4]
    assert page.answer(GET, 101.0) != first and counting.times == 2
    openmetrics = page.answer(b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n", 101.0)
    assert openmetrics.endswith(b"# EOF\n") and counting.times == 3


@contextlib.contextmanager
def served(collector: Collector) -> Iterator[tuple[str, int]]:
    """A page behind a port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    scraper = Visitors("metrics", listener, Page(collector).answer, time.monotonic)
    scraper.start()
    try:
        yield listener.getsockname()
    finally:
        scraper.stop()


def read(sock: socket.socket) -> bytes:
    """All that comes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            found += piece
    return found


def test_a_request_may_come_in_pieces_and_has_an_end() -> None:
    """It is answered when it is whole; one without an end is refused."""
    with served(Counting()) as address:
        with socket.create_connection(address, timeout=10) as slow:
            for piece in (GET[:7], GET[7:-1], GET[-1:]):
                slow.sendall(piece)
                time.sleep(0.05)
            assert read(slow).startswith(b"HTTP/1.1 200 OK\r\n")
        with socket.create_connection(address, timeout=10) as endless:
            endless.sendall(GET[:-2] + b"X: " + b"y" * HEAD_BYTES_MAX)
            assert b"431" in read(endless)[:20]


def test_the_oldest_connection_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are as many as there may be; and each after its time, whether or not others come."""
    monkeypatch.setattr(visitors, "CLIENT_SECONDS_MAX", 2.0)
    with served(Counting()) as address, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(CLIENTS_MAX + 1)]
        began = time.monotonic()
        assert read(silent[0]) == b"" and time.monotonic() - began < 1
        assert read(silent[-1]) == b"" and time.monotonic() - began >= 1


class _Broken:
    """Parts of which nothing can be read."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("gone")


def test_what_cannot_be_read_hides_nothing_else() -> None:
    """The rest is told, and how much is missing."""
    whole = Metrics(cast(Parts, _Broken()), None, time.time)
    seen = Scrape(Page(whole).answer(GET, 1.0).partition(b"\r\n\r\n")[2].decode())
    assert seen.value("scrape_failed_groups") == len(whole._groups) - 2  # all but what needs no part
    assert seen.labels("build_info", "grpcio")


def test_accounts_have_an_end(tmp_path: Path) -> None:
    """The fullest are named, and all others are one number."""
    usages = [
        SimpleNamespace(user=f"u{number}", held_bytes=1000 - number, held_bytes_max=None)
        for number in range(ACCOUNTS_MAX + 3)
    ]
    accounts = Accounts(cast(Any, SimpleNamespace(usage=lambda uid: usages)), lambda: 77.0)
    house = House(tmp_path / "store")
    try:
        metrics = Metrics(cast(Parts, SimpleNamespace(store=house.store)), accounts, time.time)
        assert not list(metrics._users())  # nobody has looked yet
        accounts.look()
        held, limits, at = metrics._users()
    finally:
        house.close()
    users = {sample.labels["user"]: sample.value for sample in held.samples}
    assert len(users) == ACCOUNTS_MAX + 1 and users["u0"] == 1000
    assert users[OTHERS] == sum(one.held_bytes for one in usages[ACCOUNTS_MAX:])
    assert limits.samples == [] and at.samples[0].value == 77.0
