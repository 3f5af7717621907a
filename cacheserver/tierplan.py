"""What a sweep of the shared tier removes of its records, and why.

Law of this file: values in, values out; and the most protective wins, as in `retention`. A record has no last use, for
who takes from the tier writes nothing there: all counts from when it was written, which hosts do again when they list
an artifact anew.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from artifactcache.errors import InvalidRequest
from cacheserver import uris
from cacheserver.packing import Large, Pack
from cacheserver.retention import Facts, Rule, matches, spell, verdict
from cacheserver.space import show
from cacheserver.uris import Artifact, Kind

GRACE_SECONDS = 86_400.0
SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class Seen:
    """A record of the tier, so far as a sweep needs it: not its manifest.

    Attributes:
        key: the object's name below the tier's prefix.
        size: its bytes.
        written_at: when, by the object store's clock; seconds since the epoch.
        fault: why it is no record, for the middle of a sentence; empty where it is one.
        tracking_uri, uri, selection, versions: as in `TreeRecord`; empty where that cannot be read.
        needs: `mark`s of the objects that hold the tree's bytes.
        sizes: the bytes of each.
    """

    key: str
    size: int
    written_at: float
    fault: str = ""
    tracking_uri: str = ""
    uri: str = ""
    selection: str = ""
    versions: tuple[str, ...] = ()
    needs: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def artifacts(self) -> Iterator[tuple[str, Artifact | None]]:
        """What a tracking server calls it, each with what that is, None for what another release has called it; the
        location where it has no other name."""
        for uri in self.versions or (self.uri,):
            try:
                yield uri, uris.stored(uri)
            except InvalidRequest:
                yield uri, None


class Decision(NamedTuple):
    """What becomes of a record, and why."""

    seen: Seen
    is_kept: bool
    reason: str


class Plan(NamedTuple):
    """What becomes of all of them, the oldest first, and by how many bytes what has to stay is over the capacity."""

    decisions: tuple[Decision, ...]
    excess: int


@dataclass(frozen=True)
class How:
    """How to sweep.

    Attributes:
        rules: which records go, and which stay.
        capacity: bytes to which records and what they need are brought down; 0 for no matter.
        grace: seconds for which what no record needs stays, and what cannot be read.
        settle: seconds between the list of what goes and its going.
        is_dry: whether nothing is changed at all.
    """

    rules: Sequence[Rule] = ()
    capacity: int = 0
    grace: float = GRACE_SECONDS
    settle: float = SETTLE_SECONDS
    is_dry: bool = False


@dataclass
class Report:
    """What a sweep has removed, or, where it was dry, would.

    Attributes:
        is_dry: whether nothing was changed.
        decisions: what became of each record.
        objects: packs and parts removed.
        bytes_freed: theirs, and those of the records.
        claims: that nobody renews, removed.
        excess: bytes by which what is left is over the capacity, for rules keep it.
        troubles: what could not be done, a sentence each.
    """

    is_dry: bool = False
    decisions: list[Decision] = field(default_factory=list)
    objects: int = 0
    bytes_freed: int = 0
    claims: int = 0
    excess: int = 0
    troubles: list[str] = field(default_factory=list)

    def kept(self) -> int:
        """How many records stay."""
        return sum(decision.is_kept for decision in self.decisions)

    def summary(self) -> str:
        """For a person."""
        kept, would = self.kept(), "would be " * self.is_dry
        return (
            f"{kept} records kept, {len(self.decisions) - kept} {would}removed; {self.objects} objects {would}removed,"
            f" {show(self.bytes_freed)} {would}freed"
        )

    def document(self) -> dict[str, Any]:
        """For scripts."""
        records = [
            {
                "key": seen.key,
                "tracking_uri": seen.tracking_uri,
                "uri": seen.uri,
                "selection": seen.selection,
                "versions": list(seen.versions),
                "written_at": seen.written_at,
                "removed": not is_kept,
                "reason": reason,
            }
            for seen, is_kept, reason in self.decisions
        ]
        return {
            "dry_run": self.is_dry,
            "records": records,
            "records_kept": self.kept(),
            "records_removed": len(records) - self.kept(),
            "objects_removed": self.objects,
            "bytes_freed": self.bytes_freed,
            "claims_removed": self.claims,
            "bytes_over_capacity": self.excess,
            "troubles": self.troubles,
        }


def mark(key: str) -> int:
    """Stands for an object's name, in less memory: 64 bits, of which two that are the same for two names let an object
    stay that might go, and never the other way round. It is another one in each process."""
    return hash(key)


def marks(pieces: Iterable[Large | Pack]) -> tuple[array[int], array[int]]:
    """The marks and the sizes of all objects of a tree's pieces."""
    needs, sizes = array("q"), array("q")
    for piece in pieces:
        if isinstance(piece, Pack):
            needs.append(mark(piece.key))
            sizes.append(piece.size)
        else:
            for part in piece.parts:
                needs.append(mark(part.key))
                sizes.append(part.length)
    return needs, sizes


def questions(seen: Iterable[Seen], here: str) -> list[str]:
    """The versions that the tracking server `here` is to be asked about."""
    return sorted(
        {
            artifact.base
            for one in seen
            if one.tracking_uri == here and not one.fault
            for _, artifact in one.artifacts()
            if artifact and artifact.kind is not Kind.BARE
        }
    )


def plan(
    seen: Sequence[Seen],
    told: Mapping[str, Facts],
    rules: Sequence[Rule],
    *,
    here: str,
    capacity: int,
    grace: float,
    now: float,
) -> Plan:
    """What becomes of each record.

    Args:
        told: what the tracking server has said, by version; of what it has not, only the name is known.
        here: its URI. Of a record of another one nothing but the name is known, and a rule that names no tracking
            server does not drop it.
        capacity: to how many bytes records and what they need are brought down; 0 for no matter.
        grace: for how many seconds what cannot be read is kept.
    """
    seen = sorted(seen, key=lambda one: (one.written_at, one.key))
    found = [_judge(one, told, rules, here=here, grace=grace, now=now) for one in seen]
    decisions = [decision for decision, _ in found]
    excess = 0
    if capacity:
        excess = _fit(decisions, [protected for _, protected in found], capacity)
    return Plan(tuple(decisions), excess)


def _judge(
    seen: Seen, told: Mapping[str, Facts], rules: Sequence[Rule], *, here: str, grace: float, now: float
) -> tuple[Decision, bool]:
    """What the rules say of a record, and whether one of them keeps it."""
    if seen.fault:
        if now - seen.written_at >= grace:
            return Decision(seen, False, f"it {seen.fault}"), False
        return Decision(seen, True, f"it {seen.fault}; it goes {spell(grace)} after it was written"), True
    is_ours = seen.tracking_uri == here
    if not is_ours:
        rules = [rule if rule.tracking_uri else replace(rule, drop=math.inf) for rule in rules]
    known = [_facts(seen, uri, artifact, told if is_ours else {}) for uri, artifact in seen.artifacts()]
    of = [(facts, seen.written_at, seen.written_at) for facts in known]
    found = verdict(rules, of)
    if found.drop_at <= now:
        return Decision(seen, False, "; ".join(_drops(rules, known))), False
    if found.kept_until > now:
        keeping = next((rule.name for rule in rules if verdict([rule], of).kept_until > now), "")
        return Decision(seen, True, f'rule "{keeping}" keeps it'), True
    return Decision(seen, True, "no rule drops it" if found.drop_at == math.inf else "no rule drops it yet"), False


def _facts(seen: Seen, uri: str, artifact: Artifact | None, told: Mapping[str, Facts]) -> Facts:
    if artifact is None:
        return Facts(uri, seen.tracking_uri)
    return told.get(artifact.base) or Facts.of(artifact, seen.tracking_uri)


def _drops(rules: Iterable[Rule], known: Sequence[Facts]) -> Iterator[str]:
    for rule in rules:
        of = next((facts.version for facts in known if matches(rule, facts)), None)
        if rule.drop < math.inf and of is not None:
            when = f"{spell(rule.drop)} after it was written" if rule.drop else "at once"
            yield f'rule "{rule.name}" drops {of} {when}'


def _fit(decisions: list[Decision], protected: Sequence[bool], capacity: int) -> int:
    """Turns decisions to keep into others, the oldest first, until what is left fits. Returns by how much it does not.

    An object counts once, however many records need it, and counts no more when the last of them goes.
    """
    users = Counter[int]()
    size = 0
    for decision in decisions:
        if decision.is_kept:
            size += decision.seen.size
            for one, length in zip(decision.seen.needs, decision.seen.sizes, strict=True):
                size += 0 if users[one] else length
                users[one] += 1
    shown = f"the tier has {show(size)}, more than the {show(capacity)} of [shared] capacity; older ones went before it"
    for number, decision in enumerate(decisions):
        if size <= capacity:
            return 0
        if not decision.is_kept or protected[number]:
            continue
        decisions[number] = Decision(decision.seen, False, shown)
        size -= decision.seen.size
        for one, length in zip(decision.seen.needs, decision.seen.sizes, strict=True):
            users[one] -= 1
            size -= 0 if users[one] else length
    return max(0, size - capacity)
