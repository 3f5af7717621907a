"""Leases are backed by evidence that outlives the daemon; and neither a full store nor a full disk delays its start."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import crowd, trees
from tests.rig.caller import Job
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.until import until
from tests.rig.upkeep import call, held, new_artifact, sweep_all
from tests.rig.whole import assert_whole

# Has a view of each artifact, gives one back, and reads the other ones whenever it is told to.
_JOB = """
    import artifactcache
    from tests.rig.trees import read
    kept = [artifactcache.fetch(uri) for uri in uris]
    released = artifactcache.fetch(other)
    released.release()
    say([view.digest for view in kept])
    while hear() == "read":
        say([{name: data.hex() for name, data in read(view.path).items()} for view in kept])
"""
STOPS = {"killed": Daemon.kill, "stopped": Daemon.stop}


def _read(job: Job) -> list[trees.Files]:
    job.say("read")
    return [{name: bytes.fromhex(data) for name, data in files.items()} for files in job.hear()]


@pytest.mark.parametrize("how", STOPS)
def test_a_view_outlives_the_daemon(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer, how: str
) -> None:
    """What a running process has views of stays, through two starts of the daemon and sweeps of everything, until the
    process ends; what it had released before, and what others had who have ended, goes at once."""
    daemon = start_daemon(mlflow_proxied.uri, grace=0.0)
    alice, bob, operator = (caller_of(daemon, room, role) for role in ("alice", "bob", "root"))
    contents = [trees.unique(), trees.unique()]
    uris = [f"runs:/{mlflow_proxied.run(files)}" for files in contents]
    other, ended = new_artifact(mlflow_proxied), new_artifact(mlflow_proxied)
    assert bob.fetch(ended).mode == "view"
    with alice.start(_JOB, uris=uris, other=other) as job:
        digests = job.hear()
        for number in range(2):
            STOPS[how](daemon)
            assert _read(job) == contents, "while no daemon runs"
            daemon.start()
            assert set(sweep_all(operator)) == ({other, ended} if number == 0 else set())
            assert held(operator).keys() == set(uris)
            assert _read(job) == contents
            assert call(bob, "warm", *uris)[0]["hit"]
        assert {call(operator, "explain", uri)["is_kept"] for uri in uris} == {True}
    assert all((daemon.root / "views" / digest).exists() for digest in digests)
    if how == "killed":  # once is enough: it looks now and then only
        until(
            lambda: sweep_all(operator) is not None and not held(operator),
            "the daemon to see that the job has ended",
            90,
        )
        assert not any((daemon.root / "views" / digest).exists() for digest in digests)
    assert_whole(daemon)


def test_a_process_goes_on_with_the_daemon_that_came_after(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """The same process asks the new daemon for the same artifact, and releases that view: what it got of the earlier
    daemon it still has."""
    daemon = start_daemon(mlflow_proxied.uri, grace=0.0)
    alice, operator = caller_of(daemon, room), caller_of(daemon, room, "root")
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    code = """
        import artifactcache
        from tests.rig.trees import read
        first = artifactcache.fetch(uri)
        say("has it")
        hear()
        with artifactcache.fetch(uri) as second:
            pass
        say("released the second")
        hear()
        result = {name: data.hex() for name, data in read(first.path).items()}
    """
    with alice.start(code, uri=uri) as job:
        job.hear()
        daemon.kill()
        daemon.start()
        job.say("go on")
        job.hear()
        sweep_all(operator)
        daemon.restart()
        sweep_all(operator)
        job.say("read")
        assert job.result() == {name: data.hex() for name, data in files.items()}


# -- start-up ---------------------------------------------------------------------------------------------------------


def test_a_store_far_above_its_capacity_is_served_at_once(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, mlflow_file: MlflowServer
) -> None:
    """Everything is held when the daemon answers, and a view handed out then stays; the sweep comes afterwards, by
    itself."""
    with crowd.shelf(mlflow_file, artifact_count=60, file_count=3, file_bytes=50_000) as shelf:
        uris = [shelf.uri_of(number) for number in range(shelf.artifact_count)]
        daemon = start_daemon(mlflow_file.uri, grace=0.0)
        alice, operator = caller_of(daemon, room), caller_of(daemon, room, "root")
        call(alice, "warm", *uris)
        daemon.stop()
        capacity = shelf.total_bytes // 10
        text = (daemon.folder / "config.toml").read_text()
        (daemon.folder / "config.toml").write_text(text.replace('capacity = "100GiB"', f'capacity = "{capacity}"'))
        daemon.start()
        with alice.start(_JOB, uris=uris[:1], other=uris[1]) as job:
            job.hear()
            until(lambda: call(operator, "stats")["blob_bytes"] <= capacity, "the store to be swept")
            assert _read(job) == [shelf.files(0)]
            assert len(held(operator)) < 10
            job.say("end")
        assert trees.read(alice.fetch(uris[-1]).path) == shelf.files(shelf.artifact_count - 1)
    assert_whole(daemon)


@pytest.mark.parametrize("when", ["before it starts", "just after"])
def test_a_full_disk_at_the_start(
    small_disk: Filesystem,
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    mlflow_file: MlflowServer,
    room: Path,
    when: str,
) -> None:
    """Somebody takes all that is free while no daemon runs, or before the first has written anything: it says so,
    serves what it has, and makes room."""
    daemon = start_daemon(mlflow_file.uri, root=small_disk.root / "store", min_free="5%", grace=0.0)
    alice, operator = caller_of(daemon, room), caller_of(daemon, room, "root")
    with crowd.shelf(mlflow_file, artifact_count=20, file_count=1, file_bytes=1 << 20) as shelf:
        uris = [shelf.uri_of(number) for number in range(shelf.artifact_count)]
        call(alice, "warm", *uris)
        for uri in uris[:2]:
            alice.fetch(uri)  # which builds its view: there is no room for that later
        daemon.stop()
        filler = small_disk.root / "filler"
        for step in (
            (daemon.start, lambda: _fill(filler)) if when == "just after" else (lambda: _fill(filler), daemon.start)
        ):
            step()
        with alice.start(_JOB, uris=uris[:1], other=uris[1]) as job:
            job.hear()
            assert _read(job) == [shelf.files(0)]
            assert trees.read(alice.fetch(uris[0], alice.cwd / "copy").path) == shelf.files(0)
            job.say("end")
        if when == "before it starts":
            assert "full" in daemon.read_log()
        assert "move it away" not in daemon.read_log()
        disk = shutil.disk_usage(small_disk.root)
        until(
            lambda: shutil.disk_usage(small_disk.root).free >= disk.total // 20,
            lambda: f"the store to give way\n{daemon.read_log()[-4000:]}",
        )
        filler.unlink()
        assert trees.read(alice.fetch(uris[0], alice.cwd / "again").path) == shelf.files(0)
        assert operator.run("import artifactcache\nresult = artifactcache.Client().ping().pid") == daemon.pid
    assert_whole(daemon)


def _fill(path: Path) -> None:
    """Takes all that is free, to the last block; what was deleted just now is free when that is synced."""
    with path.open("wb", buffering=0) as file:
        taken = 0
        for piece in (1 << 20, 1 << 12, 1 << 12):
            os.sync()
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), taken, piece)
                    taken += piece
