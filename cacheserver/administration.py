"""What operators do with what is held: pin it, let it go, ask why it is there.

Law of this file: who may do it is asked first; a name that moves is resolved at the origin, as in a fetch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from artifactcache.errors import NotFound, OriginUnavailable, PermissionDenied
from cacheserver.answers import user_name
from cacheserver.cache import Cache
from cacheserver.explaining import Circumstances
from cacheserver.index import Index
from cacheserver.pins import Pin
from cacheserver.selection import Selection
from cacheserver.sessions import Peer
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper, Swept
from cacheserver.uris import MOVING, Artifact
from cacheserver.words import Held


class Administration:
    """Pins, sweeps and explanations.

    Args:
        is_operator: whether somebody may pin and sweep.
        ruled: what retention rules say of a tree, a sentence each.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        cache: Cache,
        store: Store,
        sweeper: Sweeper,
        is_operator: Callable[[Peer], bool],
        ruled: Callable[[str], tuple[str, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._store = store
        self._index: Index = store.index
        self._sweeper = sweeper
        self._is_operator = is_operator
        self._ruled = ruled
        self._clock = clock

    def pin(self, peer: Peer, asked: Artifact, selection: Selection, seconds: float) -> tuple[Held, Pin]:
        """Pins an artifact that is held, for some seconds; 0 without end. Raises PermissionDenied, NotFound."""
        self._admit(peer, "pin")
        held, _ = self._cache.look_up(asked, selection)
        now = self._clock()
        if not self._index.pins.pin(
            held.uri, held.selection, owner=peer.uid, asked=asked.uri, now=now, seconds=seconds or math.inf
        ):
            raise NotFound(f"{held.uri} has just been evicted: fetch it again, then pin it.")
        mine = [pin for pin in self._index.pins.of_artifact(held.uri, held.selection, now) if pin.owner == peer.uid]
        return held, mine[0] if mine else Pin(held.uri, peer.uid, asked.uri, now + seconds)

    def unpin(self, peer: Peer, asked: Artifact, selection: Selection) -> list[str]:
        """Ends the pins on an artifact, or by a name. Raises PermissionDenied, NotFound where there is none."""
        self._admit(peer, "unpin")
        names = [asked.uri]
        if asked.kind in MOVING:
            with contextlib.suppress(NotFound, OriginUnavailable):  # then by what it was pinned by only
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
        self._admit(peer, "sweep")
        return self._sweeper.sweep(free_bytes=free_bytes, dry_run=dry_run)

    def explain(self, asked: Artifact, selection: Selection) -> tuple[Held, Circumstances]:
        """All that decides over an artifact that is held. Raises NotFound."""
        held, _ = self._cache.look_up(asked, selection)
        self._cache.record_uses()
        now, grace = self._clock(), self._sweeper.grace_seconds
        tree = self._index.holdings.tree(held.tree, now=now, young_since=now - grace)
        if tree is None:
            raise NotFound(f"{held.uri} has just been evicted.")
        before, length = self._index.holdings.place(tree)
        pins = tuple(self._index.pins.of_tree(held.tree, now))
        leases = self._sweeper.leases
        return held, Circumstances(
            tree=tree,
            lease_count=leases.count(held.tree),
            is_leased=leases.is_leased(held.tree),
            pins=pins,
            owners=tuple(user_name(pin.owner) for pin in pins),
            ruled=self._ruled(held.tree),
            blobs=tuple(self._store.departures.blobs_of(held.tree)),
            place=before + 1,
            length=length,
            grace_seconds=grace,
            policy=self._sweeper.policy,
            now=now,
        )

    def _admit(self, peer: Peer, what: str) -> None:
        if not self._is_operator(peer):
            raise PermissionDenied(
                f"Only operators may {what}: root, the daemon's own user, and those that [access] operators in its"
                f" configuration names. You are uid {peer.uid}."
            )
