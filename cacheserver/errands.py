"""What is to be brought, how, and for whom; and what comes of it.

Law of this file: values only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from cacheserver.claims import Claim
from cacheserver.leases import Hold
from cacheserver.origin import MlflowOrigin
from cacheserver.selection import Selection
from cacheserver.uris import Artifact
from cacheserver.words import Location, Manifest, Payer, Progress, Standing


@dataclass
class Freshness:
    """How long answers of the origin are worth something, in seconds. Everybody has the same one, and it may change.

    Attributes:
        relist_after: what is finished is trusted for so long, and then listed again.
        alias_ttl: for so long an alias, a stage or `latest` is not asked for again.
        stale_after: for so long the origin is waited for where what is held can be given out instead.
    """

    relist_after: float
    alias_ttl: float
    stale_after: float

    def become(self, other: Freshness) -> None:
        """Says from now on what another one says."""
        self.relist_after, self.alias_ttl, self.stale_after = other.relist_after, other.alias_ttl, other.stale_after

    def is_recent(self, at: float, now: float) -> bool:
        """Whether an answer of that time is trusted now; not where the clock was set back since."""
        return 0 <= now - at < self.relist_after


class Ask(Enum):
    """What the origin is asked."""

    WHAT_IS_DUE = auto()
    AGAIN = auto()  # whatever is trusted: it is another version of the same name
    STRICTLY = auto()  # and nothing but entity tags proves that bytes are the same
    NOTHING = auto()  # it does not answer


@dataclass(frozen=True)
class Part:
    """What one location holds of an artifact: the selected files with the origin's entity tags in the manifest's order,
    its name where it is one file, what it is worth, when the origin was seen to have it, which files have come for it,
    and whether the origin has listed it just now."""

    location: Location
    manifest: Manifest
    etags: tuple[str, ...]
    file_name: str
    standing: Standing
    checked_at: float
    arrived: tuple[str, ...] = ()
    is_listed: bool = False


class Vanished(Exception):
    """A file that was listed was gone when it was asked for."""


class Superseded(Exception):
    """While a version was brought, another one of the same name was made."""


class Errand(NamedTuple):
    """An artifact to bring, and how.

    Attributes:
        hold: leases a tree until it is done, and a moment more: what it counts on must not be evicted meanwhile.
        count_on: says that what failed downloads left at or below a location is counted on from now on.
        origin: as whoever asks sees it.
        payer: on whose account it comes; None for the daemon's own.
        since: what somebody else began to bring before this mark is too old.
        patience: seconds that an answer may take, where that is not `unreachable_after`.
        unasked: whether nobody waits for it: nothing goes for it, and it keeps none of the threads that others need.
        claims: of this host, to bring parts of it for all that share a tier.
        missed: digests of blobs that the tier was asked for in vain.
    """

    artifact: Artifact
    selection: Selection
    ask: Ask
    progress: Progress
    hold: Hold
    count_on: Callable[[str], None]
    origin: MlflowOrigin
    payer: Payer | None = None
    since: int = 0
    patience: float | None = None
    unasked: bool = False
    claims: list[Claim] = []  # noqa: RUF012 - each errand gets its own where there is a tier, and the next one too
    missed: set[str] = set()  # noqa: RUF012
