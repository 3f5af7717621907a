"""The gRPC server: what it takes of a connection before any call of ours begins.

Law of this file: everything that a client can make it hold has a limit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from cacheserver.service import CONTRACT, REQUESTS_MAX, Service
from cacheserver.statuses import MALFORMED, counted, decoder, typed

MESSAGE_BYTES_MAX = 1 << 20
CONNECTIONS_MAX = 4096
# A client closes a connection without calls long before: it comes to an end here only where a client does not.
CONNECTION_IDLE_SECONDS = 600
PING_SECONDS_MIN = 5  # between pings of one connection; the client library sends one after 10 s
HANDSHAKE_SECONDS = 10  # who says nothing would only hold a place
Server = grpc.Server


def serve(
    service: Service,
    address: str,
    connections_max: int = CONNECTIONS_MAX,
    beside: Sequence[grpc.GenericRpcHandler[Any, Any]] = (),
) -> grpc.Server:
    """A server that answers at a Unix socket, once it is started.

    Args:
        beside: what it answers beside the contract.
        connections_max: more are closed at once. `peers` sees to it that no user has all of them.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=REQUESTS_MAX, thread_name_prefix="request"),
        options=(
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", 16384),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", connections_max),
            ("grpc.max_connection_idle_ms", round(CONNECTION_IDLE_SECONDS * 1000)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS_MIN * 1000),
        ),
        maximum_concurrent_rpcs=REQUESTS_MAX,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(CONTRACT.full_name, _handlers(service)), *beside)
    )
    server.add_insecure_port(f"unix:{quote(os.fsencode(address))}")  # a URI, in which %, # and ? have a meaning
    return server


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Of a name or value that is no UTF-8 gRPC writes a traceback, for each that somebody sends."""
    return not str(record.msg).startswith("Invalid encoding")


def _handlers(service: Service) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """What the generated code would make, but for two things. Of requests that are no message gRPC writes a traceback
    into the log for each, and whoever can connect could fill the disk. And it has a thread of ours wait for the message
    of each call, of which it tells nobody, for as long as the client likes: so a call's one message is read as if there
    might be several, by ourselves, when it is known whose call it is."""
    made = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
    return {
        method.name: made[method.server_streaming](
            _handler(service, method),
            request_deserializer=decoder(GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in CONTRACT.methods
    }


def _handler(service: Service, method: MethodDescriptor) -> Callable[[Iterator[object], grpc.ServicerContext], Any]:
    name, handle = method.name, getattr(service, method.name)
    empty = None if method.input_type.fields else GetMessageClass(method.input_type)()

    def one(requests: Iterator[object], context: grpc.ServicerContext) -> object:
        with ExitStack() as ends:
            ends.enter_context(counted(context, name, service.answered))
            if empty is not None:  # neither what is asked nor the answer is waited for
                return handle(empty, context)
            with typed(context, name):
                ends.enter_context(service.place(context))
            return handle(next(requests, MALFORMED), context)

    def many(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
        with ExitStack() as ends:
            ends.enter_context(counted(context, name, service.answered))
            with typed(context, name):
                ends.enter_context(service.place(context))
            yield from handle(next(requests, MALFORMED) if empty is None else empty, context)

    return many if method.server_streaming else one
