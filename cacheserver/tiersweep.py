"""Keeping the shared tier clean: records that the rules drop go, and then what no record needs.

Law of this file: an object goes only after a list of what is to go (`condemned`) has been there for a while, and after
all records were looked at that were written meanwhile. Who publishes looks at that list before he counts on what is
there, and again when the record is written (`publishing`): so either the record is seen here, or the list there.
Records go first, and objects after them; where anything goes wrong, nothing more goes, and the list stays until it
counts no more.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from artifactcache.errors import CacheError, OriginUnavailable
from cacheserver import names
from cacheserver.claims import CLAIM_BYTES_MAX, RENEW_SECONDS, Claim, Claims, owner_of
from cacheserver.joining import objects_of, secret_of
from cacheserver.packing import BLOBS, PACKS, layout
from cacheserver.publishing import CONDEMNED_BYTES_MAX, CONDEMNED_SECONDS
from cacheserver.retaining import GONE_AT_ONCE_MIN, Describes
from cacheserver.retention import Facts, needs
from cacheserver.settings import SharedConfig
from cacheserver.space import show
from cacheserver.tierplan import Decision, How, Report, Seen, mark, marks, plan, questions
from cacheserver.tierstore import Object, TierError, TierStore
from cacheserver.treerecords import CLAIMS, CONDEMNED, RECORD_BYTES_MAX, TREES, Condemned, NotARecord, TreeRecord

SWEEP = f"{CLAIMS}sweep"  # the claim of who sweeps
REMOVING_SECONDS_MAX = CONDEMNED_SECONDS / 2  # after the list was written nothing goes any more
CONDEMNED_KEYS_MAX = 100_000  # in one list: 8 MB, which every host reads that publishes meanwhile
CLAIMS_KEPT_SECONDS = 86_400.0
ROUNDED_SECONDS = 1.0  # object stores tell times in whole seconds, and some round them up
# Objects removed by one request. Stores take 1000; Swift removes 50 a second, and says nothing until it has done all.
BATCH = 250
PATIENCE_SECONDS = 60.0  # nobody waits for a sweep, and what is broken off is done all the same
READERS = 8  # records at a time
ALONE_BYTES_MIN = 16 << 20  # a larger record is read while no other is
# Versions in one question: so many a catalogue looks for one by one where its search does not find them.
VERSIONS_AT_A_TIME = 100


class _Read(NamedTuple):
    """A record as it was listed when it was read, and what was read."""

    listed: Object
    seen: Seen


class TierSweep:
    """One sweep of a shared tier.

    Args:
        secret: what records are signed with; None where they are not.
        origin: the tracking server; None where there are no rules.
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        wait: waits so many seconds.
        tell: is told what is going on, a line at a time.
    """

    def __init__(
        self,
        objects: TierStore,
        claims: Claims,
        secret: bytes | None,
        origin: Describes | None,
        how: How,
        clock: Callable[[], float],
        ticks: Callable[[], float],
        wait: Callable[[float], object],
        tell: Callable[[str], None],
    ) -> None:
        self._objects = objects
        self._claims = claims
        self._secret = secret
        self._origin = origin
        self._how = how
        self._now = clock() + ROUNDED_SECONDS
        self._ticks = ticks
        self._wait = wait
        self._tell = tell
        self._read: dict[str, _Read] = {}
        self._report = Report(how.is_dry)

    def run(self) -> Report:
        """Sweeps. Raises TierError, and CacheError where it must not: another sweep runs, or the key is wrong."""
        if self._how.is_dry:
            decisions = self._plan()
            self._dropped([decision for decision in decisions if not decision.is_kept])
            needed = {one for decision in decisions if decision.is_kept for one in decision.seen.needs}
            self._removed(list(self._unneeded(needed)))
            self._report.claims = len(list(self._old_claims()))
            return self._report
        with self._alone() as claim:
            self._drop(claim, self._plan())
            self._remove(claim)
            old = [found.key for found in self._old_claims()]
            for keys in _batches(old):
                self._objects.delete(keys)
            self._report.claims = len(old)
        return self._report

    # -- records ----------------------------------------------------------------------------------------------------

    def _plan(self) -> Sequence[Decision]:
        seen = self._look()
        # Each can be read, but was signed with another secret: it is more likely that this host has the wrong one.
        if seen and all(one.fault and one.uri for one in seen):
            raise CacheError(
                f"None of the {len(seen)} records in {self._objects.name} was written by a host that has the key of"
                " [shared] key_file: give this configuration the same file as the hosts'. Nothing was removed."
            )
        here = self._origin.name.rstrip("/") if self._origin else ""
        told = self._asked(questions(seen, here))
        how = self._how
        found = plan(seen, told, how.rules, here=here, capacity=how.capacity, grace=how.grace, now=self._now)
        if found.excess:
            self._report.excess = found.excess
            self._report.troubles.append(
                f"{show(found.excess)} more than [shared] capacity is left, for retention rules keep it."
            )
        self._report.decisions = list(found.decisions)
        for decision in found.decisions:
            if decision.is_kept and decision.seen.fault:
                self._tell(f"stays: {_shown(decision.seen)}: {decision.reason}")
        return found.decisions

    def _asked(self, versions: list[str]) -> dict[str, Facts]:
        """What the tracking server says of versions, so far as it answers."""
        wanted, told = needs(self._how.rules), dict[str, Facts]()
        if self._origin is None or not wanted:
            return told
        try:
            for some in _batches(versions, VERSIONS_AT_A_TIME):
                told |= self._origin.describe(some, wanted)
        except OriginUnavailable as error:
            self._report.troubles.append(f"Rules go by what is known without the tracking server: {error}")
        gone = [version for version, facts in told.items() if facts.is_deleted]
        if len(gone) >= GONE_AT_ONCE_MIN and not any(facts.is_deleted is False for facts in told.values()):
            self._report.troubles.append(
                f"All {len(gone)} versions in the tier have gone from the tracking server at once: that is not"
                " believed."
            )
            return {version: facts for version, facts in told.items() if not facts.is_deleted}
        return told

    def _look(self) -> list[Seen]:
        """All records there are. What was read before, and is listed as it was then, is not read again."""
        listed = list(self._objects.list(TREES))
        before, self._read = self._read, {}
        unread = []
        for found in listed:
            if (known := before.get(found.key)) and known.listed == found:
                self._read[found.key] = known
            else:
                unread.append(found)
        small = [found for found in unread if found.size < ALONE_BYTES_MIN]
        with ThreadPoolExecutor(READERS, "sweep") as pool:
            pairs = [*zip(small, pool.map(self._seen, small), strict=True)]
        pairs += [(found, self._seen(found)) for found in unread if found.size >= ALONE_BYTES_MIN]
        self._read |= {found.key: _Read(found, seen) for found, seen in pairs if seen}
        return [known.seen for known in self._read.values()]

    def _seen(self, found: Object) -> Seen | None:
        """A record; None where it has gone meanwhile."""
        listed = (found.key, found.size, found.written_at)
        if found.size > RECORD_BYTES_MAX:
            return Seen(*listed, "is larger than any record")
        got = self._objects.get(found.key, RECORD_BYTES_MAX)
        if got is None:
            return None
        fault = ""
        try:
            record = TreeRecord.decode(found.key, got.data, self._secret)
        except NotARecord as why:
            fault = str(why)
            try:  # whoever has written it, as long as it is there its objects are
                record = TreeRecord.decode(found.key, got.data, None)
            except NotARecord:
                return Seen(*listed, fault)
        needed, sizes = marks(layout(record.manifest))
        names = record.tracking_uri, record.uri, record.selection
        return Seen(*listed, fault, *names, record.versions, needed, sizes)

    def _drop(self, claim: Claim, decisions: Sequence[Decision]) -> None:
        """Removes records, but for those that were written anew meanwhile."""
        if all(decision.is_kept for decision in decisions):
            return
        same = {found.key for found in self._objects.list(TREES) if found == self._read_of(found.key)}
        self._report.decisions = [
            one if one.is_kept or one.seen.key in same else Decision(one.seen, True, "it was written anew meanwhile")
            for one in decisions
        ]
        for some in _batches([one for one in self._report.decisions if not one.is_kept]):
            self._check(claim)
            self._objects.delete([decision.seen.key for decision in some])
            self._dropped(some)

    def _read_of(self, key: str) -> Object | None:
        known = self._read.get(key)
        return known.listed if known else None

    def _dropped(self, decisions: Sequence[Decision]) -> None:
        verb = "would go" if self._how.is_dry else "has gone"
        for seen, _, reason in decisions:
            self._tell(f"{verb}: {_shown(seen)}: {reason}")
            self._report.bytes_freed += seen.size

    # -- what they need ---------------------------------------------------------------------------------------------

    def _remove(self, claim: Claim) -> None:
        """Removes what no record needs, so much at a time as one list may have."""
        rounds = 0
        while found := list(islice(self._unneeded(self._needed()), CONDEMNED_KEYS_MAX)):
            rounds, before = rounds + 1, self._report.objects
            is_over = self._round(claim, found)
            if (is_over and len(found) < CONDEMNED_KEYS_MAX) or self._report.objects == before:
                break
        if not rounds:
            self._forget_condemned(claim)

    def _round(self, claim: Claim, found: Sequence[Object]) -> bool:
        """Condemns objects, and removes those that no record needs then either. Returns whether there was time for all
        of them."""
        began, sweep = self._ticks(), secrets.token_hex(8)
        self._tell(
            f"{len(found)} objects, {show(sum(one.size for one in found))}, are needed by no record: they go"
            f" {self._how.settle:g} s from now, but for those that are needed then"
        )
        self._check(claim)
        self._objects.put(CONDEMNED, Condemned(sweep, frozenset(one.key for one in found)).encode())
        self._wait(self._how.settle)
        needed = self._needed()
        going = [one for one in found if mark(one.key) not in needed]
        is_late = False
        for some in _batches(going):
            if is_late := self._ticks() - began > REMOVING_SECONDS_MAX:
                break
            self._check(claim)
            self._objects.delete([one.key for one in some])
            self._removed(some)
        # Not before: who finds the list empty counts on what is there. Where a request to remove has failed, the object
        # store may still follow it, and the list stays for as long as it counts.
        self._objects.put(CONDEMNED, Condemned(sweep).encode())
        return not is_late

    def _needed(self) -> set[int]:
        """The marks of what any record needs."""
        needed = set[int]()
        for seen in self._look():
            needed.update(seen.needs)
        return needed

    def _unneeded(self, needed: set[int]) -> Iterator[Object]:
        """What is not, and is old enough."""
        for kind in (PACKS, BLOBS):
            for found in self._objects.list(kind):
                if mark(found.key) not in needed and self._now - found.written_at >= self._how.grace:
                    yield found

    def _removed(self, found: Sequence[Object]) -> None:
        self._report.objects += len(found)
        self._report.bytes_freed += sum(one.size for one in found)

    def _forget_condemned(self, claim: Claim) -> None:
        """Ends what a sweep that was killed has condemned: nothing of it is left to remove."""
        got = self._objects.get(CONDEMNED, CONDEMNED_BYTES_MAX)
        if got and Condemned.decode(got.data).keys:
            self._check(claim)
            self._objects.put(CONDEMNED, Condemned(secrets.token_hex(8)).encode())

    # -- one at a time ----------------------------------------------------------------------------------------------

    def _old_claims(self) -> Iterator[Object]:
        for found in self._objects.list(CLAIMS):
            if found.key != SWEEP and self._now - found.written_at >= CLAIMS_KEPT_SECONDS:
                yield found

    def _check(self, claim: Claim) -> None:
        """Looks whether this is the only sweep still. Raises CacheError."""
        if not self._claims.holds(claim):
            raise CacheError(
                f"Another sweep of the shared tier {self._objects.name} has begun, for this one had not said for a"
                " while that it is there still; so it has stopped. What it has not removed that one does."
            )

    @contextmanager
    def _alone(self) -> Iterator[Claim]:
        """The claim to sweep, renewed. Raises CacheError where another sweep has it."""
        first: dict[str, bytes] = {}

        def look() -> str | None:
            """Who renews it."""
            got = self._objects.get(SWEEP, CLAIM_BYTES_MAX)
            if got is None or first.setdefault(owner := owner_of(got.data), got.data) == got.data:
                return None
            return owner

        owner, claim = self._claims.take(SWEEP, look, lambda: True)
        if claim is None and owner is None and self._claims.trouble:
            raise TierError(self._claims.trouble)
        if claim is None:
            host = names.show((owner or "another host").rpartition(" ")[0])
            raise CacheError(
                f"Another sweep of the shared tier {self._objects.name} is running, on {host}: wait until it has ended."
            )
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEW_SECONDS):
                self._claims.renew()

        thread = threading.Thread(target=renew, name="renew", daemon=True)
        thread.start()
        try:
            yield claim
        finally:
            over.set()
            thread.join()
            self._claims.release(claim)


def opened(
    config: SharedConfig,
    origin: Describes | None,
    how: How,
    clock: Callable[[], float],
    ticks: Callable[[], float],
    wait: Callable[[float], bool],
    tell: Callable[[str], None],
) -> TierSweep:
    """A sweep of the tier that a configuration names; see `TierSweep`. Raises ConfigError."""
    objects = objects_of(replace(config, patience=max(config.patience, PATIENCE_SECONDS)))
    claims = Claims(objects, os.uname().nodename, clock, ticks, wait)
    return TierSweep(objects, claims, secret_of(config.key_file), origin, how, clock, ticks, wait, tell)


def _shown(seen: Seen) -> str:
    """A record for a message; what it is of was written by whoever can write into the bucket."""
    what = names.show(seen.versions[0] if seen.versions else seen.uri or seen.key)
    return what + (" (a selection)" if seen.selection else "")


def _batches(items: Sequence[Any], count: int = BATCH) -> Iterator[Any]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
