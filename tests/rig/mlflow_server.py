"""A real MLflow tracking server, and artifacts on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tests.rig.process import free_port, stop_group
from tests.rig.trees import Files, plant
from tests.rig.until import until

START_SECONDS_MAX = 120.0


class MlflowServer:
    """One server process. Artifacts are written into the folder that it serves, so that any name can be tried.

    With an `artifact_root` runs have their artifacts there, and clients go there by themselves.
    """

    def __init__(
        self,
        folder: Path,
        *,
        proxied: bool,
        workers: int = 1,
        artifact_root: str | None = None,
        more: tuple[str, ...] = (),
        more_env: Mapping[str, str] | None = None,
    ) -> None:
        self.proxied = proxied
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True)
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        kind = (
            ("--serve-artifacts", "--artifacts-destination", self.artifacts.as_uri())
            if proxied
            else ("--no-serve-artifacts", "--default-artifact-root", artifact_root or self.artifacts.as_uri())
        )
        command = (
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            str(workers),
            *more,
        )
        store = ("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}")
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "ARTIFACTCACHE": "off"}
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # starts twice as fast
        env |= more_env or {}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                (*command, *store, *kind), stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        until(self._answers, lambda: f"the MLflow server to answer\n{self.log.read_text()}", START_SECONDS_MAX)
        from mlflow import MlflowClient

        self.client = MlflowClient(self.own_uri, self.own_uri)
        self.experiment = self._first_experiment()

    def _first_experiment(self) -> str:
        """Where runs are logged to. MLflow's client asks again where an answer was lost, and is told then that the
        experiment is there already."""
        from mlflow.exceptions import RestException

        with contextlib.suppress(RestException):
            self.client.create_experiment("tests")
        experiment: str = self.client.get_experiment_by_name("tests").experiment_id
        return experiment

    @property
    def own_uri(self) -> str:
        """The tracking URI with the login that the tests themselves have, where they need one."""
        return self.uri

    def stop(self) -> None:
        """Stop it and all its workers."""
        stop_group(self.process, seconds=1.0)  # it would wait for the connections that clients keep open

    def run(self, files: Files | None = None) -> str:
        """Log a finished run with these artifacts; returns its ID."""
        run = self.client.create_run(self.experiment)
        run_id: str = run.info.run_id
        if files is not None:
            plant(self.folder(run_id), files)
        self.client.set_terminated(run_id)
        return run_id

    def folder(self, run_id: str) -> Path:
        """Where a run's artifacts lie on the server's disk."""
        return self._local(self.artifact_uri(run_id))

    def artifact_uri(self, run_id: str) -> str:
        """A run's bare artifact URI."""
        uri: str = self.client.get_run(run_id).info.artifact_uri
        return uri

    def add_version(self, name: str, run_id: str, path: str) -> str:
        """Register what lies at `path` in a run as a new version of a model; returns the version."""
        from mlflow.exceptions import RestException

        with contextlib.suppress(RestException):  # it is there already
            self.client.create_registered_model(name)
        source = f"{self.artifact_uri(run_id)}/{path}"
        version: str = str(self.client.create_model_version(name, source, run_id).version)
        return version

    def log_model(self, name: str) -> Any:
        """Log and register a real model as MLflow does it; returns MLflow's ModelInfo."""
        import mlflow
        from sklearn.linear_model import LinearRegression

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with mlflow.start_run(experiment_id=self.experiment):
            doubler = LinearRegression().fit([[1.0], [2.0]], [2.0, 4.0])
            return mlflow.sklearn.log_model(
                doubler, name="model", pip_requirements=["scikit-learn"], registered_model_name=name
            )

    def add_logged_model(self, run_id: str, name: str, files: Files, experiment: str | None = None) -> str:
        """Log a model of a run, of these files, in another experiment where one is named; returns its ID."""
        from mlflow.entities import LoggedModelOutput

        model = self.client.create_logged_model(experiment or self.experiment, name, source_run_id=run_id)
        plant(self.model_folder(model.model_id), files)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)

    def model_folder(self, model_id: str) -> Path:
        """Where a logged model's files lie on the server's disk."""
        return self._local(self.client.get_logged_model(model_id).artifact_location)

    def _local(self, uri: str) -> Path:
        path = urlparse(uri).path
        return self.artifacts / path.lstrip("/") if self.proxied else Path(path)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[MlflowServer, MlflowServer]]:
    """Two servers, started side by side: one that serves the artifacts, and one with a file:// root."""
    servers: list[MlflowServer] = []
    try:
        servers += [MlflowServer(folder / "proxied", proxied=True), MlflowServer(folder / "file", proxied=False)]
        for server in servers:
            server.wait()
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder)
