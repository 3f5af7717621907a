"""Clients that use up what all share: there is an end to it for each user, and others are served beside them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.connections import REQUESTS_PER_USER_MAX
from cacheserver.downloads import DOWNLOADS_MAX
from cacheserver.service import LENGTHY_PER_USER_MAX, REQUESTS_MAX
from tests.conftest import StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.http2 import Calls
from tests.rig.linking import FILES, Session
from tests.rig.lying import HONEST, Lie, LyingOrigin, Reply, file, flat, hangs, lying_origin, run_info
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.wire import Handoff, bearer, error_name, leased, manifest_lines, stub

HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # RFC 9113, with empty SETTINGS


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
    """Clients that ask and never read the answers block only themselves: others of the same user are answered."""
    packet = pb.HandoffRequest(manifest=pb.ManifestRequest(lease=session.lease)).SerializeToString()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(session.join())
        for _ in range(2 * REQUESTS_PER_USER_MAX):
            mute = stack.enter_context(session.join())
            mute.socket.setblocking(False)
            for _ in range(1000):
                try:
                    mute.send_bytes(packet)
                except BlockingIOError:  # its queue is full: time to ask something else
                    assert len(manifest_lines(other, session.lease)) == len(FILES)
                except ConnectionError:  # it was hung up on
                    break
            assert len(manifest_lines(other, session.lease)) == len(FILES)
        with stub(daemon.socket_dir) as cache:
            assert leased(cache, session.token, session.uri).hit


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


def hoard(
    session: Session, stack: contextlib.ExitStack, hang_up: Callable[[Handoff], None] = lambda joined: None
) -> list[Handoff]:
    """Connections that were sent descriptors and have not read them, until the daemon sends no more.

    `hang_up` is what is done with each before the next one asks.
    """
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
        hang_up(joined)
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


def shut_down(handoff: Handoff) -> None:
    """Say that nothing more will be asked."""
    handoff.socket.shutdown(socket.SHUT_WR)
    until_hung_up(handoff)


def shut_down_both_ways(handoff: Handoff) -> None:
    """The kernel calls that hung up, and keeps what was not read."""
    handoff.socket.shutdown(socket.SHUT_RDWR)


def ask_again(handoff: Handoff) -> None:
    """Be hung up on."""
    handoff.send_bytes(pb.HandoffRequest(manifest=pb.ManifestRequest(lease=1)).SerializeToString())
    until_hung_up(handoff)


def until_hung_up(handoff: Handoff) -> None:
    """Wait until the daemon has done with a connection."""
    watch = select.poll()
    watch.register(handoff.socket, select.POLLRDHUP)
    assert watch.poll(30_000), "the daemon did not hang up"


@pytest.mark.parametrize("hang_up", [shut_down, shut_down_both_ways, ask_again])
def test_descriptors_that_nobody_reads_of_connections_that_ended(
    daemon: Daemon, many_uri: str, alice: Caller, hang_up: Callable[[Handoff], None]
) -> None:
    """They count as long as the client keeps them: hanging up is no way to have the daemon send without end."""
    session = Session(daemon, many_uri)
    with contextlib.ExitStack() as stack:
        hoard(session, stack, hang_up)
        with session.join() as joined:
            assert joined.ask(blobs=pb.BlobsRequest(lease=session.lease))[0].failure.error == "QuotaExceeded"
        if os.geteuid() == 0:  # alice is another user than the one who hoards
            assert alice.fetch(many_uri, alice.cwd / "dst", mode="copy").file_count == len(MANY)
    with contextlib.ExitStack() as stack:
        assert hoard(session, stack), "what was closed counts no longer"
    session.handoff.close()


def test_a_session_ends_though_its_last_reply_is_not_read(daemon: Daemon, many_uri: str) -> None:
    """Its leases last as long as somebody may ask, not as long as a socket lies about."""
    session = Session(daemon, many_uri)
    ask = pb.HandoffRequest(blobs=pb.BlobsRequest(lease=session.lease)).SerializeToString()
    session.handoff.send_bytes(ask)
    session.handoff.socket.recv(1, socket.MSG_PEEK)
    shut_down(session.handoff)
    with stub(daemon.socket_dir) as cache, pytest.raises(grpc.RpcError) as caught:
        cache.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(session.token))
    assert error_name(caught.value) == "Unauthenticated"
    drop(session.handoff)
    session.handoff.close()


def test_more_descriptors_than_the_kernel_lets_the_daemon_send(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, many_uri: str
) -> None:
    """The caller is told so, and the daemon goes on."""
    # Several replies may be open at a time in the daemon itself: those are not to be what it runs out of.
    daemon = start_daemon(mlflow_proxied.uri, open_files_max=900)
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


def test_fetches_that_wait_for_the_origin(start_daemon: StartDaemon, liar: LyingOrigin) -> None:
    """One user's waiting fetches have an end, which is told; what takes no time is answered beside them."""
    held = f"runs:/{liar.run(HONEST)}"
    stuck = f"runs:/{liar.run(Lie(flat(file('a')), lambda path: hangs()))}"
    daemon = start_daemon(liar.uri, unreachable_after=30.0)
    session = Session(daemon, held)
    artifact = pb.ArtifactSelection(uri=stuck)
    with stub(daemon.socket_dir) as cache:
        waiting: list[Any] = []
        for _ in range(LENGTHY_PER_USER_MAX):
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


def begins(reply: Reply) -> None:
    """A download that begins, and does not go on."""
    reply.head(Content_Length=10)
    reply.hang()


def test_downloads_from_a_server_of_ones_own(start_daemon: StartDaemon, liar: LyingOrigin) -> None:
    """Runs whose root is a server that begins answers and never ends them keep nobody from the tracking server."""
    answer = liar.answer
    with lying_origin() as his:
        stuck = Lie(flat(*(file(str(number)) for number in range(DOWNLOADS_MAX // 2))), lambda path: begins)
        runs = [his.run(stuck) for _ in range(4)]
        root = f"{his.uri}/api/2.0/mlflow-artifacts/artifacts"

        def answering(reply: Reply, path: str, query: dict[str, list[str]]) -> None:
            run_id = query.get("run_id", [""])[0]
            if run_id in runs:
                return reply.json({"run": {"info": run_info(run_id) | {"artifact_uri": f"{root}/{run_id}"}}})
            return answer(reply, path, query)

        liar.answer = answering  # type: ignore[method-assign]
        daemon = start_daemon(liar.uri, unreachable_after=30.0)
        session, honest = Session(daemon, f"runs:/{liar.run(HONEST)}"), f"runs:/{liar.run(HONEST)}"
        with stub(daemon.socket_dir) as cache:
            asked = [pb.FetchRequest(artifact=pb.ArtifactSelection(uri=f"runs:/{run_id}")) for run_id in runs]
            waiting = [cache.Fetch(request, metadata=bearer(session.token)) for request in asked]
            until(lambda: his.download_count >= DOWNLOADS_MAX // 2, "as many downloads as there are at a time")
            request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=honest))
            *_, last = cache.Fetch(request, metadata=bearer(session.token), timeout=20)
            assert last.result.origin_bytes
            for one in waiting:
                one.cancel()
        session.handoff.close()


LONG_NAMES: trees.Files = {f"{number:0200}": b"" for number in range(700)}


def test_answers_that_nobody_reads(start_daemon: StartDaemon, mlflow_file: MlflowServer) -> None:
    """One user's calls whose answers are too long to be sent unread have an end, which is told; others go on."""
    uri = f"runs:/{mlflow_file.run(LONG_NAMES)}"
    daemon = start_daemon(mlflow_file.uri, unreachable_after=30.0)
    session = Session(daemon, uri)
    artifact = pb.ArtifactSelection(uri=uri)
    unread: list[Any] = []
    # Without the probe grpc reads no more than 64 KiB ahead.
    with stub(daemon.socket_dir, ("grpc.http2.bdp_probe", 0)) as cache, stub(daemon.socket_dir) as another:
        with pytest.raises(grpc.RpcError) as refused:
            for _ in range(REQUESTS_MAX + 1):
                call = cache.Inspect(pb.InspectRequest(artifact=artifact), metadata=bearer(session.token))
                assert next(call).HasField("artifact")
                unread.append(call)
        assert error_name(refused.value) == "QuotaExceeded"
        assert another.Ping(pb.PingRequest()).pid == daemon.pid
        assert leased(another, session.token, uri).hit
        for call in unread:
            call.cancel()

        def served_again() -> bool:
            try:
                return bool(list(another.List(pb.ListRequest(), metadata=bearer(session.token))))
            except grpc.RpcError:
                return False

        until(served_again, "those who went away to make room")
    session.handoff.close()


CALLS = {
    "heads without a message, of a session": ("Fetch", True, False),
    "heads without a message, of nobody": ("Fetch", False, False),
    "heads without a message, of pings": ("Ping", False, False),
    "answers that there is no room for": ("Fetch", True, True),
}


@pytest.mark.parametrize("sort", CALLS)
def test_calls_that_do_not_go_on(daemon: Daemon, session: Session, alice: Caller, sort: str) -> None:
    """Calls that never say what they ask for, or never take what they are given, keep no other user from calling."""
    method, has_session, has_message = CALLS[sort]
    request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=session.uri)).SerializeToString()
    with Calls(daemon.socket_dir) as calls, stub(daemon.socket_dir) as cache:
        for _ in range(REQUESTS_MAX + 10):
            calls.call(method, session.token if has_session else "", request if has_message else None)
        calls.wait_for_the_last()
        assert cache.Ping(pb.PingRequest()).pid == daemon.pid
        if os.geteuid() == 0:  # alice is another user than the one who hoards
            assert alice.fetch(session.uri).hit

    def served_again() -> bool:
        with stub(daemon.socket_dir) as cache, contextlib.suppress(grpc.RpcError):
            return leased(cache, session.token, session.uri).hit
        return False

    until(served_again, "those who went away to make room")


def test_connections_that_never_call(start_daemon: StartDaemon, mlflow_proxied: MlflowServer, uri: str) -> None:
    """Those to cache.sock leave the daemon descriptors for the handoff socket and the store."""
    daemon = start_daemon(mlflow_proxied.uri, open_files_max=400)
    session = Session(daemon, uri)
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(daemon.socket_dir / "cache.sock"))
            with contextlib.suppress(ConnectionError):
                silent.sendall(HTTP2_GREETING)
        with stub(daemon.socket_dir) as cache, contextlib.suppress(grpc.RpcError):
            cache.Ping(pb.PingRequest(), timeout=5)  # behind all of them in the queue: they have been dealt with
        with session.join() as joined:
            assert len(manifest_lines(joined, session.lease)) == len(FILES)
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 300
    until(daemon.is_alive, "calls to be answered again")
    session.handoff.close()
