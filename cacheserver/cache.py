"""The cache: an artifact in, what is held of it out, downloaded first where it must be.

Law of this file: whatever is given out has been checked a moment ago. Work of the origin happens in flights that belong
to nobody; nothing here waits while it holds a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

from artifactcache.errors import Corrupted, NoSpace, NotFound, OriginUnavailable
from cacheserver.bringing import Bringing, location
from cacheserver.budgets import Budgets
from cacheserver.errands import Ask, Errand, Freshness, Superseded, Vanished
from cacheserver.flights import Flight, Flights
from cacheserver.index import MissingBlobs
from cacheserver.origin import MlflowOrigin
from cacheserver.selection import Selection
from cacheserver.sharing import Sharing
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Spread, Tally
from cacheserver.uris import MOVING, Artifact
from cacheserver.uses import Uses
from cacheserver.words import Brought, Held, Manifest, Payer, Progress

FLIGHTS_MAX = 512  # artifacts being brought at a time; more than one user's calls can ask for
COMMIT_ATTEMPTS = 3
# What became of bringing: bytes came; all was here, as the origin said; it did not answer, but some is here; nothing.
OUTCOMES = ("brought", "shared", "checked", "stale", "failed")


@dataclass(frozen=True)
class Version:
    """What an artifact URI stands for.

    Attributes:
        artifact: without alias, stage or `latest`.
        stale: whether the origin could not be asked, and this is its last answer.
        is_new: whether what is remembered of this version was another one of the same name.
        stamp: when it was made; empty where the origin was not asked.
    """

    artifact: Artifact
    stale: bool = False
    is_new: bool = False
    stamp: str = ""


class Coming(NamedTuple):
    """An artifact that is being brought, or looked for at the origin: how far that is, in bytes with those of files
    that are being written, how many calls wait for it, and the user IDs of those who have asked."""

    uri: str
    selection: str
    progress: Progress
    bytes_done: int
    waiting_count: int
    users: frozenset[int]


class Cache:
    """Artifacts of one origin, in one store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        origin: MlflowOrigin,
        sweeper: Sweeper,
        budgets: Budgets,
        freshness: Freshness,
        clock: Callable[[], float],
        sharing: Sharing | None = None,
    ) -> None:
        self.sharing = sharing
        self._store = store
        self._index = store.index
        self._versions = store.index.versions
        self._origin = origin
        self._freshness = freshness
        self._clock = clock
        self._sweeper = sweeper
        self._budgets = budgets
        self._bringing = Bringing(store, sweeper, budgets, freshness, clock, sharing)
        self._pool = ThreadPoolExecutor(max_workers=FLIGHTS_MAX, thread_name_prefix="flight")
        self._flights: Flights[Brought] = Flights(self._pool)
        self._uses = Uses()
        self.bring_seconds = Spread(OUTCOMES)
        self.from_origin = Tally((outcome,) for outcome in OUTCOMES)
        self.trace: Callable[[str, float], None] = lambda tree, at: None  # told of each fetch
        sweeper.note_uses = self.record_uses

    def stop(self) -> None:
        """Brings nothing any more: whoever waits for the origin gets DaemonUnavailable."""
        self._bringing.close()
        self._origin.close()

    def close(self) -> None:
        """Brings nothing any more, and writes down what was used."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.record_uses()

    # -- the verbs --------------------------------------------------------------------------------------------------

    def seen_by(self, uid: int, headers: Mapping[str, str] | None) -> MlflowOrigin:
        """The origin as a user sees it who sends these headers; None for the daemon's own account."""
        origin = self._origin.asked_by(uid)
        return origin if headers is None else origin.as_caller(headers)

    def version_of(self, asked: Artifact, *, refresh: bool = False, origin: MlflowOrigin | None = None) -> Version:
        """The artifact without alias, stage or `latest`: the origin is asked each time, unless told otherwise.

        Where the origin does not answer, what it said the last time. Raises errors of ours.

        Args:
            origin: as whoever asks sees it; None for the daemon's own account.
        """
        origin = origin or self._origin
        if asked.kind not in MOVING:
            return Version(asked)
        remembered = None if refresh else self._versions.alias(asked.base)
        if remembered and 0 <= self._clock() - remembered[1] < self._freshness.alias_ttl:
            return Version(asked.at_version(remembered[0]))
        patience = self._freshness.stale_after if remembered else None
        try:
            artifact, stamp = origin.version_of(asked, patience=patience)
        except OriginUnavailable:
            if remembered is None:
                raise
            return Version(asked.at_version(remembered[0]), stale=True)
        except NotFound:
            if origin.is_own and self._versions.alias(asked.base):
                with contextlib.suppress(NoSpace):
                    self._versions.forget_alias(asked.base)
            raise
        if remembered is None or remembered[0] != artifact.selector or self._freshness.alias_ttl:
            with contextlib.suppress(NoSpace):  # an answer for bad times is not worth an error
                self._versions.record_alias(asked.base, artifact.selector, self._clock())
        version = Version(artifact, stamp=stamp)
        return replace(version, is_new=self.is_another(version))

    def is_another(self, version: Version) -> bool:
        """Whether what is remembered of a version is another one of the same name."""
        resolved = self._versions.resolved(version.artifact.base) if version.stamp else None
        return resolved is not None and resolved.stamp != version.stamp

    def is_elsewhere(self, artifact: Artifact, roots: Collection[str], parts: frozenset[str] | None) -> bool:
        """Whether what is remembered of an artifact lies elsewhere than a caller was shown: then it is another one of
        the same name, or has more in it, or less.

        Args:
            roots: of a version of a registered model: bare URIs.
            parts: of a run the bare URIs of its logged models; None where nobody looked.
        """
        resolved = self._versions.resolved(artifact.base) if roots or parts is not None else None
        if resolved is None:
            return False
        if roots:
            return set(roots) != {resolved.root}
        return parts is not None and parts != {root for _, root in resolved.overlays}

    def is_forgotten(self, artifact: Artifact, selection: Selection) -> bool:
        """Whether what is held of an artifact is only kept, by a pin or a rule: the origin calls something else by its
        name by now, or has it no more."""
        held = self._index.held(artifact.uri, selection.key)
        return held is not None and held.checked_at <= 0

    def stands(self, artifact: Artifact, selection: Selection, tree: str) -> bool:
        """Whether an artifact is held as this tree, and not only kept."""
        held = self._index.held(artifact.uri, selection.key)
        return held is not None and held.checked_at > 0 and held.tree == tree

    def find(self, artifact: Artifact, selection: Selection, *, view: bool) -> Brought | None:
        """What is held, where it is complete, sound and needs no question to the origin.

        Args:
            view: whether the view is what will be handed out: then the view is what is checked.
        """
        held = self._index.held(artifact.uri, selection.key)
        if held is None or not self._bringing.evidence.trusts(held) or self._origin.guards(artifact):
            return None
        if not (view and self._store.view_is_sound(held.tree)) and not self._sound(held):
            return None
        return Brought(held)

    def bring(
        self,
        artifact: Artifact,
        selection: Selection,
        ask: Ask,
        payer: Payer | None = None,
        origin: MlflowOrigin | None = None,
        *,
        unasked: bool = False,
    ) -> tuple[Flight[Brought], bool, bool]:
        """Brings an artifact into the store, with everybody who asks for the same at the same time.

        Each has to `leave` the flight. Returns it, whether this call started it, and whether its answer may be older
        than this call: where that is of a running run, it has to be asked for again.

        Args:
            payer: on whose account it comes, where nobody else is bringing it already; None for the daemon's own.
            origin: as whoever asks sees it; None for the daemon's own account.
            unasked: whether nobody waits for it (`Errand`). Who asks for the same has a flight of his own, which waits
                for no room, and shares what this one downloads.
        """
        origin = origin or self._origin
        resolved = self._versions.resolved(artifact.base)
        fresh = ask is not Ask.WHAT_IS_DUE or (resolved is not None and not resolved.settled)
        flight, started = self._flights.join(
            (artifact.uri, selection.key, ask, unasked),
            partial(self._measured, partial(self._bring, artifact, selection, ask, payer, origin, unasked)),
            fresh=fresh,
        )
        if payer:
            flight.users.add(payer.uid)
        if started:
            flight.future.add_done_callback(lambda _: self._ended(flight))
        return flight, started, not (started or fresh)

    def _ended(self, flight: Flight[Brought]) -> None:
        if not flight.waiting:  # all who had joined have given up
            self._sweeper.handed_over(flight.progress)

    def leave(self, flight: Flight[Brought]) -> None:
        """The caller of `bring` has leased what it gave, or does not want it any more."""
        if self._flights.leave(flight):
            self._sweeper.handed_over(flight.progress)

    def look_up(self, asked: Artifact, selection: Selection) -> tuple[Held, Manifest]:
        """What is held of an artifact, without asking for its bytes. Raises NotFound."""
        artifact = self.version_of(asked).artifact
        held = self._index.held(artifact.uri, selection.key)
        if held is not None and self._origin.guards(artifact):
            self._origin.listing(location(artifact), named_by_client=True)  # as a fetch does: may it be read by all?
        tree = self._store.tree(held.tree) if held else None
        if held is None or tree is None:
            raise NotFound(
                f"{artifact.uri} is not held{' with these patterns' if selection.key else ''}: fetch it first."
            )
        return held, tree.manifest

    def used(self, held: Held, payer: Payer, *, is_hit: bool) -> None:
        """An artifact is handed out to a user."""
        now = self._clock()
        self._uses.note((held.uri, held.selection), held.tree, payer.uid, now, is_hit=is_hit)
        self.trace(held.tree, now)
        self._budgets.meet(payer)

    def record_uses(self) -> None:
        """Writes down what was used since the last time: all of it, or nothing."""
        noted, members = self._uses.take(), self._budgets.members_met()
        if not noted.trees and not noted.users and not members:
            return
        try:
            with self._index.transaction():
                self._index.ledger.record_members(members)
                self._index.record_uses(noted.artifacts)
                self._index.rankings.used(noted.trees, self._sweeper.policy)
                self._index.ledger.charge(noted.users)
        except BaseException as error:
            self._uses.put_back(noted)
            if not isinstance(error, NoSpace):  # when a hit was is not worth an error: next time there may be room
                raise
            return
        self._budgets.recorded(members)
        with contextlib.suppress(NoSpace):
            self._sweeper.judge(list(noted.trees))  # what rules keep, they keep since its last use

    def flight_counts(self) -> tuple[int, int]:
        """How many have begun to bring something, and how many have waited for others who were bringing it."""
        return self._flights.begun_count, self._flights.joined_count

    def is_origin_away(self) -> bool:
        """Whether the tracking server is known not to answer."""
        return self._origin.is_away()

    def download_count(self) -> int:
        """How many artifacts are being brought."""
        return self._flights.count()

    def coming(self) -> list[Coming]:
        """What is being brought, the oldest first."""
        found = []
        for key, flight in self._flights.under_way():
            uri, selection, *_ = cast(tuple[str, str, Any], key)
            done = flight.progress.bytes_done + self._store.written(flight.progress)
            found.append(Coming(uri, selection, flight.progress, done, flight.waiting, frozenset(flight.users)))
        return found

    # -- one flight -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _on_account(self, payer: Payer | None, progress: Progress) -> Iterator[None]:
        """What is brought in this block is somebody's, before anybody hears that it is over."""
        try:
            yield
        finally:
            if payer:
                for tree in progress.recorded:
                    self._uses.brought(tree, payer.uid, self._clock())
                self._budgets.landed(progress)

    def _measured(self, bring: Callable[[Progress], Brought], progress: Progress) -> Brought:
        began, outcome = self._store.ticks(), "failed"
        try:
            brought = bring(progress)
            outcome = brought.outcome
            return brought
        finally:
            self.bring_seconds.add(outcome, self._store.ticks() - began)
            self.from_origin.add(outcome, amount=progress.bytes_of_origin)

    def _bring(
        self,
        artifact: Artifact,
        selection: Selection,
        ask: Ask,
        payer: Payer | None,
        origin: MlflowOrigin,
        unasked: bool,
        progress: Progress,
    ) -> Brought:
        held = self._index.held(artifact.uri, selection.key)
        damaged = held is not None and not self._sound(held)
        began = self._store.ticks()
        counting = self._store.leftovers.counting(self._sweeper.grace_seconds)
        with self._on_account(payer, progress), self._sweeper.holding(progress) as hold, counting as count_on:
            errand = Errand(artifact, selection, ask, progress, hold, count_on, origin, payer, unasked=unasked)
            try:
                brought = self._attempts(errand)
            except (OriginUnavailable, NotFound) as error:
                if damaged:
                    raise Corrupted(
                        f"{artifact.uri}: stored bytes were damaged and are in quarantine,"
                        f" and right ones cannot be had: {error}"
                    ) from None
                if isinstance(error, NotFound) or ask in (Ask.STRICTLY, Ask.AGAIN) or self._origin.guards(artifact):
                    raise
                try:
                    brought = replace(self._attempts(errand._replace(ask=Ask.NOTHING, payer=None)), stale=True)
                except (OriginUnavailable, NotFound):
                    raise error from None
            self._sweeper.arrived(
                brought.held.tree, self._store.ticks() - began, brought.origin_bytes + brought.shared_bytes
            )
            return brought

    def _attempts(self, errand: Errand) -> Brought:
        artifact, progress = errand.artifact, errand.progress
        gone: NotFound | OriginUnavailable | None = None
        was_short = False
        for _ in range(COMMIT_ATTEMPTS):
            try:
                found = self._bringing.sync(errand)
            except MissingBlobs:
                continue  # a blob that was counted on went into quarantine meanwhile
            except NoSpace:
                if not progress.was_short or was_short:
                    raise
                was_short, progress.was_short = True, False
                self._sweeper.watch()
                continue  # what has arrived is held: the rest may fit now
            except Superseded:
                gone = OriginUnavailable(f"{artifact.uri} is made anew again and again. Try again when that has ended.")
                continue
            except Vanished as error:
                gone = NotFound(str(error))
                continue  # whoever writes there has removed a file since it was listed
            errand.hold(found.tree)
            if self._sound(found):
                self._store.view_is_sound(found.tree)  # one that is not is built again when it is handed out
                taken, shared = progress.bytes_of_origin, progress.bytes_shared  # of all attempts
                return Brought(found, taken, shared, transport=progress.transport)
        if gone:
            raise gone
        self._index.suspect()  # rows that lead nowhere look the same
        raise Corrupted(
            f"{artifact.uri}: its bytes do not stay what they are. Try again in a moment; where that does not help,"
            " look at the store's disk."
        )

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _sound(self, held: Held) -> bool:
        tree = self._store.tree(held.tree)
        return tree is not None and not self._store.unsound(tree)
