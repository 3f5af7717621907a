"""Every error that a caller of artifactcache can meet, each saying whose move it is.

The daemon raises these classes too. On the wire an error is its class name (trailing metadata
`artifactcache-error`, or `Failure.error` on the handoff socket) and its message; `BY_NAME` turns the name back
into the class.
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of all errors of artifactcache. Raised itself only for a defect of the daemon."""


class InvalidRequest(CacheError):
    """The call is wrong: the caller has to change it."""


class NotFound(CacheError):
    """The origin has no such artifact, run, model, version or alias."""


class PermissionDenied(CacheError):
    """This user may not do that: an administrator has to allow it."""


class Unauthenticated(CacheError):
    """The daemon does not know who calls, or the origin refuses the credentials."""


class DestinationExists(CacheError):
    """Something is at the destination already: choose another one, or `exists="replace"` or `"merge"`."""


class ModeUnavailable(CacheError):
    """The mode that was asked for by name cannot be had here; the message says why and which can."""


class NoSpace(CacheError):
    """A disk is too full: the store's, or the destination's."""


class QuotaExceeded(CacheError):
    """The caller holds as much, or asks as often, as this host grants it."""


class OriginUnavailable(CacheError):
    """The tracking server or the artifact store does not answer, and the artifact is not held. Try later."""


class Corrupted(CacheError):
    """Bytes are not what they should be, and right ones could not be had."""


class DaemonUnavailable(CacheError):
    """The daemon does not answer: start it, or set ARTIFACTCACHE_SOCKET_DIR to where its sockets are."""


class DeadlineExceeded(CacheError):
    """The call's `timeout` ran out. A download that was under way goes on in the daemon."""


BY_NAME: dict[str, type[CacheError]] = {
    error.__name__: error
    for error in (
        CacheError,
        InvalidRequest,
        NotFound,
        PermissionDenied,
        Unauthenticated,
        DestinationExists,
        ModeUnavailable,
        NoSpace,
        QuotaExceeded,
        OriginUnavailable,
        Corrupted,
        DaemonUnavailable,
        DeadlineExceeded,
    )
}
