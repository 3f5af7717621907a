"""Quotas of users and groups: what they may hold, how much they may bring at a time, and how fast.

Law of this file: a hit is never refused. Who brings something new pays for it first with what nobody else has on an
account, and that is let go in the policy's order; only what must stay leads to QuotaExceeded, which says what it is.
"""

from __future__ import annotations

import grp
import pwd
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifactcache.errors import QuotaExceeded
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.ledger import Ledger
from cacheserver.pace import Pace
from cacheserver.settings import QuotasConfig
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


@dataclass(frozen=True)
class Usage:
    """What is on one user's account, and how many bytes may be; None for as many as there is room for."""

    uid: int
    user: str
    held_bytes: int
    tree_count: int
    held_bytes_max: int | None


AFFORD_ATTEMPTS = 8  # others may land meanwhile
NAMES_SECONDS = 60.0  # for which what the host's directory says of a user or a group counts

Key = tuple[bool, int]
_COME = ""  # from nowhere: it is here


@dataclass
class _Claims:
    """What one download has claimed: on which accounts it is, and the bytes that come, by where they come from."""

    accounts: Sequence[Account] = ()
    bytes: dict[tuple[Key, str], int] = field(default_factory=dict)

    def needed(self, one: Account) -> int:
        """Bytes on one account."""
        return sum(count for (key, _), count in self.bytes.items() if key == _key(one))


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
        self._claims: dict[int, _Claims] = {}  # of the downloads under way
        self._landings = 0
        self._met: dict[int, Payer] = {}
        self._members: dict[int, tuple[frozenset[int], frozenset[int]]] = {}
        self._paces: dict[Key, Pace] = {}
        self._names: dict[int | str, tuple[float, Any]] = {}  # what the host says of users and groups, and until when

    def become(self, quotas: QuotasConfig) -> None:
        """Goes by these from now on. A download under way goes on at the rate with which it began."""
        with self._lock:
            self._quotas = quotas
            self._paces.clear()

    def claim(self, payer: Payer, progress: Progress, what: str, needed: int) -> None:
        """So many bytes are about to come on somebody's account, until the download has landed.

        Args:
            what: where they come from; names it in messages.

        Raises QuotaExceeded where that, or one download more, is not granted.
        """
        accounts = self._accounts(payer)  # before the lock: the host's directory may be slow
        with self._lock:
            claims = self._claims.setdefault(id(progress), _Claims())
            if not claims.accounts:
                self._begin(accounts)
                claims.accounts = accounts
        for one in claims.accounts:
            if one.allowance.held is not None:
                self._afford(one, one.allowance.held, claims, what, needed)

    def came(self, progress: Progress, what: str, count: int) -> None:
        """Of what was claimed to come from somewhere so many bytes have come, and no more will."""
        with self._lock:
            claims = self._claims.get(id(progress)) or _Claims()
            for key in [key for key, where in claims.bytes if where == what]:
                del claims.bytes[key, what]
                claims.bytes[key, _COME] = claims.bytes.get((key, _COME), 0) + count

    def landed(self, progress: Progress) -> None:
        """A download has ended: what has come is on the ledger, or about to be."""
        with self._lock:
            if claims := self._claims.pop(id(progress), None):
                self._downloads.subtract(_key(one) for one in claims.accounts)
                self._landings += 1

    def _begin(self, accounts: Sequence[Account]) -> None:
        for one in accounts:
            most, now = one.allowance.downloads, self._downloads[_key(one)]
            if most is not None and now >= most:
                raise QuotaExceeded(
                    f"{one.title[0].upper()}{one.title[1:]} has {now} download{'s' * (now != 1)} under way, and"
                    f" {one.section} downloads grants {most}: let one of them end, then fetch again."
                )
        self._downloads.update(_key(one) for one in accounts)

    def rate(self, payer: Payer | None) -> int | None:
        """Bytes per second that somebody may bring; None for as many as come."""
        rates = [one.allowance.rate for one in self._accounts(payer)] if payer else []
        return min((rate for rate in rates if rate is not None), default=None)

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
        """Somebody fetches: in which groups with a quota they are, the ledger has to know, when there is time."""
        if self._quotas.groups:
            with self._lock:
                self._met[payer.uid] = payer

    def members_met(self) -> dict[int, tuple[frozenset[int], frozenset[int]]]:
        """Of those who have fetched, where it is another than was recorded: in which groups with a quota they are, and
        which there are; by user ID."""
        with self._lock:
            met = dict(self._met)
        if not met:
            return {}
        known = frozenset(gid for name in self._quotas.groups if (gid := self._gid(name)) is not None)
        found = {uid: (known & set(payer.groups), known) for uid, payer in met.items()}
        return {uid: groups for uid, groups in found.items() if self._members.get(uid) != groups}

    def recorded(self, members: dict[int, tuple[frozenset[int], frozenset[int]]]) -> None:
        """The ledger knows."""
        self._members.update(members)

    def usage(self, uid: int | None) -> list[Usage]:
        """A user's account, None for each that there is, the fullest first."""
        rows = self._ledger.usage(uid) or ([(uid, 0, 0.0)] if uid is not None else [])
        return [Usage(one, self.user_name(one), round(held), trees, self._held_max(one)) for one, trees, held in rows]

    def _held_max(self, uid: int) -> int | None:
        name = self.user_name(uid)
        allowance = self._quotas.users.get(name, self._quotas.users.get(EVERYBODY))
        return None if allowance is None or allowance.held is None else allowance.held.of(self._store.space().total)

    def _afford(self, one: Account, held_max: Amount, mine: _Claims, what: str, needed: int) -> None:
        limit = held_max.of(self._store.space().total)
        kept: dict[str, int] = {}
        has_relieved = False
        for _ in range(AFFORD_ATTEMPTS):
            landings = self._landings
            self._sweeper.note_uses()
            held = round(self._ledger.of_group(one.number) if one.is_group else self._ledger.of_user(one.number))
            with self._lock:
                if landings != self._landings:  # something is in neither of the two numbers
                    continue
                coming = sum(c.needed(one) for c in self._claims.values()) - mine.bytes.get((_key(one), what), 0)
                over = held + coming + needed - limit
                if over <= 0:
                    mine.bytes[_key(one), what] = needed
                    return
            if has_relieved or needed > limit:
                break
            if not self._sweeper.could_fit(needed):
                return  # there is no room for it anyway: who looks for that says so, and nothing has gone
            users = self._ledger.members(one.number) if one.is_group else [one.number]
            kept, has_relieved = self._sweeper.relieve(users, over, f"{one.title} is over the quota"), True
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(kept.items()))
        raise QuotaExceeded(
            f"{what}: {show(needed)} more are {show(over)} too many for {one.title}, who holds {show(held)} of"
            f" {show(limit)} (what others share is split among them). What would free it: "
            + (f"releasing what has to stay, in trees: {told}; or " if told else "")
            + f"a higher {one.section} held."
        )

    def _accounts(self, payer: Payer) -> list[Account]:
        found = []
        if self._quotas.users:
            name = self.user_name(payer.uid)
            entry = name if name in self._quotas.users else EVERYBODY
            if entry in self._quotas.users:
                found.append(Account(name, payer.uid, False, entry, self._quotas.users[entry]))
        for name, allowance in self._quotas.groups.items():
            gid = self._gid(name)
            if gid is not None and gid in payer.groups:
                found.append(Account(name, gid, True, name, allowance))
        return found

    def user_name(self, uid: int) -> str:
        """A user's name, the number where the host knows none."""
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
            except (KeyError, ValueError):  # no such name, or the directory is away: what it said before counts still
                pass
            self._names[what] = self._ticks() + NAMES_SECONDS, answer
        return answer


def _key(one: Account) -> Key:
    return one.is_group, one.number
