"""The log of a real daemon: as JSON, and from another level on while it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import CallerOf, StartDaemon
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import ALL_BYTES, call, new_artifact


def _lines(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.read_log().splitlines()]


def test_each_line_of_a_json_log_is_an_object(
    start_daemon: StartDaemon, origin: CountingProxy, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path
) -> None:
    """From the first to the last, with the fields that a line names as what they are."""
    daemon = start_daemon(origin.uri, grace=0.0, more='[log]\nformat = "json"\n')
    root, uri = caller_of(daemon, room, "root"), new_artifact(mlflow_proxied)
    call(root, "warm", uri)
    swept = call(root, "sweep", free_bytes=ALL_BYTES)
    daemon.stop()
    lines = _lines(daemon)
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)
    assert [line["event"] for line in lines][-1] == "stopping"
    (evicted,) = [line for line in lines if line["event"] == "evicted"]
    assert (evicted["held_as"], evicted["freed"]) == (uri, swept["freed_bytes"])
    assert evicted["tree"] == swept["evicted"][0]["digest"]


def test_the_level_changes_while_it_serves(start_daemon: StartDaemon, origin: CountingProxy) -> None:
    """What is told from then on is told; the format waits for a restart, and that is said from any level on."""
    daemon = start_daemon(origin.uri, more='[log]\nlevel = "error"\n')
    path = daemon.folder / "config.toml"
    path.write_text(daemon.config.replace('level = "error"', 'level = "info"\nformat = "json"'))
    until(lambda: "[log] format cannot change while the daemon serves" in daemon.read_log(), daemon.read_log)
    assert " INFO " not in daemon.read_log()
    path.write_text(daemon.config.replace('level = "error"', 'level = "info"'))
    until(lambda: "INFO cacheserver.reloading: the configuration was read anew: [log] level" in daemon.read_log(), "it")
