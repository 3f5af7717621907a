"""`make demo`: a real MLflow server, a real model, and what fetching it costs: by MLflow, cold, and from the cache.

Everything happens in a temporary folder and on loopback, and is gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READY_SECONDS_MAX = 120
CHECKPOINTS = 400  # small files beside the model, as training runs leave them
CHECKPOINT_BYTES = 64 * 1024


@contextlib.contextmanager
def process(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Runs a command in a process group of its own until the block ends."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        # The group's number is free only after the child is waited for, so it cannot be another's by now.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server answers at an address."""
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def log_model(folder: Path) -> str:
    """Logs a model with checkpoints, registers it as resnet@champion, and returns its URI."""
    import mlflow
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    points = np.random.default_rng(0).normal(size=(200, 20))
    model = LogisticRegression().fit(points, points[:, 0] > 0)
    for i in range(CHECKPOINTS):
        part = folder / f"epoch{i % 20:02}" / f"shard{i:03}.bin"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(os.urandom(CHECKPOINT_BYTES))
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model, name="model", registered_model_name="resnet", pip_requirements=["scikit-learn"]
        )
        mlflow.MlflowClient().log_model_artifacts(info.model_id, str(folder))
    mlflow.MlflowClient().set_registered_model_alias("resnet", "champion", "1")
    return "models:/resnet@champion"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work gives, and how many milliseconds it took."""
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) * 1000


def show(uri: str, folder: Path) -> None:
    """Fetches an artifact in every way that matters, and prints what each cost."""
    import mlflow

    import artifactcache

    (folder / "plain").mkdir()
    _, plain = timed(lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder / "plain")))
    with artifactcache.Client() as client:
        cold, cold_ms = timed(lambda: client.fetch(uri, folder / "first"))
        warm, warm_ms = timed(lambda: client.fetch(cold.version, folder / "second"))
        client.fetch(cold.version).release()  # builds the view, once for all
        view, view_ms = timed(lambda: client.fetch(cold.version))
        print(f"\n{uri} is {cold.version}: {cold.file_count} files, {cold.size_bytes / 2**20:.1f} MiB\n")
        rows = [
            ("MLflow's own download", plain, "a copy each time"),
            ("fetch, cold", cold_ms, f"{cold.origin_bytes / 2**20:.1f} MiB from the origin, then a {cold.mode}"),
            ("fetch, warm", warm_ms, f"{warm.origin_bytes} bytes from the origin, a {warm.mode}"),
            ("fetch, warm, a view", view_ms, f"read-only, at {view.path}"),
        ]
        for what, cost, how in rows:
            print(f"  {what:<22} {cost:9.1f} ms   {how}")
        with open(os.path.join(view.path, "MLmodel")) as file:
            print(f"\nIts MLmodel begins with: {file.readline().strip()}")
        print("A process that does this ends with its leases; the store stays for the next one.")


def main() -> None:
    """The whole demonstration."""
    folder = Path(tempfile.mkdtemp(prefix="artifactcache-demo-"))
    try:
        port = free_port()
        tracking_uri = f"http://127.0.0.1:{port}"
        os.environ.update(
            MLFLOW_TRACKING_URI=tracking_uri,
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
            ARTIFACTCACHE="off",  # MLflow's own download is to be MLflow's own: the plugin would ask the daemon
            ARTIFACTCACHE_SOCKET_DIR=str(folder / "run"),
            XDG_CACHE_HOME=str(folder / "cache"),
        )
        server = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        server += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        server += ["--artifacts-destination", str(folder / "artifacts")]
        daemon = [sys.executable, "-m", "cacheserver", "serve"]
        print("Starting an MLflow server, and logging a model to it …")
        with process(server, folder / "mlflow.log", lambda: answers(f"{tracking_uri}/health")):
            with (
                open(folder / "model.log", "w") as out,
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(out),
            ):
                uri = log_model(folder / "checkpoints")
            print("Starting the daemon …")
            with process(daemon, folder / "daemon.log", (folder / "run" / "cache.sock").exists):
                show(uri, folder)
    finally:
        shutil.rmtree(folder, onerror=lambda *_: None)


if __name__ == "__main__":
    main()
