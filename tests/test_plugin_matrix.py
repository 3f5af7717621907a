"""MLflow's own calls, side by side: with the plugin on and off, call by call, for three of MLflow's versions.

The server is the newest; the clients are the oldest that is supported, one of the middle (whose repositories take
their arguments in another way than the oldest's and the newest's) and the newest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf
from tests.rig import trees
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import MIDDLE, VERSIONS, MlflowUser, outcomes, reason_not_to_run
from tests.rig.slow import slow_but

DOWNLOAD = "mlflow.artifacts.download_artifacts"

# The calls: `d` is an empty folder that exists. What ends with "!" may ask the origin for bytes again.
CALLS = {
    "a run by its URI": f"{DOWNLOAD}('runs:/' + run, dst_path=d)",
    "a run by its URI with a slash": f"{DOWNLOAD}('runs:/' + run + '/', dst_path=d)",
    "a run by its ID": f"{DOWNLOAD}(run_id=run, dst_path=d)",
    "a run by its ID, in a temporary folder": f"{DOWNLOAD}(run_id=run)",
    "a folder of a run": f"{DOWNLOAD}('runs:/' + run + '/data', dst_path=d)",
    "a folder of a run, in a temporary folder": f"{DOWNLOAD}('runs:/' + run + '/data')",
    "a folder of a run, with a slash!": f"{DOWNLOAD}('runs:/' + run + '/data/', dst_path=d)",
    "a folder in a folder of a run": f"{DOWNLOAD}('runs:/' + run + '/data/deep', dst_path=d)",
    "a file of a run": f"{DOWNLOAD}('runs:/' + run + '/MLmodel', dst_path=d)",
    "a file of a run, in a temporary folder": f"{DOWNLOAD}('runs:/' + run + '/MLmodel')",
    "a file in a folder": f"{DOWNLOAD}('runs:/' + run + '/data/deep/er/one.txt', dst_path=d)",
    "an empty file": f"{DOWNLOAD}('runs:/' + run + '/empty.txt', dst_path=d)",
    "a run's ID and a path": f"{DOWNLOAD}(run_id=run, artifact_path='data', dst_path=d)",
    "a run's ID and a long path": f"{DOWNLOAD}(run_id=run, artifact_path='data/deep/er', dst_path=d)",
    "a folder that is not there yet": f"{DOWNLOAD}('runs:/' + run + '/data', dst_path=d + '/a/b')",
    "a relative folder": f"{DOWNLOAD}('runs:/' + run + '/data', dst_path=os.path.relpath(d))",
    "a bare URI": f"{DOWNLOAD}(root + '/data', dst_path=d)",
    "a bare URI of a file": f"{DOWNLOAD}(root + '/data/deep/er/one.txt', dst_path=d)",
    "a bare URI, in a temporary folder": f"{DOWNLOAD}(root + '/data')",
    "a bare URI of what is no run's": f"{DOWNLOAD}('mlflow-artifacts:/elsewhere/data', dst_path=d)",
    "an http: URI": f"{DOWNLOAD}(http + '/data', dst_path=d)",
    "a registered model's version": f"{DOWNLOAD}('models:/doubler/1', dst_path=d)",
    "a registered model's version, in a temporary folder": f"{DOWNLOAD}('models:/doubler/1')",
    "an alias": f"{DOWNLOAD}('models:/doubler@champion', dst_path=d)",
    "the latest version": f"{DOWNLOAD}('models:/doubler/latest', dst_path=d)",
    "a stage": f"{DOWNLOAD}('models:/doubler/None', dst_path=d)",
    "a path in a registered model": f"{DOWNLOAD}('models:/doubler/1/MLmodel', dst_path=d)",
    "a path below an alias": f"{DOWNLOAD}('models:/doubler@champion/MLmodel', dst_path=d)",
    "a registered model of a run's files": f"{DOWNLOAD}('models:/classic/1', dst_path=d)",
    "a folder in a registered model": f"{DOWNLOAD}('models:/classic/1/inner', dst_path=d)",
    "a logged model": f"{DOWNLOAD}('models:/' + model, dst_path=d)",
    "a path in a logged model": f"{DOWNLOAD}('models:/' + model + '/MLmodel', dst_path=d)",
    "a logged model by its run": f"{DOWNLOAD}('runs:/' + model_run + '/model', dst_path=d)",
    "a logged model by its run, in a temporary folder": f"{DOWNLOAD}('runs:/' + model_run + '/model')",
    "a logged model by its run, with a slash!": f"{DOWNLOAD}('runs:/' + model_run + '/model/', dst_path=d)",
    "a path in a logged model by its run": f"{DOWNLOAD}('runs:/' + model_run + '/model/MLmodel', dst_path=d)",
    "a logged model by its run's bare URI": f"{DOWNLOAD}(model_run_root + '/model', dst_path=d)",
    "a model in a run's own files": f"{DOWNLOAD}('runs:/' + classic_run + '/classic', dst_path=d)",
    "a client": "mlflow.MlflowClient().download_artifacts(run, '', d)",
    "a client and a path": "mlflow.MlflowClient().download_artifacts(run, 'data', d)",
    "a client and a long path": "mlflow.MlflowClient().download_artifacts(run, 'data/deep/er/one.txt', d)",
    "a client, in a temporary folder": "mlflow.MlflowClient().download_artifacts(run, 'data')",
    "text": "mlflow.artifacts.load_text('runs:/' + run + '/data/deep/er/one.txt')",
    "text of a bare URI": "mlflow.artifacts.load_text(root + '/MLmodel')",
    "a dictionary": "mlflow.artifacts.load_dict('runs:/' + run + '/some.json')",
    "a dictionary that is none": "mlflow.artifacts.load_dict('runs:/' + run + '/data/deep/er/one.txt')",
    "a list of a run": "mlflow.artifacts.list_artifacts('runs:/' + run + '/data')",
    "a list of a run by its ID": "mlflow.artifacts.list_artifacts(run_id=run)",
    "a list of a model": "mlflow.artifacts.list_artifacts('models:/doubler/1')",
    "a list of a bare URI": "mlflow.artifacts.list_artifacts(root + '/data')",
    "a list of what is not there": "mlflow.artifacts.list_artifacts('runs:/' + run + '/missing')",
    "pyfunc": "mlflow.pyfunc.load_model('models:/doubler/1').predict([[3.0]]).round(6)",
    "pyfunc of an alias": "mlflow.pyfunc.load_model('models:/doubler@champion').predict([[3.0]]).round(6)",
    "pyfunc of a run's own files": "mlflow.pyfunc.load_model('runs:/' + classic_run + '/classic').predict([[3.0]])",
    "pyfunc of a run": "mlflow.pyfunc.load_model('runs:/' + model_run + '/model').predict([[3.0]]).round(6)",
    "pyfunc of a folder": "mlflow.pyfunc.load_model('models:/doubler/1', dst_path=d).predict([[3.0]]).round(6)",
    "sklearn": "mlflow.sklearn.load_model('models:/classic/1').predict([[3.0]]).round(6)",
    "what is known of a model": "sorted(mlflow.models.get_model_info('models:/doubler/1').flavors)",
    "no run": f"{DOWNLOAD}('runs:/' + '0' * 32 + '/data', dst_path=d)",
    "no run's ID": f"{DOWNLOAD}(run_id='0' * 32, dst_path=d)",
    "no path in a run": f"{DOWNLOAD}('runs:/' + run + '/missing', dst_path=d)",
    "no path in a run's folder": f"{DOWNLOAD}('runs:/' + run + '/data/missing', dst_path=d)",
    "no path for a client": "mlflow.MlflowClient().download_artifacts(run, 'missing', d)",
    "no path at a bare URI": f"{DOWNLOAD}(root + '/missing', dst_path=d)",
    "no model": f"{DOWNLOAD}('models:/nobody/1', dst_path=d)",
    "no version": f"{DOWNLOAD}('models:/doubler/99', dst_path=d)",
    "no alias": f"{DOWNLOAD}('models:/doubler@nobody', dst_path=d)",
    "no path in a model": f"{DOWNLOAD}('models:/doubler/1/missing', dst_path=d)",
    "no logged model": f"{DOWNLOAD}('models:/m-' + '0' * 32, dst_path=d)",
    "no URI of a model": f"{DOWNLOAD}('models:/doubler', dst_path=d)",
    "no scheme that exists": f"{DOWNLOAD}('nope://a/b', dst_path=d)",
    "an empty folder": f"{DOWNLOAD}('runs:/' + run + '/hollow', dst_path=d)",
    "a run without files": f"{DOWNLOAD}(run_id=bare, dst_path=d)",
    "a run without files, by its URI": f"{DOWNLOAD}('runs:/' + bare + '/', dst_path=d)",
    "two ways to say what": f"{DOWNLOAD}('runs:/' + run, run_id=run)",
    "a way upwards": f"{DOWNLOAD}(run_id=run, artifact_path='../x', dst_path=d)",
    "beside other files": f"(open(d + '/mine', 'w').close(), {DOWNLOAD}(run_id=run, dst_path=d))[1]",
    "twice": f"[{DOWNLOAD}('models:/doubler/1', dst_path=d), {DOWNLOAD}('models:/doubler/1', dst_path=d)][1]",
    "over a file that was written to": (
        f"[{DOWNLOAD}(run_id=run, dst_path=d), open(d + '/MLmodel', 'w').write('x'),"
        f" {DOWNLOAD}(run_id=run, dst_path=d)][2]"
    ),
    # Last: MLflow gives up before the origin has counted what it sent.
    "a folder where a file is": (
        f"(open(d + '/data', 'w').close(), {DOWNLOAD}('runs:/' + run + '/data', dst_path=d))[1]"
    ),
    "a file where a folder is": f"(os.mkdir(d + '/MLmodel'), {DOWNLOAD}('runs:/' + run + '/MLmodel', dst_path=d))[1]",
}
EMPTY_FOLDER: trees.Files = {"hollow/": b"", "some.json": b'{"a": 1}'}


@pytest.fixture(scope="module")
def scope(mlflow_proxied: MlflowServer, model: Any, origin: CountingProxy, module_room: Path) -> dict[str, str]:
    """What the calls name."""
    import mlflow
    from sklearn.linear_model import LinearRegression

    run = mlflow_proxied.run(trees.SMALL | EMPTY_FOLDER)
    classic = mlflow_proxied.run()
    saved = mlflow_proxied.folder(classic) / "classic"
    mlflow.sklearn.save_model(
        LinearRegression().fit([[1.0], [2.0]], [2.0, 4.0]), str(saved), pip_requirements=["scikit-learn"]
    )
    trees.plant(saved / "inner", {"MLmodel": b"inner", "x": b"1"})
    mlflow_proxied.add_version("classic", classic, "classic")
    trees.plant(mlflow_proxied.artifacts / "elsewhere", {"data/a": os.urandom(100), "data/b/c": b"c"})
    root = mlflow_proxied.artifact_uri(run)
    return {
        "run": run,
        "bare": mlflow_proxied.run(),
        "root": root,
        "http": root.replace("mlflow-artifacts:", f"{origin.uri}/api/2.0/mlflow-artifacts/artifacts"),
        "model": model.model_id,
        "model_run": model.run_id,
        "model_run_root": mlflow_proxied.artifact_uri(model.run_id),
        "classic_run": classic,
    }


Results = dict[str, tuple[Any, int]]


@pytest.fixture(scope="module")
def results(
    distribution: Path,
    daemon: Daemon,
    module_room: Path,
    caller_of: CallerOf,
    origin: CountingProxy,
    scope: dict[str, str],
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
                user = MlflowUser(caller_of(daemon, where), distribution, origin.uri, version)
                with outcomes(user, origin, CALLS, scope, ARTIFACTCACHE=switch) as one:
                    found.append(one)
            known[version] = (found[0], found[1], found[2])
        return known[version]

    return results


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("version", slow_but(VERSIONS, lambda version: version != MIDDLE))
def test_the_same_comes_of_it(
    results: Callable[[str], tuple[Results, Results, Results]], version: str, call: str
) -> None:
    """The path that is returned, the files with their bytes, or the error with its class, code and message."""
    off, on, again = (found[call][0] for found in results(version))
    assert on == off
    assert again == off


@pytest.mark.parametrize("version", slow_but(VERSIONS, lambda version: version != MIDDLE))
def test_what_is_held_is_not_downloaded_again(
    results: Callable[[str], tuple[Results, Results, Results]], version: str
) -> None:
    """Whatever succeeds takes no bytes from the origin the second time."""
    _, _, again = results(version)
    taken = {call: count for call, (outcome, count) in again.items() if count and "error" not in outcome}
    assert {call for call in taken if not call.endswith("!")} == set()
