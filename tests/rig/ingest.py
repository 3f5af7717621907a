"""Runs in a folder of a test's own, and a daemon that ingests it."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.scraped import Scrape, page
from tests.rig.trees import Files, plant

SETTLE_SECONDS = 0.5
_numbers = itertools.count(1)


def section(*folders: Path, settle: float = SETTLE_SECONDS, every: float = 600.0) -> str:
    """The part of a daemon's configuration."""
    named = json.dumps([str(folder) for folder in folders])
    return f"\n[ingest]\nfolders = {named}\nsettle = {settle}\nevery = {every}\n"


class Logged:
    """An experiment of a server, whose runs have their artifacts below `root`."""

    def __init__(self, server: MlflowServer, root: Path) -> None:
        self.server = server
        self.root = root
        self.name = f"e{next(_numbers)}"
        root.mkdir(exist_ok=True)
        where = (root / self.name).as_uri()
        self.experiment = server.client.create_experiment(f"{where} {os.urandom(4).hex()}", artifact_location=where)

    def run(self, files: Files, *, status: str | None = "FINISHED", tags: dict[str, str] | None = None) -> str:
        """A run of these files that has ended so, or is running; returns its ID."""
        run_id: str = self.server.client.create_run(self.experiment, tags=tags).info.run_id
        plant(self.folder(run_id), files)
        if status:
            self.server.client.set_terminated(run_id, status)
        return run_id

    def model(self, files: Files) -> str:
        """A logged model of these files that is ready; returns its ID."""
        model = self.server.client.create_logged_model(self.experiment, "m")
        plant(self.root / self.name / "models" / model.model_id / "artifacts", files)
        self.server.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def folder(self, run_id: str) -> Path:
        """Where a run's artifacts lie."""
        return self.root / self.name / run_id / "artifacts"

    def add(self, run_id: str, files: Files) -> None:
        """More files of a run."""
        for name, content in files.items():
            (self.folder(run_id) / name).write_bytes(content)

    def finish(self, run_id: str) -> None:
        """A run has finished."""
        self.server.client.set_terminated(run_id)

    def hide(self, run_id: str) -> None:
        """A run's folder is elsewhere."""
        self.folder(run_id).parent.rename(self.root.parent / run_id)

    def show(self, run_id: str) -> None:
        """It is back."""
        (self.root.parent / run_id).rename(self.folder(run_id).parent)


class Shown:
    """Where a daemon shows its metrics."""

    def __init__(self) -> None:
        self.port = free_port()
        self.section = f'\n[metrics]\nlisten = "127.0.0.1:{self.port}"\n'

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return Scrape(page(self.port)).value(name, **labels)

    def all(self) -> str:
        """What there is of ingesting."""
        return "\n".join(line for line in page(self.port).splitlines() if "ingest" in line and line[0] != "#")
