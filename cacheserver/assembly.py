"""The daemon, put together: reads top to bottom.

Law of this file: everything is made here and handed down; nothing below makes its own. What a configuration may change
while the daemon serves is changed here, all of it in one go.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field

from cacheserver import listening, logs
from cacheserver.administration import Administration
from cacheserver.audit import AuditLog
from cacheserver.budgets import Budgets
from cacheserver.cache import Cache
from cacheserver.checkup import Checkup
from cacheserver.claims import RENEW_SECONDS
from cacheserver.config import ConfigError
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from cacheserver.entrance import Entrance
from cacheserver.errands import Freshness
from cacheserver.eviction import POLICIES
from cacheserver.fetching import Fetching
from cacheserver.gate import Gate
from cacheserver.handoff import Handoff
from cacheserver.healing import Healing
from cacheserver.history import SAMPLE_SECONDS
from cacheserver.identities import Identities
from cacheserver.ingesting import Ingesting
from cacheserver.joining import joined, objects_of
from cacheserver.journald import JOURNAL_SOCKET, Journal, is_wanted
from cacheserver.leases import Leases
from cacheserver.meddling import Meddling
from cacheserver.origin import MlflowOrigin
from cacheserver.overview import Overview
from cacheserver.pace import Pace
from cacheserver.partials import boot_id
from cacheserver.place import Place
from cacheserver.recorder import Recorder
from cacheserver.refusals import without_credentials, without_secrets
from cacheserver.register import Register
from cacheserver.reservations import Reservations
from cacheserver.restoring import compare, look_through, open_index
from cacheserver.rests import Clocks, Rests
from cacheserver.retaining import Retaining
from cacheserver.roles import ADMINISTRATOR, Roles
from cacheserver.scrubbing import Scrubber
from cacheserver.selection import Selection
from cacheserver.service import Service
from cacheserver.sessions import Sessions
from cacheserver.settings import Config
from cacheserver.sharing import Sharing
from cacheserver.space import Limits
from cacheserver.stopping import Stopping
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.upkeep import Upkeep
from cacheserver.warming import Warm, Warming

CHORES_SECONDS = 30
COMPARE_SECONDS = 86_400  # between two comparisons of the index with its mirror
RULES_SECONDS = 600  # between two questions about what the retention rules need
LEFTOVERS_KEPT_SECONDS = 86_400  # how long an unfinished download is worth resuming
SEARCH_SECONDS = 6 * 3600  # between two looks for what lacks bytes and nobody remembers
PAUSE_SECONDS = 0.0005  # between the small steps of what nobody waits for


@dataclass
class Parts:
    """What a daemon is made of, as far as who starts and ends it has to do with it."""

    tracking_uri: str
    store: Store
    cache: Cache
    sweeper: Sweeper
    sessions: Sessions
    register: Register
    freshness: Freshness
    budgets: Budgets
    stopping: Stopping
    roles: Roles
    audit: AuditLog
    handoff: Handoff
    retaining: Retaining
    recorder: Recorder
    gate: Gate
    fetching: Fetching
    service: Service
    scrubber: Scrubber
    pace: Pace
    meddling: Meddling
    warming: Warming
    healing: Healing
    entrance: Entrance
    overview: Overview
    ingesting: Ingesting
    sharing: Sharing | None
    threads: list[Upkeep] = field(default_factory=list)

    def become(self, config: Config) -> None:
        """Serves by another configuration from now on, which differs in what may change. Nothing here can fail."""
        self.sweeper.reservations.limits, self.sweeper.grace_seconds = _limits(config), config.eviction.grace
        self.freshness.become(_freshness(config))
        self.roles.access = config.access
        self.gate.become(config.grant, config.access.decisions_kept)
        self.fetching.hardlink_for_root = config.access.hardlink_for_root
        self.audit.become(config.audit)
        self.scrubber.every, self.pace.rate = config.scrub.every, round(config.scrub.rate.number)
        self.budgets.become(config.quotas)
        self.retaining.become(config.retention)
        self.sweeper.prepare = self.retaining.rejudge
        self.warming.become(_warm(config))
        self.ingesting.become(config.ingest)
        logs.become(config.log)


def assemble(config: Config, here: Place, uid: int) -> Parts:
    """A daemon that serves nobody yet. Raises CacheError or ConfigError where there cannot be one."""
    disk = Disk(here.root, shared=here.serves_all, doors=_doors(config))
    origin = origin_of(here, config, disk.root)
    store = Store(disk, open_index(disk, origin.name), time.monotonic)
    freshness = _freshness(config)
    register = Register(disk.at("leases"), boot_id())
    sweeper = sweeper_of(config, store)
    sessions = Sessions(sweeper.leases, register)
    sweeper.reap = sessions.reap
    budgets = Budgets(store, sweeper, config.quotas, time.monotonic, time.sleep)
    stopping = Stopping()
    clocks = time.time, time.monotonic
    sharing = None
    if config.shared.url:
        objects, of = objects_of(config.shared), (store, sweeper, budgets, freshness)
        sharing = joined(objects, config.shared, origin.name, *of, *clocks, stopping.wait)
    cache = Cache(store, origin, sweeper, budgets, freshness, time.time, sharing)

    roles = Roles(config.access, Identities(time.monotonic), uid, serves_all=here.serves_all)
    journal = Journal() if is_wanted(os.environ) and os.path.exists(JOURNAL_SOCKET) else None
    audit = AuditLog(here.audit_file, config.audit, journal, time.time, time.monotonic)
    wants = origin.name if config.access.check == "caller" else ""
    listener = listening.listener(here, "handoff.sock")
    handoff = Handoff(listener, sessions, store, roles.admit, audit.hello, stopping, time.monotonic, wants)

    retaining = Retaining(store.index, origin, config.retention, time.time, pause)
    sweeper.judge, sweeper.prepare = retaining.judge, retaining.rejudge
    recorder = Recorder(config.eviction.trace, store.index.holdings)
    cache.trace = recorder.note
    administration = Administration(cache, store, sweeper, budgets, roles, retaining.because, time.time)
    gate, for_root = _gate(config, origin, roles), config.access.hardlink_for_root
    fetching = Fetching(cache, store, sessions, sweeper, gate, stopping, serves=roles.admit, hardlink_for_root=for_root)
    about = {"tracking_uri": origin.name, "access_check": config.access.check}
    healing = Healing(cache, store.index, time.monotonic, pause)
    whom = "every user" if here.serves_all else f"uid {uid}"
    checkup = Checkup(store, sweeper, sessions, roles, origin, whom, healing.count, *clocks, sharing)
    entrance = Entrance(config.page.listen, time.monotonic)
    service = Service(
        cache, store, sessions, sweeper, administration, roles, fetching, audit, checkup, stopping, about, entrance
    )
    overview = Overview(
        cache,
        store,
        sessions,
        sweeper,
        budgets,
        roles,
        fetching,
        audit,
        service.counters,
        service.answered,
        origin.name,
        time.time,
        time.monotonic,
    )
    service.overview = overview

    pace = Pace(round(config.scrub.rate.number), time.monotonic, time.sleep)
    scrubber = Scrubber(store, config.scrub.every, pace, time.time)
    store.verifier.damaged = healing.want
    administration.damaged_count = healing.count
    meddling = Meddling(disk, store.index, store.verifier, lambda trees: _lost(trees, store, healing))
    warming = Warming(cache, store.index, _warm(config), time.time, time.monotonic, _ahead)
    ingesting = Ingesting(
        cache,
        store.index,
        origin,
        config.ingest,
        has_spare=sweeper.reservations.has_spare,
        would_drop=retaining.would_drop,
        clock=time.time,
        ticks=time.monotonic,
        pause=pause,
    )
    parts = Parts(
        origin.name,
        store,
        cache,
        sweeper,
        sessions,
        register,
        freshness,
        budgets,
        stopping,
        roles,
        audit,
        handoff,
        retaining,
        recorder,
        gate,
        fetching,
        service,
        scrubber,
        pace,
        meddling,
        warming,
        healing,
        entrance,
        overview,
        ingesting,
        sharing,
    )
    parts.threads = _upkeep(parts)
    return parts


def pause() -> None:
    """Lets others have their turn."""
    time.sleep(PAUSE_SECONDS)


def _upkeep(parts: Parts) -> list[Upkeep]:
    """What is done by itself: beside the disk, what waits for the origin keeps nothing else waiting."""
    store, sweeper, retaining = parts.store, parts.sweeper, parts.retaining

    def drop() -> None:
        store.index.pins.expire(time.time())
        store.leftovers.expire(time.time() - LEFTOVERS_KEPT_SECONDS)

    looks = itertools.count()

    def look() -> None:
        if next(looks):  # not at the start, when others want the processor
            look_through(store.index)
        compare(store.index)

    def mend() -> None:
        if store.mend_index():
            sweeper.prepare = retaining.rejudge

    return [
        Upkeep(
            "upkeep",
            [
                (1, sweeper.watch),
                (1, parts.recorder.write),
                (CHORES_SECONDS, sweeper.tidy),
                (CHORES_SECONDS, drop),
            ],
        ),
        Upkeep("retain", [(RULES_SECONDS, retaining.refresh), (1, retaining.look)]),
        *([Upkeep("share", [(RENEW_SECONDS, parts.sharing.tier.renew)])] if parts.sharing else []),
        Upkeep("warm", [(1, time.tzset), (1, parts.warming.look)]),  # the host may have been given another time zone
        Upkeep("history", [(SAMPLE_SECONDS, parts.overview.note)]),
        Upkeep("ingest", [(1, parts.ingesting.look)]),
        Upkeep("scrub", [(COMPARE_SECONDS, look), (1, parts.scrubber.look)]),
        Upkeep(
            "heal",
            [(1, mend), (1, parts.meddling.look), (1, parts.healing.look), (SEARCH_SECONDS, parts.healing.search)],
        ),
    ]


def _lost(trees: list[str], store: Store, healing: Healing) -> None:
    store.lost_manifests(trees)
    healing.want(store.index.names_of(trees))


def _doors(config: Config) -> Doors:
    if not config.access.views:
        return Doors.SHUT
    return Doors.OPEN if config.access.check == "none" else Doors.GUARDED


def _limits(config: Config) -> Limits:
    return Limits(config.store.capacity, config.store.min_free, config.eviction.high, config.eviction.low)


def _freshness(config: Config) -> Freshness:
    told = config.origin
    return Freshness(told.relist_after, told.alias_ttl, min(told.stale_after, told.unreachable_after))


def _warm(config: Config) -> list[Warm]:
    return [Warm(one.uri, one.every, Selection.of(one.include, one.exclude), one.at) for one in config.warm]


def _ahead(at: float) -> float:
    """How many seconds the host's local time is ahead of UTC at a moment."""
    return time.localtime(at).tm_gmtoff


def sweeper_of(config: Config, store: Store) -> Sweeper:
    """The sweeper of a store, as a configuration wants it."""
    told = config.eviction
    clocks = Clocks(time.time, time.monotonic, pause, Rests(time.thread_time, time.sleep))
    policy = POLICIES[told.policy]
    return Sweeper(store, Leases(time.monotonic), Reservations(store, _limits(config)), policy, told.grace, clocks)


def origin_of(here: Place, config: Config, root: str) -> MlflowOrigin:
    """The tracking server of a configuration, and what it names. Raises ConfigError.

    Args:
        root: the store's folder, in which no artifact lies.
    """
    try:
        return MlflowOrigin(
            here.tracking_uri,
            config.origin.unreachable_after,
            forbidden=root,
            world_only=here.serves_all,
            ticks=time.monotonic,
            clock=time.time,
            local_roots=config.origin.local_roots,
        )
    except Exception as error:  # noqa: BLE001 - whatever MLflow, or a plugin of it for this scheme, has to say
        raise ConfigError(
            f"MLflow cannot use the tracking URI {without_credentials(here.tracking_uri)}:"
            f" {without_secrets(str(error)) or type(error).__name__} Write MLFLOW_TRACKING_URI, or [origin]"
            " tracking_uri in the configuration, as in http://mlflow.example:5000."
        ) from None


def _gate(config: Config, origin: MlflowOrigin, roles: Roles) -> Gate:
    told = config.access
    if told.check == "caller" and not origin.name.startswith(("http://", "https://")):
        raise ConfigError(
            f'[access] check = "caller" needs a tracking server that can be asked over HTTP, and this is {origin.name}.'
            ' Write check = "rules" with [[grant]]s, or "none".'
        )
    return Gate(
        origin,
        asks_as_caller=told.check == "caller",
        grants=config.grant,
        kept_seconds=told.decisions_kept,
        who=lambda peer: roles.identities.of(peer).caller,
        is_administrator=lambda peer: ADMINISTRATOR in roles.of(peer),
        ticks=time.monotonic,
    )
