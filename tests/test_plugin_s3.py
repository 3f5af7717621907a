"""The plugin where runs keep their artifacts in a bucket: MLflow goes there by itself, and so does the daemon."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import s3, trees
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import INSTALLED, MIDDLE, VERSIONS, MlflowUser, outcomes, reason_not_to_run
from tests.rig.slow import slow_but

BUCKET = "models"
# How the versions differ shows over HTTP already; what boto3 does is the same in all of them.
_VERSIONS = slow_but(VERSIONS, lambda version: version == INSTALLED)
DOWNLOAD = "mlflow.artifacts.download_artifacts"
_DOWNLOADED = re.compile(rf'"GET /{BUCKET}/[^" ?]+(\?x-id=GetObject)? HTTP/1\.1" 20')

# `d` is an empty folder that exists. What ends with "!" may ask the bucket for bytes again.
CALLS = {
    "a run by its URI": f"{DOWNLOAD}('runs:/' + run, dst_path=d)",
    "a run by its ID": f"{DOWNLOAD}(run_id=run, dst_path=d)",
    "a run by its ID, in a temporary folder": f"{DOWNLOAD}(run_id=run)",
    "a folder of a run": f"{DOWNLOAD}('runs:/' + run + '/data', dst_path=d)",
    "a file in a folder": f"{DOWNLOAD}('runs:/' + run + '/data/deep/er/one.txt', dst_path=d)",
    "a run's ID and a path": f"{DOWNLOAD}(run_id=run, artifact_path='data', dst_path=d)",
    "a bare URI of a run": f"{DOWNLOAD}(root, dst_path=d)",
    "a bare URI": f"{DOWNLOAD}(root + '/data', dst_path=d)",
    "a bare URI with a slash!": f"{DOWNLOAD}(root + '/data/', dst_path=d)",
    "a bare URI of a file": f"{DOWNLOAD}(root + '/data/deep/er/one.txt', dst_path=d)",
    "a bare URI, in a temporary folder": f"{DOWNLOAD}(root + '/data')",
    "a bare URI of what is no run's": f"{DOWNLOAD}('s3://{BUCKET}/elsewhere/data', dst_path=d)",
    "a bucket's top": f"{DOWNLOAD}('s3://{BUCKET}/elsewhere', dst_path=d)",
    "a bare file of what is no run's": f"{DOWNLOAD}('s3://{BUCKET}/elsewhere/data/a', dst_path=d)",
    "names that begin alike": f"{DOWNLOAD}('s3://{BUCKET}/elsewhere/dat', dst_path=d)",
    "a marked folder": f"{DOWNLOAD}('s3://{BUCKET}/marked', dst_path=d)",
    "odd names": f"{DOWNLOAD}('s3://{BUCKET}/odd', dst_path=d)",
    "a registered model's version": f"{DOWNLOAD}('models:/bucketed/1', dst_path=d)",
    "a registered model's version, in a temporary folder": f"{DOWNLOAD}('models:/bucketed/1')",
    "a path in a registered model": f"{DOWNLOAD}('models:/bucketed/1/MLmodel', dst_path=d)",
    "a logged model": f"{DOWNLOAD}('models:/' + model, dst_path=d)",
    "a logged model by its run": f"{DOWNLOAD}('runs:/' + model_run + '/model', dst_path=d)",
    "a client and a path": "mlflow.MlflowClient().download_artifacts(run, 'data', d)",
    "text": "mlflow.artifacts.load_text(root + '/MLmodel')",
    "a list": "mlflow.artifacts.list_artifacts(root + '/data')",
    "pyfunc": "mlflow.pyfunc.load_model('models:/bucketed/1').predict([[3.0]]).round(6)",
    "no path in a run": f"{DOWNLOAD}('runs:/' + run + '/missing', dst_path=d)",
    "no path at a bare URI": f"{DOWNLOAD}(root + '/missing', dst_path=d)",
    "no path in a model": f"{DOWNLOAD}('models:/bucketed/1/missing', dst_path=d)",
    "no bucket": f"{DOWNLOAD}('s3://nobodys/data', dst_path=d)",
    "a run without files": f"{DOWNLOAD}(run_id=bare, dst_path=d)",
}
# With the plugin this works; without, this version takes the address of the tracking server for an access key.
BROKEN_IN_MLFLOW = {(MIDDLE, "a client and a path")}
LOG_MODEL = """
from sklearn.linear_model import LinearRegression
mlflow.set_experiment(experiment_id=experiment)
with mlflow.start_run():
    doubler = LinearRegression().fit([[1.0], [2.0]], [2.0, 4.0])
    info = mlflow.sklearn.log_model(
        doubler, name="model", pip_requirements=["scikit-learn"], registered_model_name="bucketed"
    )
result = {"model": info.model_id, "model_run": info.run_id}
"""
Results = dict[str, tuple[Any, int]]


class Downloads:
    """How many objects an endpoint has sent, as its log says."""

    def __init__(self, log: Path) -> None:
        self.log = log

    @property
    def bytes(self) -> int:
        """The number of objects, each of which counts as one."""
        return len(_DOWNLOADED.findall(self.log.read_text(errors="replace")))


@pytest.fixture(scope="module")
def endpoint(module_room: Path) -> Iterator[s3.Endpoint]:
    """An endpoint with a bucket."""
    with s3.endpoint("moto", module_room / "moto") as found:
        found.client.create_bucket(Bucket=BUCKET)
        yield found


@pytest.fixture(scope="module")
def downloads(endpoint: s3.Endpoint, module_room: Path) -> Downloads:
    """What it has sent."""
    return Downloads(module_room / "moto" / "moto.log")


@pytest.fixture(scope="module")
def server(endpoint: s3.Endpoint, module_room: Path) -> Iterator[MlflowServer]:
    """A tracking server that keeps artifacts in the bucket, and hands out none itself."""
    server = MlflowServer(module_room / "server", proxied=False, artifact_root=f"s3://{BUCKET}/root")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def s3_daemon(module_start: StartDaemon, endpoint: s3.Endpoint, server: MlflowServer) -> Daemon:
    """Its daemon, with credentials for the endpoint."""
    return module_start(server.uri, env=endpoint.env, unreachable_after=10.0)


@pytest.fixture(scope="module")
def scope(
    s3_daemon: Daemon,
    server: MlflowServer,
    endpoint: s3.Endpoint,
    distribution: Path,
    caller_of: CallerOf,
    module_room: Path,
) -> dict[str, str]:
    """What the calls name."""
    user = MlflowUser(caller_of(s3_daemon, module_room), distribution, server.uri)
    model = user.run(LOG_MODEL, env=endpoint.env | {"ARTIFACTCACHE": "off"}, experiment=server.experiment)
    run = server.run()
    root = server.artifact_uri(run)
    endpoint.put(BUCKET, root.removeprefix(f"s3://{BUCKET}/"), trees.SMALL)
    endpoint.put(BUCKET, "elsewhere", {"data/a": b"a", "data/b/c": b"c", "data-2": b"2"})
    endpoint.put(BUCKET, "marked", {"": b"", "hollow/": b"", "filled/": b"", "filled/x": b"x"})
    endpoint.put(BUCKET, "odd", {"a b": b"1", "a%20b": b"2", "ä/ö+": b"3", "a#b": b"4"})
    return {"run": run, "root": root, "bare": server.run(), **model}


@pytest.fixture(scope="module")
def results(
    s3_daemon: Daemon,
    server: MlflowServer,
    endpoint: s3.Endpoint,
    downloads: Downloads,
    distribution: Path,
    caller_of: CallerOf,
    scope: dict[str, str],
    module_room: Path,
) -> Callable[[str], tuple[Results, Results, Results]]:
    """What came of the calls in one version: off, on for the first time, and on again."""
    known: dict[str, tuple[Results, Results, Results]] = {}

    def results(version: str) -> tuple[Results, Results, Results]:
        if reason := reason_not_to_run(version):
            pytest.skip(reason)
        if version not in known:
            found = []
            for number, switch in enumerate(("off", "", "")):
                where = module_room / f"{version}-{number}"
                where.mkdir()
                user = MlflowUser(caller_of(s3_daemon, where), distribution, server.uri, version)
                with outcomes(user, downloads, CALLS, scope, ARTIFACTCACHE=switch, **endpoint.env) as one:
                    found.append(one)
            known[version] = (found[0], found[1], found[2])
        return known[version]

    return results


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("version", _VERSIONS)
def test_the_same_comes_of_it(
    results: Callable[[str], tuple[Results, Results, Results]], version: str, call: str
) -> None:
    """The path that is returned, the files with their bytes, or the error with its class, code and message."""
    off, on, again = (found[call][0] for found in results(version))
    if (version, call) in BROKEN_IN_MLFLOW:
        assert "error" in off and "error" not in on and again == on
        return
    assert on == off
    assert again == off


@pytest.mark.parametrize("version", _VERSIONS)
def test_what_is_held_is_not_downloaded_again(
    results: Callable[[str], tuple[Results, Results, Results]], version: str
) -> None:
    """Whatever succeeds takes no object from the bucket the second time; with the plugin off each call does."""
    off, _, again = results(version)
    downloading = {call for call, (outcome, _) in again.items() if "error" not in outcome and not call.endswith("!")}
    downloading -= {"a list", "a run without files"} | {call for of, call in BROKEN_IN_MLFLOW if of == version}
    assert {call for call in downloading if not off[call][1]} == set()
    assert {call for call in downloading if again[call][1]} == set()


def test_the_daemon_serves_without_its_caller_having_credentials(
    s3_daemon: Daemon,
    server: MlflowServer,
    distribution: Path,
    caller_of: CallerOf,
    scope: dict[str, str],
    room: Path,
) -> None:
    """Who has the daemon needs no access to the bucket: so it was the daemon that served."""
    user = MlflowUser(caller_of(s3_daemon, room), distribution, server.uri)
    code = f"result = [{DOWNLOAD}(uri, dst_path=str(n)) for n, uri in enumerate(uris)]"
    uris = [f"runs:/{scope['run']}/data", f"{scope['root']}/data", f"s3://{BUCKET}/elsewhere/data"]
    paths = user.run(code, uris=uris)
    assert [trees.read(Path(path)) for path in paths[:2]] == [trees.below(trees.SMALL, "data")] * 2
    assert trees.read(Path(paths[2])) == {"a": b"a", "b/c": b"c"}
