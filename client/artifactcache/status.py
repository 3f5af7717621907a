"""The inverse of the daemon's table: from a failed call to the error that the caller gets."""

from __future__ import annotations

from typing import Any

import grpc

from artifactcache.errors import (
    BY_NAME,
    CacheError,
    Corrupted,
    DaemonUnavailable,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)

ERROR_METADATA = "artifactcache-error"

# For what grpc itself says, before the daemon's code was reached or after it broke down.
_BY_STATUS: dict[grpc.StatusCode, type[CacheError]] = {
    grpc.StatusCode.CANCELLED: DaemonUnavailable,
    grpc.StatusCode.DATA_LOSS: Corrupted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QuotaExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: DaemonUnavailable,
    grpc.StatusCode.UNIMPLEMENTED: DaemonUnavailable,
}
_WORDS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.CANCELLED: "the call was broken off",
    grpc.StatusCode.DEADLINE_EXCEEDED: "not done within the timeout; a download that had begun goes on in the daemon",
    grpc.StatusCode.UNAVAILABLE: "the daemon does not answer",
    grpc.StatusCode.UNIMPLEMENTED: "the daemon is too old for this call",
}
_TOO_LARGE = "larger than max"  # grpc has no status of its own for a message over the limit


def named_by_daemon(error: grpc.RpcError) -> type[CacheError] | None:
    """Return the class that the daemon named, None where grpc failed by itself."""
    metadata: Any = error.trailing_metadata() or ()  # grpc-stubs takes it for one pair
    for key, value in metadata:
        if key == ERROR_METADATA:
            return BY_NAME.get(str(value), CacheError)
    return None


def typed(error: grpc.RpcError) -> CacheError:
    """Return the error that a failed call means."""
    named = named_by_daemon(error)
    details = error.details() or ""
    if named is not None:
        return named(details)
    status = error.code()
    kind = _BY_STATUS.get(status, CacheError)
    if kind is QuotaExceeded and _TOO_LARGE in details:
        kind = InvalidRequest
    words = _WORDS.get(status)
    return kind(f"{words} ({details})" if words and details else words or details)
