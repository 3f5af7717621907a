"""Whoever may write into a folder that is ingested, or make runs on the tracking server, keeps nobody else's runs from
being ingested, and fills no log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.ingest import Logged, section
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import plant
from tests.rig.until import until
from tests.rig.upkeep import held

Asks = Callable[[Daemon], Caller]
NAMES = (b"\xff\xfe", b"by-name", b"9" * 30, b"-1", "ä".encode(), b"1'; --", b"%s")
LINES_MAX = 20


@pytest.fixture
def asks(caller_of: CallerOf, room: Path) -> Asks:
    """Who sees everything of a daemon."""
    return lambda daemon: caller_of(daemon, room, "root")


@pytest.fixture
def logged(mlflow_file: MlflowServer, room: Path) -> Logged:
    """An experiment whose runs have their artifacts in a folder of the test's own."""
    return Logged(mlflow_file, room / "mlartifacts")


def is_ingested(asks: Asks, daemon: Daemon, logged: Logged) -> None:
    """A run that finishes now is."""
    uri, caller = f"runs:/{logged.run({'a': b'1'})}", asks(daemon)
    until(lambda: uri in held(caller), daemon.read_log, 30)
    daemon.assert_no_traceback()


def pretend(root: Path, experiment: bytes, count: int) -> None:
    """Folders that look like those of runs."""
    for _ in range(count):
        artifacts = os.path.join(os.fsencode(root), experiment, os.urandom(16).hex().encode(), b"artifacts")
        os.makedirs(artifacts)
        Path(os.fsdecode(artifacts), "x").write_bytes(b"1")


def test_folders_with_any_names(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """A server that is asked for the experiment of such a number answers with an error of its own, as if it were out of
    order."""
    for name in NAMES:
        pretend(logged.root, name, 5)
    is_ingested(asks, start_daemon(logged.server.uri, more=section(logged.root)), logged)


def test_a_place_with_a_nul(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """Whoever may make an experiment says where its artifacts are; a fetch says that it is none."""
    client = logged.server.client
    experiment = client.create_experiment(f"nul {os.urandom(4).hex()}", artifact_location="file:///srv/a%00b")
    run = client.create_run(experiment).info.run_id
    client.set_terminated(run)
    plant(logged.root / experiment / run / "artifacts", {"x": b"1"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    is_ingested(asks, daemon, logged)
    done = asks(daemon).command("fetch", f"runs:/{run}")
    assert done.returncode and "without saying where its artifacts are" in done.stderr


def test_folders_that_nobody_may_list(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """A few lines tell of hundreds of them."""
    daemon = start_daemon(logged.server.uri, more=section(logged.root, every=1.0))
    is_ingested(asks, daemon, logged)
    for number in range(300):
        (logged.root / f"shut-{number}").mkdir(mode=0)
    is_ingested(asks, daemon, logged)
    until(lambda: "shut-" in daemon.read_log(), daemon.read_log)
    is_ingested(asks, daemon, logged)
    assert daemon.read_log().count("shut-") <= LINES_MAX
