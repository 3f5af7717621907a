"""Where a daemon lives, by its configuration, by systemd's environment, or by the user's.

Law of this file: the environment is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from artifactcache.paths import user_socket_dir
from cacheserver.config import ConfigError
from cacheserver.settings import Config


@dataclass(frozen=True)
class Place:
    """Where a daemon lives, and whom it serves."""

    root: str
    socket_dir: str
    tracking_uri: str
    serves_all: bool
    audit_file: str


def place(config: Config, environ: dict[str, str], uid: int) -> Place:
    """Where the daemon lives by its configuration, by systemd's environment, or by the user's.

    Raises ConfigError where the tracking server is not known.
    """
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    own = environ.get("XDG_RUNTIME_DIR", "")
    tracking_uri = config.origin.tracking_uri or environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking_uri:
        raise ConfigError(
            "There is no tracking server to cache for: set MLFLOW_TRACKING_URI, or [origin] tracking_uri in the"
            " configuration."
        )
    try:
        urlsplit(tracking_uri).port  # noqa: B018 - looking at it is the check
    except ValueError:  # not shown: what cannot be taken apart may have a password anywhere
        raise ConfigError(
            "The tracking URI is no URL. If a password in it has a /, ? or # in it, write %2F, %3F or %23."
        ) from None
    root = store_root(config, environ)
    logs = environ.get("LOGS_DIRECTORY", "").partition(":")[0]
    # systemd gives units of the system a folder below /run, units of a user one below the user's own.
    under_system = bool(runtime) and not (own and runtime.startswith(own.rstrip("/") + "/"))
    return Place(
        root=root,
        socket_dir=config.server.socket_dir
        or environ.get("ARTIFACTCACHE_SOCKET_DIR")
        or runtime
        or user_socket_dir(environ, uid),
        tracking_uri=tracking_uri,
        serves_all=config.access.users == "all" or (config.access.users == "" and under_system),
        audit_file=config.audit.file or f"{logs or root}/audit.jsonl",
    )


def store_root(config: Config, environ: dict[str, str]) -> str:
    """The store's folder."""
    state = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    home = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or ''}/.cache"
    return config.store.root or state or f"{home}/cacheserver"
