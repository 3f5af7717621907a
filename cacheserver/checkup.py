"""What the daemon finds when somebody asks the doctor: of itself, of the tracking server, of the caller's standing.

Law of this file: it leaves nothing changed and ends within its time. A caller hears of others only what `stats` and
`whoami` tell everybody, and of logins only of the caller's own; operators hear of the daemon's.
"""

from __future__ import annotations

import dataclasses
import email.utils
import os
import platform
import resource
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from artifactcache.findings import NOTE, OK, PROBLEM, Finding
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import __version__, findings
from cacheserver.looking import Looked
from cacheserver.probing import is_read_only
from cacheserver.quotas import Quota
from cacheserver.roles import OPERATOR, Roles
from cacheserver.sessions import Session, Sessions
from cacheserver.sharing import Sharing
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper

LOOK_SECONDS_MAX = 3.0  # of each of the two questions to the tracking server
CHECKUPS_MAX, CHECKUPS_PER_USER_MAX = 8, 2  # at a time, the last one for who has none: each asks the tracking server
PACKAGES = ("grpcio", "protobuf", "mlflow-skinny")
# A question that every tracking server answers, at no cost, and only to whoever is logged in where that is needed.
_LOGIN_PATH = "/api/2.0/mlflow/experiments/get?experiment_id=0"
_HEALTH_PATH = "/health"
_CALLERS = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where the job runs; the rows"
    " about your own credentials say what was found"
)
_DAEMONS = (
    "give the daemon a login that counts: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"
    " MLFLOW_TRACKING_TOKEN, in its environment (/etc/default/cacheserver)"
)
SHARED_TODO = (
    "the origin is asked meanwhile. Look at the object store, at [shared] in the configuration, and at the credentials"
    " in the daemon's environment"
)


class Tracking(Protocol):
    """The tracking server, as far as it is looked at."""

    @property
    def name(self) -> str:
        """Its URI, without credentials."""

    def is_away(self) -> bool:
        """Whether it is known not to answer."""

    def look(self, path: str, headers: dict[str, str] | None, patience: float, owner: int) -> Looked:
        """What it says to a question of no consequence."""


class Checkup:
    """For any caller.

    Args:
        place: whom the daemon serves, in words.
        damaged_count: how many artifacts lack bytes.
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        store: Store,
        sweeper: Sweeper,
        sessions: Sessions,
        roles: Roles,
        tracking: Tracking,
        place: str,
        damaged_count: Callable[[], int],
        clock: Callable[[], float],
        ticks: Callable[[], float],
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing
        self._store = store
        self._sweeper = sweeper
        self._sessions = sessions
        self._roles = roles
        self._tracking = tracking
        self._place = place
        self._damaged_count = damaged_count
        self._clock = clock
        self._ticks = ticks
        self._turns = Quota("checkups", per_user=CHECKUPS_PER_USER_MAX, total=CHECKUPS_MAX, leaves_some=True)

    def reply(self, session: Session, *, hardlink_for_root: bool) -> pb.CheckupReply:
        """Everything, for one caller. Raises QuotaExceeded."""
        with self._turns.one(session.peer.uid):
            told = [pb.Finding(**dataclasses.asdict(one)) for one in self._findings(session)]
            return pb.CheckupReply(findings=told, now=self._clock(), hardlink_for_root=hardlink_for_root)

    def _findings(self, session: Session) -> Iterator[Finding]:
        yield from self._daemon()
        yield from self._identity(session)
        yield from self._origin(session)
        yield from self._shared()
        yield from self._disk()
        yield from self._limits(session)

    def _daemon(self) -> Iterator[Finding]:
        packages = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
        yield Finding(
            "daemon",
            OK,
            f"cacheserver {__version__} serves {self._place}; Python {platform.python_version()}, {packages}",
        )
        if self._store.index.is_damaged:
            yield Finding(
                "daemon", PROBLEM, "the index is damaged and being made anew", "wait a moment; its log says how it goes"
            )
        elif count := self._damaged_count():
            yield Finding(
                "daemon",
                NOTE,
                f"{count} artifacts lack bytes that were wrong or gone, and are being fetched again",
                "`artifactcache verify` says which; where it happens again, look at the disk",
            )

    def _shared(self) -> Iterator[Finding]:
        """Tries the shared tier, within the time that it has."""
        if self._sharing is None:
            return
        name = self._sharing.tier.objects.name
        if trouble := self._sharing.look():
            yield Finding("shared", PROBLEM, trouble, SHARED_TODO)
        else:
            waiting = self._sharing.publishing.count() if self._sharing.publishing else None
            told = "only read" if waiting is None else f"{waiting} trees wait to be written there"
            yield Finding("shared", OK, f"the shared tier {name} answers; {told}")

    def _identity(self, session: Session) -> Iterator[Finding]:
        one, peer, access = self._roles.identities.of(session.peer), session.peer, self._roles.access
        yield from findings.identity(
            peer.uid, one.caller.user, self._roles.of(peer), is_named=one.is_named, is_told=one.is_told
        )
        views = "" if access.views else "; views are given to nobody"
        yield Finding("access", OK, f'[access] check = "{access.check}"{views}')

    def _origin(self, session: Session) -> Iterator[Finding]:
        name, access = self._tracking.name, self._roles.access
        if not name.startswith(("http://", "https://")):
            yield Finding("tracking server", OK, f"{name} is no server but a store of MLflow's, which is read directly")
            return
        began, at = self._ticks(), self._clock()
        looked = self._tracking.look(_HEALTH_PATH, None, LOOK_SECONDS_MAX, session.peer.uid)
        seconds = self._ticks() - began
        if looked.unasked:
            yield from findings.unasked("tracking server", looked.unasked)
            return
        yield from findings.tracking(name, looked.trouble, looked.status, seconds)
        if looked.trouble:
            return
        if self._tracking.is_away():
            yield Finding("tracking server", NOTE, "it was away until a moment ago; what is held was served meanwhile")
        date = _seconds_of(looked.date)
        yield from findings.clock(None if date is None else date - (at + seconds / 2))
        headers = dict(session.credentials.headers) if access.check == "caller" else None
        if headers is None and OPERATOR not in self._roles.of(session.peer):
            return
        asked = self._tracking.look(_LOGIN_PATH, headers, LOOK_SECONDS_MAX, session.peer.uid)
        if asked.unasked:
            yield from findings.unasked("credentials", asked.unasked)
        elif headers is not None:
            yield from findings.login("the caller", asked.status, bool(headers), _CALLERS)
        else:
            yield from findings.login("the daemon", asked.status, None, _DAEMONS)

    def _disk(self) -> Iterator[Finding]:
        found = os.statvfs(self._store.root)
        yield from findings.disk(
            self._sweeper.reservations.fill(),
            self._sweeper.reservations.limits,
            is_read_only=is_read_only(self._store.root),
            root=self._store.root,
        )
        yield from findings.inodes(found.f_files, found.f_favail)

    def _limits(self, session: Session) -> Iterator[Finding]:
        yield from findings.open_files(len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        for what, used, most in self._sessions.standing(session.peer.uid):
            yield from findings.limit(what, used, most, "end processes that need their artifacts no longer")
        if not self._store.watches():
            yield Finding(
                "limits",
                NOTE,
                "the daemon may watch no folders (inotify), so that large views are looked at file by file each time",
                "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (sysctl)",
            )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _seconds_of(date: str) -> float | None:
    """A date of HTTP's, in seconds since the epoch; None where it is none."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
