"""Bringing an artifact into the store: what the origin is asked, what is downloaded, what is recorded of it.

Law of this file: a row says no more than the origin was seen to have, and when; nothing is recorded before all of it is
there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from artifactcache.errors import Corrupted, NoSpace, NotFound, OriginUnavailable
from cacheserver.budgets import Budgets
from cacheserver.downloads import Downloads, Way, key
from cacheserver.errands import Ask, Errand, Freshness, Part, Superseded, Vanished
from cacheserver.evidence import Evidence, Known, is_same, wants_etag
from cacheserver.sharing import Elsewhere, Sharing
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.uris import Artifact, Kind
from cacheserver.words import (
    Arrived,
    Entry,
    File,
    Held,
    Location,
    Manifest,
    Record,
    Resolved,
    Standing,
    folder,
    overlay,
)


class Bringing:
    """Brings artifacts of one origin into one store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        sweeper: Sweeper,
        budgets: Budgets,
        freshness: Freshness,
        clock: Callable[[], float],
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing
        self._store = store
        self._index = store.index
        self._versions = store.index.versions
        self._freshness = freshness
        self._clock = clock
        self._downloads = Downloads(store, clock)
        self.evidence = Evidence(store, lambda at: freshness.is_recent(at, clock()))
        self._sweeper = sweeper
        self._budgets = budgets
        self._resolving = threading.Lock()

    def close(self) -> None:
        """Brings nothing any more."""
        self._downloads.close()
        if self._sharing:
            self._sharing.close()

    def sync(self, errand: Errand) -> Held:
        """Brings what the origin has and the store lacks, and records the tree. Returns what is held then.

        Raises errors of ours, MissingBlobs where a blob that was counted on went meanwhile, Vanished and Superseded.
        """
        if self._sharing is None:
            return self._sync(errand)
        errand = errand._replace(claims=[], missed=set())
        try:
            return self._sync(errand)
        finally:
            self._sharing.tier.release(errand.claims)

    def _sync(self, errand: Errand) -> Held:
        artifact, ask = errand.artifact, errand.ask
        before = self._index.held(artifact.uri, errand.selection.key)
        if before and ask is Ask.NOTHING:
            return before
        since = self._downloads.mark() if ask is Ask.STRICTLY else 0
        patience = self._freshness.stale_after if before and ask is Ask.WHAT_IS_DUE else None
        errand = errand._replace(since=since, patience=patience)
        locations, standing, of = self._remembered(artifact, ask)
        parts = self._parts(errand, locations, standing)
        if not parts and artifact.kind is not Kind.BARE:
            # Nothing was remembered, or it leads nowhere by now: a run can be opened again, a model created anew.
            if ask is Ask.NOTHING:
                raise OriginUnavailable(f"{artifact.uri} is not held.")
            of = self._resolved(errand)
            before = self._index.held(artifact.uri, errand.selection.key)
            locations = of.locations(artifact.path)
            standing = Standing.FINISHED if of.settled else Standing.OPEN
            parts = self._parts(errand, locations, standing)
        if not parts:
            if before and errand.origin.is_own:
                self._index.forget(artifact.uri)
            if of and errand.origin.is_own and not self._index.at_or_below(artifact.base):
                self._index.forget(artifact.base)  # an answer that leads nowhere is worth nothing
            raise NotFound(f"{artifact.uri}: the origin has no file or folder there.")
        held = self._record(errand, parts, before)
        if of and not self._is_current(of, artifact.path):
            self._index.forget(artifact.uri)
            raise Superseded(artifact.uri)
        if self._sharing:
            self._sharing.brought(errand, parts)
        return held

    def _resolved(self, errand: Errand) -> Resolved:
        """What the origin says of a version now, which is remembered before anything of it is brought: whoever still
        brings another version of the same name finds out when he records it."""
        artifact = errand.artifact
        asked_at = self._clock()  # an answer is as old as its question
        try:
            resolved = errand.origin.resolve(artifact, patience=errand.patience)
        except NotFound:
            if errand.origin.is_own:  # what a caller is not shown may be there for others
                self._index.forget(artifact.base)
            raise
        with self._resolving:
            known = self._versions.resolved(artifact.base)
            if known and asked_at < self._versions.resolved_at(artifact.base) <= self._clock():
                if not known.is_same(resolved, artifact.path):
                    raise Superseded(artifact.uri)  # somebody asked later, and was answered sooner
                return known
            another = known and known.stamp and known.identity != resolved.identity
            if another or (known and not set(known.overlays) <= set(resolved.overlays)):
                self._index.forget(artifact.base)  # with all paths of it: one may lead into a model that shows no more
            for name, _ in set(resolved.overlays) - set(known.overlays) if known else ():
                # What was brought before is not what this caller is shown. Its bytes stay, and need not come again.
                self._index.forget(f"{artifact.base}/{name}")
            self._versions.record(resolved, asked_at)
        return resolved

    def _is_current(self, of: Resolved, path: str) -> bool:
        known = self._versions.resolved(of.version)
        return known is None or known.is_same(of, path)

    def _record(self, errand: Errand, parts: list[Part], before: Held | None) -> Held:
        """Records the tree that the parts are together."""
        artifact, selection, whole = errand.artifact, errand.selection, parts[0].manifest
        for part in parts[1:]:
            whole = overlay(whole, part.manifest)
        _check_paths(artifact.uri, [entry.path.rstrip(b"/") for entry in whole.entries])
        for manifest in (whole, *(part.manifest for part in parts)):
            errand.hold(manifest.digest)
            errand.progress.recorded.add(manifest.digest)
        now, file_name = self._clock(), parts[-1].file_name
        standing, checked_at = min(part.standing for part in parts), min(part.checked_at for part in parts)
        arrived = [uri for part in parts for uri in part.arrived]
        behind = [
            Record(p.location.uri, selection.key, p.file_name, standing, False, p.checked_at, p.etags)
            for p in parts
            if p.location.uri != artifact.uri
        ]
        same = before and (before.tree, before.file_name, before.standing) == (whole.digest, file_name, standing)
        if before and same and not arrived and self._store.tree(before.tree):
            with contextlib.suppress(NoSpace):  # nothing has changed: a full disk does not matter
                seen = [(artifact.uri, before.tree), *((p.location.uri, p.manifest.digest) for p in parts)]
                self._index.record_checks([(uri, selection.key, tree) for uri, tree in seen], checked_at)
            return before
        if len(parts) > 1:
            for part, record in zip(parts, behind, strict=True):
                self._store.commit(part.manifest, [record], (), now)
            behind = []
        etags = parts[0].etags if len(parts) == 1 else ()
        itself = Record(artifact.uri, selection.key, file_name, standing, True, checked_at, etags)
        self._store.commit(whole, [itself, *behind], arrived, now)
        held = self._index.held(artifact.uri, selection.key)
        if held is None:  # another version of the same name has taken its place already
            raise Superseded(artifact.uri)
        return held

    def _remembered(self, artifact: Artifact, ask: Ask) -> tuple[tuple[Location, ...], Standing, Resolved | None]:
        """Where the bytes are as far as that needs no question, and what says so: of what the origin had finished when
        it was asked."""
        if artifact.kind is Kind.BARE:
            return (location(artifact),), Standing.UNKNOWN, None
        resolved = self._versions.resolved(artifact.base)
        if resolved is None or ask in (Ask.AGAIN, Ask.STRICTLY):
            return (), Standing.FINISHED, None
        if ask is Ask.NOTHING:
            standing = Standing.FINISHED if resolved.settled else Standing.OPEN
            return resolved.locations(artifact.path), standing, resolved
        asked_at = self._versions.resolved_at(artifact.base)
        if not resolved.settled or not self._freshness.is_recent(asked_at, self._clock()):
            return (), Standing.FINISHED, None
        return resolved.locations(artifact.path), Standing.FINISHED, resolved

    def _parts(self, errand: Errand, locations: tuple[Location, ...], standing: Standing) -> list[Part]:
        found: list[Part] = []
        may_trust = errand.ask is Ask.WHAT_IS_DUE and not errand.origin.guards(errand.artifact)
        for location in locations:  # of all before the first: what was left of the last is wanted still
            errand.count_on(location.uri)
        for location in locations:
            part = None
            if may_trust or errand.ask is Ask.NOTHING:
                part = self._without_asking(errand, location, standing)
            if part is None and may_trust and self._sharing:
                part = self._sharing.part(errand, location, standing)
            if part is None and errand.ask is Ask.NOTHING:
                raise OriginUnavailable(f"{location.uri} is not held.")  # half of an artifact is none
            if part is None:
                part = self._listed(errand, location, standing)
            if part:
                found.append(part)
        return found

    def _without_asking(self, errand: Errand, location: Location, standing: Standing) -> Part | None:
        """What one location has by a whole tree that is held at or above it."""
        offline = errand.ask is Ask.NOTHING
        if standing is Standing.OPEN and not offline:
            return None
        held_before = len(errand.progress.trees)
        whole = self.evidence.whole(location, errand.selection, standing, errand.hold, trusted_only=not offline)
        if whole is None:
            errand.hold.let_go(errand.progress.trees[held_before:])
            return None
        return Part(location, *whole)

    def _listed(self, errand: Errand, location: Location, standing: Standing) -> Part | None:
        """What one location has by its listing, with what is missing downloaded."""
        asked_at, strict, progress = self._clock(), errand.ask is Ask.STRICTLY, errand.progress
        named_by_client = errand.artifact.kind is Kind.BARE
        try:
            listing = errand.origin.listing(location, named_by_client=named_by_client, patience=errand.patience)
        except NotFound:
            return None
        wanted = [file for file in listing.files if errand.selection.takes(file.path)]
        _check_paths(location.uri, [file.path for file in wanted])
        held_before = len(progress.trees)
        known = self.evidence.known(location, standing, errand.hold, trusting=errand.ask is Ask.WHAT_IS_DUE)
        elsewhere = self._elsewhere(errand, location, wanted, known)
        evidence = elsewhere.known | known
        doubtful = [f for f in wanted if wants_etag(evidence.get(f.path), f, standing, strict=strict)]
        try:
            told = errand.origin.identified(location, doubtful, named_by_client=named_by_client)
        except NotFound as error:
            raise Vanished(str(error)) from None
        wanted = [told.get(file.path, file) for file in wanted]

        def same(known: dict[bytes, Known]) -> dict[bytes, Arrived]:
            found = ((f, known.get(f.path)) for f in wanted)
            return {f.path: k.arrived for f, k in found if k and is_same(k, f, standing, strict=strict)}

        def held() -> dict[bytes, Arrived]:
            held_before = len(progress.trees)
            there = same(self.evidence.known(location, standing, errand.hold, trusting=False))
            self._let_go(errand, held_before, there)
            return there

        have = same(known)
        missing = [f for f in wanted if not f.is_folder and f.path not in have]
        arrivals = tuple(key(location, file) for file in missing)
        if missing:
            self._let_go(errand, held_before, have)  # what has changed makes room for what it has become
        if missing and self._sharing and elsewhere.known:
            have |= self._sharing.files(errand, location, elsewhere, missing, standing)
            missing = [f for f in missing if f.path not in have]
        if missing:
            progress.transports.add(listing.transport)
            have |= self._downloaded(errand, location, missing, standing, held)
        manifest = Manifest.of(
            folder(f.path) if f.is_folder else Entry(f.path, have[f.path].digest, have[f.path].size) for f in wanted
        )
        etags = tuple(have[entry.path].etag for entry in manifest.files)
        on_trust = [known[f.path] for f in wanted if f.path in have and f.path in known and not f.etag and f.size]
        checked_at = min([asked_at, *(k.checked_at for k in on_trust if k.is_trusted)])
        return Part(location, manifest, etags, listing.file_name, standing, checked_at, arrivals, is_listed=True)

    def _downloaded(
        self,
        errand: Errand,
        location: Location,
        missing: list[File],
        standing: Standing,
        held: Callable[[], dict[bytes, Arrived]],
    ) -> dict[bytes, Arrived]:
        """Downloads files from the origin, once there is room for them on the disk and on an account.

        Args:
            held: those of them that are held by now.
        """
        progress, needed = errand.progress, sum(file.size or 0 for file in missing)
        progress.files_total += len(missing)
        progress.bytes_total += needed
        written = self._store.partials.bytes_of(key(location, file) for file in missing)
        if errand.payer:
            self._budgets.claim(errand.payer, progress, location.uri, needed)
        if self._sharing:
            self._sharing.begins(errand, location, needed)
        room = self._sweeper.reservations.spare if errand.unasked else self._sweeper.room
        spend = self._budgets.pace(errand.payer) or (_at_any_rate if errand.unasked else None)
        way = Way(errand.origin, errand.artifact.kind is Kind.BARE, spend)
        with room(location.uri, needed, len(missing), progress, written=written):
            try:
                return self._downloads.bring(
                    location, missing, progress, way=way, standing=standing, since=errand.since, known=held
                )
            except NotFound as error:
                raise Vanished(str(error)) from None

    def _elsewhere(
        self, errand: Errand, location: Location, wanted: list[File], known: dict[bytes, Known]
    ) -> Elsewhere:
        """What the shared tier says of a location, where this host has not all of it, or has it as it was."""
        if self._sharing is None or all(f.is_folder or _may_be_same(known.get(f.path), f) for f in wanted):
            return Elsewhere()
        return self._sharing.elsewhere(errand, location)

    def _let_go(self, errand: Errand, held_before: int, used: dict[bytes, Arrived]) -> None:
        """Gives back those trees that were leased only to look at them, and have nothing that is used; not what was
        leased before: another part may count on it."""
        looked_at = errand.progress.trees[held_before:]
        errand.hold.let_go(self.evidence.unused(looked_at, used.values()))


def _may_be_same(known: Known | None, file: File) -> bool:
    """Whether a listing does not show that a file is another one than that which is held."""
    if known is None or file.size not in (None, known.arrived.size):
        return False
    return not file.etag or file.etag == known.arrived.etag


def _at_any_rate(count: int) -> None:
    """Bytes have come that nobody waits for."""


def location(artifact: Artifact) -> Location:
    """The folder and the name in it that a bare artifact URI means."""
    root, _, name = artifact.name.rpartition("/")
    return Location(root + "/" if root.endswith((":", "/")) else root, name)


def _check_paths(uri: str, paths: list[bytes]) -> None:
    """Raises Corrupted where one name is listed twice, or as a file and as a folder."""
    unique = set(paths)
    if len(unique) != len(paths):
        raise Corrupted(f"{uri}: the origin lists one name twice.")
    for path in paths:
        parent = path.rpartition(b"/")[0]
        while parent:
            if parent in unique:
                raise Corrupted(f"{uri}: the origin lists a file that is a folder as well.")
            parent = parent.rpartition(b"/")[0]
