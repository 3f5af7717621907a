"""The shared tier: which trees other hosts have written into an object store near them, and whether it can be used.

Law of this file: nothing that comes from there is believed, and a record is read as if an enemy had written it. The
tier is a shorter way, never the only one: whatever is wrong with it, the origin is asked, and who has found that out
spares the others the wait.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable

from cacheserver import roots
from cacheserver.bounded import Bounded
from cacheserver.claims import Claim, Claims
from cacheserver.refusals import without_credentials
from cacheserver.tallies import Tally
from cacheserver.tierstore import Tag, TierError, TierStore, TooLarge
from cacheserver.treerecords import CONDEMNED, RECORD_BYTES_MAX, NotARecord, TreeRecord, claim_key, record_key, sayable
from cacheserver.words import Location

PAUSE_SECONDS = 30.0  # for which a tier that has failed is not asked
RELEASE_SECONDS = 1.0  # of the daemon's end, to give claims back: they end by themselves
CLOCKS_DIFFER_SECONDS = 300.0  # so far another host's clock may be ahead
SUSPECTS_MAX = 10_000  # objects that were wrong or missing: who publishes a tree writes these anew

# What means the same bytes on every host: no file of one host, no name that each host resolves for itself.
SHAREABLE = frozenset({"s3", "gs", "wasbs", "abfss", "mlflow-artifacts"})
OUTCOMES = ("found", "absent", "wrong", "failed")

_log = logging.getLogger(__name__)


class Wrong(Exception):
    """An object is not what its name says, or not there; or those of a large blob are not, whichever of them."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(f"{key} {words}")
        self.key = key


class Tier:
    """What one daemon takes from the shared tier.

    Args:
        tracking_uri: of its tracking server, without credentials.
        secret: what records are signed with; None where they are not.
        tree_bytes_max: larger trees are neither taken nor given.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        objects: TierStore,
        claims: Claims | None,
        *,
        tracking_uri: str,
        secret: bytes | None,
        tree_bytes_max: int,
        ticks: Callable[[], float],
    ) -> None:
        self.objects = objects
        self.secret = secret
        self.tracking_uri = tracking_uri
        self.tree_bytes_max = tree_bytes_max
        self._claims = claims
        self._ticks = ticks
        self._lock = threading.Lock()
        self._away_until = -math.inf
        self._told = ""
        self._is_closing = False
        self.suspects: Bounded[str, bool] = Bounded(SUSPECTS_MAX)
        self.records = Tally((outcome,) for outcome in OUTCOMES)

    def close(self) -> None:
        """Waits for no other host any more, and gives back what others wait for, if that does not take long."""
        self._is_closing = True
        if self._claims and self._claims.count():
            release = threading.Thread(target=self._claims.release_all, name="release", daemon=True)
            release.start()
            release.join(RELEASE_SECONDS)

    # -- whether ----------------------------------------------------------------------------------------------------

    def shares(self, location: Location) -> bool:
        """Whether a location means the same bytes on every host, and may be named in the tier."""
        scheme, uri = roots.scheme(location.root), location.uri
        if without_credentials(uri) != uri or not sayable(uri):
            return False
        return scheme in SHAREABLE or (
            scheme in ("http", "https") and roots.server(location.root) == roots.server(self.tracking_uri)
        )

    def is_away(self) -> bool:
        """Whether it has failed a moment ago, and is not asked."""
        return self._ticks() < self._away_until

    def trouble(self) -> str:
        """What is wrong with it, in words; empty where nothing is known to be."""
        return self._told

    def failed(self, error: TierError) -> None:
        """It does not do what it should: nobody asks it for a moment."""
        with self._lock:
            self._away_until = self._ticks() + PAUSE_SECONDS
            is_new, self._told = not self._told, str(error)
        self.records.add("failed")
        if is_new:
            words = str(error).rstrip(".")
            _log.warning("%s. The origin is asked instead; it is tried again every %g s.", words, PAUSE_SECONDS)

    def says_away(self) -> TierError | None:
        """What it failed with a moment ago, where it is not asked."""
        return TierError(self._told) if self.is_away() else None

    def worked(self) -> None:
        """It does what it should."""
        with self._lock:
            was, self._told = self._told, ""
        if was:
            _log.warning("The shared tier %s works again.", self.objects.name)

    def look(self) -> None:
        """Asks for something, also where it has failed a moment ago."""
        try:
            self.objects.read(CONDEMNED, 0, 1)  # not by HEAD: an answer to that says nothing of what is wrong
        except TierError as error:
            self.failed(error)
        else:
            self.worked()
            self._away_until = -math.inf

    # -- which tree -------------------------------------------------------------------------------------------------

    def record(self, location: Location, selections: Iterable[str]) -> TreeRecord | None:
        """The record of a location, or of the first selection of it that there is one of; None where there is none, or
        none to be had."""
        if self.is_away():
            return None
        try:
            return self._record(location, selections, lambda _: True, {})
        except TierError as error:
            self.failed(error)
            return None

    def turn(
        self,
        location: Location,
        selections: Iterable[str],
        fits: Callable[[TreeRecord], bool],
        is_wanted: Callable[[], bool],
    ) -> tuple[TreeRecord | None, Claim | None]:
        """What is there of a location, after waiting for a host that is bringing it; or this host's claim to do that;
        or neither, where it cannot be had, or is not worth waiting for.

        Args:
            selections: as in `record`; the last one is what is claimed.
            fits: whether a record is good enough.
        """
        wanted, unfit = list(selections), dict[str, Tag]()

        def look() -> TreeRecord | None:
            return self._record(location, wanted, fits, unfit)

        if self.is_away():
            return None, None
        try:
            if self._claims is None:
                return look(), None
            key = self.claim_key(location, wanted[-1])
            return self._claims.take(key, look, lambda: is_wanted() and not self._is_closing)
        except TierError as error:
            self.failed(error)
            return None, None

    def claim_key(self, location: Location, selection: str) -> str:
        """The name of the claim to bring a location, or a selection of it."""
        return claim_key(self.tracking_uri, location.uri, selection)

    def renew(self) -> None:
        """Says of this host's claims that it is there still."""
        if self._claims:
            self._claims.renew()

    def release(self, claims: Iterable[Claim]) -> None:
        """Ends claims."""
        for claim in claims:
            if self._claims:
                self._claims.release(claim)

    def _record(
        self,
        location: Location,
        selections: Iterable[str],
        fits: Callable[[TreeRecord], bool],
        unfit: dict[str, Tag],
    ) -> TreeRecord | None:
        """The first record that fits. What does not is in `unfit` then, and is not read again as long as it is that."""
        for selection in selections:
            key = record_key(self.tracking_uri, location.uri, selection)
            if key in unfit and self.objects.is_still(key, unfit[key]):
                continue
            try:
                got = self.objects.get(key, RECORD_BYTES_MAX)
            except TooLarge:
                self.suspect(Wrong(key, "is too large for a record"))
                continue
            self.worked()
            if got is None:
                self.records.add("absent")
                continue
            unfit[key] = got.tag
            try:
                found = TreeRecord.decode(key, got.data, self.secret)
            except NotARecord as why:
                self.suspect(Wrong(key, str(why)))
                continue
            if found.manifest.size_bytes > self.tree_bytes_max or not fits(found):
                continue
            self.records.add("found")
            return found
        return None

    def suspect(self, wrong: Wrong) -> None:
        """An object is not what it should be: who publishes what it is of writes it anew."""
        self.suspects.put(wrong.key, True)
        self.records.add("wrong")
        _log.warning("The shared tier %s: %s. The origin is asked instead.", self.objects.name, wrong)
