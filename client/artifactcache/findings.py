"""What the doctor reports: findings, and what each mode would do at a destination. Values only."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What it is about, such as "disk"."""
    level: str
    """"ok"; "note": it will, or may, surprise somebody; "problem": something does not work."""
    what: str
    """What was found."""
    todo: str = ""
    """What can be done; empty where there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What a fetch with this mode would do at the destination, for this user."""

    mode: str
    """"view", "reflink", "hardlink" or "copy"."""
    works: bool
    """Whether it worked when it was tried."""
    why: str = ""
    """Why not."""
    todo: str = ""
    """What would have to be done to have it."""


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Where something lies."""

    path: str
    kind: str
    """Such as "ext4"; empty where the kernel does not tell."""


@dataclass(frozen=True, slots=True)
class Modes:
    """What each mode would do at one destination."""

    destination: Filesystem
    store: Filesystem
    modes: tuple[Mode, ...]
    auto: str | None
    """What "auto" takes with a `dst`; None where none of them works."""
    auto_writable: str | None
    """What it takes with `writable=True`, as MLflow's own calls do by the plugin."""
    writes_through: bool
    """Whether this user could write into the store through a hard link, as root can."""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    healthy: bool
    """Whether none of the findings is a problem."""
    modes: Modes | None
    """None where no daemon answers that could be asked."""
    findings: tuple[Finding, ...]
