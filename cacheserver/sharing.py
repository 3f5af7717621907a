"""What the shared tier means for an errand: what another host has brought need not come from the origin.

Law of this file: a record of another host's counts for as much as what this one has seen itself: what is recent is
trusted, and of what is older the files that the origin lists with the same size and tag. Who may read was decided
before, and is decided for each host by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from cacheserver.budgets import Budgets
from cacheserver.errands import Ask, Errand, Freshness, Part
from cacheserver.evidence import Known, is_same
from cacheserver.leftovers import key_of
from cacheserver.publishing import Publishing
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tallies import Tally
from cacheserver.tier import CLOCKS_DIFFER_SECONDS, Tier
from cacheserver.treerecords import TreeRecord
from cacheserver.turns import Turns
from cacheserver.unpacking import Lacking, Unpacking, partial_key
from cacheserver.words import SHARED, Arrived, File, Location, Manifest, Standing, join

SLOW_SECONDS = 60.0  # so long other hosts may wait for somebody whose rate is limited


class Elsewhere(NamedTuple):
    """What another host has of a location: its record, and what that says of each file, by path."""

    record: TreeRecord | None = None
    known: dict[bytes, Known] = {}  # noqa: RUF012 - nobody changes it


class Sharing:
    """The shared tier, for errands.

    Args:
        publishing: what gives to it; None where it is only read.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        tier: Tier,
        unpacking: Unpacking,
        publishing: Publishing | None,
        store: Store,
        sweeper: Sweeper,
        budgets: Budgets,
        freshness: Freshness,
        clock: Callable[[], float],
    ) -> None:
        self.tier = tier
        self.publishing = publishing
        self._unpacking = unpacking
        self._store = store
        self._sweeper = sweeper
        self._budgets = budgets
        self._freshness = freshness
        self._clock = clock
        self._turns = Turns()
        self._taken = Tally([()])

    def taken_bytes(self) -> int:
        """Bytes of blobs that have come from the tier."""
        return self._taken.amounts()[()]

    def trouble(self) -> str:
        """What is wrong, in words; empty where nothing is known to be."""
        return self.tier.trouble() or (self.publishing.trouble() if self.publishing else "")

    def look(self) -> str:
        """Asks for something that is there or not. Returns what is wrong then."""
        self.tier.look()
        return self.trouble()

    def close(self) -> None:
        """Takes and gives nothing any more."""
        self._unpacking.close()
        if self.publishing:
            self.publishing.stop()
        self.tier.close()

    def part(self, errand: Errand, location: Location, standing: Standing) -> Part | None:
        """What one location has, where another host was told so by the origin a moment ago, with what is missing taken
        from the tier; None where the origin has to be asked. Then `errand.claims` may have a claim more."""
        if standing is Standing.OPEN or errand.ask is not Ask.WHAT_IS_DUE or not self.tier.shares(location):
            return None
        # Whoever wants the same by another name finds what this one has taken, unless that comes slowly.
        is_slow = self._budgets.rate(errand.payer) is not None
        with nullcontext() if is_slow else self._turns.of(f"{errand.selection.key} {location.uri}"):
            record = self._found(errand, location, standing)
            if record is None:
                return None
            manifest = errand.selection.of_manifest(record.manifest) if not record.selection else record.manifest
            etags = dict(zip((e.path for e in record.manifest.files), record.etags, strict=False))
            digests = self._lacking(manifest)
            if self._bring(errand, location, record, manifest, digests, etags, record.standing) < digests:
                return None
        ordered = tuple(etags.get(entry.path, "") for entry in manifest.files)
        arrived = tuple(_key(location, record, entry.path) for entry in manifest.files if entry.digest in digests)
        seen_at = min(record.checked_at, self._clock())
        return Part(location, manifest, ordered, record.file_name, record.standing, seen_at, arrived)

    def elsewhere(self, errand: Errand, location: Location) -> Elsewhere:
        """What the tier says of a location that is listed."""
        if not self.tier.shares(location):
            return Elsewhere()
        record = self.tier.record(location, self._selections(errand))
        if record is None:
            return Elsewhere()
        etags = record.etags or ("",) * len(record.manifest.files)
        return Elsewhere(
            record,
            {
                entry.path: Known(Arrived(entry.digest, entry.size, etag), record.standing, False, record.checked_at)
                for entry, etag in zip(record.manifest.files, etags, strict=True)
            },
        )

    def files(
        self, errand: Errand, location: Location, found: Elsewhere, missing: list[File], standing: Standing
    ) -> dict[bytes, Arrived]:
        """Those of the files that an origin lists, and that are missing, which the tier has and has given."""
        strict, same = errand.ask is Ask.STRICTLY, dict[bytes, Arrived]()
        for file in missing:
            known = found.known.get(file.path)
            if known and known.arrived.size and is_same(known, file, standing, strict=strict):
                same[file.path] = known.arrived
        if not same or found.record is None:
            return {}
        manifest = Manifest(tuple(entry for entry in found.record.manifest.entries if entry.path in same))
        etags = {path: arrived.etag for path, arrived in same.items()}
        digests = self._lacking(manifest)
        come = self._bring(errand, location, found.record, manifest, digests, etags, standing)
        return {path: arrived for path, arrived in same.items() if arrived.digest not in digests - come}

    def begins(self, errand: Errand, location: Location, needed: int) -> None:
        """So many bytes of a location are about to come from the origin. Where that takes long only because of who asks
        for them, no other host is to wait for it."""
        rate = self._budgets.rate(errand.payer)
        if rate is not None and needed / rate > SLOW_SECONDS:
            key = self.tier.claim_key(location, errand.selection.key)
            slow = [claim for claim in errand.claims if claim.key == key]
            errand.claims[:] = [claim for claim in errand.claims if claim.key != key]
            self.tier.release(slow)

    def brought(self, errand: Errand, parts: list[Part]) -> None:
        """These were recorded: those that the origin has listed are for others too."""
        if self.publishing is None:
            return
        claims = {claim.key: claim for claim in errand.claims}
        selection = errand.selection.key
        for part in parts:
            if part.is_listed and part.standing is not Standing.OPEN and self.tier.shares(part.location):
                claim = claims.pop(self.tier.claim_key(part.location, selection), None)
                self.publishing.want(part.location.uri, selection, [claim] if claim else [])
                if claim:
                    errand.claims.remove(claim)  # who publishes gives it back

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _found(self, errand: Errand, location: Location, standing: Standing) -> TreeRecord | None:
        def fits(record: TreeRecord) -> bool:
            return record.standing >= standing and self._is_recent(record.checked_at)

        selections = self._selections(errand)
        held = self._store.index.held(location.uri, errand.selection.key)
        if held or errand.unasked:  # nobody waits for others only to have something confirmed
            record = self.tier.record(location, selections)
            return record if record and fits(record) else None
        record, claim = self.tier.turn(location, selections, fits, lambda: errand.progress.is_wanted)
        if claim:
            errand.claims.append(claim)
        return record

    def _selections(self, errand: Errand) -> list[str]:
        """The whole, in which every selection is, and then the selection."""
        return ["", errand.selection.key] if errand.selection.key else [""]

    def _is_recent(self, at: float) -> bool:
        now = self._clock()
        return self._freshness.is_recent(min(at, now) if at - now < CLOCKS_DIFFER_SECONDS else at, now)

    def _lacking(self, manifest: Manifest) -> set[str]:
        """The digests of blobs that are not held."""
        wanted = {entry.digest: entry.size for entry in manifest.files if entry.size}
        held = self._store.index.blobs(wanted)
        return {digest for digest, size in wanted.items() if digest not in held or held[digest].size != size}

    def _bring(
        self,
        errand: Errand,
        location: Location,
        record: TreeRecord,
        manifest: Manifest,
        digests: set[str],
        etags: dict[bytes, str],
        standing: Standing,
    ) -> set[str]:
        """Takes blobs from the tier. Returns the digests of those that have come. Raises NoSpace, QuotaExceeded."""
        digests = digests - errand.missed
        if not digests:
            return set()
        entries = {entry.digest: entry for entry in reversed(manifest.files) if entry.digest in digests}
        keys = {d: (_key(location, record, e.path), etags.get(e.path, "")) for d, e in entries.items()}
        needed, progress = sum(entry.size for entry in entries.values()), errand.progress
        files_before, bytes_before, shared_before = progress.files_done, progress.bytes_done, progress.bytes_shared
        progress.files_total += len(entries)
        progress.bytes_total += needed
        progress.transports.add(SHARED)
        what = f"{location.uri} from the shared tier"
        if errand.payer:
            self._budgets.claim(errand.payer, progress, what, needed)
        room = self._sweeper.reservations.spare if errand.unasked else self._sweeper.room
        written = self._store.partials.bytes_of(partial_key(digest) for digest in entries)
        with room(location.uri, needed, len(entries), progress, written=written):
            spend = self._budgets.pace(errand.payer)
            come = self._unpacking.bring(record.manifest, Lacking(keys, standing), progress, errand.origin.owner, spend)
        self._taken.add(amount=progress.bytes_shared - shared_before)
        # What has not come is no part of the work any more: who asks the origin for it says so himself.
        progress.files_total -= len(entries) - (progress.files_done - files_before)
        progress.bytes_total -= needed - (progress.bytes_done - bytes_before)
        self._budgets.came(progress, what, sum(entries[digest].size for digest in come))
        errand.missed.update(digests - come)
        return come


def _key(location: Location, record: TreeRecord, path: bytes) -> str:
    """Under which URI the index remembers that a file has arrived."""
    below = "" if record.file_name else path.decode("utf-8", "surrogateescape")
    return key_of(join(location.uri, below))
