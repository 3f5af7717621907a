"""The daemon, from its beginning to its end. The one room that reads the environment and hears of signals.

Law of this file: nobody is served before everything is there; and at the end each part goes after those who need it.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from cacheserver import listening
from cacheserver.advice import warnings
from cacheserver.assembly import Parts, assemble
from cacheserver.ending import Ending
from cacheserver.health import Health
from cacheserver.metrics import Accounts, Metrics
from cacheserver.notify import Notify
from cacheserver.page import Site
from cacheserver.peers import Peers
from cacheserver.place import place
from cacheserver.pulse import Pulse
from cacheserver.register import sees_others
from cacheserver.reloading import Reloading
from cacheserver.scraping import Page
from cacheserver.server import CONNECTIONS_MAX, Server, serve
from cacheserver.settings import Config
from cacheserver.signals import Signals
from cacheserver.upkeep import Upkeep
from cacheserver.visitors import Visitors

STOP_SECONDS_MAX = 10  # the whole of it: then the process ends, whatever hangs
HAND_OVER_SECONDS_MAX = 5  # so long a hand-over that is under way may take to its end
LANDING_SECONDS_MAX = 2  # and so long a download that was broken off, to keep what is here
ANSWER_SECONDS_MAX = 1  # for the last answers to leave
PART_SECONDS_MAX = 3  # and each thread, or all of one kind, to end what it has begun
CLOSE_SECONDS = 2  # of the whole, which nobody else gets: what was used is written down, and the index closed
ACCOUNTS_SECONDS = 300  # between two times that all accounts are added up for the metrics
TWICE_SECONDS = 0.1  # timeout(1) sends its signal twice at once: that is no second one
# A hit takes several turns of the interpreter, and beside a thread that computes (a plan, a large manifest) each comes
# after so long: the usual 5 ms would be most of a hit's time.
TURN_SECONDS = 0.0005
_UNSEEN = (
    "/proc hides the processes of other users from the daemon (hidepid): which of them has a view is then known by its"
    " connection only, so that a view that is in use may be evicted once the daemon was started again. Mount /proc with"
    " gid= set to a group that the daemon is in, or without hidepid."
)

_log = logging.getLogger(__name__)


def run(config: Config, path: str, read: Callable[[str], Config]) -> None:
    """Serves until SIGTERM or SIGINT, and reads its configuration anew on SIGHUP and when the file changes.

    Args:
        path: the configuration's file, or empty.
        read: reads it. Raises ConfigError.

    Raises CacheError or ConfigError where it cannot start.
    """
    notify = Notify(os.environ, os.getpid())
    here = place(config, dict(os.environ), uid := os.geteuid())
    most = _settle_process()
    listening.take_folder(here)
    for_metrics = listening.tcp("metrics", config.metrics.listen) if config.metrics.listen else None
    for_page = listening.tcp("page", config.page.listen) if config.page.listen else None
    parts = assemble(config, here, uid)
    accounts = Accounts(parts.budgets, time.time) if config.metrics.accounts else None
    visitors = []
    if for_metrics:
        metrics = Page(Metrics(parts, accounts, time.time))
        visitors.append(Visitors("metrics", for_metrics, metrics.answer, time.monotonic))
    if for_page:
        site = Site(parts.entrance, parts.overview.of, parts.roles.admit)
        visitors.append(Visitors("page", for_page, site.answer, time.monotonic))
    address = listening.fresh_path(here, "cache.sock")
    connections_max = CONNECTIONS_MAX if most == resource.RLIM_INFINITY else min(most // 4, CONNECTIONS_MAX)
    # Only now: until then a signal ends the process as it stands, for the start may take long, and leaves nothing half.
    signals = Signals(hangup_ends=os.isatty(0))
    pulse = Pulse(parts.handoff.turns, notify.alive)
    health = _health(parts, pulse)
    server = serve(parts.service, address, connections_max, health.handlers())
    parts.audit.start()
    parts.handoff.start()
    server.start()
    listening.admit(here, address)
    status = (
        f"serving {parts.tracking_uri} from {here.root} at {here.socket_dir},"
        f" for {'every user' if here.serves_all else f'uid {uid}'}"
    )
    _log.info("%s", status)
    _warn(config, here.serves_all)

    reloading = Reloading(
        path,
        config,
        read=read,
        become=parts.become,
        begins=lambda: notify.reloading(time.monotonic_ns() // 1000),
        ends=lambda: notify.ready(status),
    )
    threads = [
        *parts.threads,
        Upkeep("reload", [(1, reloading.look)]),
        Upkeep("peers", [(1, Peers(address, connections_max, time.sleep).look)]),
        Upkeep("pulse", [(1, pulse.look), (1, health.look)]),
    ]
    if accounts:
        threads.append(Upkeep("accounts", [(ACCOUNTS_SECONDS, accounts.look)]))
    for each in visitors:
        each.start()
    parts.meddling.start()
    if parts.sharing and parts.sharing.publishing:
        parts.sharing.publishing.start()
    reloading.start()
    for thread in threads:
        thread.start()
    notify.ready(status)
    signals.wait(reloading.ask)

    _log.info("stopping")
    notify.stopping()
    threading.Thread(target=_end_in_any_case, args=(signals,), name="end", daemon=True).start()
    _end(parts, server, threads, [reloading.stop, *(each.stop for each in visitors)])


def _end(parts: Parts, server: Server, threads: list[Upkeep], stops: list[Callable[[], None]]) -> NoReturn:
    """Ends what is under way, each in its turn, and then the process."""
    cache, handoff, stopping, sessions = parts.cache, parts.handoff, parts.stopping, parts.sessions
    ending = Ending(STOP_SECONDS_MAX - CLOSE_SECONDS, time.monotonic)
    ending.of(
        (
            stopping.begin,
            *(thread.stop for thread in threads),
            *stops,
            parts.sweeper.stop,
            parts.scrubber.stop,
            parts.ingesting.stop,
            cache.stop,  # at once: whoever waits for the origin is told, and what is being downloaded is broken off
            lambda: ending.until(
                HAND_OVER_SECONDS_MAX,
                lambda: not (stopping.call_count() or handoff.hand_over_count() or sessions.hand_over_count()),
            ),
            lambda: ending.until(LANDING_SECONDS_MAX, lambda: not cache.download_count()),
            lambda: server.stop(ANSWER_SECONDS_MAX).wait(ending.left(2 * ANSWER_SECONDS_MAX)),
            # Before the connections: who loses one has a view still, and the next daemon is to know.
            parts.register.close,
            lambda: handoff.stop(ending.left(PART_SECONDS_MAX)),
            lambda: parts.audit.stop(ending.left(PART_SECONDS_MAX)),
            parts.meddling.stop,
            lambda: Upkeep.stop_all(threads, Ending(ending.left(PART_SECONDS_MAX), time.monotonic).left),
            cache.close,
            parts.recorder.write,
            parts.store.index.close,
            logging.shutdown,
        )
    )
    # A download of MLflow's cannot be interrupted, and Python would wait for its thread. The locks on both folders end
    # with the process, not before: until then its threads may still write.
    os._exit(0)


def _health(parts: Parts, pulse: Pulse) -> Health:
    def is_well() -> bool:
        return pulse.is_alive and not parts.store.index.is_damaged

    return Health(is_well, parts.stopping, parts.service.answered, time.monotonic)


def _settle_process() -> int:
    """What is the whole process's. Returns how many files it may open."""
    os.umask(0o077)
    sys.setswitchinterval(TURN_SECONDS)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the usual 1,024 are for programs that use select(2)
    return most


def _end_in_any_case(signals: Signals) -> None:
    """Ends the process where stopping takes too long, or with the second signal at once. The store stands either."""
    time.sleep(TWICE_SECONDS)
    signals.has_ended(0)
    end = time.monotonic() + STOP_SECONDS_MAX - TWICE_SECONDS
    while (left := end - time.monotonic()) > 0:
        if signals.has_ended(left):
            os._exit(1)
    _log.warning("not everything has ended within %g s: what is left is broken off", STOP_SECONDS_MAX)
    os._exit(0)


def _warn(config: Config, serves_all: bool) -> None:
    """Tells, once, of what works otherwise than who set it up will expect."""
    if serves_all and not sees_others():
        _log.warning("%s", _UNSEEN)
    for words in warnings(config):
        _log.warning("%s", words)
