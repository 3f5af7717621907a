"""Sessions against clients that keep no rules: malformed packets, tokens that are not theirs, and how leases end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc as pb_grpc
from cacheserver.service import WAITING_PER_USER_MAX
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.linking import FILES, Session
from tests.rig.lying import HONEST, Lie, LyingOrigin, file, flat, hangs
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.wire import Handoff, bearer, error_name, leased, manifest_lines, stub


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(FILES)}"


@pytest.fixture
def session(daemon: Daemon, uri: str) -> Iterator[Session]:
    """One session with its lease."""
    session = Session(daemon, uri)
    yield session
    session.handoff.close()


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


def test_connections_that_say_nothing(daemon: Daemon, uri: str) -> None:
    """Hundreds of connections that never say Hello keep nobody from being served."""
    silent = [Handoff(daemon.socket_dir) for _ in range(300)]
    try:
        session = Session(daemon, uri)
        assert session.lease
        session.handoff.close()
    finally:
        for handoff in silent:
            handoff.close()
    assert daemon.is_alive()


def test_clients_that_do_not_read(daemon: Daemon, session: Session) -> None:
    """A client that asks and never reads the answers blocks only itself."""
    joined = session.join()
    joined.socket.setblocking(False)
    packet = pb.HandoffRequest(blobs=pb.BlobsRequest(lease=session.lease)).SerializeToString()
    with contextlib.suppress(BlockingIOError, ConnectionError):
        for _ in range(5000):
            joined.send_bytes(packet)
    assert daemon.is_alive()
    joined.close()


def test_a_client_that_asks_again_before_it_reads(session: Session) -> None:
    """It is hung up on: its unread descriptors would use up what the kernel grants the daemon."""
    joined = session.join()
    packet = pb.HandoffRequest(blobs=pb.BlobsRequest(lease=session.lease)).SerializeToString()

    def hung_up() -> bool:
        try:
            joined.send_bytes(packet)
        except ConnectionError:
            return True
        return False

    until(hung_up, "the daemon to hang up")
    received = 0
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            _, fds = joined.receive()
            received += 1
            for fd in fds:
                os.close(fd)
    assert received <= 1
    assert session.daemon.is_alive()
    joined.close()


MANY: trees.Files = {str(number): b"%d" % number for number in range(128)}


@pytest.fixture(scope="module")
def many_uri(mlflow_proxied: MlflowServer) -> str:
    """As many files as one packet has descriptors."""
    return f"runs:/{mlflow_proxied.run(MANY)}"


def hoard(session: Session, stack: contextlib.ExitStack) -> list[Handoff]:
    """Connections that were sent descriptors and have not read them, until the daemon sends no more."""
    hoarders: list[Handoff] = []
    ask = pb.HandoffRequest(blobs=pb.BlobsRequest(lease=session.lease)).SerializeToString()
    for _ in range(100):
        joined = stack.enter_context(session.join())
        joined.send_bytes(ask)
        size = len(joined.socket.recv(1 << 16, socket.MSG_PEEK))
        if size > 30:  # words, not descriptors
            assert joined.receive()[0].failure.error == "QuotaExceeded"
            return hoarders
        hoarders.append(joined)
    raise AssertionError("the daemon sends descriptors without end")


def drop(handoff: Handoff) -> None:
    """Read a reply, and close what lies beside it."""
    for fd in handoff.receive()[1]:
        os.close(fd)


def test_descriptors_that_nobody_reads(daemon: Daemon, many_uri: str, alice: Caller) -> None:
    """There is an end to them for each user, who is told why; others go on, and who reads gets more."""
    session = Session(daemon, many_uri)
    with contextlib.ExitStack() as stack:
        hoarders = hoard(session, stack)
        if os.geteuid() == 0:  # alice is another user than the one who hoards
            assert alice.fetch(many_uri, alice.cwd / "dst", mode="copy").file_count == len(MANY)
        drop(hoarders[0])
        drop(hoarders[1])
        assert hoard(session, stack)
    session.handoff.close()


def test_more_descriptors_than_the_kernel_lets_the_daemon_send(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, many_uri: str
) -> None:
    """The caller is told so, and the daemon goes on."""
    daemon = start_daemon(mlflow_proxied.uri, open_files_max=400)
    if daemon.user is None and os.geteuid() == 0:
        pytest.skip("the kernel does not limit root")
    session = Session(daemon, many_uri)
    with contextlib.ExitStack() as stack:
        hoarders = hoard(session, stack)
        assert len(hoarders) < 10
        for hoarder in hoarders:
            drop(hoarder)
        assert hoard(session, stack)
    assert daemon.is_alive()
    session.handoff.close()


def test_descriptors_before_hello(daemon: Daemon, room: Path) -> None:
    """None is taken from a stranger."""
    (room / "file").write_text("x")
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    with Handoff(daemon.socket_dir) as handoff, (room / "file").open() as file:
        handoff.send_bytes(pb.HandoffRequest(hello=pb.Hello()).SerializeToString(), (file.fileno(),))
        assert handoff.receive()[0].failure.error == "InvalidRequest"
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 1


def test_fetches_that_wait_for_the_origin(start_daemon: StartDaemon, liar: LyingOrigin) -> None:
    """One user's waiting fetches have an end, which is told; what takes no time is answered beside them."""
    held = f"runs:/{liar.run(HONEST)}"
    stuck = f"runs:/{liar.run(Lie(flat(file('a')), lambda path: hangs()))}"
    daemon = start_daemon(liar.uri, unreachable_after=30.0)
    session = Session(daemon, held)
    artifact = pb.ArtifactSelection(uri=stuck)
    with stub(daemon.socket_dir) as cache:
        waiting: list[Any] = []
        for _ in range(WAITING_PER_USER_MAX):
            waiting.append(cache.Fetch(pb.FetchRequest(artifact=artifact), metadata=bearer(session.token)))
        refused = None
        while refused is None:  # until all of them have come to wait
            one = cache.Fetch(pb.FetchRequest(artifact=artifact), metadata=bearer(session.token))
            try:
                next(one)  # progress: it waits as well
                waiting.append(one)
            except grpc.RpcError as error:
                refused = error_name(error)
        assert refused == "QuotaExceeded"
        assert leased(cache, session.token, held).hit
        assert cache.Stats(pb.StatsRequest(), metadata=bearer(session.token)).download_count == 1
        for one in waiting:
            one.cancel()

        def served_again() -> bool:
            try:
                next(cache.Fetch(pb.FetchRequest(artifact=artifact), metadata=bearer(session.token)))
            except grpc.RpcError:
                return False
            return True

        until(served_again, "those who went away to make room")
    session.handoff.close()


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
