"""Who callers are, by name: what the kernel attests of them, and what the host's name service (NSS) says of that now.

Law of this file: no call waits long for a directory. What it said last is used while it is asked again; what it has
never said is not guessed: of whom it has told nothing yet, and does not answer, no name and no group is known.

The name service is whatever nsswitch.conf(5) says: files, LDAP or Active Directory, by SSSD or nslcd, alike. A
directory that is away is not one that does not know somebody, and only the _r functions tell the two apart (`libc`):
with nslcd or its LDAP server stopped, Python's pwd says "not found", and getgrouplist(3) gives fewer groups and no
error at all.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import NamedTuple

from cacheserver import libc
from cacheserver.access import Caller
from cacheserver.bounded import Bounded
from cacheserver.sessions import Peer

RECENT_SECONDS = 15.0  # for which nobody is asked again; then beside the call, which does not wait
TOLD_SECONDS = 30.0  # for which an answer counts at most where the directory gives a new one
PATIENCE_SECONDS = 1.0  # for that new one; where it takes longer, the old one counts on
FIRST_LOOK_SECONDS = 5.0  # for the first answer of all
RETRY_SECONDS = 5.0  # after a directory has not answered
NAMES_MAX = 200_000  # kept in memory, of users and groups; about 100 bytes each
ASKERS_MAX = 4  # questions at a time: of a directory that hangs, so many hang, and the others are behind them

_log = logging.getLogger(__name__)

_Key = tuple[int, int, tuple[int, ...]]


class Identity(NamedTuple):
    """Who a caller is.

    Attributes:
        number: the user's, in digits.
        caller: the user and the groups that count, by name; by number, in digits, where the host has no name.
        attested: the groups that the kernel attests and those that count, all of them, by name and by number: those
            that can be denied. A number that has got a name is denied still.
        is_named: whether the host knows the user.
        is_told: whether the name service has ever answered; else `caller` has no groups, and its number for a name.
    """

    number: str
    caller: Caller
    attested: frozenset[str]
    is_named: bool
    is_told: bool

    def is_denied_by(self, people: Sequence[str]) -> bool:
        """Whether a list of users, and of groups behind an @, names this one by anything that is known."""
        return self.number in people or Caller(self.caller.user, self.attested).is_one_of(people)


class NameService:
    """The host's. Each raises OSError where one of its sources does not answer."""

    def user(self, uid: int) -> tuple[str, int] | None:
        """A user's name and first group; None where there is no such user."""
        return libc.user(uid)

    def groups(self, user: str, gid: int) -> list[int]:
        """All groups of a user whose first group this is. Those of a source that is away are left out."""
        return os.getgrouplist(user, gid)

    def group(self, gid: int) -> str | None:
        """A group's name; None where it has none."""
        return libc.group(gid)


class _Known(NamedTuple):
    identity: Identity
    asked_at: float


class Identities:
    """Names of callers, kept for a short time.

    Args:
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, ticks: Callable[[], float], host: NameService | None = None) -> None:
        self._ticks = ticks
        self._host = host or NameService()
        self._known: Bounded[_Key, _Known] = Bounded(NAMES_MAX)
        self._failed: Bounded[_Key, float] = Bounded(NAMES_MAX)
        self._asking: dict[_Key, tuple[Future[None], float]] = {}
        self._lock = threading.Lock()
        self._askers = ThreadPoolExecutor(max_workers=ASKERS_MAX, thread_name_prefix="names")

    def of(self, peer: Peer) -> Identity:
        """Who somebody is. Where the directory is away, what it said last; where it has said nothing yet, somebody of
        no name and no group, whom no list of names lets in."""
        key, now = (peer.uid, peer.gid, peer.groups), self._ticks()
        known = self._known.get(key)
        age = now - known.asked_at if known else TOLD_SECONDS
        if age >= RECENT_SECONDS and (asking := self._ask(key, now)) and age >= TOLD_SECONDS:
            future, began = asking
            wait_for([future], max(0.0, began + (PATIENCE_SECONDS if known else FIRST_LOOK_SECONDS) - now))
            known = self._known.get(key)
        if known is None:
            number = str(peer.uid)
            return Identity(number, Caller(number, frozenset()), frozenset(), is_named=False, is_told=False)
        return known.identity

    def _ask(self, key: _Key, now: float) -> tuple[Future[None], float] | None:
        """The question that is under way, since when; None where the directory has just failed to answer it."""
        with self._lock:
            if key not in self._asking:
                failed_at = self._failed.get(key)
                if failed_at is not None and now - failed_at < RETRY_SECONDS:
                    return None
                self._asking[key] = self._askers.submit(self._look, key, now), now
            return self._asking[key]

    def _look(self, key: _Key, began: float) -> None:
        try:
            identity = self._told(*key)
            self._known.put(key, _Known(identity, began), weight=1 + len(identity.attested))
        except OSError as error:
            _log.warning("the host's name service does not say who uid %d is: %s", key[0], error.strerror)
            self._failed.put(key, self._ticks())
        finally:
            with self._lock:
                del self._asking[key]

    def _told(self, uid: int, gid: int, groups: tuple[int, ...]) -> Identity:
        # Whom the host does not know, in a container, say, is in the groups that the kernel attests. Of whom it knows
        # those do not count: they are from when the process began, and whoever was put out of a group since has them.
        user = self._host.user(uid)
        attested = {gid, *groups}
        counting = set(self._host.groups(*user)) if user else attested
        # Each is asked for, also where nobody needs its name: that is how a directory shows that went a moment ago.
        names = {number: self._host.group(number) or str(number) for number in attested | counting}
        caller = Caller(user[0] if user else str(uid), frozenset(names[number] for number in counting))
        deniable = frozenset(names.values()) | {str(number) for number in names}
        return Identity(str(uid), caller, deniable, is_named=user is not None, is_told=True)
