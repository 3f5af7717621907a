"""Health and reflection at cache.sock, for anybody: as grpc_health_probe and grpcurl ask for them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.guests import Guests
from cacheserver.health import HEALTH, QUESTIONS_MAX, REFLECTION, REFLECTION_V1, WATCHES_MAX, Health
from cacheserver.service import CONTRACT
from cacheserver.stopping import Stopping
from cacheserver.tallies import Tally
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.until import until
from tests.rig.wire import stub

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ["", CONTRACT.full_name]


@contextlib.contextmanager
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    """A connection of its own to cache.sock."""
    with grpc.insecure_channel(f"unix:{daemon.socket_dir}/cache.sock", [("grpc.use_local_subchannel_pool", 1)]) as made:
        yield made


def health(made: grpc.Channel) -> Any:
    """The health service there."""
    return health_pb2_grpc.HealthStub(made)


def check(made: grpc.Channel, service: str = "") -> int:
    """What a probe is told."""
    told: int = health(made).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return told


@pytest.mark.parametrize("service", NAMES)
def test_a_daemon_that_serves_is_healthy(daemon: Daemon, service: str) -> None:
    """As a whole and by the contract's name, without a token."""
    with channel(daemon) as made:
        assert check(made, service) == SERVING


def test_what_is_unknown_is_not_found(daemon: Daemon) -> None:
    """By a question; who watches it is told so and may wait."""
    with channel(daemon) as made:
        with pytest.raises(grpc.RpcError) as refused:
            check(made, "artifactcache.v1.Other")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watching = health(made).Watch(health_pb2.HealthCheckRequest(service="x"), timeout=10)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()


def test_who_watches_hears_of_the_end(start_daemon: StartDaemon, origin: CountingProxy) -> None:
    """NOT_SERVING comes before the connection closes, and a stop does not wait for who watches."""
    daemon = start_daemon(origin.uri)
    with channel(daemon) as made:
        watching = health(made).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watching).status == SERVING
        daemon.stop()
        assert [one.status for one in watching] == [NOT_SERVING]


def test_a_damaged_index_is_not_healthy(
    start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Any
) -> None:
    """From when somebody meets the damage until it is mended."""
    daemon = start_daemon(origin.uri)
    caller: Caller = caller_of(daemon, room)
    with channel(daemon) as made:
        assert check(made) == SERVING
        with contextlib.closing(sqlite3.connect(daemon.root / "index.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(daemon.root / "index.db", "r+b") as file:
            file.seek(4096)
            file.write(os.urandom(os.path.getsize(file.fileno()) - 4096))
        # Asked without a pause: it may be mended within a moment.
        told, is_over = set[int](), threading.Event()
        probe = threading.Thread(target=lambda: told.update(check(made) for _ in iter(is_over.is_set, True)))
        probe.start()
        try:
            with contextlib.suppress(Exception):
                caller.run("import artifactcache\nresult = artifactcache.Client().stats().blob_count")
            until(lambda: NOT_SERVING in told, daemon.read_log)
        finally:
            is_over.set()
            probe.join()
        until(lambda: check(made) == SERVING, daemon.read_log)


def check_again(daemon: Daemon) -> int:
    """Over another connection."""
    with channel(daemon) as made:
        return check(made)


def test_reflection_tells_the_contract(daemon: Daemon) -> None:
    """The services, and each message of ours, field by field, as it is in cache.proto."""
    with channel(daemon) as made:
        found = ProtoReflectionDescriptorDatabase(made)
        assert sorted(found.get_services()) == sorted([CONTRACT.full_name, HEALTH, REFLECTION])
        told = DescriptorPool(found).FindServiceByName(CONTRACT.full_name)
        assert [method.name for method in told.methods] == [method.name for method in CONTRACT.methods]
        here, there = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(here)
        told.file.CopyToProto(there)
        assert here == there


def test_both_versions_of_reflection_are_answered(daemon: Daemon) -> None:
    """Newer tools ask for v1, whose messages are the same."""
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    with channel(daemon) as made:
        for name in (REFLECTION, REFLECTION_V1):
            call = made.stream_stream(
                f"/{name}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            (answer,) = call(iter([request]), timeout=10)
            assert CONTRACT.full_name in [one.name for one in answer.list_services_response.service]


@pytest.mark.parametrize("path", [f"/{HEALTH}/Check", f"/{HEALTH}/Watch", f"/{REFLECTION}/ServerReflectionInfo"])
def test_what_is_no_message_is_refused(daemon: Daemon, path: str) -> None:
    """And nothing is written into the log, which anybody could fill (the fixture looks)."""
    before = daemon.read_log()
    with channel(daemon) as made:
        call = made.stream_stream(path, request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([b"\xff\xff\xff"]), timeout=10))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert daemon.read_log() == before


def _never() -> Iterator[Any]:
    """A message that does not come while this process lives."""
    threading.Event().wait(60)
    yield from ()


@pytest.mark.parametrize("kind", ["Watch", "Check", "ServerReflectionInfo"])
def test_who_holds_all_places_keeps_nobody_from_asking(daemon: Daemon, kind: str) -> None:
    """Of each kind more calls than there are places for, that do not end: the oldest of them are ended, a probe is
    answered at once, and calls of the contract are, too."""
    most = WATCHES_MAX if kind == "Watch" else QUESTIONS_MAX
    path = f"/{REFLECTION if kind == 'ServerReflectionInfo' else HEALTH}/{kind}"
    with channel(daemon) as made:
        call: Callable[..., Any] = made.stream_stream(path, request_serializer=None, response_deserializer=None)
        if kind == "Watch":
            held = [call(iter([b""]), timeout=60) for _ in range(most + 5)]
            for one in held:
                next(one)
        else:
            held = [call(_never(), timeout=60) for _ in range(most + 5)]
        assert check_again(daemon) == SERVING
        with stub(daemon.socket_dir, ("grpc.use_local_subchannel_pool", 1)) as cache:
            cache.Ping(pb.PingRequest(), timeout=10)
        until(lambda: sum(not one.is_active() for one in held) >= 5, f"{kind} to be ended")
        assert sum(one.is_active() for one in held) >= most - 1
        for one in held:
            one.cancel()


class _Call:
    """A call that notes its end."""

    ended = False

    def cancel(self) -> None:
        """It ends."""
        self.ended = True


def test_each_call_has_its_time() -> None:
    """It is ended when that is over, and not before."""
    now = 0.0
    guests, first, second = Guests(2, 10.0, lambda: now), _Call(), _Call()
    with guests.one(first):
        now = 8.0
        with guests.one(second):
            guests.look()
            assert not first.ended
            now = 10.1
            guests.look()
            assert first.ended and not second.ended
    third = _Call()
    with guests.one(third):
        now = 30.0
        guests.look()
    assert third.ended and not second.ended


def test_a_daemon_whose_pulse_has_stopped_is_not_healthy() -> None:
    """Nor one that is being stopped."""
    is_well, stopping = True, Stopping()
    found = Health(lambda: is_well, stopping, Tally(), lambda: 0.0)
    assert found._status("") == SERVING
    is_well = False
    assert found._status("") == NOT_SERVING
    is_well = True
    stopping.begin()
    assert found._status(CONTRACT.full_name) == NOT_SERVING
