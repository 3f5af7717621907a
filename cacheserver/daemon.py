"""The daemon, put together: reads top to bottom. The one room that reads the environment, the clock and signals.

Law of this file: everything is made here and handed down; nothing below makes its own.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import socket
import time

from artifactcache.errors import CacheError
from cacheserver import lock
from cacheserver.administration import Administration
from cacheserver.advice import warnings
from cacheserver.bringing import Freshness
from cacheserver.budgets import Budgets
from cacheserver.cache import Cache
from cacheserver.config import Config, ConfigError
from cacheserver.disk import Disk
from cacheserver.eviction import POLICIES
from cacheserver.handoff import Handoff
from cacheserver.index import Index
from cacheserver.leases import Leases
from cacheserver.operators import Operators
from cacheserver.origin import MlflowOrigin
from cacheserver.partials import boot_id
from cacheserver.place import Place, place
from cacheserver.recorder import Recorder
from cacheserver.refusals import without_credentials, without_secrets
from cacheserver.register import Register
from cacheserver.reservations import Reservations
from cacheserver.retaining import Retaining
from cacheserver.selection import Selection
from cacheserver.service import CONNECTIONS_MAX, Service, serve
from cacheserver.sessions import Peer, Sessions
from cacheserver.space import Limits
from cacheserver.store import Store
from cacheserver.sweeper import Clocks, Sweeper
from cacheserver.upkeep import Upkeep
from cacheserver.warming import Warm, Warming

SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), without its NUL
STOP_SECONDS = 5
CHORES_SECONDS = 30
RULES_SECONDS = 600  # between two questions about what the retention rules need
ARRIVALS_KEPT_SECONDS = 86_400  # how long an unfinished download is worth resuming
PAUSE_SECONDS = 0.0005  # between the small steps of what nobody waits for

_log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Raises CacheError or ConfigError where it cannot start."""
    stop = stop_signals()
    uid = os.geteuid()
    here = place(config, dict(os.environ), uid)
    os.umask(0o077)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the usual 1,024 are for programs that use select(2)

    _take_socket_folder(here)
    disk = Disk(here.root, shared=here.serves_all)
    origin = _origin(here, config, disk)
    store = Store(disk, Index(disk.index_path, origin.name), time.monotonic)
    told = config.origin
    freshness = Freshness(told.relist_after, told.alias_ttl, min(told.stale_after, told.unreachable_after))
    register = Register(disk.at("leases"), boot_id())
    sweeper = _sweeper(config, store)
    sessions = Sessions(sweeper.leases, register)
    sweeper.reap = sessions.reap
    budgets = Budgets(store, sweeper, config.quotas, time.monotonic, time.sleep)
    cache = Cache(store, origin, sweeper, budgets, freshness, time.time)

    def admits(peer: Peer) -> bool:
        return here.serves_all or peer.uid == uid

    handoff = Handoff(_listener(here, "handoff.sock"), sessions, store, admits)
    about = {"tracking_uri": origin.name, "access_check": config.access.check}
    operators = Operators(config.access.operators, uid)
    retaining = Retaining(store.index, origin, config.retention, time.time, _pause)
    sweeper.judge, sweeper.prepare = retaining.judge, retaining.rejudge
    recorder = Recorder(config.eviction.trace, store.index.holdings)
    cache.trace = recorder.note
    administration = Administration(cache, store, sweeper, operators.admits, retaining.because, time.time)
    service = Service(
        cache,
        store,
        sessions,
        sweeper,
        administration,
        about,
        hardlink_for_root=config.access.hardlink_for_root,
    )
    address = _fresh_path(here, "cache.sock")
    # Nothing tells who is at the other end of cache.sock: its connections get a share, for all users together.
    server = serve(service, address, CONNECTIONS_MAX if most == resource.RLIM_INFINITY else most // 4)
    handoff.start()
    server.start()
    os.chmod(address, 0o666 if here.serves_all else 0o600)
    _log.info(
        "serving %s from %s at %s, for %s",
        origin.name,
        disk.root,
        here.socket_dir,
        "every user" if here.serves_all else f"uid {uid}",
    )

    for words in warnings(config):
        _log.warning("%s", words)
    threads = _upkeep(config, store, sweeper, cache, retaining, recorder)
    for thread in threads:
        thread.start()
    select.select([stop], [], [])

    _log.info("stopping")
    server.stop(STOP_SECONDS).wait()
    register.close()  # before the connections: who loses one now has a view still, and the next daemon is to know
    handoff.stop()
    sweeper.stop()
    Upkeep.stop_all(threads)
    cache.close()
    recorder.write()
    store.index.close()
    logging.shutdown()
    # A download of MLflow's cannot be interrupted, and Python would wait for its thread. The locks on both folders end
    # with the process, not before: until then its threads may still write.
    os._exit(0)


def stop_signals() -> int:
    """A descriptor that can be read from when SIGTERM or SIGINT has come.

    A handler that takes a lock, as that of threading.Event does, could meet the main thread with the lock in its hand,
    and wait for ever. So the handler does nothing, and what C writes when a signal comes is what counts: at any moment,
    in any thread.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


def _pause() -> None:
    time.sleep(PAUSE_SECONDS)


def _sweeper(config: Config, store: Store) -> Sweeper:
    told = config.eviction
    limits = Limits(config.store.capacity, config.store.min_free, told.high, told.low)
    clocks = Clocks(time.time, time.monotonic, _pause)
    policy = POLICIES[told.policy]
    return Sweeper(store, Leases(time.monotonic), Reservations(store, limits), policy, told.grace, clocks)


def _origin(here: Place, config: Config, disk: Disk) -> MlflowOrigin:
    try:
        return MlflowOrigin(
            here.tracking_uri,
            config.origin.unreachable_after,
            forbidden=disk.root,
            world_only=here.serves_all,
            ticks=time.monotonic,
            local_roots=config.origin.local_roots,
        )
    except Exception as error:  # noqa: BLE001 - whatever MLflow, or a plugin of it for this scheme, has to say
        raise ConfigError(
            f"MLflow cannot use the tracking URI {without_credentials(here.tracking_uri)}:"
            f" {without_secrets(str(error)) or type(error).__name__} Write MLFLOW_TRACKING_URI, or [origin]"
            " tracking_uri in the configuration, as in http://mlflow.example:5000."
        ) from None


def _upkeep(
    config: Config,
    store: Store,
    sweeper: Sweeper,
    cache: Cache,
    retaining: Retaining,
    recorder: Recorder,
) -> list[Upkeep]:
    """What is done by itself: beside the disk, what waits for the origin keeps nothing else waiting."""
    warming = Warming(
        cache,
        store.index,
        [Warm(one.uri, one.every, Selection.of(one.include, one.exclude)) for one in config.warm],
        time.time,
        time.monotonic,
    )

    def drop() -> None:
        store.index.pins.expire(time.time())
        store.departures.drop_arrivals(time.time() - ARRIVALS_KEPT_SECONDS)

    return [
        Upkeep(
            "upkeep",
            [
                (1, sweeper.watch),
                (1, recorder.write),
                (CHORES_SECONDS, sweeper.tidy),
                (CHORES_SECONDS, drop),
            ],
        ),
        Upkeep("retain", [(RULES_SECONDS, retaining.refresh), (1, retaining.look)]),
        Upkeep("warm", [(1, warming.look)]),
    ]


def _take_socket_folder(here: Place) -> None:
    """Makes the sockets' folder and takes it for this process: gRPC itself would share a socket with another daemon."""
    folder = here.socket_dir
    longest = os.path.join(folder, "handoff.sock")
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        raise CacheError(
            f"The socket path {longest} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that Linux takes."
        )
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        owner = os.stat(folder).st_uid
        if owner not in (0, os.geteuid()):
            raise CacheError(f"The sockets' folder {folder} belongs to uid {owner}, who could listen in your place.")
        if owner == os.geteuid():
            os.chmod(folder, 0o755 if here.serves_all else 0o700)
        lock.take(folder)
    except OSError as error:
        raise CacheError(f"The sockets' folder {folder} cannot be used: {error.strerror}.") from None


def _fresh_path(here: Place, name: str) -> str:
    """A socket's path, without what an earlier daemon left there."""
    path = os.path.join(here.socket_dir, name)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CacheError(f"{path} is in the way of the daemon's socket: {error.strerror}. Remove it.") from None
    return path


def _listener(here: Place, name: str) -> socket.socket:
    path = _fresh_path(here, name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(path)
        os.chmod(path, 0o666 if here.serves_all else 0o600)
        listener.listen(1024)
    except OSError as error:
        raise CacheError(f"The socket {path} cannot be made: {error.strerror}.") from None
    return listener
