"""Metrics over HTTP, for Prometheus: one thread, in which no client waits for another.

Law of this file: everything that a client can make it hold has a limit. Who is slow holds a buffer and not the thread,
and where there are too many, the one goes that has been there for longest. prometheus_client's own server has a thread
for each connection, for as long as the other end likes, and computes for each that asks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CLIENTS_MAX = 32
CLIENT_SECONDS_MAX = 10.0
HEAD_BYTES_MAX = 8192
# Whoever asks sooner gets the same again: a loop of scrapes is not to take the interpreter from those who fetch.
PAGE_SECONDS = 1.0
PAUSE_SECONDS = 0.1
STOP_SECONDS = 2.0

_log = logging.getLogger(__name__)

_FORMATS: dict[bool, tuple[str, Callable[[CollectorRegistry], bytes]]] = {  # by whether the client takes OpenMetrics
    False: (CONTENT_TYPE_LATEST, generate_latest),
    True: (openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest),
}


class Page:
    """What is served: metrics of a registry of its own, and those of the process."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._kept: dict[bool, tuple[float, bytes]] = {}

    def answer(self, head: bytes, now: float) -> bytes:
        """What a request gets, of which all lines but those of a body are here."""
        first, *lines = head.split(b"\r\n")
        method, _, rest = first.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _reply("405 Method Not Allowed", "text/plain", b"Metrics can be read only.\n")
        if path != b"/metrics":
            return _reply("404 Not Found", "text/plain", b"Metrics are at /metrics.\n")
        kind = any(line.lower().startswith(b"accept:") and b"application/openmetrics-text" in line for line in lines)
        found = _reply("200 OK", _FORMATS[kind][0], self._text(kind, now))
        return found if method == b"GET" else found[: found.index(b"\r\n\r\n") + 4]

    def _text(self, kind: bool, now: float) -> bytes:
        at, text = self._kept.get(kind, (0.0, b""))
        if not text or now - at >= PAGE_SECONDS:
            text = _FORMATS[kind][1](self._registry)
            self._kept[kind] = now, text
        return text


def _reply(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + body


@dataclass(eq=False)
class _Client:
    """A connection: until when it may be there, what has come of its request, and what is left of its answer."""

    socket: socket.socket
    until: float
    head: bytearray = field(default_factory=bytearray)
    answer: bytes = b""


class Scraping:
    """Serves a page.

    Args:
        listener: bound and listening.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, listener: socket.socket, page: Page, ticks: Callable[[], float]) -> None:
        self._listener = listener
        self._page = page
        self._ticks = ticks
        self._selector = selectors.DefaultSelector()
        self._clients: dict[_Client, None] = {}  # the oldest first
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="scraping", daemon=True)

    def start(self) -> None:
        """Serves from now on."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Serves nobody any more."""
        self._is_stopping = True
        os.write(self._wake_write, b"\0")
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - this thread is the only one
                _log.exception("serving metrics failed")
                threading.Event().wait(PAUSE_SECONDS)
        for one in list(self._clients):
            self._close(one)
        self._listener.close()

    def _turn(self) -> None:
        for chosen, _ in self._selector.select(timeout=1 if self._clients else None):
            if chosen.fileobj is self._listener:
                self._accept()
            elif chosen.data in self._clients:  # else it has had to go since
                self._go_on(chosen.data)
        now = self._ticks()
        for one in [one for one in self._clients if one.until < now]:
            self._close(one)

    def _accept(self) -> None:
        try:
            taken, _ = self._listener.accept()
        except OSError as error:  # the client has gone already, or descriptors have run out
            _log.debug("a connection for metrics could not be taken: %s", error.strerror)
            threading.Event().wait(PAUSE_SECONDS)
            return
        taken.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            self._close(next(iter(self._clients)))
        one = _Client(taken, self._ticks() + CLIENT_SECONDS_MAX)
        self._clients[one] = None
        self._selector.register(taken, selectors.EVENT_READ, one)
        self._go_on(one)  # its request has mostly come with it

    def _go_on(self, one: _Client) -> None:
        """Reads or writes as much as is possible now."""
        try:
            if not one.answer and not self._has_asked(one):
                return
            one.answer = one.answer[one.socket.send(one.answer) :]
        except BlockingIOError:
            return
        except OSError:  # the client has gone
            one.answer = b""
        if not one.answer:
            self._close(one)

    def _has_asked(self, one: _Client) -> bool:
        """Whether its request is here, and so the answer to it. Raises ConnectionError where none will come."""
        if not (piece := one.socket.recv(HEAD_BYTES_MAX)):
            raise ConnectionError
        one.head += piece
        if b"\r\n\r\n" in one.head:
            one.answer = self._page.answer(bytes(one.head), self._ticks())
        elif len(one.head) >= HEAD_BYTES_MAX:
            one.answer = _reply("431 Request Header Fields Too Large", "text/plain", b"")
        else:
            return False
        self._selector.modify(one.socket, selectors.EVENT_WRITE, one)
        return True

    def _close(self, one: _Client) -> None:
        del self._clients[one]
        with contextlib.suppress(OSError, KeyError):
            self._selector.unregister(one.socket)
        one.socket.close()
