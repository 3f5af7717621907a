"""Quotas of users and groups: what they may hold, how much they may bring at a time, and how fast.

Law of this file: a hit is never refused. Who brings something new pays for it first with what nobody else has on an
account, and that is let go in the policy's order; only what must stay leads to QuotaExceeded, which says what it is.
"""

from __future__ import annotations

import grp
import pwd
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from artifactcache.errors import NoSpace, QuotaExceeded
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.config import QuotasConfig
from cacheserver.ledger import Ledger
from cacheserver.pace import Pace
from cacheserver.space import Amount, show
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.words import Payer, Progress


@dataclass(frozen=True)
class Account:
    """A user's account, or that of a group's members together.

    Attributes:
        entry: the name of what grants it in the configuration: the user's, the group's, or "*".
    """

    name: str
    number: int
    is_group: bool
    entry: str
    allowance: Allowance

    @property
    def title(self) -> str:
        """As messages name it."""
        return f"the group {self.name}" if self.is_group else f"the user {self.name}"

    @property
    def section(self) -> str:
        """Where the configuration has it."""
        entry = self.entry if re.fullmatch(r"[A-Za-z0-9_-]+", self.entry) else f'"{self.entry}"'
        return f"[quotas.{'group' if self.is_group else 'user'}.{entry}]"


NAMES_SECONDS = 60.0  # for which what the host's directory says of a user or a group counts

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
        # Bytes that are being brought, of each account: by the download, and where they come from.
        self._claims: defaultdict[Key, dict[tuple[int, str], int]] = defaultdict(dict)
        self._paces: dict[Key, Pace] = {}
        self._members: dict[int, frozenset[int]] = {}
        self._names: dict[int | str, tuple[float, Any]] = {}  # what the host says of users and groups, and until when

    def take_download(self, payer: Payer) -> None:
        """One more download of somebody's begins. Raises QuotaExceeded."""
        accounts = self._accounts(payer)
        with self._lock:
            for one in accounts:
                most, now = one.allowance.downloads, self._downloads[_key(one)]
                if most is not None and now >= most:
                    raise QuotaExceeded(
                        f"{one.title[0].upper()}{one.title[1:]} has {now} download{'s' * (now != 1)} under way, and"
                        f" {one.section} downloads grants {most}: let one of them end, then fetch again."
                    )
            self._downloads.update(_key(one) for one in accounts)

    def landed(self, payer: Payer, progress: Progress) -> None:
        """A download has ended: what has come is on the ledger, or about to be."""
        accounts = self._accounts(payer)
        with self._lock:
            self._downloads.subtract(_key(one) for one in accounts)
            for claims in self._claims.values():
                for claim in [claim for claim in claims if claim[0] == id(progress)]:
                    del claims[claim]

    def claim(self, payer: Payer, progress: Progress, what: str, needed: int) -> None:
        """So many bytes are about to come on somebody's account, until the download has landed. Raises QuotaExceeded.

        Args:
            what: where they come from; names it in messages.
        """
        for one in self._accounts(payer):
            if one.allowance.held is not None:
                self._afford(one, one.allowance.held, (id(progress), what), needed)

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
        known = frozenset(gid for name in self._quotas.groups if (gid := self._gid(name)) is not None)
        mine = known & set(payer.groups)
        if self._members.get(payer.uid) != mine:
            with suppress(NoSpace):  # a hit is not refused for it: the next fetch tells
                self._ledger.record_membership(payer.uid, mine, known)
                self._members[payer.uid] = mine

    def _afford(self, one: Account, held_max: Amount, claim: tuple[int, str], needed: int) -> None:
        limit = held_max.of(self._store.space().total)
        kept: dict[str, int] = {}
        for is_last in (False, True):
            self._sweeper.note_uses()
            held = round(self._ledger.of_group(one.number) if one.is_group else self._ledger.of_user(one.number))
            with self._lock:
                claims = self._claims[_key(one)]
                over = held + sum(claims.values()) - claims.get(claim, 0) + needed - limit
                if over <= 0:
                    claims[claim] = needed
                    return
            if is_last or needed > limit:
                break
            users = self._ledger.members(one.number) if one.is_group else [one.number]
            kept = self._sweeper.relieve(users, over, f"{one.title} is over the quota")
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(kept.items()))
        raise QuotaExceeded(
            f"{claim[1]}: {show(needed)} more are {show(over)} too many for {one.title}, who holds {show(held)} of"
            f" {show(limit)} (what others share is split among them). What would free it: "
            + (f"releasing what has to stay, in trees: {told}; or " if told else "")
            + f"a higher {one.section} held."
        )

    def _accounts(self, payer: Payer) -> list[Account]:
        found = []
        if self._quotas.users:
            name = self._user(payer.uid)
            entry = name if name in self._quotas.users else EVERYBODY
            if entry in self._quotas.users:
                found.append(Account(name, payer.uid, False, entry, self._quotas.users[entry]))
        for name, allowance in self._quotas.groups.items():
            gid = self._gid(name)
            if gid is not None and gid in payer.groups:
                found.append(Account(name, gid, True, name, allowance))
        return found

    def _user(self, uid: int) -> str:
        return str(self._ask(uid, lambda: pwd.getpwuid(uid).pw_name) or uid)

    def _gid(self, name: str) -> int | None:
        found: int | None = self._ask(name, lambda: grp.getgrnam(name).gr_gid)
        return found

    def _ask(self, what: int | str, question: Callable[[], Any]) -> Any:
        """What the host's directory says, which may be slow; None where it has no such user or group."""
        until, answer = self._names.get(what, (0.0, None))
        if self._ticks() >= until:
            try:
                answer = question()
            except KeyError:
                answer = None
            self._names[what] = self._ticks() + NAMES_SECONDS, answer
        return answer


def _key(one: Account) -> Key:
    return one.is_group, one.number
