"""What the package is to the process that imports it: light, silent, and safe to share between threads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from artifactcache import errors
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(SMALL)}"


def test_import_is_light(alice: Caller) -> None:
    """`import artifactcache` imports neither grpc nor mlflow nor the messages."""
    code = "import sys, artifactcache\nresult = sorted({name.split('.')[0] for name in sys.modules})"
    assert not {"grpc", "mlflow", "google"} & set(alice.run(code))


def test_everything_that_is_promised_is_there(alice: Caller) -> None:
    """The public names, and no error that is not under CacheError."""
    code = """
        import artifactcache
        result = [sorted(artifactcache.__all__), [n for n in artifactcache.__all__ if not hasattr(artifactcache, n)]]
    """
    names, missing = alice.run(code)
    assert missing == []
    assert {"fetch", "Client", "Fetched", *errors.BY_NAME} <= set(names)


def test_a_view_lives_as_long_as_the_process(alice: Caller, uri: str) -> None:
    """`str(fetch(...))` is a normal thing to write: garbage collection ends no lease."""
    code = """
        import artifactcache, gc
        path = str(artifactcache.fetch(uri))
        gc.collect()
        with artifactcache.Client() as client:
            result = [os.path.isdir(path), client.stats().lease_count]
    """
    there, leases = alice.run(code, uri=uri)
    assert there
    assert leases >= 1


def test_release_ends_the_lease(alice: Caller, uri: str) -> None:
    """`release()`, twice as well, and the end of a `with` block end it."""
    code = """
        import artifactcache, time
        with artifactcache.Client() as client:
            before = client.stats().lease_count
            fetched = client.fetch(uri)
            held = client.stats().lease_count
            fetched.release()
            fetched.release()
            released = client.stats().lease_count
            with client.fetch(uri) as again:
                inside = client.stats().lease_count
                path = os.fspath(again)
            result = [held - before, released - before, inside - before, client.stats().lease_count - before, path]
    """
    held, released, inside, after, path = alice.run(code, uri=uri)
    assert (held, released, inside, after) == (1, 0, 1, 0)
    assert Path(path).is_dir()


def test_no_daemon(alice: Caller, room: Path) -> None:
    """DaemonUnavailable, with a message that says what to do."""
    with pytest.raises(errors.DaemonUnavailable, match="ARTIFACTCACHE_SOCKET_DIR"):
        alice.fetch("runs:/" + "0" * 32, env={"ARTIFACTCACHE_SOCKET_DIR": str(room)})
    with pytest.raises(errors.DaemonUnavailable):
        alice.fetch("runs:/" + "0" * 32, env={"ARTIFACTCACHE_SOCKET_DIR": str(room / "missing")})


def test_a_daemon_that_comes_back(alice: Caller, daemon: Daemon, uri: str) -> None:
    """A process that used the daemon goes on with the next one after a restart, as a Client and in one shot."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            client.fetch(uri)
            artifactcache.fetch(uri)
            say("ready")
            hear()
            result = [client.fetch(uri).hit, artifactcache.fetch(uri).hit]
    """
    with alice.start(code, uri=uri) as job:
        job.hear()
        daemon.restart()
        job.say("go")
        assert job.result() == [True, True]


def test_threads(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """One Client in many threads, on several artifacts at once."""
    runs = [f"runs:/{mlflow_proxied.run(trees.unique(files_count=1))}" for _ in range(4)]
    code = """
        import artifactcache, concurrent.futures
        with artifactcache.Client() as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
            places = [(uri, f"{number}-{again}") for again in range(8) for number, uri in enumerate(uris)]
            jobs = [pool.submit(client.fetch, uri, dst) for uri, dst in places]
            result = [job.result().file_count for job in jobs]
    """
    assert alice.run(code, uris=runs) == [2] * 32


def test_a_closed_client(alice: Caller, uri: str) -> None:
    """After its `with` block a Client's views are no longer leased; the process ends without a word."""
    code = """
        import artifactcache
        with artifactcache.Client() as outer:
            base = outer.stats().lease_count
            with artifactcache.Client() as client:
                client.fetch(uri)
                inside = outer.stats().lease_count
            import time
            deadline = time.monotonic() + 20
            while outer.stats().lease_count != base and time.monotonic() < deadline:
                time.sleep(0.01)
            result = [inside - base, outer.stats().lease_count - base]
    """
    assert alice.run(code, uri=uri) == [1, 0]


def test_fetched_is_a_path(alice: Caller, uri: str) -> None:
    """`Fetched` goes wherever a path goes."""
    code = """
        import artifactcache, pathlib
        fetched = artifactcache.fetch(uri)
        result = [pathlib.Path(fetched) == fetched.path, os.path.join(fetched, "x"), os.fspath(fetched), str(fetched)]
    """
    same, joined, plain, text = alice.run(code, uri=uri)
    assert same
    assert joined == f"{plain}/x"
    assert text == plain


def test_pathlike_arguments(alice: Caller, uri: str) -> None:
    """A destination may be a Path, text or bytes-free PathLike."""
    code = """
        import artifactcache, pathlib
        result = os.fspath(artifactcache.fetch(uri, pathlib.Path("a") / "b"))
    """
    path = alice.run(code, uri=uri)
    assert trees.read(alice.cwd / path) == SMALL


def test_nothing_is_printed(alice: Caller, uri: str) -> None:
    """A fetch that works writes nothing to standard output or standard error."""
    command = (str(alice.interpreter.python), "-c", "import sys, artifactcache; artifactcache.fetch(sys.argv[1])", uri)
    process = alice.popen(command, stderr=-1)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


def test_a_daemon_that_is_stopped(
    alice: Caller, daemon: Daemon, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """It closes nothing and says nothing: whoever waits for it is told all the same, by the answer to a ping that is
    missing."""
    code = """
        import artifactcache
        from artifactcache import session
        times = ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms", "min_reconnect_backoff_ms")
        quick = {f"grpc.{name}": 1000 for name in times}
        assert quick.keys() <= dict(session._CHANNEL_OPTIONS).keys()
        session._CHANNEL_OPTIONS = tuple((dict(session._CHANNEL_OPTIONS) | quick).items())
        say(artifactcache.Client().ping().pid)
        artifactcache.fetch(uri)
        """
    with origin.holding(), alice.start(code, uri=f"runs:/{mlflow_proxied.run(trees.unique())}") as job:
        assert job.hear() == daemon.pid
        origin.wait_for_download()
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(errors.DaemonUnavailable):
                job.result()
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
