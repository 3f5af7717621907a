"""What the calls return. Names and units are those of `cache.proto`: bytes, and seconds since the epoch."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of work is."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


@dataclass(frozen=True, slots=True, eq=False)
class Fetched(os.PathLike[str]):
    """An artifact that was handed over, and how. It is a path, and a context manager that ends with `release()`."""

    location: str = field(repr=False)
    """`path` as a str, which is what `str()` and `os.fspath()` give."""
    uri: str
    """What was asked for."""
    version: str
    """What the URI resolved to."""
    digest: str
    """The tree's digest."""
    mode: str
    """How it was handed over: "view", "reflink", "hardlink" or "copy"."""
    file_count: int
    """How many files were handed over."""
    size_bytes: int
    """The sum of their sizes."""
    hit: bool
    """True where this call took no bytes from the origin."""
    origin_bytes: int
    """How many bytes this call took from the origin."""
    stale: bool
    """True where the origin could not be asked although it should have been."""
    writable: bool
    """True where the files are the caller's own, so that writing to them changes nobody else's."""
    transport: str
    """What brought the bytes that this call took: "file", "http", "s3", "gcs", "azure" or "mlflow" from the origin,
    "shared" from the shared tier; several, joined by "+", where it was more than one; empty where it took none."""
    shared_bytes: int = 0
    """How many bytes this call took from the shared tier, where another host had put them."""
    # A list, because `list.pop` hands the one entry to exactly one of several threads.
    _leases: list[Callable[[], None]] = field(default_factory=list, repr=False)

    @property
    def path(self) -> pathlib.Path:
        """Where it is: a folder, or a file where the artifact is one file. Absolute."""
        return pathlib.Path(self.location)

    def release(self) -> None:
        """End the lease of a view: its files may be evicted from now on. Doing so again changes nothing."""
        try:
            end_lease = self._leases.pop()
        except IndexError:
            return
        end_lease()

    def __fspath__(self) -> str:
        return self.location

    def __str__(self) -> str:
        return self.location

    def __enter__(self) -> Fetched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class Warmed:
    """An artifact that was made present, without being handed over."""

    uri: str
    version: str
    digest: str
    file_count: int
    size_bytes: int
    hit: bool
    origin_bytes: int
    stale: bool
    transport: str
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Synced:
    """An artifact of a lock that was made present, and placed where a folder was given."""

    name: str
    uri: str
    version: str
    digest: str
    path: str | None
    """Where it was placed."""
    mode: str | None
    """How: "reflink", "hardlink" or "copy"."""
    file_count: int
    size_bytes: int
    hit: bool
    origin_bytes: int
    stale: bool
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An artifact that the daemon holds."""

    version: str
    digest: str
    file_count: int
    size_bytes: int
    fetched_at: float
    used_at: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    lease_count: int
    """How many leases protect it now."""
    pinned_until: float | None
    """Until when it is pinned: `math.inf` where that has no end, None where it is not pinned."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of an artifact, or one empty folder: then `path` ends with "/" and `digest` is empty."""

    path: str
    """Relative to the artifact; bytes that are not UTF-8 are escaped as `os.fsdecode` does."""
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Inspected:
    """An artifact that the daemon holds, with its files in the manifest's order."""

    artifact: Held
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found."""

    blobs_checked: int
    bytes_checked: int
    corrupted: tuple[str, ...]
    """Digests of the blobs, and of the trees whose manifests, were wrong or gone, or could not be looked at."""
    affected: tuple[str, ...]
    """The versions that held one of them."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Pinned:
    """An artifact that was pinned."""

    uri: str
    """What was asked for; `unpin` takes it as well as the version."""
    version: str
    """What the URI resolved to, and what is pinned: it stays so when an alias moves on."""
    digest: str
    until: float | None
    """Until when; None where that has no end."""
    owner: str
    """Who pinned it."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """A tree that has gone or, in a dry run, would go."""

    digest: str
    versions: tuple[str, ...]
    """The versions and URIs that it was held as; empty where nobody asked for it by a name."""
    size_bytes: int
    """The sum of its files' sizes."""
    freed_bytes: int
    """What its going gives back to the disk: nothing of what others hold too, or have hard links of."""
    reason: str
    """Why it goes, and before others."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Trees that had to stay."""

    reason: str
    tree_count: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has evicted or, in a dry run, would evict."""

    dry_run: bool
    evicted: tuple[Evicted, ...]
    tree_count: int
    freed_bytes: int
    """What that gives back to the disk, with what downloads that failed had left: it goes before any tree."""
    wanted_bytes: int
    """What was to be freed."""
    kept: tuple[Kept, ...]
    """Those that were looked at and had to stay, by reason."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Explained:
    """Why an artifact is kept, or what would have to happen for it to go."""

    artifact: Held
    is_kept: bool
    """True where something keeps it from being evicted now."""
    reasons: tuple[str, ...]
    """In plain words, a sentence each."""
    place: int | None
    """Its place in the queue of what goes first, from 1; None where it is kept."""
    queue_length: int
    """How many trees stand in that queue."""
    freed_bytes: int
    """What its going would give back to the disk."""
    refetch_seconds: float
    """How long it would take to fetch it again."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters: those of the store are of now, the others since the daemon started."""

    artifact_count: int
    tree_count: int
    blob_count: int
    blob_bytes: int
    artifact_bytes: int
    free_bytes: int
    capacity_bytes: int
    min_free_bytes: int
    fetch_count: int
    hit_count: int
    origin_bytes: int
    served_bytes: int
    download_count: int
    coming_bytes: int
    """Bytes promised to downloads under way that are no blobs yet."""
    refused_count: int
    """Attempts to read an artifact that were refused to the caller."""
    session_count: int
    lease_count: int
    pin_count: int
    """Artifacts pinned."""
    evicted_count: int
    """Trees evicted."""
    evicted_bytes: int
    """Bytes that this has given back to the disk."""
    quarantine_count: int
    damaged_count: int
    """Artifacts that lack bytes which were wrong or gone, and are being fetched again."""
    scrub_began_at: float
    """When the check of all blobs in the background began the pass under way, or the last one; 0 before the first."""
    scrub_ended_at: float
    """When it last ended a pass; 0 before the first."""
    scrub_blob_count: int
    """Blobs looked at in the pass under way, or in the last one."""
    scrub_bytes: int
    scrub_wrong_count: int
    """Blobs and manifests that were wrong or gone, or could not be looked at."""
    started_at: float
    store_root: str


@dataclass(frozen=True, slots=True)
class WhoAmI:
    """What the kernel told the daemon about this process, and whom the daemon serves."""

    uid: int
    user: str
    gids: tuple[int, ...]
    pid: int
    tracking_uri: str
    access_check: str
    """How access is checked: "none", "caller" or "rules"."""
    roles: tuple[str, ...]
    """What this process may do beside reading: "operator", "administrator"."""
    groups: tuple[str, ...]
    """The names of the groups that access goes by: those that the host's directory knows now."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is on one user's account."""

    uid: int
    user: str
    held_bytes: int
    """Bytes held, what is shared divided among those who share it."""
    tree_count: int
    held_bytes_max: int | None
    """How many bytes the user may hold; None where there is no limit."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Which daemon answers."""

    version: str
    pid: int
