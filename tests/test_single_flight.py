"""Any number of callers of one cold artifact cause one download, whatever becomes of any of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from artifactcache import errors
from tests.rig import trees
from tests.rig.caller import Caller, Job
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer

CALLERS = 16
_CODE = """
import artifactcache
say("ready")
hear()
say("asking")
fetched = artifactcache.fetch(uri, dst)
result = [fetched.hit, fetched.origin_bytes, fetched.digest]
"""


def start(stack: contextlib.ExitStack, caller: Caller, uri: str, dst: Path | None) -> Job:
    """A caller that is about to ask."""
    job = stack.enter_context(caller.start(_CODE, uri=uri, dst=None if dst is None else str(dst)))
    assert job.hear() == "ready"
    return job


def ask(job: Job) -> None:
    """Let it ask."""
    job.say("go")
    assert job.hear() == "asking"


def test_many_callers_are_one_download(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """16 processes ask for one cold artifact at once: the origin sends it exactly once, and all get the right bytes."""
    files = trees.unique(files_count=8, file_bytes=50_000)
    uri = f"runs:/{mlflow_proxied.run(files)}"
    before = origin.bytes
    with contextlib.ExitStack() as stack:
        jobs = [start(stack, alice, uri, alice.cwd / str(number)) for number in range(CALLERS)]
        with origin.holding():
            for job in jobs:
                ask(job)
            origin.wait_for_download()
        results = [job.result() for job in jobs]
    assert origin.bytes - before == trees.size(files)
    assert set(origin.downloads_by_path.values()) == {1}
    assert len({digest for _, _, digest in results}) == 1
    assert sum(not hit for hit, _, _ in results) >= 1
    for number in range(CALLERS):
        assert trees.read(alice.cwd / str(number)) == files


def test_parts_and_wholes_at_once_are_one_download(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """Callers of a run, of a folder in it and of a file together cost each byte once."""
    files = trees.unique()
    run_id = mlflow_proxied.run(files)
    uris = [
        f"runs:/{run_id}",
        f"runs:/{run_id}/part",
        f"runs:/{run_id}/part/1.bin",
    ]
    before = origin.bytes
    with contextlib.ExitStack() as stack:
        jobs = [start(stack, alice, uri, None) for uri in uris]
        with origin.holding():
            for job in jobs:
                ask(job)
            origin.wait_for_download()
        for job in jobs:
            job.result()
    assert origin.bytes - before == trees.size(files)


def test_a_bare_uri_joins_the_download_of_its_run(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """It costs nothing more. The other way round it would: what it takes proves nothing for a run."""
    files = trees.unique()
    run_id = mlflow_proxied.run(files)
    before = origin.bytes
    with contextlib.ExitStack() as stack:
        run = start(stack, alice, f"runs:/{run_id}", None)
        bare = start(stack, alice, mlflow_proxied.artifact_uri(run_id), None)
        with origin.holding():
            ask(run)
            origin.wait_for_download()
            ask(bare)
        run.result()
        bare.result()
    assert origin.bytes - before == trees.size(files)


def test_the_first_caller_goes_away(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """The caller that began the download is killed; the others get it all the same, from the one download."""
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    before = origin.bytes
    with contextlib.ExitStack() as stack:
        first, second, third = (start(stack, alice, uri, alice.cwd / name) for name in ("1", "2", "3"))
        with origin.holding():
            ask(first)
            origin.wait_for_download()
            ask(second)
            ask(third)
            first.kill()
        second.result()
        third.result()
    assert origin.bytes - before == trees.size(files)
    assert trees.read(alice.cwd / "2") == trees.read(alice.cwd / "3") == files
    assert not (alice.cwd / "1").exists()


def test_all_callers_go_away(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """A caller that dies mid-fetch leaves neither staging nor a broken artifact; the next one gets the right bytes."""
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    with contextlib.ExitStack() as stack:
        only = start(stack, alice, uri, alice.cwd / "1")
        with origin.holding():
            ask(only)
            origin.wait_for_download()
            only.kill()
    assert trees.read(alice.fetch(uri, alice.cwd / "2").path) == files
    assert daemon.staging() == []


def test_a_download_that_fails(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """All callers of it get the typed error, nothing half-made stays, and the next call begins anew."""
    files = {"a": os.urandom(100_000), "b": os.urandom(100_000)}
    uri = f"runs:/{mlflow_proxied.run(files)}"
    with contextlib.ExitStack() as stack, origin.breaking_off(after_bytes=0):
        jobs = [start(stack, alice, uri, alice.cwd / str(number)) for number in range(4)]
        with origin.holding():
            for job in jobs:
                ask(job)
            origin.wait_for_download()
        for job in jobs:
            with pytest.raises((errors.OriginUnavailable, errors.Corrupted)):
                job.result()
    assert os.listdir(alice.cwd) == []
    assert daemon.staging() == []
    assert trees.read(alice.fetch(uri, alice.cwd / "dst").path) == files


def test_short_calls_do_not_wait_for_downloads(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """While more downloads hang than the daemon has threads for, what is held is served, and the daemon answers."""
    held = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    alice.fetch(held)
    cold = [f"runs:/{mlflow_proxied.run(trees.unique(files_count=1))}" for _ in range(40)]
    code = """
        import artifactcache, threading
        threads = [threading.Thread(target=artifactcache.fetch, args=(uri,)) for uri in uris]
        for thread in threads:
            thread.start()
        say("asking")
        for thread in threads:
            thread.join()
    """
    with origin.holding(), alice.start(code, uris=cold) as job:
        assert job.hear() == "asking"
        origin.wait_for_download()
        assert alice.fetch(held, alice.cwd / "dst").hit
        assert daemon.is_alive()
        assert alice.command("stats", "--json").returncode == 0


def test_the_daemon_stops_while_it_downloads(
    alice: Caller, daemon: Daemon, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """SIGTERM in the middle of a download ends the daemon in order; the caller gets a typed error; nothing is lost."""
    held = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    alice.fetch(held)
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    with contextlib.ExitStack() as stack:
        job = start(stack, alice, uri, alice.cwd / "dst")
        with origin.holding():
            ask(job)
            origin.wait_for_download()
            daemon.stop()
        with pytest.raises((errors.DaemonUnavailable, errors.OriginUnavailable)):
            job.result()
    daemon.start()
    assert os.listdir(alice.cwd) == []
    assert daemon.staging() == []
    assert alice.fetch(held).hit
    assert trees.read(alice.fetch(uri).path) == files
