"""One line for each fetch: who took what, or why they did not get it.

Law of this file: nothing secret, and nothing that a client wrote can look like a line of its own.
"""

from __future__ import annotations

import logging

from artifactcache.errors import CacheError
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.refusals import without_credentials
from cacheserver.sessions import Peer
from cacheserver.uris import URI_LENGTH_MAX

_log = logging.getLogger(__name__)


def fetched(peer: Peer, result: pb.FetchResult, view: bool, seconds: float) -> None:
    """A fetch that was answered. What a client does with a lease it does at the handoff socket, later."""
    _log.info(
        "fetch uid=%d pid=%d version=%s tree=%s given=%s bytes=%d hit=%s transport=%s seconds=%.4f",
        peer.uid,
        peer.pid,
        _quoted(result.version),
        result.digest,
        "view" if view else "lease",
        result.size_bytes,
        "yes" if result.hit else "no",
        result.transport or "none",
        seconds,
    )


def refused(peer: Peer | None, asked: pb.ArtifactSelection, error: CacheError, *, seconds: float) -> None:
    """A fetch that failed; without a peer where nobody knows whose it was."""
    _log.info(
        "fetch uid=%s pid=%s asked=%s refused=%s seconds=%.4f",
        peer.uid if peer else "unknown",
        peer.pid if peer else "unknown",
        _quoted(asked.uri or f"runs:/{asked.run_id}/{asked.artifact_path}"),
        type(error).__name__,
        seconds,
    )


def _quoted(uri: str) -> str:
    # Not the beginning of a longer one: a password whose "@" is cut off does not look like one.
    return ascii(without_credentials(uri)) if len(uri) <= URI_LENGTH_MAX else "(too long)"
