"""Quotas of users and groups: what they may hold, how much they may bring at a time, and how fast.

Law of this file: a hit is never refused. Who brings something new pays for it first with what nobody else has on an
account, and that is let go in the policy's order; only what must stay leads to QuotaExceeded, which says what it is.
"""

from __future__ import annotations

import grp
import pwd
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from artifactcache.errors import QuotaExceeded
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.config import QuotasConfig
from cacheserver.ledger import Ledger
from cacheserver.pace import Pace
from cacheserver.space import show
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.words import Payer


@dataclass(frozen=True)
class Account:
    """A user's account, or that of a group's members together."""

    name: str
    number: int
    is_group: bool
    allowance: Allowance

    @property
    def title(self) -> str:
        """As messages name it."""
        return f"the group {self.name}" if self.is_group else f"the user {self.name}"

    @property
    def section(self) -> str:
        """Where the configuration has it."""
        return f"[quotas.{'group' if self.is_group else 'user'}.{self.name}]"


Key = tuple[bool, int]


class Budgets:
    """The quotas of one daemon.

    Args:
        ticks: seconds of a clock that never jumps.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        store: Store,
        sweeper: Sweeper,
        quotas: QuotasConfig,
        ticks: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._store = store
        self._ledger: Ledger = store.index.ledger
        self._sweeper = sweeper
        self._quotas = quotas
        self._ticks = ticks
        self._sleep = sleep
        self._lock = threading.Lock()
        self._downloads: Counter[Key] = Counter()
        self._coming: Counter[Key] = Counter()  # bytes that are being brought
        self._paces: dict[Key, Pace] = {}
        self._members: dict[int, frozenset[int]] = {}

    def take_download(self, payer: Payer) -> None:
        """One more download of somebody's begins. Raises QuotaExceeded."""
        accounts = self._accounts(payer)
        with self._lock:
            for one in accounts:
                most, now = one.allowance.downloads, self._downloads[_key(one)]
                if most is not None and now >= most:
                    raise QuotaExceeded(
                        f"{one.title[0].upper()}{one.title[1:]} has {now} downloads under way, as many as {one.section}"
                        " downloads grants: let one of them end, then fetch again."
                    )
            self._downloads.update(_key(one) for one in accounts)

    def end_download(self, payer: Payer) -> None:
        """A download of somebody's has ended."""
        accounts = self._accounts(payer)
        with self._lock:
            self._downloads.subtract(_key(one) for one in accounts)

    @contextmanager
    def holding(self, payer: Payer | None, what: str, needed: int) -> Iterator[None]:
        """So many bytes come on somebody's account, for as long as this lasts. Raises QuotaExceeded.

        Args:
            payer: None where the daemon brings it by itself.
            what: names it in messages.
        """
        accounts = [one for one in self._accounts(payer) if one.allowance.held is not None] if payer else []
        taken: list[Account] = []
        try:
            for one in accounts:
                self._afford(one, what, needed)
                taken.append(one)
            yield
        finally:
            with self._lock:
                self._coming.subtract({_key(one): needed for one in taken})

    def pace(self, payer: Payer | None) -> Callable[[int], None] | None:
        """What is told of bytes that come for somebody, and waits where they come too fast; None where nothing does."""
        paces = []
        for one in self._accounts(payer) if payer else []:
            if (rate := one.allowance.rate) is not None:
                with self._lock:
                    paces.append(self._paces.setdefault(_key(one), Pace(rate, self._ticks, self._sleep)))
        if not paces:
            return None

        def spend(count: int) -> None:
            for pace in paces:
                pace.spend(count)

        return spend

    def meet(self, payer: Payer) -> None:
        """Somebody fetches: in which groups with a quota they are, the ledger has to know."""
        if not self._quotas.groups:
            return
        known = frozenset(gid for name in self._quotas.groups if (gid := _gid(name)) is not None)
        mine = known & set(payer.groups)
        if self._members.get(payer.uid) != mine:
            self._ledger.record_membership(payer.uid, mine, known)
            self._members[payer.uid] = mine

    def _afford(self, one: Account, what: str, needed: int) -> None:
        assert one.allowance.held is not None
        limit = one.allowance.held.of(self._store.space().total)
        kept: dict[str, int] = {}
        for more in (True, False):
            self._sweeper.note_uses()
            held = self._ledger.of_group(one.number) if one.is_group else self._ledger.of_user(one.number)
            with self._lock:
                over = round(held) + self._coming[_key(one)] + needed - limit
                if over <= 0:
                    self._coming[_key(one)] += needed
                    return
            if not more or needed > limit:
                break
            users = self._ledger.members(one.number) if one.is_group else [one.number]
            kept = self._sweeper.relieve(users, over, f"{one.title} is over its quota")
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(kept.items()))
        raise QuotaExceeded(
            f"{what}: {show(needed)} more are {show(over)} too many for {one.title}, who holds {show(round(held))} of"
            f" {show(limit)} (what others share is split among them). What would free it: "
            + (f"releasing what has to stay, in trees: {told}; or " if told else "")
            + f"a higher {one.section} held."
        )

    def _accounts(self, payer: Payer) -> list[Account]:
        found = []
        if self._quotas.users:
            name = _user(payer.uid)
            allowance = self._quotas.users.get(name) or self._quotas.users.get(EVERYBODY)
            if allowance:
                found.append(Account(name, payer.uid, False, allowance))
        for name, allowance in self._quotas.groups.items():
            gid = _gid(name)
            if gid is not None and gid in payer.groups:
                found.append(Account(name, gid, True, allowance))
        return found


def _key(one: Account) -> Key:
    return one.is_group, one.number


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:  # the host has no such group
        return None
