"""`import mlflow` beside a plugin that cannot work: it is imported, downloads by itself, and throws nothing about."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import identity
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import INSTALLED, OLDEST, MlflowUser, reason_not_to_run
from tests.rig.slow import slow_but

# Modules that cannot be imported: what is raised, where. protobuf is MLflow's, too: what is missing or too old is what
# this package wants of it.
UNFIT = {
    "grpc is missing": ("grpc", "ModuleNotFoundError(\"No module named 'grpc'\")"),
    "grpc was built for another machine": ("grpc._cython.cygrpc", "ImportError('undefined symbol')"),
    "grpc is too old": ("artifactcache.v1.cache_pb2_grpc", "RuntimeError('grpcio>=1.62 is needed')"),
    "protobuf is missing": ("artifactcache.v1.cache_pb2", "ModuleNotFoundError(\"No module named 'google'\")"),
    "protobuf is too old": ("artifactcache.v1.cache_pb2", "TypeError('Descriptors cannot be created directly.')"),
    "protobuf is too new": ("artifactcache.v1.cache_pb2", "SystemError('VersionError')"),
    "the plugin is gone": ("artifactcache.plugin", "ModuleNotFoundError('artifactcache.plugin')"),
    "repositories are broken": ("artifactcache.repositories", "SyntaxError('half a file')"),
    "what they need is broken": ("artifactcache.daemon_for_mlflow", "SyntaxError('half a file')"),
    "temporary folders are broken": ("artifactcache.temporary", "OSError('Input/output error')"),
    "the client is broken": ("artifactcache.client", "AttributeError('half a file')"),
    "the calls are broken": ("artifactcache.calls", "KeyError('half a file')"),
}

SCRIPT = """
import json, os, sys

class Unfit:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise eval(error)

module, error, *uris = sys.argv[1:]
sys.meta_path.insert(0, Unfit())
import mlflow
found = []
for number, uri in enumerate(uris):
    for dst in (f"{number}-one", f"{number}-two", None):
        path = mlflow.artifacts.download_artifacts(uri, dst_path=dst)
        found.append({name: open(os.path.join(path, name), "rb").read().hex() for name in os.listdir(path)})
print(json.dumps(found))
"""


@pytest.fixture
def files() -> trees.Files:
    """Bytes that no other test has."""
    return trees.unique()


@pytest.fixture
def uris(mlflow_proxied: MlflowServer, files: trees.Files) -> list[str]:
    """Three names of a folder of them."""
    run = mlflow_proxied.run(files)
    name = f"unfit-{run}"
    mlflow_proxied.add_version(name, run, "part")
    return [f"runs:/{run}/part", f"{mlflow_proxied.artifact_uri(run)}/part", f"models:/{name}/1"]


def _run(user: MlflowUser, script: str, *arguments: str, **env: str) -> tuple[Any, str]:
    """What a program prints as JSON, and what is on its standard error; it ends well."""
    user.make_temporary()
    command = (str(user.caller.interpreter.python), "-c", script, *arguments)
    whole = user.caller.env | user.env(**env)
    done = subprocess.run(
        command, capture_output=True, check=False, cwd=user.caller.cwd, env=whole, **identity(user.caller.user)
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said
    return json.loads(done.stdout.decode().splitlines()[-1]), said


def _assert_own(found: Any, files: trees.Files) -> None:
    expected = {name: content.hex() for name, content in trees.below(files, "part").items()}
    for each in found:
        each.pop("registered_model_meta", None)
    assert found == [expected] * len(found) and found


@pytest.mark.parametrize(
    ("unfit", "version"),
    slow_but(
        [(unfit, INSTALLED) for unfit in UNFIT] + [("grpc is missing", OLDEST)],
        lambda case: case[0].startswith("the ") or case == ("grpc is missing", INSTALLED),
    ),
)
def test_a_package_that_cannot_be_loaded(
    mlflow_user: MlflowUser, uris: list[str], files: trees.Files, unfit: str, version: str
) -> None:
    """MLflow does it all, and says no more than a line of the plugin's, and MLflow's own of entry points."""
    if reason := reason_not_to_run(version):
        pytest.skip(reason)
    mlflow_user.version = version
    module, error = UNFIT[unfit]
    found, said = _run(mlflow_user, SCRIPT, module, error, *uris)
    assert len(found) == 9
    _assert_own(found, files)
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "so MLflow downloads by itself" in line]
    assert len(lines) == (unfit not in ("the plugin is gone", "repositories are broken")), said


def test_switched_off_nothing_of_it_is_loaded(mlflow_user: MlflowUser, uris: list[str], files: trees.Files) -> None:
    """Not the repositories, not the client, not grpc; and nothing is said, even where it could not be loaded."""
    more = "\nassert not [n for n in sys.modules if n.split('.')[0] == 'grpc' or n in loaded], sys.modules.keys()"
    loaded = "loaded = {'artifactcache.repositories', 'artifactcache.client', 'artifactcache.temporary'}\n"
    found, said = _run(mlflow_user, loaded + SCRIPT + more, "grpc", "ImportError('no')", *uris, ARTIFACTCACHE="off")
    _assert_own(found, files)
    assert "artifactcache" not in said.replace("artifactcache-tests", "")


def test_importing_loads_next_to_nothing(mlflow_user: MlflowUser) -> None:
    """With MLflow comes the plugin and its repositories; the client, grpc and the stubs come with a download."""
    script = """
import json, sys
import mlflow
print(json.dumps(sorted(n for n in sys.modules if n.split(".")[0] in ("grpc", "artifactcache"))))
"""
    loaded, said = _run(mlflow_user, script)
    assert set(loaded) == {
        *("artifactcache", "artifactcache.errors", "artifactcache.forks"),
        *("artifactcache.plugin", "artifactcache.switch", "artifactcache.repositories"),
    }
    assert said == ""


@pytest.mark.parametrize("home", slow_but(["missing", "read-only", "unset"], lambda home: home == "read-only"))
def test_a_home_that_cannot_be_written(
    mlflow_user: MlflowUser, uris: list[str], files: trees.Files, room: Path, home: str
) -> None:
    """Nothing is looked for there: the daemon serves, and nothing is said."""
    (room / "home").mkdir(mode=0o555)
    script = "import os\nos.environ.pop('HOME')\n" + SCRIPT if home == "unset" else SCRIPT
    path = room / ("nowhere" if home == "missing" else "home")
    found, said = _run(mlflow_user, script, "none", "none", *uris, HOME=str(path))
    _assert_own(found, files)
    assert "artifactcache does not serve" not in said and "Traceback" not in said
    assert os.listdir(room / "home") == []


NOWHERE = """
import json, os, sys, tempfile
tempfile.tempdir = sys.argv[1]
import mlflow
came = []
for number, uri in enumerate(sys.argv[2:]):
    dst = f"d{number}" + os.environ.get("ARTIFACTCACHE", "")
    came.append(sorted(os.listdir(mlflow.artifacts.download_artifacts(uri, dst_path=dst))))
    try:
        came.append(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:
        came.append([type(error).__name__, getattr(error, "errno", None), getattr(error, "error_code", None)])
print(json.dumps(came))
"""


@pytest.mark.parametrize("where", slow_but(["read-only", "missing", "a file"], lambda where: where == "read-only"))
def test_nowhere_for_temporary_files(mlflow_user: MlflowUser, uris: list[str], room: Path, where: str) -> None:
    """With a destination all is well; without one MLflow's own error comes."""
    folder = room / "temporary"
    if where == "a file":
        folder.write_text("a file")
    elif where == "read-only":
        folder.mkdir(mode=0o555)
        if mlflow_user.caller.uid == 0:
            pytest.skip("root writes everywhere")
    off, _ = _run(mlflow_user, NOWHERE, str(folder), *uris, ARTIFACTCACHE="off")
    on, said = _run(mlflow_user, NOWHERE, str(folder), *uris)
    assert on == off
    assert "Traceback" not in said


def test_models_that_need_no_temporary_files(
    start_daemon: StartDaemon, mlflow_file: MlflowServer, room: Path, caller_of: CallerOf, distribution: Path
) -> None:
    """Where MLflow gives out a folder of this host itself, it does so without a place for temporary files, too."""
    run = mlflow_file.run(trees.unique())
    mlflow_file.add_version(f"local-{run}", run, "part")
    user = MlflowUser(caller_of(start_daemon(mlflow_file.uri), room), distribution, mlflow_file.uri)
    (room / "temporary").write_text("a file")
    uris = [f"models:/local-{run}/1", f"{mlflow_file.artifact_uri(run)}/part"]
    off, _ = _run(user, NOWHERE, str(room / "temporary"), *uris, ARTIFACTCACHE="off")
    on, _ = _run(user, NOWHERE, str(room / "temporary"), *uris)
    assert on == off and on[1] == str(mlflow_file.folder(run) / "part")
