"""A house behind its two sockets, as the daemon puts them together, and people who call there by hand."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cacheserver import server
from cacheserver.administration import Administration
from cacheserver.audit import AuditLog
from cacheserver.checkup import Checkup
from cacheserver.entrance import Entrance
from cacheserver.fetching import Fetching
from cacheserver.gate import Gate
from cacheserver.handoff import Handoff
from cacheserver.identities import Identities
from cacheserver.roles import Roles
from cacheserver.service import Service
from cacheserver.sessions import Peer, Session, Sessions
from cacheserver.settings import AccessConfig, AuditConfig
from cacheserver.stopping import Stopping
from tests.rig.until import until
from tests.unit.house import House, open_gate


class Served:
    """A house that is served at a folder of its own, beside which its audit log is.

    Args:
        access: of a daemon for all users; None for one that serves its own user.
        ruled: what retention rules say of a tree.
    """

    def __init__(
        self,
        house: House,
        folder: Path,
        *,
        gate: Gate | None = None,
        access: AccessConfig | None = None,
        ruled: Callable[[str], tuple[str, ...]] = lambda tree: (),
    ) -> None:
        folder.mkdir()
        self.house = house
        self.folder = folder
        self.log = folder.parent / "audit.jsonl"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.fsencode(folder / "handoff.sock"))
        listener.listen(100)
        self.sessions = Sessions(house.leases)
        roles = Roles(access or AccessConfig(), Identities(time.monotonic), os.geteuid(), serves_all=access is not None)
        self.audit = AuditLog(str(self.log), AuditConfig(), None, time.time, time.monotonic)
        stopping = Stopping()
        self._handoff = Handoff(
            listener, self.sessions, house.store, roles.admit, self.audit.hello, stopping, time.monotonic
        )
        administration = Administration(
            house.cache, house.store, house.sweeper, house.budgets, roles, ruled, lambda: house.now
        )
        self.fetching = Fetching(
            house.cache,
            house.store,
            self.sessions,
            house.sweeper,
            gate or open_gate(),
            stopping,
            serves=roles.admit,
            hardlink_for_root=True,
        )
        service = Service(
            house.cache,
            house.store,
            self.sessions,
            house.sweeper,
            administration,
            roles,
            self.fetching,
            self.audit,
            Checkup(
                house.store,
                house.sweeper,
                self.sessions,
                roles,
                cast(Any, house.origin),
                "everybody",
                lambda: 0,
                lambda: house.now,
                time.monotonic,
            ),
            stopping,
            {},
            Entrance("", time.monotonic),
        )
        self._server = server.serve(service, str(folder / "cache.sock"))
        self.audit.start()
        self._handoff.start()
        self._server.start()

    def stop(self) -> None:
        """Serve no longer."""
        self._handoff.stop()
        self._server.stop(0).wait()
        self.audit.stop()

    def session(self, uid: int, login: str = "") -> Session:
        """A session of any user, as if the kernel had attested that one, with a login for the tracking server."""
        session = self.sessions.open(Peer(uid, uid, os.getpid()))
        if login:
            self.sessions.present(session, {"Authorization": login})
        return session

    def attempts(self, count: int) -> list[dict[str, Any]]:
        """The audit log, once it has so many lines."""
        until(lambda: self.log.exists() and self.log.read_bytes().count(b"\n") >= count, f"{count} lines")
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]
