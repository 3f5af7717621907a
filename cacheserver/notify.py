"""What the daemon tells systemd of itself: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

Law of this file: nothing waits for it, and a manager that does not listen changes nothing.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

WATCHDOG_SHARE = 3  # so many signs of life come in the time in which one is due
STATUS_LENGTH_MAX = 500

_log = logging.getLogger(__name__)


class Notify:
    """The notify socket of the manager that has started this process; without one it tells nobody.

    Args:
        environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID count.
        pid: this process's.

    Attributes:
        alive_every: seconds between two signs of life; 0 where none is expected.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        told = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + told[1:] if told.startswith("@") else told
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if told else None
        usec = environ.get("WATCHDOG_USEC", "")
        is_meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        is_awaited = bool(told) and is_meant and usec.isascii() and usec.isdecimal()
        self.alive_every = int(usec) / 1e6 / WATCHDOG_SHARE if is_awaited else 0.0

    def ready(self, status: str) -> None:
        """It serves, for the first time or after it has read its configuration anew."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self, now_usec: int) -> None:
        """It reads its configuration anew.

        Args:
            now_usec: microseconds of CLOCK_MONOTONIC: the manager tells by it which of its signals this answers.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}")

    def stopping(self) -> None:
        """It has begun to stop."""
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """One line of how it is."""
        self._send(f"STATUS={_line(text)}")

    def alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            _log.debug("the service manager cannot be told %s: %s", lines[0], error.strerror)


def _line(text: str) -> str:
    return " ".join(text.split())[:STATUS_LENGTH_MAX]
