"""The daemon at one look: for the page, and for `artifactcache top`.

Law of this file: who may know what is decided here, and as everywhere else: where access is checked, others than
operators are shown what is on their own account, as by `ls`; who reads what is for operators, as the audit log is; and
everybody's accounts are for administrators, as by `quota --all`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from artifactcache.v1 import cache_pb2 as pb
from cacheserver import __version__
from cacheserver.answers import usage as usage_of
from cacheserver.audit import AuditLog
from cacheserver.budgets import Budgets, Usage
from cacheserver.cache import Cache, Coming
from cacheserver.counters import Counters
from cacheserver.extents import Extent, Group, Part
from cacheserver.fetching import Fetching
from cacheserver.history import History, Sample
from cacheserver.outlook import Outlook, Waiting
from cacheserver.roles import ADMINISTRATOR, OPERATOR, Roles
from cacheserver.selection import Selection
from cacheserver.sessions import Peer, Sessions
from cacheserver.snapshots import Snapshots
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.troubles import Condition, faults

GROUPS_MAX, PARTS_MAX = 24, 8
QUEUE_MAX = 25
USERS_MAX = 50
DOWNLOADS_MAX = 50
NAMES_MAX = 5  # of one tree, and of users of one artifact
EVERYBODY = None


@dataclass(frozen=True)
class _Held:
    """What is held, as one sees it: whose accounts it is on, and until when it is pinned."""

    extent: Extent
    users: dict[str, list[int]]
    untils: dict[tuple[str, str], float]


@dataclass(frozen=True)
class _Viewer:
    """Who looks, and what they may know."""

    uid: int
    user: str
    roles: tuple[str, ...]
    sees_all: bool

    @property
    def is_operator(self) -> bool:
        """Whether who reads what is shown."""
        return OPERATOR in self.roles

    @property
    def is_administrator(self) -> bool:
        """Whether everybody's accounts are shown."""
        return ADMINISTRATOR in self.roles


class Overview:
    """Of one daemon.

    Args:
        errors: calls that have ended, by name, status and error.
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sessions: Sessions,
        sweeper: Sweeper,
        budgets: Budgets,
        roles: Roles,
        fetching: Fetching,
        audit: AuditLog,
        counters: Counters,
        answered: Tally,
        origin: str,
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._store = store
        self._sessions = sessions
        self._sweeper = sweeper
        self._budgets = budgets
        self._roles = roles
        self._fetching = fetching
        self._audit = audit
        self._counters = counters
        self._answered = answered
        self._origin = origin
        self._clock = clock
        self._outlook = Outlook(sweeper, store.index.holdings, clock)
        self._history = History()
        self._held: Snapshots[int | None, _Held] = Snapshots(self._look_at_held, ticks)
        self._used: Snapshots[int | None, list[Usage]] = Snapshots(budgets.usage, ticks)
        self._queue: Snapshots[None, list[Waiting]] = Snapshots(lambda _: self._outlook.front(QUEUE_MAX), ticks)

    def note(self) -> None:
        """Writes down what the counters are now, for the history."""
        served = self._fetching.served()
        self._history.note(
            Sample(
                self._clock(),
                served.get("fetch_count", 0),
                served.get("hit_count", 0),
                served.get("served_bytes", 0),
                self._fetching.saved_bytes(),
                self._store.index.totals()["blob_bytes"],
            )
        )

    def of(self, peer: Peer, since: float) -> pb.OverviewReply:
        """What somebody may see of it.

        Args:
            since: of the history only what came after that.
        """
        roles = self._roles
        me = _Viewer(peer.uid, self._budgets.user_name(peer.uid), roles.of(peer), roles.sees_all(peer))
        self._cache.record_uses()
        held = self._held.get(EVERYBODY if me.sees_all else me.uid)
        coming, limits = self._cache.coming(), self._sweeper.reservations.limits
        stats = self._counters.read()
        return pb.OverviewReply(
            now=self._clock(),
            version=__version__,
            user=me.user,
            roles=me.roles,
            sees_all=me.sees_all,
            stats=stats,
            saved_bytes=self._fetching.saved_bytes(),
            high_percent=limits.high,
            low_percent=limits.low,
            held=_group(held.extent.held),
            groups=self._groups(held, me),
            group_count=held.extent.group_count,
            history=[pb.Sample(**one._asdict()) for one in self._history.since(since)],
            users=self._users(coming, me),
            queue=map(_queued, self._queue.get(None)) if me.sees_all else (),
            queue_length=stats.tree_count if me.sees_all else 0,
            downloads=self._downloads(coming, me),
            faults=[pb.Fault(**one._asdict()) for one in faults(self._condition(stats, me))],
        )

    def _look_at_held(self, uid: int | None) -> _Held:
        index = self._store.index
        extent = index.extents.of(uid, groups_max=GROUPS_MAX, parts_max=PARTS_MAX)
        trees = list({one.tree for one in extent.parts})
        users = index.ledger.users_of(trees) if uid is EVERYBODY else {}
        return _Held(extent, users, index.pins.untils(self._clock()))

    def _groups(self, held: _Held, me: _Viewer) -> Iterator[pb.HeldGroup]:
        parts: dict[str, list[pb.HeldPart]] = {}
        for one in held.extent.parts:
            users = held.users.get(one.tree, []) if me.is_operator else []
            until = held.untils.get((one.uri, one.selection), 0.0)
            leases = self._sweeper.leases.count(one.tree)
            parts.setdefault(one.group, []).append(_part(one, leases, until, self._names(users)))
        for group in held.extent.groups:
            yield _group(group, parts.get(group.name, []))

    def _users(self, coming: list[Coming], me: _Viewer) -> list[pb.UserUse]:
        accounts = self._used.get(EVERYBODY if me.is_administrator else me.uid)
        sessions = self._sessions.by_user()
        downloads = Counter(uid for one in coming for uid in one.users)
        known = {one.uid: one for one in accounts[:USERS_MAX]}
        here = {*sessions, *downloads} if me.is_administrator else {me.uid}
        for uid in sorted(here - known.keys())[: USERS_MAX - len(known)]:
            known[uid] = Usage(uid, self._budgets.user_name(uid), 0, 0, None)
        return [
            pb.UserUse(
                usage=usage_of(one),
                session_count=sessions.get(uid, (0, 0))[0],
                lease_count=sessions.get(uid, (0, 0))[1],
                download_count=downloads[uid],
            )
            for uid, one in known.items()
        ]

    def _downloads(self, coming: list[Coming], me: _Viewer) -> list[pb.Download]:
        shown = [one for one in coming if me.sees_all or me.uid in one.users]
        return [
            pb.Download(
                version=one.uri,
                progress=pb.Progress(
                    bytes_done=one.bytes_done,
                    bytes_total=one.progress.bytes_total,
                    files_done=one.progress.files_done,
                    files_total=one.progress.files_total,
                ),
                waiting_count=one.waiting_count,
                users=self._names(one.users if me.is_operator else one.users & {me.uid}),
                **_patterns(one.selection),
            )
            for one in shown[:DOWNLOADS_MAX]
        ]

    def _names(self, users: Collection[int]) -> list[str]:
        return [self._budgets.user_name(uid) for uid in [*users][:NAMES_MAX]]

    def _condition(self, stats: pb.StatsReply, me: _Viewer) -> Condition:
        told = {"alarms": {}, "lost_count": 0, "errors": {}}
        if me.is_operator:
            errors: Counter[str] = Counter()
            for (_, _, error), count in self._answered.counts().items():
                errors[error] += count
            alarms = {kind: count for (kind,), count in self._audit.alarms.counts().items()}
            told = {"alarms": alarms, "lost_count": self._audit.lost_count(), "errors": errors}
        return Condition(
            origin=self._origin,
            is_origin_away=self._cache.is_origin_away(),
            shared_trouble=self._cache.sharing.trouble() if self._cache.sharing else "",
            is_index_damaged=self._store.index.is_damaged,
            is_short=self._sweeper.patience > 0,
            free_bytes=stats.free_bytes,
            min_free_bytes=stats.min_free_bytes,
            damaged_count=stats.damaged_count,
            quarantine_count=stats.quarantine_count,
            scrub_wrong_count=stats.scrub_wrong_count,
            **told,  # type: ignore[arg-type]
        )


def _patterns(selection: str) -> dict[str, tuple[str, ...]]:
    found = Selection.from_key(selection)
    return {"include": tuple(found.include), "exclude": tuple(found.exclude)}


def _group(one: Group, parts: Collection[pb.HeldPart] = ()) -> pb.HeldGroup:
    return pb.HeldGroup(
        name=one.name,
        artifact_count=one.artifact_count,
        share_bytes=round(one.share_bytes),
        used_at=one.used_at,
        parts=parts,
    )


def _part(one: Part, leases: int, pinned_until: float, users: list[str]) -> pb.HeldPart:
    return pb.HeldPart(
        version=one.uri,
        share_bytes=round(one.share_bytes),
        size_bytes=one.size_bytes,
        file_count=one.file_count,
        used_at=one.used_at,
        lease_count=leases,
        pinned_until=pinned_until,
        users=users,
        **_patterns(one.selection),
    )


def _queued(one: Waiting) -> pb.QueuedTree:
    return pb.QueuedTree(
        digest=one.tree,
        versions=one.names[:NAMES_MAX],
        share_bytes=round(one.share_bytes),
        reason=one.reason,
        kept=one.kept,
    )
