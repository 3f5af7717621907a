"""Who is let in to the page: tickets that are good once, and the keys that they are exchanged for.

Law of this file: over TCP nobody attests who is there, so a ticket is given to a session, whose user the kernel has
attested, and what is shown for its key is what that user may see at that moment. All of it ends with the daemon.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

from artifactcache.errors import NotFound, Unauthenticated
from cacheserver.sessions import Peer

TICKET_SECONDS = 60.0
KEY_SECONDS = 12 * 3600.0
PER_USER_MAX = 16  # tickets, and keys: the oldest goes
TOTAL_MAX = 512
SECRET_BYTES = 32


@dataclass(frozen=True)
class _Good:
    """A secret: whose it is, and until when it is good."""

    peer: Peer
    until: float


class _Secrets:
    """Some secrets, the oldest first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._good: dict[str, _Good] = {}

    def give(self, peer: Peer, now: float) -> str:
        """A new one."""
        self._good = {secret: one for secret, one in self._good.items() if now < one.until}
        mine = [secret for secret, one in self._good.items() if one.peer.uid == peer.uid]
        too_many = max(0, len(mine) + 1 - PER_USER_MAX)
        for secret in mine[:too_many] or [*self._good][: max(0, len(self._good) + 1 - TOTAL_MAX)]:
            del self._good[secret]
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._good[secret] = _Good(peer, now + self._seconds)
        return secret

    def whose(self, secret: str, now: float) -> Peer | None:
        """Whose it is, where it is good."""
        one = self._good.get(secret)
        return one.peer if one is not None and now < one.until else None

    def take(self, secret: str, now: float) -> Peer | None:
        """The same; it is good no more."""
        peer = self.whose(secret, now)
        self._good.pop(secret, None)
        return peer


class Entrance:
    """Of one page.

    Args:
        address: where it listens, as host:port; empty where there is none.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, address: str, ticks: Callable[[], float]) -> None:
        self.address = address
        self._ticks = ticks
        self._lock = threading.Lock()
        self._tickets = _Secrets(TICKET_SECONDS)
        self._keys = _Secrets(KEY_SECONDS)

    def ticket(self, peer: Peer) -> tuple[str, float]:
        """An address that lets in who opens it first, as this user, and for how many seconds. Raises NotFound."""
        if not self.address:
            raise NotFound(
                'This daemon shows no page: its administrator can write listen = "127.0.0.1:9465" into [page] of its'
                " configuration, and restart it. `artifactcache top` shows the same in a terminal."
            )
        with self._lock:
            ticket = self._tickets.give(peer, self._ticks())
        # Behind the #: a browser sends that to nobody, nor writes it into a Referer.
        return f"http://{self.address}/#{ticket}", TICKET_SECONDS

    def enter(self, ticket: str) -> str:
        """A key for a ticket. Raises Unauthenticated."""
        with self._lock:
            peer = self._tickets.take(ticket, self._ticks())
            if peer is None:
                raise Unauthenticated("This address was opened already, or is too old.")
            return self._keys.give(peer, self._ticks())

    def whose(self, key: str) -> Peer:
        """Whose key it is. Raises Unauthenticated."""
        with self._lock:
            peer = self._keys.whose(key, self._ticks())
        if peer is None:
            raise Unauthenticated("Nobody has this key, or not any more.")
        return peer
