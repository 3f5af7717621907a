"""What finished runs have logged on this host is held before anybody asks for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.scraped import Scrape, page
from tests.rig.trees import plant
from tests.rig.until import until
from tests.rig.upkeep import call, held

SETTLE = 0.5


def ingest(*folders: Path | str, settle: float = SETTLE, every: float = 600.0, more: str = "") -> str:
    """The section, for a daemon's configuration."""
    named = json.dumps([str(folder) for folder in folders])
    return f"\n[ingest]\nfolders = {named}\nsettle = {settle}\nevery = {every}\n{more}"


@pytest.fixture
def root_of(caller_of: CallerOf, room: Path) -> Callable[[Daemon], Caller]:
    """Who sees everything of a daemon."""
    return lambda daemon: caller_of(daemon, room, "root")


def test_a_finished_run_is_held_before_anybody_asks(
    start_daemon: StartDaemon, mlflow_file: MlflowServer, root_of: Callable[[Daemon], Caller]
) -> None:
    """Of a tracking server with a local artifact root: what was there before the daemon, and what comes later. The
    first fetch takes nothing from the origin, and asks it nothing."""
    before = mlflow_file.run({"model/weights": os.urandom(100_000), "notes": b"n"})
    daemon = start_daemon(mlflow_file.uri, more=ingest(mlflow_file.artifacts))
    caller = root_of(daemon)
    after = mlflow_file.run({"a/b": b"later"})
    for run in (before, after):
        until(lambda run=run: f"runs:/{run}" in held(caller), daemon.read_log)  # type: ignore[misc]
        found = caller.fetch(f"runs:/{run}")
        assert found.hit and found.origin_bytes == 0
    assert (caller.fetch(f"runs:/{before}/model").path / "weights").stat().st_size == 100_000
