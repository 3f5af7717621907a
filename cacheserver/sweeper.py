"""The sweeper: room for what comes, by letting go what is worth the least.

Law of this file: nothing is let go for what cannot fit all the same; sweeps take turns, in small steps, and whoever is
handed something out waits for none of them. They rest, unless somebody waits for the room, behind another sweep too.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from artifactcache.errors import NoSpace
from cacheserver import space
from cacheserver.eviction import Item, Policy
from cacheserver.holdings import DUE, NOBODYS
from cacheserver.leases import Hold, Leases
from cacheserver.leftovers import NOTHING, Clearance
from cacheserver.planning import Candidate, Eviction, Plan, plan_eviction
from cacheserver.reservations import Promise, Reservations
from cacheserver.rests import Clocks
from cacheserver.space import Need
from cacheserver.store import Store
from cacheserver.tallies import Tally
from cacheserver.words import Progress

ROUND_SHARE = 1 / 1024  # of what is held goes in one round of the background: two seconds of a million small blobs
ROUND_BYTES_MIN = 64 << 20
STEP_TREES, STEP_FILES = 32, 2_000  # evicted together, at most: one transaction, one sync
ROOM_ATTEMPTS = 8  # others may take the room that was made
RANKED_TREES = 200  # given a place at a time
PAUSE_EVERY_TREES = 32  # while a plan is made, others have their turn of the interpreter
FAILED_ROUNDS = 10  # looks before what could not be freed is tried again
NAMES_SHOWN_MAX = 3
HAND_OVER_SECONDS = 10.0  # at most, between the end of a download and the leases of those who have waited for it

# For what trees go: room for downloads, a retention rule, a quota, an operator; or nothing: no name leads to them.
WHY = ROOM, RULE, QUOTA, ASKED, NAMELESS = ("room", "rule", "quota", "asked", "nameless")
_BY_REASON = {DUE: RULE, NOBODYS: NAMELESS}
LEASED = "leased, or handed out just now"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaving:
    """A tree that has gone, or would go: what it was held as, how large it was, what that gives back, and why."""

    tree: str
    names: tuple[str, ...]
    size_bytes: int
    file_count: int
    item: Item
    freed_bytes: int
    reason: str


@dataclass(frozen=True)
class Swept:
    """A sweep: what went, or would go; what was wanted; what had to stay, by reason; and leftovers that went first."""

    leaving: tuple[Leaving, ...]
    wanted: Need
    kept: dict[str, int]
    enough: bool
    cleared: Clearance = NOTHING

    @property
    def freed_bytes(self) -> int:
        """What it gave back to the disk."""
        return self.cleared.freed_bytes + sum(one.freed_bytes for one in self.leaving)


class Sweeper:
    """Sweeps one store.

    Args:
        grace_seconds: what was brought since is not evicted.

    Attributes:
        note_uses: writes down what was used until now, so that a plan knows of it.
        prepare: done once before the first sweep, whoever wants it.
        reap: ends the leases of processes that have ended.
        judge: writes down what retention rules say of trees.
        evicted_count, evicted_bytes: trees that have gone, and what that gave back to the disk; `evicted` by WHY.
        patience: looks until a sweep that could not free enough is tried again; 0 where the last one could.
    """

    def __init__(
        self,
        store: Store,
        leases: Leases,
        reservations: Reservations,
        policy: Policy,
        grace_seconds: float,
        clocks: Clocks,
    ) -> None:
        self.policy = policy
        self.leases = leases
        self.reservations = reservations
        self.grace_seconds = grace_seconds
        self.note_uses: Callable[[], None] = lambda: None
        self.reap: Callable[[], None] = lambda: None
        self.prepare: Callable[[], None] = lambda: None
        self.judge: Callable[[Sequence[str]], None] = lambda trees: None
        self.evicted_count = self.evicted_bytes = 0
        self.evicted = Tally((why,) for why in WHY)
        self._store = store
        self._holdings, self._rankings = store.index.holdings, store.index.rankings
        self._clocks = clocks
        self._turn = threading.Lock()
        self._has_warned = self._is_going_down = self._is_stopping = False
        self.patience = 0

    def stop(self) -> None:
        """Evicts nothing any more, but for the step that has begun."""
        self._is_stopping = True

    # -- what comes -------------------------------------------------------------------------------------------------

    def holding(self, progress: Progress) -> AbstractContextManager[Hold]:
        """What a download leases while it runs, and until those who have waited for it have leased what it brought."""
        return self.leases.holding(progress, progress.trees, linger_seconds=max(self.grace_seconds, HAND_OVER_SECONDS))

    def handed_over(self, progress: Progress) -> None:
        """Whoever has waited for a download has leased what it brought, or does not want it any more."""
        self.leases.linger(progress, progress.trees, self.grace_seconds)

    def arrived(self, tree: str, seconds: float, fetched_bytes: int) -> None:
        """A tree was brought, which took so long."""
        with suppress(NoSpace):  # then it gets its place with the next sweep
            self._rankings.arrived(
                tree, self.policy, seconds=seconds, fetched_bytes=fetched_bytes, now=self._clocks.now()
            )
            self.judge([tree])

    # -- room for downloads -----------------------------------------------------------------------------------------

    @contextmanager
    def room(self, what: str, needed: int, file_count: int, progress: Progress, *, written: int = 0) -> Iterator[None]:
        """Promises space to a download for as long as this lasts, after a sweep where that is needed.

        Args:
            what: names the download in messages.
            needed, file_count, progress, written: as in `Reservations.promise`.

        Raises NoSpace, having evicted nothing, where it cannot fit.
        """
        promise = self._promise(what, needed, file_count, progress, written)
        try:
            yield
        except NoSpace:  # somebody else has filled the disk meanwhile
            progress.was_short = True
            raise
        finally:
            self.reservations.give_back(promise)

    def _promise(self, what: str, needed: int, file_count: int, progress: Progress, written: int) -> Promise:
        found = self.reservations.promise(needed, file_count, progress, written=written)
        kept: dict[str, int] = {}
        for _ in range(ROOM_ATTEMPTS):
            if isinstance(found, Promise):
                return found
            with self._clocks.rests.none(), self._turn:
                # The sweep that this one has waited for may have made the room.
                found = self.reservations.promise(needed, file_count, progress, written=written)
                if isinstance(found, Promise):
                    return found
                swept = self._sweep(found.need, all_or_nothing=True)
                kept = swept.kept
                if not swept.enough:
                    break
            found = self.reservations.promise(needed, file_count, progress, written=written)
        if isinstance(found, Promise):
            return found
        raise NoSpace(f"{what}: {found.why}{_stayed(kept)}")

    # -- sweeps -----------------------------------------------------------------------------------------------------

    def sweep(self, *, free_bytes: int = 0, dry_run: bool = False) -> Swept:
        """Lets go what rules want gone, and what is above the low watermark, at least `free_bytes`."""
        with self._turn:
            limits = self.reservations.limits
            need = space.pressure(self.reservations.fill(), limits, above=limits.low)
            need = Need(max(need.disk_bytes, free_bytes), need.capacity_bytes)
            self._look_around()
            return self._sweep(need, self._due(), dry_run=dry_run, why=ASKED)

    def could_fit(self, needed: int) -> bool:
        """Whether so many bytes would fit, after a sweep if need be."""
        with self._turn:
            need = space.missing(needed, self.reservations.fill(), self.reservations.limits)
            return not need or self._sweep(need, dry_run=True).enough

    def relieve(self, users: Sequence[int], excess: float, why: str) -> dict[str, int]:
        """Lets go what only these users have on their accounts, until that is so many bytes less; nothing where so much
        may not go. Returns what had to stay, by reason."""
        chosen: list[tuple[Candidate, str]] = []
        kept: Counter[str] = Counter()
        left: dict[int, Sequence[float]] = {}  # of each blob: trees that have it, and those on the users' accounts
        with self._clocks.rests.none(), self._turn:
            self._look_around()
            now = self._clocks.now()
            for one in self._unleased(self._holdings.of_users(users, now=now, young_since=now - self.grace_seconds)):
                if excess <= 0:
                    break
                if one.kept:
                    kept[one.kept] += 1
                else:
                    chosen.append((one, f"{why}; {self.policy.words(one.item, now)}"))
                    for blob, size, *before in self._store.index.ledger.parts(one.item.tree, users):
                        holders, own = left.get(blob, before)
                        left[blob] = holders - 1, own - 1
                        excess -= size * (own / holders - (own - 1) / max(1, holders - 1))
            if excess <= 0:
                self._execute(self._plan(Need(0, 0), chosen), QUOTA)
        return dict(kept)

    def watch(self) -> bool:
        """Looks how full the disk and the store are, and sweeps where that is too full. Returns whether anything
        went."""
        limits = self.reservations.limits
        self.patience = max(0, self.patience - 1)
        above = limits.low if self._is_going_down else limits.high
        self._is_going_down = bool(space.pressure(self.reservations.fill(), limits, above=above))
        if self.patience or not self._is_going_down:
            return False
        with self._turn, ExitStack() as hurry:
            fill = self.reservations.fill()
            need = space.pressure(fill, limits, above=above)
            if space.missing(0, fill, limits):
                hurry.enter_context(self._clocks.rests.none())
            else:  # there is time: the rest goes at the next looks
                most = max(ROUND_BYTES_MIN, round((fill.stored + fill.coming) * ROUND_SHARE))
                need = Need(min(need.disk_bytes, most), min(need.capacity_bytes, most))
            swept = self._sweep(need)
            if not swept.enough:
                self.patience = FAILED_ROUNDS
                _log.warning(
                    "%s have to go, and %s could: the store or its disk stays too full.%s",
                    space.show(max(need)),
                    space.show(swept.freed_bytes),
                    _stayed(swept.kept),
                )
            return bool(swept.leaving or swept.cleared.leftovers)

    def tidy(self) -> None:
        """Lets go what rules want gone, and what nobody can reach any more; writes down what was used."""
        with self._turn:
            self.leases.forget_lingering()
            self._store.departures.tidy(self.leases.is_leased)
            self._look_around()
            if due := self._due():
                self._sweep(Need(0, 0), due)
        self._warn_of_pins()

    def _sweep(
        self,
        need: Need,
        drops: Sequence[tuple[Candidate, str]] = (),
        *,
        all_or_nothing: bool = False,
        dry_run: bool = False,
        why: str = ROOM,
    ) -> Swept:
        if not need and not drops:
            return Swept((), need, {}, True)
        self._look_around()
        leftovers, pause = self._store.leftovers, self._clocks.pause
        cleared = leftovers.plan(need, pause)  # before any tree: nobody has been handed them
        rest = cleared.rest(need)
        plan = self._plan(rest, drops)
        enough = plan.freed_bytes >= rest.disk_bytes and plan.held_bytes >= rest.capacity_bytes
        if dry_run:
            return Swept(self._described(plan.evict), need, dict(plan.kept), enough, cleared)
        if all_or_nothing and not enough:
            return Swept((), need, dict(plan.kept), enough)
        cleared = leftovers.clear(cleared, "room is needed", pause)
        return Swept(self._execute(plan, why), need, dict(plan.kept), enough, cleared)

    def _plan(self, need: Need, drops: Sequence[tuple[Candidate, str]]) -> Plan:
        now, holdings, dropped = self._clocks.now(), self._holdings, {one.item.tree for one, _ in drops}
        prospects = self._store.departures.prospects()

        def queue(level: int, number: int) -> Iterator[Candidate]:
            found = holdings.queue(level, number, now=now, young_since=now - self.grace_seconds)
            return prospects.ahead(self._unleased(one for one in found if one.item.tree not in dropped))

        levels = ([queue(level, n) for n in range(self.policy.queue_count)] for level in holdings.levels())
        queued = holdings.queued_bytes(self.policy.queue_count)
        going = zip(prospects.ahead(one for one, _ in drops), (why for _, why in drops), strict=True)
        return plan_eviction(
            self.policy, levels, queued, prospects.blobs_of, need, age=holdings.age(), now=now, drops=going
        )

    def _due(self) -> list[tuple[Candidate, str]]:
        """What is to go whether or not room is needed, each with the reason."""
        now = self._clocks.now()
        due = self._holdings.drops(now=now, young_since=now - self.grace_seconds)
        return list(zip(self._unleased(one for one, _ in due), (why for _, why in due), strict=True))

    def _unleased(self, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
        for number, one in enumerate(candidates, start=1):
            if number % PAUSE_EVERY_TREES == 0:
                self._clocks.pause()
            yield Candidate(one.item, LEASED) if not one.kept and self.leases.is_leased(one.item.tree) else one

    def _execute(self, plan: Plan, why: str) -> tuple[Leaving, ...]:
        went: list[Leaving] = []
        age = 0.0
        for step in self._steps(plan):
            if self._is_stopping:
                break
            trees = self.leases.doom([one.tree for one in step])
            now = self._clocks.now()
            spare = partial(self.leases.spare, trees)
            try:
                gone = self._store.departures.evict(
                    trees,
                    now=now,
                    young_since=now - self.grace_seconds,
                    nameless=frozenset(one.tree for one in step if one.reason == NOBODYS),
                    due=frozenset(one.tree for one in step if one.reason == DUE),
                    taken=spare,
                    rest=self._clocks.rests.rest,
                )
            finally:
                spare()
            for one in step:
                if one.tree in gone.trees:
                    went.append(one)
                    self.evicted_count += 1
                    self.evicted_bytes += one.freed_bytes
                    self.evicted.add(_BY_REASON.get(one.reason, why), amount=one.freed_bytes)
                    if one.tree not in plan.dropped:
                        age = self.policy.older(one.item, age)
                    _log.info(
                        "evicted tree=%s held_as=%a freed=%d reason=%r",
                        one.tree,
                        ",".join(one.names[:NAMES_SHOWN_MAX]),
                        one.freed_bytes,
                        one.reason,
                    )
            self._clocks.pause()
        self._rankings.moved(plan.spared)
        if age:
            self._rankings.aged(age)
        return tuple(went)

    def _steps(self, plan: Plan) -> Iterator[list[Leaving]]:
        """What goes together: no more than takes a moment, for others wait for it."""
        for start in range(0, len(plan.evict), STEP_TREES):
            step: list[Leaving] = []
            for one in self._described(plan.evict[start : start + STEP_TREES]):
                if step and sum(other.file_count for other in step) + one.file_count > STEP_FILES:
                    yield step
                    step = []
                step.append(one)
            if step:
                yield step

    def _described(self, evictions: Sequence[Eviction]) -> tuple[Leaving, ...]:
        known = self._holdings.described([one.tree for one in evictions])
        return tuple(Leaving(e.tree, *known[e.tree], e.freed_bytes, e.reason) for e in evictions if e.tree in known)

    def _warn_of_pins(self) -> None:
        limits, pinned = self.reservations.limits, self._store.index.pins.held_bytes(self._clocks.now())
        capacity = limits.capacity.of(self._store.space().total)
        if pinned > capacity * limits.low / 100 and not self._has_warned:
            _log.warning(
                "%s are pinned or kept warm, and the store's capacity is %s: sweeps cannot make room for much else."
                " Unpin some, or raise [store] capacity.",
                space.show(pinned),
                space.show(capacity),
            )
        self._has_warned = pinned > capacity * limits.low / 100

    def _look_around(self) -> None:
        """Hears of what has happened since the last time: uses, and whatever has no place in the queues yet."""
        prepare, self.prepare = self.prepare, lambda: None
        prepare()
        self.note_uses()
        self.reap()
        while self._rankings.rank_some(self.policy, RANKED_TREES):
            self._clocks.pause()


def _stayed(kept: dict[str, int]) -> str:
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(kept.items()))
    return f" What had to stay, in trees: {told}." if kept else ""
