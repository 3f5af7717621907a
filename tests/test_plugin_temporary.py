"""The temporary folders that MLflow would leave behind: they go, at the right time and nobody else's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rig import trees
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import MlflowUser

DOWNLOAD = "path = mlflow.artifacts.download_artifacts(uri)\n"


@pytest.fixture
def uri(mlflow_proxied: MlflowServer) -> str:
    """A folder that no other test has."""
    return f"runs:/{mlflow_proxied.run(trees.unique())}/part"


def _left(mlflow_user: MlflowUser) -> list[str]:
    return [name for name in os.listdir(mlflow_user.make_temporary()) if name.startswith(("tmp", "artifactcache"))]


@pytest.mark.parametrize("daemon_is_there", [True, False])
def test_temporary_folders_go_with_their_process(
    mlflow_user: MlflowUser, room: Path, uri: str, daemon_is_there: bool
) -> None:
    """They are there until it ends, whoever served; those of a failure go at once."""
    script = """
import contextlib, os, sys, tempfile, mlflow
paths = [mlflow.artifacts.download_artifacts(sys.argv[1]) for _ in range(2)]
with contextlib.suppress(mlflow.MlflowException):
    mlflow.artifacts.download_artifacts(sys.argv[1] + "/missing")
assert all(map(os.path.isdir, paths)) and len(set(paths)) == 2
assert len(os.listdir(os.path.dirname(os.path.dirname(paths[0])))) == 2
"""
    mlflow_user.make_temporary()
    env = mlflow_user.env() if daemon_is_there else mlflow_user.env(ARTIFACTCACHE_SOCKET_DIR=str(room))
    process = mlflow_user.caller.popen(
        (str(mlflow_user.caller.interpreter.python), "-c", script, uri), env=env, stderr=-1
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert _left(mlflow_user) == []


def test_temporary_folders_of_a_killed_process_go_with_the_next(mlflow_user: MlflowUser, uri: str) -> None:
    """And not before, and not those of one that lives."""
    with mlflow_user.start(DOWNLOAD + "say(path)\nhear()", uri=uri) as living:
        kept = Path(living.hear())
        with mlflow_user.start(DOWNLOAD + "say(path)\nhear()", uri=uri) as job:
            path = Path(job.hear())
            job.kill()
        assert path.is_dir()
        mlflow_user.run(DOWNLOAD, uri=uri)
        assert not path.exists()
        assert kept.is_dir()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_temporary_folders_of_workers(mlflow_user: MlflowUser, room: Path, uri: str, method: str) -> None:
    """A worker's go with the worker, and its end takes none of its parent's."""
    script = room / "workers.py"
    script.write_text(
        "import multiprocessing, os, sys, tempfile, mlflow\n"
        "def work(uri):\n"
        "    return os.path.isdir(mlflow.artifacts.download_artifacts(uri))\n"
        "if __name__ == '__main__':\n"
        "    path = mlflow.artifacts.download_artifacts(sys.argv[1])\n"
        "    context = multiprocessing.get_context(sys.argv[2])\n"
        "    with context.Pool(2) as pool:\n"
        "        assert all(pool.map(work, [sys.argv[1]] * 4))\n"
        "        pool.close()\n"
        "        pool.join()\n"
        "    assert os.path.isdir(path)\n"
        "    print(len([n for n in os.listdir(tempfile.gettempdir()) if n.startswith('artifactcache')]))\n"
    )
    mlflow_user.make_temporary()
    command = (str(mlflow_user.caller.interpreter.python), str(script), uri, method)
    process = mlflow_user.caller.popen(command, env=mlflow_user.env(), stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"1\n"), err.decode()
    assert _left(mlflow_user) == []


def test_what_the_command_prints_stays(mlflow_user: MlflowUser, uri: str) -> None:
    """`mlflow artifacts download` without a destination prints a path that is to be used afterwards."""
    mlflow_user.make_temporary()
    command = (str(mlflow_user.caller.interpreter.python), "-m", "mlflow", "artifacts", "download", "-u", uri)
    process = mlflow_user.caller.popen(command, env=mlflow_user.env(), stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    path = Path(out.decode().strip().splitlines()[-1])
    assert trees.count(trees.read(path)) == 3
