"""Sessions and their leases.

Law of this file: a token is worth what the kernel said of the connection it was given to, and as long as that lives.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from dataclasses import dataclass, field

from artifactcache.errors import InvalidRequest, QuotaExceeded, Unauthenticated

TOKEN_BYTES = 32
SESSIONS_MAX = 4096
LEASES_PER_SESSION_MAX = 10_000


@dataclass(frozen=True)
class Peer:
    """Whom the kernel attested: SO_PEERCRED and SO_PEERGROUPS of unix(7)."""

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Session:
    """One connection, its user, and the trees leased to it."""

    token: str
    peer: Peer
    leases: dict[int, str] = field(default_factory=dict)


class Sessions:
    """All sessions of the daemon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[str, Session] = {}
        self._last_lease = 0

    def open(self, peer: Peer) -> Session:
        """A new session. Raises QuotaExceeded."""
        session = Session(secrets.token_urlsafe(TOKEN_BYTES), peer)
        with self._lock:
            if len(self._by_token) >= SESSIONS_MAX:
                raise QuotaExceeded(f"{SESSIONS_MAX} sessions are open, and no more are taken. Try later.")
            self._by_token[session.token] = session
        return session

    def close(self, session: Session) -> None:
        """Ends a session, and with it its leases."""
        with self._lock:
            self._by_token.pop(session.token, None)
            session.leases.clear()

    def get(self, token: str) -> Session:
        """The session of a token. Raises Unauthenticated."""
        with self._lock:
            session = self._by_token.get(token)
        if session is None:
            raise Unauthenticated("No session has this token: its connection has ended, or the daemon was restarted.")
        return session

    def join(self, token: str, peer: Peer) -> Session:
        """The session of a token, for another connection of the same process. Raises Unauthenticated."""
        session = self.get(token)
        if (session.peer.uid, session.peer.pid) != (peer.uid, peer.pid):
            raise Unauthenticated("This token belongs to another process.")
        return session

    def lease(self, session: Session, tree: str) -> int:
        """Promises a tree to a session. Raises Unauthenticated where it has ended, QuotaExceeded."""
        with self._lock:
            if self._by_token.get(session.token) is not session:
                raise Unauthenticated("The session has ended.")
            if len(session.leases) >= LEASES_PER_SESSION_MAX:
                raise QuotaExceeded(f"This process holds {LEASES_PER_SESSION_MAX} leases: release some.")
            self._last_lease += 1
            session.leases[self._last_lease] = tree
            return self._last_lease

    def leased(self, session: Session, lease: int) -> str:
        """The tree of a lease. Raises InvalidRequest where the session has no such lease."""
        tree = session.leases.get(lease)
        if tree is None:
            raise InvalidRequest(f"This session has no lease {lease}: fetch again.")
        return tree

    def release(self, session: Session, lease: int) -> None:
        """Ends a lease, if it is there."""
        with self._lock:
            session.leases.pop(lease, None)

    def counts(self) -> tuple[int, Counter[str]]:
        """How many sessions there are, and how many leases each tree has."""
        with self._lock:
            return len(self._by_token), Counter(t for s in self._by_token.values() for t in s.leases.values())
