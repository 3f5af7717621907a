"""The client's wheel on each Python that it supports, with the oldest and the newest grpcio and protobuf of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib

from tests.rig import environments, trees
from tests.rig.daemon import Daemon
from tests.rig.environments import Environment
from tests.rig.mlflow_server import MlflowServer
from tools.locked import TOP

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ENDS = (PYTHONS[0], PYTHONS[-1])  # each time; those between by `make test-dist`
CLIENTS = TOP / "tests" / "clients"

pytestmark = pytest.mark.skipif(environments.reason_not_to() is not None, reason=str(environments.reason_not_to()))

Make = Callable[[str, str], Environment]


def _pins(version: str, age: str) -> dict[str, str]:
    special = CLIENTS / f"{age}-{version}.txt"
    text = (special if special.exists() else CLIENTS / f"{age}.txt").read_text()
    return dict(re.findall(r"^(grpcio|protobuf)==(\S+)", text, re.M))


@pytest.fixture(scope="module")
def make(module_room: Path) -> Make:
    """Makes an environment of a Python and the client's wheel with a pair of its dependencies."""
    client, _ = environments.wheels(module_room / "dist")

    def make(version: str, age: str) -> Environment:
        found = environments.python(version)
        if found is None:
            pytest.skip(f"there is no Python {version} here that runs")
        environment = Environment(module_room / f"{version}-{age}", found)
        environment.install(client, *(f"{name}=={pin}" for name, pin in _pins(version, age).items()))
        environment.env["PYTHONWARNINGS"] = "error:::artifactcache"
        return environment

    return make


@pytest.mark.parametrize("age", ["oldest", "newest"])
@pytest.mark.parametrize(
    "version", [each if each in ENDS else pytest.param(each, marks=pytest.mark.slow) for each in PYTHONS]
)
def test_a_client_is_served(make: Make, version: str, age: str, daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """It fetches as a copy, a hard link and a view, in forks and in threads too; errors have their classes; the
    command works; every module of it can be imported, and importing it imports neither grpc nor protobuf."""
    environment = make(version, age)
    environment.env["ARTIFACTCACHE_SOCKET_DIR"] = str(daemon.socket_dir)
    uri = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    code = """
        import artifactcache
        light = not {"grpc", "google.protobuf"} & set(sys.modules)
        import concurrent.futures, importlib, os, pkgutil
        for each in pkgutil.walk_packages(artifactcache.__path__, "artifactcache."):
            if not each.name.endswith("__main__"):
                importlib.import_module(each.name)
        from importlib.metadata import version
        made = [artifactcache.fetch(uri, mode, mode=mode).mode for mode in ("copy", "hardlink")]
        view = artifactcache.fetch(uri)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            hits = [one.hit for one in pool.map(lambda _: artifactcache.fetch(uri), range(8))]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, str(artifactcache.fetch(uri).hit).encode())
            os._exit(0)
        forked = os.waitpid(child, 0)[1] == 0 and os.read(reader, 9) == b"True"
        try:
            artifactcache.fetch("runs:/" + "0" * 32)
            missing = "nothing"
        except artifactcache.CacheError as error:
            missing = type(error).__name__
        versions = {name: version(name) for name in ("grpcio", "protobuf")}
        result = [light, made, view.mode, str(view), all(hits), forked, missing, versions, list(sys.version_info[:2])]
    """
    light, made, mode, view, hits, forked, missing, versions, python = environment.run(code, uri=uri)
    assert light and hits and forked
    assert (made, mode, missing) == (["copy", "hardlink"], "view", "NotFound")
    assert versions == _pins(version, age) and python == [int(each) for each in version.split(".")]
    for place in (environment.home / "copy", environment.home / "hardlink", Path(view)):
        assert trees.read(place) == trees.SMALL
    done = environment.command("artifactcache", "fetch", uri, "by-command")
    assert (done.returncode, done.stderr) == (0, "") and trees.read(environment.home / "by-command") == trees.SMALL


def test_the_oldest_are_those_that_are_promised() -> None:
    """What the client's metadata says is what is tried, but where a Python has no wheel of it."""
    project = tomllib.loads((TOP / "client" / "pyproject.toml").read_text())["project"]
    promised = dict(line.split(">=") for line in project["dependencies"])
    assert f">={PYTHONS[0]}" == project["requires-python"]
    told = {line.rsplit(" ", 1)[1] for line in project["classifiers"] if "Python :: 3." in line}
    assert told == set(PYTHONS)
    for version in PYTHONS[:3]:
        tried = _pins(version, "oldest")
        assert all(tried[name].startswith(f"{least}.") for name, least in promised.items()), version
    locked = dict(re.findall(r"^(grpcio|protobuf)==(\S+)", (TOP / "requirements.lock").read_text(), re.M))
    newest = _pins("3.13", "newest")
    for name, pin in locked.items():  # the lock may be older, when a new one is out
        assert _numbers(newest[name]) >= _numbers(pin), f"{name}: tests/clients/newest.txt is older than the lock"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))
