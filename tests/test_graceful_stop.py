"""SIGTERM: who is being handed something gets all of it; who waits for the origin is told, and can come again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from artifactcache import errors
from artifactcache.v1 import cache_pb2 as pb
from tests.conftest import CallerOf, StartDaemon
from tests.rig import gauges, trees, wire
from tests.rig.caller import Caller, Job
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.linking import Session
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until

LINKED_COUNT = 20_000
PACKED_COUNT = 300  # descriptors in three packets
END_SECONDS_MAX = 30.0  # of a busy machine; the daemon's own limit is 10
STALLED_AT = 20 << 20
SIZE = 40 << 20
FETCH = "import artifactcache\nartifactcache.fetch(uri)"


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """A daemon of the test's own, that is patient."""
    return start_daemon(proxy.uri, unreachable_after=50.0, stale_after=50.0)


@pytest.fixture
def alice(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Its caller."""
    return caller_of(daemon, room)


def ended(daemon: Daemon) -> int:
    """Its exit status, once it has ended by itself."""
    process, daemon.process = daemon.process, None
    assert process is not None
    status = process.wait(END_SECONDS_MAX)
    daemon.assert_no_traceback()
    return status


def refusal(daemon: Daemon) -> str:
    """As what the daemon refuses a new session; nothing where it gives one."""
    with wire.Handoff(daemon.socket_dir) as handoff:
        return handoff.ask(hello=pb.Hello())[0].failure.error


def stopping(daemon: Daemon) -> None:
    """Send SIGTERM, and wait until the daemon lets nobody in any more."""
    os.kill(daemon.pid, signal.SIGTERM)
    until(lambda: refusal(daemon) == "DaemonUnavailable", "new sessions to be refused")


@pytest.mark.slow
def test_links_of_many_files(
    start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer, room: Path
) -> None:
    """The signal comes when some of 20,000 links are made: all are, and the client has them at its destination."""
    run_id = mlflow_file.run({f"{number % 9}/{number}": b"x" for number in range(LINKED_COUNT)})
    daemon = start_daemon(mlflow_file.uri)
    alice = caller_of(daemon, room)
    uri = mlflow_file.artifact_uri(run_id)
    alice.run("import artifactcache\nwith artifactcache.Client() as client:\n    client.warm(uri)", uri=uri)
    code = "import artifactcache\nresult = artifactcache.fetch(uri, 'dst', mode='hardlink').mode"
    with alice.start(code, uri=uri) as job:
        until(lambda: any(alice.cwd.glob(".artifactcache-*/tree/*/*")), "the first links")
        os.kill(daemon.pid, signal.SIGSTOP)
        until(lambda: gauges.state(daemon.pid) == "T", "the daemon to stand still")
        some = list(alice.cwd.glob(".artifactcache-*/tree/*/*"))
        assert len(some) < LINKED_COUNT, "it was done before it could be stopped: the tree is too small"
        os.kill(daemon.pid, signal.SIGTERM)
        os.kill(daemon.pid, signal.SIGCONT)
        assert job.result() == "hardlink"
    assert sum(len(files) for _, _, files in os.walk(alice.cwd / "dst")) == LINKED_COUNT
    assert ended(daemon) == 0


def test_a_hand_over_in_several_steps(daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """Whoever has been promised a tree gets its manifest and all its bytes, and gives the lease back; meanwhile nobody
    else gets a session or an answer. Then the daemon ends."""
    uri = f"runs:/{mlflow_proxied.run({f'{number}': b'%d' % number for number in range(PACKED_COUNT)})}"
    session, received = Session(daemon, uri), 0
    stopping(daemon)
    with session.join() as joined, wire.stub(daemon.socket_dir) as cache:
        assert len(wire.manifest_lines(joined, session.lease)) == PACKED_COUNT
        while received < PACKED_COUNT:
            reply, fds = joined.ask(blobs=pb.BlobsRequest(lease=session.lease, first=received))
            for fd in fds:
                os.close(fd)
            assert reply.blobs.count == len(fds) > 0
            received += len(fds)
        with pytest.raises(grpc.RpcError) as late:
            wire.leased(cache, session.token, uri)
        assert wire.error_name(late.value) == "DaemonUnavailable"
        cache.Release(pb.ReleaseRequest(lease=session.lease), metadata=wire.bearer(session.token))
    assert ended(daemon) == 0
    session.handoff.close()


def test_a_hand_over_that_does_not_end(daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """A client that never takes what it was promised does not keep the daemon."""
    session = Session(daemon, f"runs:/{mlflow_proxied.run(trees.unique())}")
    with session.join() as joined:
        stopping(daemon)
        assert ended(daemon) == 0
        with pytest.raises(EOFError):
            joined.receive()
    session.handoff.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal(daemon: Daemon, mlflow_proxied: MlflowServer, number: signal.Signals) -> None:
    """It does not wait for the hand-over that it would have waited for, and says so by its status."""
    session = Session(daemon, f"runs:/{mlflow_proxied.run(trees.unique())}")
    stopping(daemon)
    assert daemon.process is not None

    def has_ended() -> bool:
        daemon.process.send_signal(number)  # type: ignore[union-attr] # again: one at once counts as the first
        return daemon.process.poll() is not None  # type: ignore[union-attr]

    until(has_ended, "the daemon to end")
    assert ended(daemon) == 1
    session.handoff.close()


def _is_downloading(proxy: CountingProxy, job: Job) -> None:
    proxy.wait_for_download()


def _has_asked(proxy: CountingProxy, job: Job) -> None:
    before = proxy.request_count
    job.say("go")
    until(lambda: proxy.request_count > before, "a question")


@pytest.mark.parametrize(
    ("blocked", "begins"),
    [(CountingProxy.holding, _is_downloading), (CountingProxy.hanging, _has_asked)],
    ids=["a download", "an answer"],
)
def test_who_waits_for_the_origin(
    alice: Caller,
    daemon: Daemon,
    proxy: CountingProxy,
    mlflow_proxied: MlflowServer,
    blocked: Callable[[CountingProxy], contextlib.AbstractContextManager[None]],
    begins: Callable[[CountingProxy, Job], None],
) -> None:
    """Is told while the origin still says nothing, and gets it when the daemon was started again; nothing that waits
    for the origin keeps the daemon's process."""
    info = mlflow_proxied.log_model("stopped")
    mlflow_proxied.client.set_registered_model_alias("stopped", "champion", info.registered_model_version)
    uri = "models:/stopped@champion"
    code = """
        import artifactcache
        client = artifactcache.Client()
        client.whoami()
        if by_word:
            say("ready")
            hear()
        try:
            client.fetch(uri)
        except artifactcache.DaemonUnavailable as error:
            say(str(error))
        hear()
        result = client.fetch(uri).file_count
    """
    by_word = begins is _has_asked
    with alice.start(code, uri=uri, by_word=by_word) as job:
        if by_word:
            assert job.hear() == "ready"
        with blocked(proxy):
            begins(proxy, job)
            os.kill(daemon.pid, signal.SIGTERM)
            assert "being stopped" in job.hear()
            assert ended(daemon) == 0
        daemon.start()
        job.say("again")
        assert job.result() > 0
    assert daemon.staging() == []


def test_downloads_that_are_broken_off(
    alice: Caller, daemon: Daemon, proxy: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """What has arrived is kept, and the beginning of a large file: after the restart the origin sends the rest only."""
    files = {"weights": os.urandom(SIZE), **{f"small/{number}": os.urandom(1000) for number in range(20)}}
    run_id = mlflow_proxied.run(files)
    with alice.start(FETCH, uri=f"runs:/{run_id}") as job:
        with proxy.stalling(STALLED_AT):
            until(lambda: len(proxy.downloads_by_path) == len(files), "all downloads to begin")
            until(lambda: len(daemon.staging()) == len(files) + 1, "all files, and a note of what the large one is")
            until(lambda: daemon.staged_sizes().count(1000) == len(files) - 1, "the small ones to have arrived")
            until(lambda: proxy.bytes >= STALLED_AT, "the large one to stall")
            stopping(daemon)
        with pytest.raises(errors.DaemonUnavailable, match="being stopped"):
            job.result()
    assert ended(daemon) == 0
    before, sent = proxy.downloads_by_path.copy(), proxy.bytes
    daemon.start()
    assert trees.read(alice.fetch(f"runs:/{run_id}", "dst").path) == files
    again = proxy.downloads_by_path - before
    assert [path.rpartition("/")[2] for path in again] == ["weights"]
    assert proxy.bytes - sent < SIZE - STALLED_AT + (1 << 20)
    assert daemon.staging() == []
