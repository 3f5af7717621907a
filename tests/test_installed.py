"""Both wheels in a clean environment: the daemon, the client, the commands and the plugin are those of the wheels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from tests.rig import environments, trees
from tests.rig.counting import CountingProxy
from tests.rig.environments import Environment
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import stop_group
from tests.rig.until import until
from tools.locked import TOP

pytestmark = pytest.mark.skipif(environments.reason_not_to() is not None, reason=str(environments.reason_not_to()))


@pytest.fixture(scope="module")
def wheels(module_room: Path) -> tuple[Path, Path]:
    """The wheels of this checkout."""
    return environments.wheels(module_room / "dist")


@pytest.fixture(scope="module")
def installed(module_room: Path, wheels: tuple[Path, Path]) -> Environment:
    """An environment in which both were installed, as on a host."""
    environment = Environment(module_room / "host", sys.executable)
    environment.install(*wheels)
    return environment


@pytest.fixture(scope="module")
def served(installed: Environment, origin: CountingProxy) -> Iterator[Environment]:
    """The same, with its daemon running as somebody's own, without any configuration."""
    log = installed.home / "daemon.log"
    installed.env["MLFLOW_TRACKING_URI"] = origin.uri
    with log.open("wb") as out:
        process = subprocess.Popen(
            (str(installed.folder / "bin" / "cacheserver"), "serve"),
            cwd=installed.home,
            env=installed.env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until(lambda: installed.command("artifactcache", "ping").returncode == 0, log.read_text, 60)
        yield installed
    finally:
        status = stop_group(process, seconds=30)
    assert status == 0 and "Traceback" not in log.read_text(), log.read_text()


def test_nothing_of_the_checkout_is_there(installed: Environment) -> None:
    """What is imported is what was installed; what was installed is whole."""
    code = """
        import artifactcache, cacheserver, os
        from importlib.metadata import distribution
        missing = [
            str(file) for name in ("artifactcache", "cacheserver") for file in distribution(name).files
            if not os.path.exists(file.locate())
        ]
        result = [artifactcache.__file__, cacheserver.__file__, sys.path, missing]
    """
    client, daemon, path, missing = installed.run(code)
    assert missing == []
    for each in (client, daemon):
        assert Path(each).is_relative_to(installed.folder)
    assert not any(Path(each).is_relative_to(TOP) for each in path if each)
    assert installed.run("import artifactcache\nresult = [n for n in sys.modules if n in ('grpc', 'mlflow')]") == []


def test_everything_is_compatible(installed: Environment) -> None:
    """`pip check` has nothing to say."""
    command = (str(installed.python), "-m", "pip", "check")
    done = subprocess.run(command, cwd=installed.home, env=installed.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_shipped_example_can_be_used(installed: Environment) -> None:
    """`cacheserver check-config`, and the unit's program is the one that was installed."""
    example = installed.folder / "share/cacheserver/config.example.toml"
    done = installed.command("cacheserver", "check-config", example)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{example}: fine\n", "")
    unit = (installed.folder / "lib/systemd/system/cacheserver.service").read_text()
    assert "\nExecStart=/usr/bin/env cacheserver serve\n" in unit
    script = installed.folder / "share/cacheserver/examples/ci-warm-up.sh"
    assert subprocess.run(("sh", "-n", str(script)), check=False).returncode == 0


def test_an_artifact_is_fetched(served: Environment, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """Cold, then warm and as a view, by the library and by the command; nobody imported MLflow for it."""
    uri = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    code = """
        import artifactcache, os
        cold, warm = artifactcache.fetch(uri, "cold"), artifactcache.fetch(uri, "warm")
        view = artifactcache.fetch(uri)
        count = sum(len(files) for _, _, files in os.walk(view))
        result = [cold.hit, warm.hit, view.mode, count, os.path.abspath("warm"), "mlflow" in sys.modules]
    """
    before = origin.bytes
    cold, warm, mode, count, place, is_mlflow = served.run(code, uri=uri)
    assert (cold, warm, mode, count, is_mlflow) == (False, True, "view", len(trees.SMALL), False)
    assert trees.read(Path(place)) == trees.SMALL
    after = origin.bytes
    assert after > before
    done = served.command("artifactcache", "fetch", uri, "by-command")
    assert (done.returncode, done.stdout) == (0, f"{served.home / 'by-command'}\n"), done.stderr
    assert trees.read(served.home / "by-command") == trees.SMALL and origin.bytes == after


def test_every_scheme_of_the_plugin_loads(installed: Environment) -> None:
    """Those that pyproject.toml names, out of the wheel, beside MLflow."""
    code = """
        from importlib.metadata import entry_points
        found = entry_points(group="mlflow.artifact_repository")
        result = [each.name for each in found if each.dist.name == "artifactcache" and callable(each.load())]
    """
    project = tomllib.loads((TOP / "client" / "pyproject.toml").read_text())["project"]
    assert sorted(installed.run(code)) == sorted(project["entry-points"]["mlflow.artifact_repository"])


def test_a_checker_knows_its_types(installed: Environment) -> None:
    """A program of a user is checked against the wheel's own annotations, strictly."""
    program = installed.home / "program.py"
    program.write_text(
        "import artifactcache\n\nfetched = artifactcache.fetch('models:/m/1')\n"
        "reveal_type(fetched.path)\nreveal_type(fetched.hit)\nartifactcache.fetch(dst=1)\n"
    )
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed.python), str(program))
    done = subprocess.run(
        command, cwd=installed.home, env=installed.env, capture_output=True, text=True, timeout=120, check=False
    )
    told = done.stdout.replace("builtins.", "")
    assert 'Revealed type is "pathlib.Path"' in told and 'Revealed type is "bool"' in told, done.stdout
    assert 'incompatible type "int"' in told and "Found 1 error" in told


def test_mlflow_finds_the_plugin(served: Environment, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """By the entry points of the wheel: the second download takes no byte from the server; with it off, each does."""
    files = {"a": b"some bytes", "below/b": b"others"}
    uri = f"runs:/{mlflow_proxied.run({f'data/{name}': content for name, content in files.items()})}/data"
    code = """
        import mlflow.artifacts
        result = mlflow.artifacts.download_artifacts(uri, dst_path=dst)
    """
    taken = []
    for number, switch in enumerate(("on", "on", "off")):
        before = origin.bytes
        (served.home / str(number)).mkdir()
        place = served.run(code, {"ARTIFACTCACHE": switch}, uri=uri, dst=str(served.home / str(number)))
        assert {name: (Path(place) / name).read_bytes() for name in files} == files
        taken.append(origin.bytes - before)
    assert taken[0] > 0 and taken[1] == 0 and taken[2] > 0


def test_one_version_of_each(installed: Environment, wheels: tuple[Path, Path], module_room: Path) -> None:
    """The daemon asks for its own version of the client: another one is refused when it is installed."""
    for wheel in wheels:
        assert os.path.exists(wheel)
    said = installed.run("from importlib.metadata import requires\nresult = requires('cacheserver')")
    version = installed.run("import artifactcache\nresult = artifactcache.__version__")
    assert f"artifactcache=={version}" in said
    for name in ("artifactcache", "cacheserver"):
        assert installed.command(name, "--version").stdout == f"{name} {version}\n"
