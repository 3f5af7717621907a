"""Errors of ours as gRPC tells them.

Law of this file: an error of ours becomes its status by one table; any other is a defect, logged here and told to the
caller in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from artifactcache import errors
from artifactcache.errors import CacheError
from cacheserver.refusals import without_users
from cacheserver.stopping import Stopping
from cacheserver.tallies import Tally

# As gRPC encodes it, three bytes for each that is not ASCII. The other end throws metadata above 8 KiB away at random.
DETAILS_BYTES_MAX = 4096

_STATUS: dict[type[CacheError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.DestinationExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.ModeUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OriginUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DaemonUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Corrupted: grpc.StatusCode.DATA_LOSS,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_ERROR_KEY = "artifactcache-error"

MALFORMED = object()  # stands for a request that is no message; None would be gRPC's own failure

_log = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.ServicerContext


class Servicer(Protocol):
    """What has handlers."""

    stopping: Stopping


@contextmanager
def typed(context: Context, call: str) -> Iterator[None]:
    """Turns what a handler raises into a status."""
    try:
        yield
        return
    except CacheError as error:
        failure = error
    except Exception:  # noqa: BLE001 - a defect here must not end the daemon
        _log.exception("%s failed", call)
        failure = CacheError(f"{call} failed in the daemon; its log says why.")
    context.set_trailing_metadata(((_ERROR_KEY, type(failure).__name__),))
    text = without_users(str(failure))  # an origin's own URIs may hold a password: of ftp, say
    context.abort(_STATUS.get(type(failure), grpc.StatusCode.INTERNAL), details(text))


@contextmanager
def counted(context: Context, call: str, calls: Tally) -> Iterator[None]:
    """Counts a call when it is over: by its name, its status, and which error of ours it ended with."""
    try:
        yield
    finally:
        code = context.code()  # type: ignore[attr-defined]
        if code is None:
            calls.add(call, "OK" if context.is_active() else "CANCELLED", "")
        else:
            trailers = dict(context.trailing_metadata() or ())
            calls.add(call, code.name, str(trailers.get(_ERROR_KEY, "")))


def details(text: str) -> str:
    """A message as gRPC can carry it: not longer than DETAILS_BYTES_MAX when it is encoded."""
    text = text.encode("utf-8", "backslashreplace").decode()  # names of files may hold what is no character
    room = DETAILS_BYTES_MAX
    for place, char in enumerate(text):
        room -= 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())
        if room < 0:
            return f"{text[:place]} [...]"
    return text


def decoder(kind: type[Message]) -> Callable[[bytes], object]:
    """Reads messages of a kind; what is none becomes MALFORMED, of which gRPC writes no traceback into the log."""

    def decode(request: bytes) -> object:
        try:
            return kind.FromString(request)
        except DecodeError:
            return MALFORMED

    return decode


def _message(request: Any) -> Any:
    if request is MALFORMED:
        raise errors.InvalidRequest("The request is no message of the contract, cache.proto.")
    return request


def unary(method: Callable[[Any, Any, Context], T]) -> Callable[[Any, Any, Context], T]:
    """A handler with one answer that may raise errors of ours."""

    @wraps(method)
    def handler(self: Servicer, request: Any, context: Context) -> T:
        with typed(context, method.__name__), self.stopping.call(method.__name__):
            return method(self, _message(request), context)
        raise AssertionError("a call that failed was aborted")

    return handler


def stream(
    method: Callable[[Any, Any, Context], Iterator[T]],
) -> Callable[[Any, Any, Context], Iterator[T]]:
    """A handler with many answers that may raise errors of ours."""

    @wraps(method)
    def handler(self: Servicer, request: Any, context: Context) -> Iterator[T]:
        with typed(context, method.__name__), self.stopping.call(method.__name__):
            yield from method(self, _message(request), context)

    return handler
