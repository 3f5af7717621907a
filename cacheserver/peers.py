"""Whose connections cache.sock has: gRPC takes them and tells nobody whose they are, but the kernel does.

Law of this file: no user keeps more of them than are left, so that another one gets in. Who has more loses the newest.
gRPC has accepted them by then, so somebody who connects again and again all the time can make others wait for the next
look, and no longer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable

ROUNDS_MAX = 20  # looks one after the other, as long as somebody comes back with more
PAUSE_SECONDS = 0.05
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid

_log = logging.getLogger(__name__)


class Peers:
    """The connections to one socket that this process has.

    Args:
        address: the socket's path.
        most: connections that all users together may have.
        pause: waits so many seconds.
    """

    def __init__(self, address: str, most: int, pause: Callable[[float], object]) -> None:
        self._address = address
        self._most = most
        self._pause = pause
        self._seen: dict[str, int | None] = {}  # by the kernel's name of a socket, the oldest first: whose it is
        self._over: set[int] = set()

    def look(self) -> None:
        """Closes what is too much."""
        for _ in range(ROUNDS_MAX):
            over = self._trim()
            for uid in over - self._over:
                _log.warning(
                    "uid %d has more than its share of connections to %s: the newest are closed", uid, self._address
                )
            self._over = over
            if not over:
                return
            self._pause(PAUSE_SECONDS)

    def _trim(self) -> set[int]:
        """Closes what is too much now. Returns who had it."""
        here = dict(_sockets())
        self._seen = {name: uid for name, uid in self._seen.items() if name in here}
        for name in [name for name in here if name not in self._seen]:
            with contextlib.suppress(OSError):  # no descriptor is left, say: the next look sees it
                self._seen[name] = self._whose(name, here[name])
        counts = Counter(uid for uid in self._seen.values() if uid is not None)
        limit, kept, over = share(counts.values(), self._most), Counter[int](), set[int]()
        for name, uid in self._seen.items():
            if uid is None:
                continue
            kept[uid] += 1
            if kept[uid] > limit:
                over.add(uid)
                with contextlib.suppress(OSError):
                    self._whose(name, here[name], close=True)
        return over

    def _whose(self, name: str, descriptor: int, *, close: bool = False) -> int | None:
        """Whose connection to our socket one is; None where it is none, or something else has its descriptor by now.
        Raises OSError."""
        fd = os.dup(descriptor)
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != name:
                return None
            with socket.socket(fileno=os.dup(fd)) as found:
                if found.family != socket.AF_UNIX or found.getsockname() != self._address:
                    return None
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return None
                said = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if close:
                    with contextlib.suppress(OSError):  # its client was faster
                        found.shutdown(socket.SHUT_RDWR)  # gRPC sees its end, and closes it
                return int(_CREDENTIALS.unpack(said)[1])
        finally:
            os.close(fd)


def share(counts: Iterable[int], most: int) -> int:
    """How many one user may keep, where users have so many: as many as are left then, as in `shares`."""
    counts, low, high = list(counts), 1, max(most // 2, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) + middle <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _sockets() -> list[tuple[str, int]]:
    """The sockets of this process: the kernel's name of each, and a descriptor."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # closed meanwhile
            continue
        if name.startswith("socket:"):
            found.append((name, int(descriptor)))
    return found
