"""What the configuration says, as values: every section, its keys and their defaults.

Law of this file: a key that nobody reads does not exist; `config.example.toml` has each with its unit and reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cacheserver.access import Grant
from cacheserver.allowances import Allowance
from cacheserver.retention import Rule
from cacheserver.schedules import Schedule
from cacheserver.space import Amount


@dataclass(frozen=True)
class StoreConfig:
    """[store]"""

    root: str = ""
    capacity: Amount = field(default=Amount(100, percent=True))
    min_free: Amount = field(default=Amount(1, percent=True))


@dataclass(frozen=True)
class OriginConfig:
    """[origin]"""

    tracking_uri: str = ""
    unreachable_after: float = 10.0
    stale_after: float = 2.0
    relist_after: float = 3600.0
    alias_ttl: float = 0.0
    local_roots: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AccessConfig:
    """[access]"""

    check: str = "none"
    decisions_kept: float = 60.0
    users: str = ""
    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    administrators: list[str] = field(default_factory=list)
    views: bool = True
    hardlink_for_root: bool = False


@dataclass(frozen=True)
class AuditConfig:
    """[audit]"""

    file: str = ""
    max_bytes: Amount = field(default=Amount(64 << 20))
    files: int = 10
    warn_refusals: int = 20
    warn_downloads: int = 1000


@dataclass(frozen=True)
class ScrubConfig:
    """[scrub]; `rate` in bytes per second."""

    every: float = 7 * 86_400.0
    rate: Amount = field(default=Amount(64 << 20))


@dataclass(frozen=True)
class IngestConfig:
    """[ingest]"""

    folders: list[str] = field(default_factory=list)
    settle: float = 5.0
    every: float = 600.0
    max_age: float = 30 * 86_400.0


@dataclass(frozen=True)
class SharedConfig:
    """[shared]; `rate_min` in bytes per second."""

    url: str = ""
    read_only: bool = False
    endpoint: str = ""
    profile: str = ""
    key_file: str = ""
    patience: float = 2.0
    rate_min: int = 1 << 20
    tree_max: Amount = field(default=Amount(1 << 40))
    capacity: Amount = field(default=Amount(0))


@dataclass(frozen=True)
class ServerConfig:
    """[server]"""

    socket_dir: str = ""


@dataclass(frozen=True)
class MetricsConfig:
    """[metrics]"""

    listen: str = ""
    accounts: bool = False


@dataclass(frozen=True)
class PageConfig:
    """[page]"""

    listen: str = ""


@dataclass(frozen=True)
class LogConfig:
    """[log]"""

    format: str = "auto"
    level: str = "info"


@dataclass(frozen=True)
class EvictionConfig:
    """[eviction]; `high` and `low` are per cent of what the store may hold."""

    policy: str = "gdsf"
    high: float = 95.0
    low: float = 90.0
    grace: float = 60.0
    trace: str = ""


@dataclass(frozen=True)
class WarmConfig:
    """One [[warm]]: what is fetched before anybody asks, and when it is looked whether it is the newest: every so many
    seconds, or at some times of the week; the other is infinite, or empty."""

    uri: str = ""
    every: float = 900.0
    at: Schedule = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuotasConfig:
    """[quotas]: by user, `allowances.EVERYBODY` among them, and by group."""

    users: Mapping[str, Allowance] = field(default_factory=dict)
    groups: Mapping[str, Allowance] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """All of it; an empty text stands for "find a place by the environment"."""

    store: StoreConfig = field(default_factory=StoreConfig)
    origin: OriginConfig = field(default_factory=OriginConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    shared: SharedConfig = field(default_factory=SharedConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    page: PageConfig = field(default_factory=PageConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eviction: EvictionConfig = field(default_factory=EvictionConfig)
    grant: tuple[Grant, ...] = ()
    retention: tuple[Rule, ...] = ()
    warm: tuple[WarmConfig, ...] = ()
    quotas: QuotasConfig = field(default_factory=QuotasConfig)
