"""Sessions and their leases.

Law of this file: a token is worth what the kernel said of the connection it was given to, and as long as that lives;
to a process that proves its calls, and to that only.
The leases of views are registered as those of the process, which may outlive this daemon.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from artifactcache.errors import InvalidRequest, Unauthenticated
from cacheserver.credentials import Credentials, read
from cacheserver.leases import Leases
from cacheserver.programs import Program, program
from cacheserver.proofs import Page
from cacheserver.quotas import Quota
from cacheserver.register import Process, Register, process

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
    is_view: bool = False


@dataclass(eq=False)
class Session:
    """One connection, its user and process, what it has presented, and the trees leased to it: by the lease's number,
    and the number by the tree. Where it has a page, which ends with it, its calls are good with a proof only."""

    token: str
    peer: Peer
    process: Process | None = None
    page: Page | None = None
    credentials: Credentials = field(default_factory=Credentials)
    leases: dict[int, Lease] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @cached_property
    def program(self) -> Program:
        """What its process ran when that was asked for first, for the audit log."""
        return program(self.peer.pid)


class Sessions:
    """All sessions of the daemon, and their leases.

    Args:
        register: of the processes that have views; None where nobody is to hear of them after this daemon.
    """

    def __init__(self, leases: Leases, register: Register | None = None) -> None:
        self._leases = leases
        self._register = register
        # Of processes that got views of an earlier daemon: what they had then is theirs until they end.
        self._survivors = register.trees() if register else {}
        for trees in self._survivors.values():
            for tree in trees:
                leases.take(tree)
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(TOKEN_BYTES)
        self._by_token: dict[str, Session] = {}
        self._last_lease = 0
        self._places = Quota("sessions", per_user=SESSIONS_PER_USER_MAX, total=SESSIONS_MAX)
        self._trees = Quota("trees under lease", per_user=LEASES_PER_USER_MAX, total=LEASES_MAX)

    def open(self, peer: Peer) -> Session:
        """A new session. Raises QuotaExceeded."""
        self._places.take(peer.uid)
        session = Session(secrets.token_urlsafe(TOKEN_BYTES), peer, process(peer.pid) if self._register else None)
        with self._lock:
            self._by_token[session.token] = session
        return session

    def close(self, session: Session) -> None:
        """Ends a session, and with it its leases."""
        uid = session.peer.uid
        with self._lock:
            if self._by_token.pop(session.token, None) is None:
                return
            leases = list(session.leases.values())
            session.leases.clear()
            session.numbers.clear()
        if session.page is not None:
            session.page.close()
        self._end(session, leases)
        self._places.give_back(uid)

    def get(self, token: str) -> Session:
        """The session of a token. Raises Unauthenticated."""
        with self._lock:
            session = self._by_token.get(token)
        if session is None:
            raise Unauthenticated("No session has this token: its connection has ended, or the daemon was restarted.")
        return session

    def calling(self, token: str, proof: str) -> Session:
        """The session that makes a call. Raises Unauthenticated, also where a proof is missing that it promised."""
        session = self.get(token)
        if session.page is not None and not session.page.take(proof):
            raise Unauthenticated("The call's proof is missing, belongs to another process, or was used already.")
        return session

    def present(self, session: Session, headers: Mapping[str, str]) -> None:
        """The caller's credentials are these from now on. Raises InvalidRequest where they are no headers."""
        session.credentials = read(headers, self._secret)

    def join(self, token: str, peer: Peer) -> Session:
        """The session of a token, for another connection of the same process. Raises Unauthenticated."""
        session = self.get(token)
        if (session.peer.uid, session.peer.pid) != (peer.uid, peer.pid):
            raise Unauthenticated("This token belongs to another process.")
        return session

    def lease(self, session: Session, tree: str, *, view: bool = False) -> int:
        """Promises a tree to a session; once more where it has it already. Returns the lease's number.

        Args:
            view: whether its process gets a view, which it may use for as long as it lives, whatever becomes of this
                daemon.

        Raises Unauthenticated where the session has ended, QuotaExceeded.
        """
        with self._lock:
            number = session.numbers.get(tree)
            if number is not None:
                is_new_view = self._once_more(session.leases[number], view)
        if number is not None:
            return self._registered(session, tree, number, is_new_view)
        self._trees.take(session.peer.uid)
        self._leases.take(tree)  # without the lock: where a sweep has it, this waits
        with self._lock:
            is_open, is_mine = self._by_token.get(session.token) is session, tree not in session.numbers
            if is_open and is_mine:
                self._last_lease += 1
                session.numbers[tree] = self._last_lease
                session.leases[self._last_lease] = Lease(tree)
            if is_open:
                number = session.numbers[tree]
                is_new_view = self._once_more(session.leases[number], view)
        if not (is_open and is_mine):
            self._trees.give_back(session.peer.uid)
            self._leases.give_back(tree)
        if number is None:
            raise Unauthenticated("The session has ended.")
        return self._registered(session, tree, number, is_new_view)

    def _once_more(self, lease: Lease, view: bool) -> bool:
        """Counts a lease once more. Returns whether it is of a view from now on."""
        lease.count += 1
        is_new_view = view and not lease.is_view
        lease.is_view = lease.is_view or view
        return is_new_view

    def _registered(self, session: Session, tree: str, number: int, is_new_view: bool) -> int:
        # Without the lock: a disk that is slow to take a line keeps nobody else waiting.
        if is_new_view and self._register and session.process:
            self._register.add(session.process, tree)
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
            if lease.count:
                return
            del session.leases[number], session.numbers[lease.tree]
        self._end(session, [lease])

    def count(self) -> int:
        """How many sessions there are."""
        with self._lock:
            return len(self._by_token)

    def by_user(self) -> dict[int, tuple[int, int]]:
        """How many sessions each user has, and how many trees are leased to them."""
        trees = self._trees.by_user()
        return {uid: (count, trees.get(uid, 0)) for uid, count in self._places.by_user().items()}

    def standing(self, uid: int) -> list[tuple[str, int, int]]:
        """What a user has of what has limits, and what these are (`Quota.standing`)."""
        return [self._places.standing(uid), self._trees.standing(uid)]

    def hand_over_count(self) -> int:
        """How many leases are of trees that are being handed over, or are about to be: not as views, which stay."""
        with self._lock:
            return sum(not lease.is_view for one in self._by_token.values() for lease in one.leases.values())

    def reap(self) -> None:
        """Ends the leases of processes that had them of an earlier daemon, and have ended since."""
        for one in [one for one in self._survivors if process(one.pid) != one]:
            for tree in self._survivors.pop(one):
                self._leases.give_back(tree)
            if self._register:
                self._register.forget(one)

    def _end(self, session: Session, leases: list[Lease]) -> None:
        for lease in leases:
            self._leases.give_back(lease.tree)
            if lease.is_view and self._register and session.process:
                self._register.remove(session.process, lease.tree)
        self._trees.give_back(session.peer.uid, len(leases))
