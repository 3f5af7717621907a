"""Operators' calls and what comes of them: pins, sweeps, and what is held afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.mlflow_server import MlflowServer

ALL_BYTES = 2**62  # more than is there, so that everything goes that may
_CALL = """
import artifactcache, dataclasses, math

def plain(value):
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value

with artifactcache.Client() as client:
    result = plain(getattr(client, verb)(*arguments, **options))
"""


def call(caller: Caller, verb: str, *arguments: str, **options: Any) -> Any:
    """One call of a client, in a process of the caller's own; dataclasses become dictionaries."""
    return caller.run(_CALL, verb=verb, arguments=arguments, options=options)


def succeed(caller: Caller, *arguments: str | Path) -> Any:
    """Run a command with --json; its one document."""
    done = caller.command(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return json.loads(done.stdout)


def new_artifact(server: MlflowServer) -> str:
    """An artifact of a few files."""
    return f"runs:/{server.run(trees.unique())}"


def held(caller: Caller) -> dict[str, Any]:
    """What is held, by version."""
    return {each["version"]: each for each in call(caller, "list")}


def sweep_all(operator: Caller) -> list[str]:
    """Evict everything that may go; the versions."""
    swept = call(operator, "sweep", free_bytes=ALL_BYTES)
    assert swept["tree_count"] == len(swept["evicted"])
    return [version for each in swept["evicted"] for version in each["versions"]]
