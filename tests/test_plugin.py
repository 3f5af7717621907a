"""The plugin around what it serves: when it steps aside, what it leaves behind, and whose the files are."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache import plugin
from tests.conftest import CallerOf
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import LISTEN, MlflowUser, entry_points, reason_not_to_run

DOWNLOAD = "path = mlflow.artifacts.download_artifacts(uri, dst_path=dst)\n"


@pytest.fixture
def uri(mlflow_proxied: MlflowServer) -> str:
    """A folder that no other test has."""
    return f"runs:/{mlflow_proxied.run(trees.unique())}/part"


def test_every_entry_point_is_there() -> None:
    """Each scheme has a repository of the plugin's that is a child of MLflow's own, with its name."""
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    assert set(entry_points()) == {name.replace("_", "-") for name in plugin._BUILT_IN}
    own = get_registered_artifact_repositories()
    for scheme, target in entry_points().items():
        module, _, name = target.partition(":")
        assert module == plugin.__name__
        made = plugin.__getattr__(name)
        assert getattr(made, "__name__", "") == own[scheme].__name__


def test_the_second_download_is_served(mlflow_user: MlflowUser, origin: CountingProxy, uri: str) -> None:
    """It takes nothing from the origin, and says nothing."""
    code = LISTEN + DOWNLOAD + "result = [path, said]"
    mlflow_user.run(code, uri=uri, dst="first")
    before = origin.bytes
    path, said = mlflow_user.run(code, uri=uri, dst="second")
    assert origin.bytes == before
    assert said == []
    assert trees.read(Path(path)) == trees.read(mlflow_user.caller.cwd / "first" / "part")


def test_a_server_that_is_down(mlflow_user: MlflowUser, origin: CountingProxy, model: Any, uri: str) -> None:
    """What is held is loaded as ever; what is not fails at once, as MLflow fails."""
    load = "result = float(mlflow.pyfunc.load_model('models:/doubler/1').predict([[3.0]])[0])"
    assert mlflow_user.run(load) == pytest.approx(6.0)
    mlflow_user.run(DOWNLOAD, uri=uri, dst=None)
    missing = """
        import time
        from mlflow.exceptions import MlflowException
        began = time.monotonic()
        try:
            mlflow.artifacts.download_artifacts("runs:/" + "0" * 32 + "/data")
        except MlflowException as error:
            result = [type(error).__name__, error.error_code, time.monotonic() - began]
    """
    with origin.down():
        assert mlflow_user.run(load) == pytest.approx(6.0)
        mlflow_user.run(DOWNLOAD, uri=uri, dst=None)
        name, code, seconds = mlflow_user.run(_after(missing), env={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"})
    assert (name, code) == ("MlflowException", "INTERNAL_ERROR")
    assert seconds < 30


def _after(code: str) -> str:
    """A block of code as it stands, for it is put behind another one."""
    lines = code.splitlines()
    return "\n".join(line[8:] for line in lines)


@pytest.mark.parametrize("switch", ["off", "OFF", "0", "false", "no"])
def test_switched_off(mlflow_user: MlflowUser, daemon: Daemon, uri: str, switch: str) -> None:
    """MLflow has its own repositories then, and the daemon hears nothing."""
    code = """
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories as registered
result = sorted({r.__module__.split(".")[0] for r in registered().values()})
"""
    before = daemon.read_log()
    assert mlflow_user.run(DOWNLOAD + code, env={"ARTIFACTCACHE": switch}, uri=uri, dst=None) == ["mlflow"]
    assert daemon.read_log() == before


@pytest.mark.parametrize("variable", ["_MLFLOW_SERVER_ARTIFACT_ROOT", "_MLFLOW_SERVER_FILE_STORE"])
def test_inert_in_a_tracking_server(mlflow_user: MlflowUser, variable: str) -> None:
    """Its workers, and the jobs they start, have MLflow's own repositories."""
    code = """
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories as registered
result = sorted({r.__module__ for r in registered().values()})
"""
    assert "artifactcache.repositories" not in mlflow_user.run(code, env={variable: "/nowhere"})
    assert "artifactcache.repositories" in mlflow_user.run(code)


def test_a_plugin_that_is_broken(mlflow_user: MlflowUser, uri: str) -> None:
    """MLflow can be imported and downloads by itself, whatever of this package cannot be loaded."""
    broken = "import sys\nfor name in names:\n    sys.modules[name] = None\n"
    for names in (["artifactcache.repositories"], ["artifactcache.calls"], ["artifactcache.plugin"], ["grpc"]):
        code = broken + "import mlflow\n" + DOWNLOAD + "result = len(os.listdir(path))"
        env = mlflow_user.env(PYTHONWARNINGS="ignore")
        mlflow_user.make_temporary()
        assert mlflow_user.caller.run(code, env=env, names=names, uri=uri, dst=None) == 3


def test_no_daemon(mlflow_user: MlflowUser, room: Path, uri: str) -> None:
    """MLflow's own way serves, each time; that is said once."""
    code = LISTEN + DOWNLOAD + DOWNLOAD + "result = [sorted(os.listdir(path)), said]"
    found, said = mlflow_user.run(code, env={"ARTIFACTCACHE_SOCKET_DIR": str(room)}, uri=uri, dst=None)
    assert len(found) == 3
    assert len(said) == 1
    assert "DaemonUnavailable" in said[0] and "ARTIFACTCACHE=off" in said[0]


def test_a_daemon_that_does_not_answer(mlflow_user: MlflowUser, daemon: Daemon, uri: str) -> None:
    """One that is stopped costs a few seconds, once."""
    code = LISTEN + DOWNLOAD + DOWNLOAD + "result = [sorted(os.listdir(path)), said]"
    mlflow_user.run(DOWNLOAD, uri=uri, dst=None)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        found, said = mlflow_user.run(code, uri=uri, dst=None)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert len(found) == 3
    assert len(said) == 1


def test_a_daemon_that_dies_in_the_middle(
    mlflow_user: MlflowUser, daemon: Daemon, origin: CountingProxy, uri: str
) -> None:
    """The download goes on as MLflow's own, and nothing half-made is left."""
    code = LISTEN + DOWNLOAD + "result = [path, said]"
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(contextlib.ExitStack())
        held.enter_context(origin.holding())
        job = stack.enter_context(mlflow_user.start(code, uri=uri, dst="here"))
        origin.wait_for_download()
        daemon.kill()
        held.close()
        path, said = job.result()
        daemon.start()
    assert len(said) == 1 and "DaemonUnavailable" in said[0]
    assert trees.count(trees.read(Path(path))) == 3
    assert os.listdir(mlflow_user.caller.cwd / "here") == ["part"]


def test_another_tracking_server(mlflow_user: MlflowUser, daemon: Daemon, mlflow_file: MlflowServer) -> None:
    """Whoever asks another one than the daemon's gets what that has, and the daemon is not asked for it."""
    files = trees.unique()
    uri = f"runs:/{mlflow_file.run(files)}/part"
    other = MlflowUser(mlflow_user.caller, mlflow_user.distribution, mlflow_file.uri)
    before = daemon.read_log()
    code = LISTEN + DOWNLOAD + "result = [path, said]"
    path, said = other.run(code, uri=uri, dst="d")
    assert trees.read(Path(path)) == trees.below(files, "part")
    assert said == [] and daemon.read_log() == before


def test_files_are_the_callers_own(mlflow_user: MlflowUser, root_caller: Caller, daemon: Daemon, uri: str) -> None:
    """Whoever writes through, replaces or deletes what they got, root too, changes nothing for anybody else."""
    code = """
first = mlflow.artifacts.download_artifacts(uri, dst_path="d")
for name in sorted(os.listdir(first)):
    open(os.path.join(first, name), "r+b").write(b"mine!")
os.unlink(os.path.join(first, name))
os.mkdir(os.path.join(first, "__pycache__"))
again = mlflow.artifacts.download_artifacts(uri, dst_path="d")
result = [again, sorted(os.listdir(again)), [os.stat(os.path.join(again, n)).st_mode & 0o777 for n in ("0.bin",)]]
"""
    for caller in (mlflow_user.caller, root_caller):
        path, names, modes = MlflowUser(caller, mlflow_user.distribution, mlflow_user.tracking_uri).run(code, uri=uri)
        assert names == ["0.bin", "1.bin", "2.bin", "__pycache__"]
        assert modes == [0o644]
        assert b"mine!" not in b"".join(trees.read(Path(path)).values())
    operator = mlflow_user.caller.as_operator()
    verified = operator.run("import artifactcache\nresult = artifactcache.Client().verify().corrupted")
    assert verified == []


def test_a_models_code_is_compiled_beside_it(
    mlflow_user: MlflowUser, mlflow_proxied: MlflowServer, module_room: Path
) -> None:
    """A model with code of its own writes __pycache__ where it was loaded from, and is the same for the next one."""
    import mlflow

    code = module_room / "helper_of_a_model.py"
    code.write_text("FACTOR = 2\n")
    definition = module_room / "definition.py"
    definition.write_text(
        "import mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        import helper_of_a_model\n"
        "        return [helper_of_a_model.FACTOR * x for x in model_input]\n"
        "mlflow.models.set_model(Model())\n"
    )
    run = mlflow_proxied.run()
    mlflow.pyfunc.save_model(
        str(mlflow_proxied.folder(run) / "coded"),
        python_model=str(definition),
        code_paths=[str(code)],
        pip_requirements=["mlflow"],
    )
    load = """
model = mlflow.pyfunc.load_model(uri, dst_path=dst)
result = [model.predict([1, 2]), [name for at, folders, _ in os.walk(dst) for name in folders]]
"""
    for dst in ("first", "second"):
        os.chown(mlflow_user.make_temporary(), mlflow_user.caller.uid, -1)
        folder = mlflow_user.caller.cwd / dst
        folder.mkdir()
        os.chown(folder, mlflow_user.caller.uid, -1)
        env = {"PYTHONDONTWRITEBYTECODE": ""}
        doubled, names = mlflow_user.run(load, env=env, uri=f"runs:/{run}/coded", dst=str(folder))
        assert doubled == [2, 4]
        assert "__pycache__" in names


def test_a_run_that_is_still_written(mlflow_user: MlflowUser, mlflow_proxied: MlflowServer) -> None:
    """What a running run logs anew is what comes next, by its URI and by its bare URI."""
    run = mlflow_proxied.client.create_run(mlflow_proxied.experiment)
    bare = f"{run.info.artifact_uri}/notes.txt"
    code = "result = [mlflow.artifacts.load_text(uri) for uri in uris]"
    for text in ("one", "two!", "three"):
        trees.plant(mlflow_proxied.folder(run.info.run_id), {"notes.txt": text.encode()})
        assert mlflow_user.run(code, uris=[bare, f"runs:/{run.info.run_id}/notes.txt"]) == [text, text]


def test_uploads_are_mlflows_own(mlflow_user: MlflowUser, mlflow_proxied: MlflowServer) -> None:
    """What a run logs, and lists, goes past the plugin."""
    code = """
with mlflow.start_run(experiment_id=experiment) as run:
    mlflow.log_text("hello", "a/b.txt")
    result = [run.info.run_id, mlflow.artifacts.load_text(run.info.artifact_uri + "/a/b.txt"),
              [f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "a")]]
"""
    run_id, text, listed = mlflow_user.run(code, experiment=mlflow_proxied.experiment)
    assert (text, listed) == ("hello", ["a/b.txt"])
    assert trees.read(mlflow_proxied.folder(run_id)) == {"a/b.txt": b"hello"}


# -- storage schemes, and a deep-learning flavour ---------------------------------------------------------------------


@pytest.fixture
def file_user(
    module_start: Any, mlflow_file: MlflowServer, room: Path, caller_of: CallerOf, distribution: Path
) -> Iterator[tuple[MlflowUser, Daemon]]:
    """A caller of a daemon whose server keeps artifacts in folders of this host."""
    daemon = module_start(mlflow_file.uri)
    yield MlflowUser(caller_of(daemon, room), distribution, mlflow_file.uri), daemon


def test_folders_of_this_host(file_user: tuple[MlflowUser, Daemon], mlflow_file: MlflowServer) -> None:
    """A run's folder goes through the daemon; a folder that is no run's is read anew each time; without a
    destination MLflow gives out the folder itself."""
    mlflow_user, _ = file_user
    files = trees.unique()
    run = mlflow_file.run(files)
    root = mlflow_file.artifact_uri(run)
    other = mlflow_user.caller.cwd / "other"
    code = """
import artifactcache
paths = [mlflow.artifacts.download_artifacts(uri, dst_path=f"d{n}") for n, uri in enumerate(uris)]
paths.append(mlflow.artifacts.download_artifacts(uris[1]))
result = [paths, [held.version for held in artifactcache.Client().list()]]
"""
    for text in (b"one", b"two"):
        trees.plant(other, {"part/a": text})
        uris = [f"runs:/{run}/part", f"{root}/part", f"{other.as_uri()}/part"]
        paths, held = mlflow_user.run(code, uris=uris)
        assert [trees.read(Path(path)) for path in paths[:2]] == [trees.below(files, "part")] * 2
        assert trees.read(Path(paths[2])) == {"a": text}
        assert Path(paths[3]) == mlflow_file.folder(run) / "part"
    assert held == [f"runs:/{run}/part"]


@pytest.mark.skipif(reason_not_to_run("torch") is not None, reason=str(reason_not_to_run("torch")))
def test_pytorch(mlflow_user: MlflowUser, mlflow_proxied: MlflowServer, origin: CountingProxy) -> None:
    """A network that was logged is loaded as it was, with the plugin off and on; the second time from the cache."""
    mlflow_user.with_torch = True
    log = """
import torch
torch.manual_seed(1)
network = torch.nn.Linear(3, 2)
mlflow.set_experiment(experiment_id=experiment)
with mlflow.start_run():
    info = mlflow.pytorch.log_model(network, name="net", pip_requirements=["torch"], registered_model_name="net",
                                    serialization_format="pickle")
result = [info.model_uri, info.run_id, network(torch.ones(3)).tolist()]
"""
    model_uri, run_id, expected = mlflow_user.run(log, experiment=mlflow_proxied.experiment)
    load = """
import torch
result = [mlflow.pytorch.load_model(uri)(torch.ones(3)).tolist() for uri in uris]
"""
    uris = ["models:/net/1", model_uri, f"runs:/{run_id}/net"]
    assert mlflow_user.run(load, env={"ARTIFACTCACHE": "off"}, uris=uris) == [expected] * 3
    assert mlflow_user.run(load, uris=uris) == [expected] * 3
    before = origin.bytes
    assert mlflow_user.run(load, uris=uris) == [expected] * 3
    assert origin.bytes == before
