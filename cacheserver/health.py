"""What anybody may ask at cache.sock: gRPC's own health service, and what services there are (server reflection).

Law of this file: no token is needed, so nothing is told but whether the daemon serves and what the contract says; and
whoever asks holds a place and a thread for a bounded time (`guests`). The servicers that come with both packages have
no such bound, and that of health has to be told of every change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from artifactcache.errors import InvalidRequest, NotFound
from cacheserver.guests import Guests
from cacheserver.service import CONTRACT
from cacheserver.statuses import MALFORMED, counted, decoder, typed
from cacheserver.stopping import Stopping
from cacheserver.tallies import Tally

QUESTIONS_MAX, QUESTION_SECONDS_MAX = 32, 30.0
WATCHES_MAX, WATCH_SECONDS_MAX = 16, 600.0
LOOK_SECONDS = 0.25  # between two looks of somebody who watches

HEALTH = str(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
# Tools ask for v1 first, and some for nothing else. Its messages are those of v1alpha, byte by byte.
REFLECTION = str(reflection.SERVICE_NAME)
REFLECTION_V1 = REFLECTION.replace(".v1alpha.", ".v1.")
SERVICES = frozenset({"", CONTRACT.full_name})  # that have a health

_Status = health_pb2.HealthCheckResponse
_Context = grpc.ServicerContext


class Health:
    """The health of one daemon.

    Args:
        is_well: whether it serves as it should.
        answered: counts calls that have ended.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self, is_well: Callable[[], bool], stopping: Stopping, answered: Tally, ticks: Callable[[], float]
    ) -> None:
        self._is_well = is_well
        self._stopping = stopping
        self._answered = answered
        self._questions = Guests(QUESTIONS_MAX, QUESTION_SECONDS_MAX, ticks)
        self._watches = Guests(WATCHES_MAX, WATCH_SECONDS_MAX, ticks)
        self._reflection: Any = reflection.ReflectionServicer([CONTRACT.full_name, HEALTH, REFLECTION])

    def look(self) -> None:
        """Ends calls that last too long."""
        self._questions.look()
        self._watches.look()

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """For a gRPC server."""
        asked, answer = decoder(health_pb2.HealthCheckRequest), health_pb2.HealthCheckResponse.SerializeToString
        reflected = grpc.stream_stream_rpc_method_handler(
            self._reflect,
            request_deserializer=decoder(reflection_pb2.ServerReflectionRequest),
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        # As in `server`, the one message of a call is read as if there might be several.
        check = grpc.stream_unary_rpc_method_handler(self._check, asked, answer)
        watch = grpc.stream_stream_rpc_method_handler(self._watch, asked, answer)
        return (
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check, "Watch": watch}),
            *(
                grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": reflected})
                for name in (REFLECTION, REFLECTION_V1)
            ),
        )

    def _check(self, requests: Iterator[object], context: _Context) -> object:
        with self._guest(context, "Check", self._questions):
            request = next(requests, MALFORMED)
            with typed(context, "Check"):
                if (service := _service(request)) not in SERVICES:
                    raise NotFound("The daemon has no such service.")
                return _Status(status=self._status(service))
        raise AssertionError("a call that failed was aborted")

    def _watch(self, requests: Iterator[object], context: _Context) -> Iterator[object]:
        with self._guest(context, "Watch", self._watches):
            request, last = next(requests, MALFORMED), None
            with typed(context, "Watch"):
                service = _service(request)
            while context.is_active():
                now = self._status(service)
                if now != last:
                    yield _Status(status=now)
                if self._stopping.has_begun():
                    return
                last = now
                self._stopping.wait(LOOK_SECONDS)

    def _reflect(self, requests: Iterator[object], context: _Context) -> Iterator[object]:
        with self._guest(context, "ServerReflectionInfo", self._questions):
            for request in requests:
                with typed(context, "ServerReflectionInfo"):
                    if request is MALFORMED:
                        raise InvalidRequest("The request is no message of reflection.proto.")
                    answer = next(self._reflection.ServerReflectionInfo(iter((request,)), context))
                yield answer

    def _guest(self, context: _Context, call: str, guests: Guests) -> ExitStack:
        with ExitStack() as ends:
            ends.enter_context(counted(context, call, self._answered))
            ends.enter_context(guests.one(context))
            return ends.pop_all()

    def _status(self, service: str) -> Any:
        if service not in SERVICES:
            return _Status.SERVICE_UNKNOWN
        is_served = not self._stopping.has_begun() and self._is_well()
        return _Status.SERVING if is_served else _Status.NOT_SERVING


def _service(request: Any) -> str:
    """Which service somebody asks for. Raises InvalidRequest."""
    if request is MALFORMED:
        raise InvalidRequest("The request is no message of health.proto.")
    return str(request.service)
