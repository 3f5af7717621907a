"""What is wrong with a daemon, in plain words: from numbers to sentences.

Law of this file: values in, sentences out; each says what is so and what can be done. Where all is well there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cacheserver.space import show

# Errors that tell of the daemon, its disk or its origin, and not of what somebody asked for.
TELLING = ("NoSpace", "OriginUnavailable", "Corrupted", "CacheError")


class Fault(NamedTuple):
    """What it is about, in one word; whether somebody has to do something now; and the words."""

    kind: str
    is_grave: bool
    words: str


@dataclass(frozen=True)
class Condition:
    """What is known of a daemon's health.

    Attributes:
        shared_trouble: what is wrong with the shared tier, in words; empty where nothing is known to be.
        is_short: whether the last sweep could not free what has to go.
        free_bytes, min_free_bytes: of the store's filesystem.
        alarms: warnings of one user who has unusually many, by of what; only what operators may know, as are the rest.
        lost_count: attempts that are missing in the audit log.
        errors: calls that failed since the daemon started, by the error's name.
    """

    origin: str = ""
    is_origin_away: bool = False
    shared_trouble: str = ""
    is_index_damaged: bool = False
    is_short: bool = False
    free_bytes: int = 0
    min_free_bytes: int = 0
    damaged_count: int = 0
    quarantine_count: int = 0
    scrub_wrong_count: int = 0
    alarms: Mapping[str, int] = field(default_factory=dict)
    lost_count: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)


def faults(of: Condition) -> list[Fault]:
    """What is wrong, the gravest first."""
    return sorted(_faults(of), key=lambda one: not one.is_grave)


def _faults(of: Condition) -> Iterator[Fault]:
    if of.is_index_damaged:
        yield Fault(
            "index", True, "The index is damaged, and is being made anew of what is on the disk: look at that disk."
        )
    if of.is_origin_away:
        yield Fault(
            "origin",
            True,
            f"{of.origin} does not answer: what is held is served, nothing new comes. It is looked at every second.",
        )
    if of.is_short:
        yield Fault(
            "sweep",
            True,
            "The last sweep could not free what has to go: unpin or release something, or raise [store] capacity."
            " `artifactcache sweep --dry-run` says what has to stay.",
        )
    if of.free_bytes < of.min_free_bytes:
        yield Fault(
            "disk",
            True,
            f"The store's disk has {show(of.free_bytes)} free, and {show(of.min_free_bytes)} are to stay: others have"
            " filled it, or what is leased or linked cannot go.",
        )
    if of.shared_trouble:
        yield Fault(
            "shared",
            False,
            f"{of.shared_trouble.rstrip('.')}. What is held is served, and the origin is asked for the rest;"
            " `artifactcache doctor` tries it again.",
        )
    if of.damaged_count:
        yield Fault(
            "damage",
            False,
            f"{_count(of.damaged_count, 'artifact')} {_lack(of.damaged_count)} bytes that were wrong or gone; right"
            " ones are being fetched.",
        )
    if of.quarantine_count:
        yield Fault(
            "quarantine",
            False,
            f"{_count(of.quarantine_count, 'file')} of wrong bytes in quarantine: look at them, and at the disk that"
            " they come from, then remove them.",
        )
    if of.scrub_wrong_count:
        yield Fault(
            "scrub",
            False,
            f"This pass of the scrub, or the last one, found {_count(of.scrub_wrong_count, 'wrong blob')}.",
        )
    yield from _of_operators(of)


def _of_operators(of: Condition) -> Iterator[Fault]:
    if of.lost_count:
        yield Fault(
            "audit", True, f"{_count(of.lost_count, 'attempt')} missing in the audit log, which could not be written."
        )
    for kind, count in of.alarms.items():
        if count:
            yield Fault(
                "alarm",
                False,
                f"{_count(count, 'time')} one user had unusually many {kind}: `artifactcache audit` says who.",
            )
    for name in TELLING:
        if count := of.errors.get(name, 0):
            yield Fault("errors", False, f"{_count(count, 'call')} failed with {name} since the daemon started.")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _lack(number: int) -> str:
    return "lacks" if number == 1 else "lack"
