"""What `cacheserver serve` says where it cannot start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rig.daemon import _MAIN, START_SECONDS_MAX
from tests.rig.interpreter import Interpreter


@pytest.mark.parametrize(
    ("tracking_uri", "told"),
    [
        ("htp://x", "htp://x"),
        ("htp://user:secret@x", "htp://x"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_a_tracking_uri_that_mlflow_does_not_know(
    interpreter: Interpreter, room: Path, tracking_uri: str, told: str, where: str
) -> None:
    """A sentence names the URI and says where to write another; there is no traceback of MLflow's, and no password."""
    (room / "config.toml").write_text(
        f'[store]\nroot = "{room}/store"\n[server]\nsocket_dir = "{room}/sockets"\n'
        + (f'[origin]\ntracking_uri = "{tracking_uri}"\n' if where == "configuration" else "")
    )
    env = {"MLFLOW_TRACKING_URI": tracking_uri} if where == "environment" else {}
    done = subprocess.run(
        (str(interpreter.python), "-c", _MAIN, "serve", "--config", str(room / "config.toml")),
        env=interpreter.env | env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cacheserver: MLflow cannot use the tracking URI {told}: ")
    assert done.stderr.endswith("tracking_uri in the configuration, as in http://mlflow.example:5000.\n")
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
