"""What operators do with what is held: pin it, let it go, ask why it is there, and on whose account.

Law of this file: who may do it is asked first; a name that moves is resolved at the origin, as in a fetch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from artifactcache.errors import CacheError, NotFound
from cacheserver.answers import user_name
from cacheserver.budgets import Budgets, Usage
from cacheserver.cache import Cache
from cacheserver.explaining import Circumstances
from cacheserver.index import Index
from cacheserver.pins import Pin
from cacheserver.roles import ADMINISTRATOR, OPERATOR, Roles
from cacheserver.selection import Selection
from cacheserver.sessions import Peer
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper, Swept
from cacheserver.uris import MOVING, Artifact
from cacheserver.words import Held


class Administration:
    """Pins, sweeps, explanations and accounts.

    Args:
        ruled: what retention rules say of a tree, a sentence each.
        clock: seconds since the epoch.

    Attributes:
        damaged_count: how many artifacts lack bytes that were wrong or gone.
    """

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sweeper: Sweeper,
        budgets: Budgets,
        roles: Roles,
        ruled: Callable[[str], tuple[str, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._store = store
        self._index: Index = store.index
        self._sweeper = sweeper
        self._budgets = budgets
        self._roles = roles
        self._ruled = ruled
        self._clock = clock
        self.damaged_count: Callable[[], int] = lambda: 0

    def pin(self, peer: Peer, asked: str, version: Artifact, selection: Selection, seconds: float) -> tuple[Held, Pin]:
        """Pins an artifact that is held, for some seconds; 0 without end. Raises PermissionDenied, NotFound.

        Args:
            asked: the URI that it is pinned by.
            version: what that stands for.
        """
        self._roles.require(peer, OPERATOR, "pin")
        held, _ = self._cache.look_up(version, selection)
        now = self._clock()
        if not self._index.pins.pin(
            held.uri, held.selection, owner=peer.uid, asked=asked, now=now, seconds=seconds or math.inf
        ):
            raise NotFound(f"{held.uri} has just been evicted: fetch it again, then pin it.")
        mine = [pin for pin in self._index.pins.of_artifact(held.uri, held.selection, now) if pin.owner == peer.uid]
        return held, mine[0] if mine else Pin(held.uri, peer.uid, asked, now + seconds)

    def unpin(self, peer: Peer, asked: Artifact, selection: Selection) -> list[str]:
        """Ends the pins on an artifact, or by a name. Raises PermissionDenied, NotFound where there is none."""
        self._roles.require(peer, OPERATOR, "unpin")
        names = [asked.uri]
        if asked.kind in MOVING:
            with contextlib.suppress(
                CacheError
            ):  # the origin has no answer for the daemon's own account: then by what it was pinned by only
                names.append(self._cache.version_of(asked).artifact.uri)
        ended = self._index.pins.unpin(names, selection.key, self._clock())
        if not ended:
            raise NotFound(
                f"{asked.uri} is not pinned. `artifactcache ls` shows what is; what [[warm]] in the configuration keeps"
                " is ended there."
            )
        return ended

    def sweep(self, peer: Peer, *, free_bytes: int, dry_run: bool) -> Swept:
        """Plans a sweep and, unless it is a dry run, executes it. Raises PermissionDenied."""
        self._roles.require(peer, OPERATOR, "sweep")
        return self._sweeper.sweep(free_bytes=free_bytes, dry_run=dry_run)

    def explain(self, peer: Peer, asked: Artifact, selection: Selection) -> tuple[Held, Circumstances]:
        """All that decides over an artifact that is held. Raises NotFound.

        What is held as the same tree may be others' artifacts: whoever does not see all is told of no pin or rule that
        is about another name.
        """
        held, _ = self._cache.look_up(asked, selection)
        self._cache.record_uses()
        now, grace = self._clock(), self._sweeper.grace_seconds
        tree = self._index.holdings.tree(held.tree, now=now, young_since=now - grace)
        if tree is None:
            raise NotFound(f"{held.uri} has just been evicted.")
        before, length = self._index.holdings.place(tree)
        pins, sees_all = tuple(self._index.pins.of_tree(held.tree, now)), self._roles.sees_all(peer)
        if not sees_all:
            pins = tuple(pin for pin in pins if pin.uri == held.uri)
        leases = self._sweeper.leases
        return held, Circumstances(
            tree=tree,
            lease_count=leases.count(held.tree),
            is_leased=leases.is_leased(held.tree),
            pins=pins,
            owners=tuple(user_name(pin.owner) for pin in pins),
            ruled=self._ruled(held.tree) if sees_all else (),
            blobs=tuple(self._store.departures.prospects().blobs_of(held.tree)),
            place=before + 1,
            length=length,
            grace_seconds=grace,
            policy=self._sweeper.policy,
            now=now,
        )

    def shown(self, peer: Peer) -> list[Held]:
        """What somebody may know to be held: all of it, or what is on their own account."""
        self._cache.record_uses()
        held = self._index.asked()
        if self._roles.sees_all(peer):
            return held
        mine = self._index.ledger.trees(peer.uid)
        return [one for one in held if one.tree in mine]

    def usage(self, peer: Peer, *, everybody: bool) -> list[Usage]:
        """What is on somebody's own account, or on each, the fullest first. Raises PermissionDenied."""
        if everybody:
            self._roles.require(peer, ADMINISTRATOR, "see everybody's accounts")
        self._cache.record_uses()
        return self._budgets.usage(None if everybody else peer.uid)

    def admit_auditor(self, peer: Peer) -> None:
        """Raises PermissionDenied for whoever may not read the audit log."""
        self._roles.require(peer, OPERATOR, "read the audit log")
