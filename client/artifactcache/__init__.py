"""The client of `cacheserver`: MLflow artifacts in milliseconds, from the cache on this host.

    path = artifactcache.fetch("models:/resnet@champion")

Importing this package costs about a millisecond: everything but the errors is loaded when it is first named, and
grpc and protobuf with the first call.
"""

from __future__ import annotations

from artifactcache import forks
from artifactcache.errors import (
    CacheError,
    Corrupted,
    DaemonUnavailable,
    DeadlineExceeded,
    DestinationExists,
    InvalidRequest,
    ModeUnavailable,
    NoSpace,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)

TYPE_CHECKING = False  # `typing` alone would cost more than all of this file; checkers know the name
if TYPE_CHECKING:
    from artifactcache.client import Client, fetch
    from artifactcache.lockfile import Lock, Locked
    from artifactcache.overviews import Overview
    from artifactcache.results import (
        Evicted,
        Explained,
        Fetched,
        File,
        Held,
        Inspected,
        Kept,
        Pinned,
        Pong,
        Progress,
        Stats,
        Swept,
        Synced,
        Usage,
        Verified,
        Warmed,
        WhoAmI,
    )

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "Client",
    "Corrupted",
    "DaemonUnavailable",
    "DeadlineExceeded",
    "DestinationExists",
    "Evicted",
    "Explained",
    "Fetched",
    "File",
    "Held",
    "Inspected",
    "InvalidRequest",
    "Kept",
    "Lock",
    "Locked",
    "ModeUnavailable",
    "NoSpace",
    "NotFound",
    "OriginUnavailable",
    "Overview",
    "PermissionDenied",
    "Pinned",
    "Pong",
    "Progress",
    "QuotaExceeded",
    "Stats",
    "Swept",
    "Synced",
    "Unauthenticated",
    "Usage",
    "Verified",
    "Warmed",
    "WhoAmI",
    "__version__",
    "fetch",
]


def __getattr__(name: str) -> object:
    """Load the rest of the public names when one of them is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'artifactcache' has no attribute {name!r}")
    forks.gate.enter(is_import=True)
    try:
        from artifactcache import client, results

        home: object = client if hasattr(client, name) else results
        if name in ("Lock", "Locked"):
            from artifactcache import lockfile as home
        elif name == "Overview":
            from artifactcache import overviews as home
    finally:
        forks.gate.leave()
    value: object = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
