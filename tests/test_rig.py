"""The rig itself: a test that stands on a lie proves nothing."""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest

from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.interpreter import Interpreter
from tests.rig.lying import HONEST, LyingOrigin
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.unsteady import FAULTS, UnsteadyOrigin, unsteady_origin
from tests.rig.users import User
from tests.rig.weather import Weather


def test_a_mounted_filesystem_is_what_it_says(filesystem: Filesystem) -> None:
    """The kernel confirms the kind of each mount."""
    kind = subprocess.check_output(("stat", "--file-system", "--format=%T", filesystem.root), text=True).strip()
    assert kind == {"ext4": "ext2/ext3"}.get(filesystem.kind.name, filesystem.kind.name)


@pytest.mark.parametrize("role", ["alice", "bob", "daemon"])
def test_a_caller_is_its_user_and_has_no_capabilities(
    role: str, all_users: dict[str, User], interpreter: Interpreter, room: Path
) -> None:
    """What runs as a user has that user's IDs, no other group, and empty capability sets."""
    if not all_users:
        pytest.skip("running as several users needs root")
    user = all_users[role]
    caller = Caller(interpreter, user, room, room)
    status = caller.run("result = open('/proc/self/status').read()")
    fields = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert fields["Uid"] == [str(user.uid)] * 4
    assert fields["Gid"] == [str(user.gid)] * 4
    assert fields["Groups"] == []
    assert {fields[f"Cap{name}"][0] for name in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}


def test_a_caller_imports_the_code_under_test(all_users: dict[str, User], interpreter: Interpreter, room: Path) -> None:
    """Every user can import the client, the daemon and MLflow."""
    caller = Caller(interpreter, all_users.get("alice"), room, room)
    paths = caller.run("import artifactcache, cacheserver, mlflow, grpc, ssl\nresult = artifactcache.__file__")
    assert paths.endswith("client/artifactcache/__init__.py")


def test_the_proxy_counts_exactly_what_mlflow_downloads(
    origin: CountingProxy, mlflow_proxied: MlflowServer, tmp_path: Path
) -> None:
    """MLflow's own download through the proxy is right, and the count is the sum of the file sizes."""
    run_id = mlflow_proxied.run(trees.SMALL)
    mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path), tracking_uri=origin.uri)
    assert trees.read(tmp_path) == trees.SMALL
    assert origin.bytes == sum(map(len, trees.SMALL.values()))


def test_the_model_is_a_model(model: Any, mlflow_proxied: MlflowServer) -> None:
    """MLflow itself loads the model that the tests ask for."""
    mlflow.set_registry_uri(mlflow_proxied.uri)
    mlflow.set_tracking_uri(mlflow_proxied.uri)
    loaded = mlflow.pyfunc.load_model("models:/doubler@champion")
    assert loaded.predict([[3.0]])[0] == pytest.approx(6.0)


def test_mlflow_downloads_from_the_honest_run_of_the_liar(liar: LyingOrigin, tmp_path: Path) -> None:
    """What the misbehaving server gets refused for is its lies, not its grammar."""
    run_id = liar.run(HONEST)
    mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path / "a"), tracking_uri=liar.uri)
    mlflow.artifacts.download_artifacts(f"runs:/{run_id}/data", dst_path=str(tmp_path / "b"), tracking_uri=liar.uri)
    data = {"a.bin": b"0123456789", "empty": b""}
    assert trees.read(tmp_path / "a") == {"MLmodel": b"0123456789"} | {f"data/{k}": v for k, v in data.items()}
    assert trees.read(tmp_path / "b") == {f"data/{k}": v for k, v in data.items()}


def test_sessions_that_begin_together_clear_one_leftover(tmp_path: Path) -> None:
    """What a killed session left behind is cleared once, however many find it at the same moment."""
    gone = subprocess.Popen(("true",))
    gone.wait()
    leftover = tmp_path / f"artifactcache-tests-{gone.pid}"
    for number in range(20):
        (leftover / str(number)).mkdir(parents=True)
        for name in range(100):
            (leftover / str(number) / str(name)).touch()
    program = "from tests.rig.base import make_base, remove_base; remove_base(make_base())"
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    sessions = [
        subprocess.Popen((sys.executable, "-c", program), env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [session.communicate()[1] for session in sessions] == [""] * 4
    assert [session.returncode for session in sessions] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def _download(origin: UnsteadyOrigin, run_id: str) -> tuple[int, bytes]:
    """Status and body of one file, as plain HTTP has them."""
    uri = f"{origin.server.artifact_uri(run_id)}/file".replace(
        "mlflow-artifacts:/", "/api/2.0/mlflow-artifacts/artifacts/"
    )
    connection = http.client.HTTPConnection(urlsplit(origin.uri).netloc, timeout=HANGS_FOR_SECONDS)
    try:
        connection.request("GET", uri)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


HANGS_FOR_SECONDS = 10.0
FAILURES: dict[str, tuple[type[Exception], ...]] = {
    "half answers": (http.client.IncompleteRead,),
    "hangs": (TimeoutError,),
    "resets": (ConnectionResetError,),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_an_origin_that_fails_on_command(
    mlflow_proxied: MlflowServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault is what it says, to a client that knows nothing but HTTP; before and after it the file comes whole."""
    monkeypatch.setattr(f"{__name__}.HANGS_FOR_SECONDS", 1.0 if kind == "hangs" else HANGS_FOR_SECONDS)
    content = b"A" * 1000
    run_id = mlflow_proxied.run({"file": content})
    with unsteady_origin(mlflow_proxied) as origin:
        assert _download(origin, run_id) == (200, content)
        with origin.failing(kind):
            if kind in FAILURES:
                for _ in range(2):
                    with pytest.raises(FAILURES[kind]):
                        _download(origin, run_id)
            elif kind == "5xx storm":
                assert {_download(origin, run_id)[0] for _ in range(7)} == {429, 500, 502, 503, 504}
            elif kind == "wrong lengths":
                assert _download(origin, run_id) == (200, content[:-1])
                with pytest.raises(http.client.IncompleteRead):
                    _download(origin, run_id)
            elif kind == "changing":
                assert _download(origin, run_id) == (200, content)
                with pytest.raises(http.client.IncompleteRead):
                    _download(origin, run_id)
                content = b"B" * 1000
            else:
                assert _download(origin, run_id) == (200, content)
        origin.forget()
        assert _download(origin, run_id) == (200, content)
        assert (origin.downloads.total(), origin.question_count) == (1, 0)


def test_what_the_weather_accounts_for(mlflow_proxied: MlflowServer) -> None:
    """An error of a call counts as the origin's, or as a restart's, where such a spell was then, or shortly before."""
    with unsteady_origin(mlflow_proxied) as origin:
        weather = Weather(origin, random.Random(1), patience=5.0, fair=(1.0, 1.0), foul=(1.0, 1.0))
        weather.change(100.0)
        weather.clear(110.0)
        weather.note_restart(200.0, 210.0)
    assert weather.accounts_for("OriginUnavailable", 90.0, 101.0)
    assert weather.accounts_for("OriginUnavailable", 114.0, 130.0)
    assert weather.accounts_for("DaemonUnavailable", 209.0, 211.0)
    assert not weather.accounts_for("OriginUnavailable", 90.0, 99.0)
    assert not weather.accounts_for("OriginUnavailable", 116.0, 130.0)
    assert not weather.accounts_for("NotFound", 105.0, 106.0)
    assert not weather.accounts_for("DaemonUnavailable", 105.0, 106.0)
    assert not weather.accounts_for("DaemonUnavailable", 211.0, 212.0)
