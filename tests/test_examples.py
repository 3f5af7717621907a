"""The examples do what they say, as far as that can be without the systems that they are for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheserver.advice import warnings
from cacheserver.config import parse
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import held

yaml = pytest.importorskip("yaml")  # MLflow needs it
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """A daemon of the test's own."""
    return start_daemon(proxy.uri)


@pytest.fixture
def alice(daemon: Daemon, caller_of: CallerOf, room: Path) -> Iterator[Caller]:
    """Who has the command on her path."""
    caller = caller_of(daemon, room)
    command = room / "bin" / "artifactcache"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {caller.interpreter.python} -m artifactcache "$@"\n')
    command.chmod(0o755)
    caller.env["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    yield caller


def _run(caller: Caller, name: str, *arguments: str, **env: str) -> tuple[int, str]:
    process = caller.popen(("sh", str(EXAMPLES / name), *arguments), env=env, stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=120)
    return process.returncode, told.decode()


def test_a_runner_is_warm(alice: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """What its pipelines ask for is there; and neither a tracking server nor a daemon that is down keeps it from
    starting."""
    first, second = (f"runs:/{mlflow_proxied.run({name: b'content'})}" for name in "ab")
    assert _run(alice, "ci-warm-up.sh", first)[0] == 0
    assert set(held(alice)) == {first}
    with proxy.down():
        status, told = _run(alice, "ci-warm-up.sh", first, second)
        assert (status, told.count("is not here, jobs ask for it")) == (0, 1) and second in told
        assert trees.read(alice.fetch(first).path) == {"a": b"content"}
    nobody = {"ARTIFACTCACHE_SOCKET_DIR": str(alice.cwd), "WARM_UP_WAIT_SECONDS": "1"}
    status, told = _run(alice, "ci-warm-up.sh", first, **nobody)
    assert status == 0 and "no daemon answers" in told


def test_a_node_is_warm_before_the_job(
    alice: Caller, daemon: Daemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """What a job's comment names is fetched for its user, and nothing that is said there fails the node."""
    if alice.user is None:
        pytest.skip("needs users")
    uris = [f"runs:/{mlflow_proxied.run({name: b'content'})}" for name in "ab"]
    root = caller_of(daemon, room, "root")
    root.env["PATH"] = alice.env["PATH"]
    job = {"SLURM_JOB_USER": alice.user.name, "SLURM_JOB_COMMENT": f"artifactcache:{','.join(uris)}"}
    assert _run(root, "slurm-prolog.sh", **job) == (0, "")
    until(lambda: set(held(root)) == set(uris), daemon.read_log)
    assert {one["uid"] for one in root.run(_USAGE) if one["tree_count"]} == {alice.uid}
    for comment in ("", "artifactcache:", "artifactcache:nonsense,$(touch /tmp/no)", "another comment"):
        assert _run(root, "slurm-prolog.sh", SLURM_JOB_USER=alice.user.name, SLURM_JOB_COMMENT=comment) == (0, "")


_USAGE = """
    import artifactcache
    result = [{"uid": one.uid, "tree_count": one.tree_count} for one in artifactcache.Client().usage(everybody=True)]
"""


def _kubernetes() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())}


def test_the_configuration_of_the_pods_can_be_used() -> None:
    """As it is, without anything to be warned of; and it is where the daemon looks for it."""
    found = _kubernetes()
    config = parse(found["ConfigMap"]["data"]["config.toml"], "config.toml")
    assert warnings(config) == []
    (daemon,) = found["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    mounts = {one["name"]: one["mountPath"] for one in daemon["volumeMounts"]}
    assert (mounts["store"], mounts["sockets"]) == (config.store.root, config.server.socket_dir)
    assert daemon["args"][-1] == f"{mounts['config']}/config.toml"
    pod = found["Pod"]["spec"]["containers"][0]
    assert {one["name"]: one["mountPath"] for one in pod["volumeMounts"]} == {
        name: mounts[name] for name in ("store", "sockets")
    }
    assert all(one["readOnly"] for one in pod["volumeMounts"])


def test_a_pod_has_views(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """Its volumes are mounts of its own, the store's read-only: it reads views there, and what it places is a copy or a
    clone."""
    if alice.user is None:
        pytest.skip("mount namespaces need root")
    uri = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    volumes = f'mount --bind {daemon.root} {daemon.root} && mount -o remount,bind,ro {daemon.root} && exec "$@"'
    pod = ("unshare", "--mount", "--propagation", "private", "sh", "-c", volumes, "pod")
    code = """
        import artifactcache
        from tests.rig.trees import read
        view, made = artifactcache.fetch(uri), artifactcache.fetch(uri, "dst")
        result = [view.mode, len(read(view.path)), made.mode, len(read(made.path))]
    """
    view, seen, mode, made = alice.run(code, wrap=pod, uri=uri)
    assert (view, seen, made) == ("view", len(trees.SMALL), len(trees.SMALL)) and mode in ("copy", "reflink")
