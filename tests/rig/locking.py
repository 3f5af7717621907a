"""What the tests of the lock file work with: a model with two versions, the commands, and an editor."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

OTHER: trees.Files = {"MLmodel": b"flavors: {other}\n", "more": b"2"}


class Model:
    """A registered model with two versions, of which an alias can point to either."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self.name = f"locked-{uuid.uuid4().hex[:8]}"
        self.runs = [server.run({f"m/{path}": data for path, data in files.items()}) for files in (SMALL, OTHER)]
        for run in self.runs:
            server.add_version(self.name, run, "m")
        self.point_at(1)

    @property
    def uri(self) -> str:
        """By its alias."""
        return f"models:/{self.name}@champion"

    def point_at(self, version: int) -> None:
        """Move the alias."""
        self.server.client.set_registered_model_alias(self.name, "champion", str(version))


def succeed(caller: Caller, *arguments: str | Path) -> Any:
    """Run a command with --json; its one document."""
    done = caller.command(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return json.loads(done.stdout)


def refused(caller: Caller, *arguments: str | Path, status: int = 2) -> tuple[str, str]:
    """Run a command that is to fail, with a status; the error's class and its message."""
    done = caller.command(*arguments, "--json")
    assert (done.returncode, done.stderr) == (status, ""), done.stdout
    said = json.loads(done.stdout)
    return said["error"], said["message"]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Edit a lock file by hand."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
