"""Sessions against clients that keep no rules: malformed packets, tokens that are not theirs, and how leases end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc as pb_grpc
from tests.conftest import CallerOf
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.linking import Session
from tests.rig.until import until
from tests.rig.wire import Handoff, bearer, error_name, manifest_lines, stub

PACKETS = {
    "one byte": b"\0",
    "noise": os.urandom(1000),
    "no request": pb.HandoffRequest().SerializeToString() or b"\x08\x01",
    "a reply": pb.HandoffReply(welcome=pb.Welcome(token="x")).SerializeToString(),
    "half a message": pb.HandoffRequest(hello=pb.Hello(token="x" * 100)).SerializeToString()[:50],
    "a huge length": b"\x0a\xff\xff\xff\xff\x0f",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "the largest packet": b"\xff" * 65_536,
    "more than the largest packet": b"x" * 100_000,
    "a token that is no token": pb.HandoffRequest(hello=pb.Hello(token="nonsense")).SerializeToString(),
    "a token of 60 KB": pb.HandoffRequest(hello=pb.Hello(token="x" * 60_000)).SerializeToString(),
    "a request before Hello": pb.HandoffRequest(manifest=pb.ManifestRequest(lease=1)).SerializeToString(),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS.keys())
@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("fd_count", [0, 3])
def test_malformed_packets(daemon: Daemon, packet: bytes, greeted: bool, fd_count: int) -> None:
    """They are answered with a failure, or by hanging up; everybody else is served as before."""
    with Handoff(daemon.socket_dir) as handoff:
        if greeted:
            handoff.hello()
        try:
            handoff.send_bytes(packet, (0,) * fd_count)
            reply, fds = handoff.receive()
            assert (reply.WhichOneof("reply"), fds) == ("failure", [])
        except (EOFError, ConnectionError):
            pass
    assert daemon.is_alive()


def test_an_empty_packet(daemon: Daemon) -> None:
    """A packet of no bytes looks like the end of a connection, and is one."""
    with Handoff(daemon.socket_dir) as handoff:
        handoff.hello()
        handoff.send_bytes(b"")
        with contextlib.suppress(EOFError, ConnectionError):
            assert handoff.receive()[0].WhichOneof("reply") == "failure"
    assert daemon.is_alive()


def test_a_second_hello(daemon: Daemon) -> None:
    """A connection says Hello once; whatever the daemon makes of a second one, both tokens are not confused."""
    with Handoff(daemon.socket_dir) as handoff:
        first = handoff.hello()
        try:
            reply, _ = handoff.ask(hello=pb.Hello())
        except (EOFError, ConnectionError):
            return
        assert reply.WhichOneof("reply") == "failure" or reply.welcome.token == first


def test_descriptors_before_hello(daemon: Daemon, room: Path) -> None:
    """None is taken from a stranger."""
    (room / "file").write_text("x")
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    with Handoff(daemon.socket_dir) as handoff, (room / "file").open() as file:
        handoff.send_bytes(pb.HandoffRequest(hello=pb.Hello()).SerializeToString(), (file.fileno(),))
        assert handoff.receive()[0].failure.error == "InvalidRequest"
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 1


def _calls(cache: pb_grpc.CacheStub, uri: str) -> dict[str, Callable[..., object]]:
    artifact = pb.ArtifactSelection(uri=uri)
    return {
        "WhoAmI": lambda **more: cache.WhoAmI(pb.WhoAmIRequest(), **more),
        "Fetch": lambda **more: list(cache.Fetch(pb.FetchRequest(artifact=artifact), **more)),
        "Release": lambda **more: cache.Release(pb.ReleaseRequest(lease=1), **more),
        "List": lambda **more: list(cache.List(pb.ListRequest(), **more)),
        "Inspect": lambda **more: list(cache.Inspect(pb.InspectRequest(artifact=artifact), **more)),
        "Verify": lambda **more: list(cache.Verify(pb.VerifyRequest(), **more)),
        "Stats": lambda **more: cache.Stats(pb.StatsRequest(), **more),
    }


TOKENS: dict[str, list[tuple[str, str]] | None] = {
    "none": None,
    "empty": [("authorization", "")],
    "no bearer": [("authorization", "x" * 43)],
    "wrong": bearer("x" * 43),
    "not ASCII enough": bearer("~" * 5000),
    "another scheme": [("authorization", "Basic eDp5")],
    "two": [*bearer("a"), *bearer("b")],
}


@pytest.mark.parametrize("rpc", ["WhoAmI", "Fetch", "Release", "List", "Inspect", "Verify", "Stats"])
@pytest.mark.parametrize("token", TOKENS)
def test_no_token_no_service(daemon: Daemon, uri: str, rpc: str, token: str) -> None:
    """Every call but Ping needs the token of a session that is open."""
    with stub(daemon.socket_dir) as cache, pytest.raises(grpc.RpcError) as caught:
        _calls(cache, uri)[rpc](metadata=TOKENS[token], timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert error_name(caught.value) == "Unauthenticated"


def test_ping_needs_no_token(daemon: Daemon) -> None:
    """It says which daemon answers, and nothing more."""
    with stub(daemon.socket_dir) as cache:
        assert cache.Ping(pb.PingRequest()).pid == daemon.pid


def test_a_token_ends_with_its_session(daemon: Daemon) -> None:
    """After the connection is closed its token opens nothing: neither calls nor hand-overs."""
    handoff = Handoff(daemon.socket_dir)
    token = handoff.hello()
    with stub(daemon.socket_dir) as cache:
        cache.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(token))
        handoff.close()

        def refused() -> bool:
            try:
                cache.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(token), timeout=20)
            except grpc.RpcError as error:
                return error_name(error) == "Unauthenticated"
            return False

        until(refused, "the token to end")
    with Handoff(daemon.socket_dir) as late:
        reply, _ = late.ask(hello=pb.Hello(token=token))
        assert reply.failure.error == "Unauthenticated"


def test_a_token_of_another_process(session: Session, daemon: Daemon, room: Path, caller_of: CallerOf) -> None:
    """A token that was told to somebody else does not let them join: neither another user nor another process."""
    code = """
        from tests.rig.wire import Handoff
        from artifactcache.v1 import cache_pb2 as pb
        with Handoff(socket_dir) as handoff:
            reply, _ = handoff.ask(hello=pb.Hello(token=token))
        result = reply.failure.error
    """
    thief: Caller = caller_of(daemon, room, "bob")
    assert thief.run(code, socket_dir=str(daemon.socket_dir), token=session.token) in (
        "Unauthenticated",
        "PermissionDenied",
    )


def test_leases_end_with_the_session(daemon: Daemon, uri: str) -> None:
    """When the connection closes, for whatever reason, its leases are gone; a joined connection takes none with it."""
    with stub(daemon.socket_dir) as cache, Handoff(daemon.socket_dir) as watcher:
        watch = bearer(watcher.hello())

        def leases() -> int:
            return int(cache.Stats(pb.StatsRequest(), metadata=watch).lease_count)

        until(lambda: leases() == 0, "leases of earlier tests to end")
        session = Session(daemon, uri)
        assert leases() == 1
        session.join().close()
        with session.join() as joined:
            manifest_lines(joined, session.lease)
        assert leases() == 1
        session.handoff.close()
        until(lambda: leases() == 0, "the lease to end")


def test_leases_end_with_a_killed_process(daemon: Daemon, alice: Caller, uri: str) -> None:
    """So they do when the client is killed."""
    with stub(daemon.socket_dir) as cache, Handoff(daemon.socket_dir) as watcher:
        watch = bearer(watcher.hello())

        def leases() -> int:
            return int(cache.Stats(pb.StatsRequest(), metadata=watch).lease_count)

        until(lambda: leases() == 0, "leases of earlier tests to end")
        with alice.start("import artifactcache\nsay(str(artifactcache.fetch(uri)))\nhear()", uri=uri) as job:
            assert Path(job.hear()).is_dir()
            assert leases() == 1
            job.kill()
        until(lambda: leases() == 0, "the lease to end")
