"""The daemon at one look, as values: what `Client.overview` returns. The contract explains each field."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from artifactcache.results import Progress, Stats, Usage


@dataclass(frozen=True, slots=True)
class HeldPart:
    """One artifact of a group."""

    version: str
    share_bytes: int
    """What it takes on the disk: what several have is divided among them, as it was when it was last used."""
    size_bytes: int
    """The sum of its files' sizes."""
    file_count: int
    used_at: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    lease_count: int
    pinned_until: float
    """Infinity where that has no end, 0 where it is not pinned."""
    users: tuple[str, ...]
    """On whose accounts it is, some of them; for operators only."""


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """What is held of a registered model, a run, a logged model, or a place where bare artifact URIs lie."""

    name: str
    artifact_count: int
    share_bytes: int
    used_at: float
    parts: tuple[HeldPart, ...]
    """The largest, the largest first."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment; all but the last since the daemon started."""

    at: float
    fetch_count: int
    hit_count: int
    served_bytes: int
    saved_bytes: int
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class UserUse:
    """What one user has and does."""

    usage: Usage
    session_count: int
    lease_count: int
    download_count: int


@dataclass(frozen=True, slots=True)
class QueuedTree:
    """A tree at the front of the queue of what goes first."""

    digest: str
    versions: tuple[str, ...]
    share_bytes: int
    reason: str
    """Why it goes before others; empty where it stays."""
    kept: str
    """Why it stays although its place is here; empty where it may go."""


@dataclass(frozen=True, slots=True)
class Download:
    """An artifact that is being brought."""

    version: str
    progress: Progress
    """Nothing in all as long as the origin is being asked."""
    waiting_count: int
    users: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong, or needs to be looked at."""

    kind: str
    is_grave: bool
    words: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The daemon at one look, as far as this user may know."""

    now: float
    version: str
    user: str
    roles: tuple[str, ...]
    sees_all: bool
    """Whether what others have fetched is shown too; else what is on this user's own account."""
    stats: Stats
    saved_bytes: int
    """Bytes that were handed out and that the origin did not have to send for it, since the daemon started."""
    high_percent: float
    low_percent: float
    held: HeldGroup
    """All that is held and shown, as one group without a name and parts."""
    groups: tuple[HeldGroup, ...]
    """Those that have most of it, the largest first; the others are in `held` only."""
    group_count: int
    history: tuple[Sample, ...]
    users: tuple[UserUse, ...]
    queue: tuple[QueuedTree, ...]
    queue_length: int
    downloads: tuple[Download, ...]
    faults: tuple[Fault, ...]


_PARTS: dict[str, Any] = {
    "stats": Stats,
    "held": HeldGroup,
    "groups": HeldGroup,
    "parts": HeldPart,
    "history": Sample,
    "users": UserUse,
    "usage": Usage,
    "queue": QueuedTree,
    "downloads": Download,
    "progress": Progress,
    "faults": Fault,
}


def decode(reply: Any) -> Overview:
    """Read the daemon's answer."""
    found: Overview = _read(Overview, reply)
    return found


def _read(kind: Any, message: Any) -> Any:
    if isinstance(message, (str, bytes, int, float)):  # of a list of names
        return message
    if kind is Usage:
        limit = message.held_bytes_max or None
        return Usage(message.uid, message.user, message.held_bytes, message.tree_count, limit)
    values = {one.name: getattr(message, one.name) for one in fields(kind)}
    return kind(**{name: _value(name, value) for name, value in values.items()})


def _value(name: str, value: Any) -> Any:
    if isinstance(value, (str, bytes, int, float)):
        return value
    kind = _PARTS.get(name)
    return _read(kind, value) if hasattr(value, "DESCRIPTOR") else tuple(_read(kind, each) for each in value)
