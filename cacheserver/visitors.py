"""A small HTTP server for what the daemon shows of itself: one thread, in which no client waits for another.

Law of this file: everything that a client can make it hold has a limit. Who is slow holds a buffer and not the thread,
and where there are too many, the one goes that has been there for longest. Python's own has a thread for each
connection, for as long as the other end likes. A request has no body that anybody reads, and each has its connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

CLIENTS_MAX = 32
CLIENT_SECONDS_MAX = 10.0
HEAD_BYTES_MAX = 8192
PAUSE_SECONDS = 0.1
STOP_SECONDS = 2.0

_log = logging.getLogger(__name__)

# What a request gets, of which all lines but those of a body are here, at a time of the clock that never jumps.
Answer = Callable[[bytes, float], bytes]


def reply(status: str, kind: str, body: bytes, more: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """An answer, with its status line and headers."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in more.items()) + "\r\n").encode("ascii") + body


@dataclass(eq=False)
class _Client:
    """A connection: until when it may be there, what has come of its request, and what is left of its answer."""

    socket: socket.socket
    until: float
    head: bytearray = field(default_factory=bytearray)
    answer: bytes = b""


class Visitors:
    """Serves whoever comes.

    Args:
        name: of what is served, for the log and the thread.
        listener: bound and listening.
        answer: what each gets.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, name: str, listener: socket.socket, answer: Answer, ticks: Callable[[], float]) -> None:
        self._name = name
        self._listener = listener
        self._answer = answer
        self._ticks = ticks
        self._selector = selectors.DefaultSelector()
        self._clients: dict[_Client, None] = {}  # the oldest first
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

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
                _log.exception("serving %s failed", self._name)
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
            _log.debug("a connection for %s could not be taken: %s", self._name, error.strerror)
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
            one.answer = self._answer(bytes(one.head), self._ticks())
        elif len(one.head) >= HEAD_BYTES_MAX:
            one.answer = reply("431 Request Header Fields Too Large", "text/plain", b"")
        else:
            return False
        self._selector.modify(one.socket, selectors.EVENT_WRITE, one)
        return True

    def _close(self, one: _Client) -> None:
        del self._clients[one]
        with contextlib.suppress(OSError, KeyError):
            self._selector.unregister(one.socket)
        one.socket.close()
