"""Sessions and their leases.

Law of this file: a token is worth what the kernel said of the connection it was given to, and as long as that lives.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from dataclasses import dataclass, field

from artifactcache.errors import InvalidRequest, Unauthenticated
from cacheserver.quotas import Quota

TOKEN_BYTES = 32
SESSIONS_MAX = 4096
SESSIONS_PER_USER_MAX = 2048
LEASES_MAX = 400_000  # trees; about 200 bytes each
LEASES_PER_USER_MAX = 100_000


@dataclass(frozen=True)
class Peer:
    """Whom the kernel attested: SO_PEERCRED and SO_PEERGROUPS of unix(7)."""

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()


@dataclass
class Lease:
    """A tree leased to a session, as often as the session was given it and has not released it."""

    tree: str
    count: int = 0


@dataclass(frozen=True)
class Session:
    """One connection, its user, and the trees leased to it: by the lease's number, and the number by the tree."""

    token: str
    peer: Peer
    leases: dict[int, Lease] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


class Sessions:
    """All sessions of the daemon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[str, Session] = {}
        self._last_lease = 0
        self._places = Quota("sessions", per_user=SESSIONS_PER_USER_MAX, total=SESSIONS_MAX)
        self._trees = Quota("trees under lease", per_user=LEASES_PER_USER_MAX, total=LEASES_MAX)

    def open(self, peer: Peer) -> Session:
        """A new session. Raises QuotaExceeded."""
        self._places.take(peer.uid)
        session = Session(secrets.token_urlsafe(TOKEN_BYTES), peer)
        with self._lock:
            self._by_token[session.token] = session
        return session

    def close(self, session: Session) -> None:
        """Ends a session, and with it its leases."""
        uid = session.peer.uid
        with self._lock:
            if self._by_token.pop(session.token, None) is None:
                return
            self._trees.give_back(uid, len(session.leases))
            session.leases.clear()
            session.numbers.clear()
        self._places.give_back(uid)

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
        """Promises a tree to a session; once more where it has it already. Returns the lease's number.

        Raises Unauthenticated where the session has ended, QuotaExceeded.
        """
        with self._lock:
            if self._by_token.get(session.token) is not session:
                raise Unauthenticated("The session has ended.")
            number = session.numbers.get(tree)
            if number is None:
                self._trees.take(session.peer.uid)
                self._last_lease += 1
                number = session.numbers[tree] = self._last_lease
                session.leases[number] = Lease(tree)
            session.leases[number].count += 1
            return number

    def leased(self, session: Session, number: int) -> str:
        """The tree of a lease. Raises InvalidRequest where the session has no such lease."""
        lease = session.leases.get(number)
        if lease is None:
            raise InvalidRequest(f"This session has no lease {number}: fetch again.")
        return lease.tree

    def release(self, session: Session, number: int) -> None:
        """Takes back one promise of a lease, if it is there; with the last one the lease ends."""
        with self._lock:
            lease = session.leases.get(number)
            if lease is None:
                return
            lease.count -= 1
            if not lease.count:
                del session.leases[number], session.numbers[lease.tree]
                self._trees.give_back(session.peer.uid)

    def counts(self) -> tuple[int, Counter[str]]:
        """How many sessions there are, and how many leases each tree has."""
        with self._lock:
            found: Counter[str] = Counter()
            for session in self._by_token.values():
                for lease in session.leases.values():
                    found[lease.tree] += lease.count
            return len(self._by_token), found
