"""Joining the shared tier: what a configuration says of it, opened.

Law of this file: what cannot be meant is refused at the start; that the tier does not answer is no reason not to serve.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from blake3 import blake3

from cacheserver.budgets import Budgets
from cacheserver.claims import Claims
from cacheserver.config import ConfigError
from cacheserver.errands import Freshness
from cacheserver.publishing import Publishing
from cacheserver.settings import SharedConfig
from cacheserver.sharing import Sharing
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tier import Tier
from cacheserver.tierstore import TierStore
from cacheserver.unpacking import Unpacking

KEY_BYTES_MIN = 16
KEY_BYTES_MAX = 4096
_CONTEXT = "artifactcache 2026-11 records of the shared tier"


def objects_of(config: SharedConfig) -> TierStore:
    """The object store that a configuration names."""
    return TierStore(config.url, config.endpoint, config.profile, config.patience, config.rate_min)


def secret_of(path: str) -> bytes | None:
    """What records are signed with, from the file that all hosts have; None where none is named. Raises ConfigError.

    It is derived from the file's bytes by BLAKE3 (section 6 of its specification): a file of any length will do.
    """
    if not path:
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(KEY_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"[shared] key_file {path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(found.st_mode) or not KEY_BYTES_MIN <= len(data) <= KEY_BYTES_MAX:
        raise ConfigError(
            f"[shared] key_file {path} must be a file of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes: make one with"
            " `head -c 32 /dev/urandom`, and give the same to all hosts."
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"[shared] key_file {path} can be read by others than its owner: whoever has it can say what hosts serve."
            " Take that from them: chmod 600."
        )
    return blake3(data, derive_key_context=_CONTEXT).digest()


def joined(
    objects: TierStore,
    config: SharedConfig,
    tracking_uri: str,
    store: Store,
    sweeper: Sweeper,
    budgets: Budgets,
    freshness: Freshness,
    clock: Callable[[], float],
    ticks: Callable[[], float],
    wait: Callable[[float], bool],
) -> Sharing:
    """The shared tier of a daemon. Raises ConfigError.

    Args:
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        wait: waits so many seconds; returns whether the daemon stops meanwhile.
    """
    claims = None if config.read_only else Claims(objects, os.uname().nodename, clock, ticks, wait)
    tier = Tier(
        objects,
        claims,
        tracking_uri=tracking_uri.rstrip("/"),
        secret=secret_of(config.key_file),
        tree_bytes_max=round(config.tree_max.number),
        ticks=ticks,
    )
    unpacking = Unpacking(tier, store, clock)
    publishing = None if config.read_only else Publishing(tier, store, sweeper, clock, ticks)
    return Sharing(tier, unpacking, publishing, store, sweeper, budgets, freshness, clock)
