"""What a real MLflow server says of runs, versions and logged models, for retention rules; and who is no such server.

That nothing is called deleted which the server itself has not called so is what stands between a server that is being
repaired and an empty cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.entities import ViewType

from artifactcache.errors import OriginUnavailable
from cacheserver import catalogue, uris
from cacheserver.origin import MlflowOrigin
from cacheserver.retention import ALIASES, DELETED, EXPERIMENT, RUN, TAG, VERSIONS, Facts
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer

MakeOrigin = Callable[[str], MlflowOrigin]
EVERYTHING = frozenset({RUN, EXPERIMENT, ALIASES, VERSIONS, DELETED, TAG + "team", TAG + "gpu"})


@pytest.fixture
def origin_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeOrigin]:
    """Makes origins in this process, of which nothing stays."""
    before, made = mlflow.get_tracking_uri(), list[MlflowOrigin]()
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    mlflow.set_registry_uri("")  # other tests of this process have set theirs, and it would be asked instead
    for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")  # so that it is taken back

    def make(uri: str) -> MlflowOrigin:
        made.append(
            MlflowOrigin(
                uri,
                10.0,
                forbidden=str(tmp_path),
                world_only=False,
                ticks=time.monotonic,
                clock=time.time,
                local_roots=(),
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def held(mlflow_proxied: MlflowServer) -> SimpleNamespace:
    """Runs of two experiments, one of them deleted; a model of four versions, one deleted; logged models."""
    client, mark = mlflow_proxied.client, os.urandom(4).hex()
    experiments = [client.create_experiment(f"{name} {mark}") for name in ("prod", "scratch")]
    runs = []
    for number, status in enumerate(("FINISHED", "FAILED", "KILLED", "RUNNING", "FINISHED")):
        tags = {"mlflow.user": f"user{number}", "team": f"team{number}"}
        runs.append(client.create_run(experiments[number % 2], tags=tags).info.run_id)
        if status != "RUNNING":
            client.set_terminated(runs[-1], status)
    client.delete_run(runs[4])
    model, other = f"it's ü {mark}", f"other {mark}"
    for run in runs[:4]:
        mlflow_proxied.add_version(model, run, "model")
    client.set_registered_model_alias(model, "champion", "3")
    client.set_registered_model_alias(model, "candidate", "3")
    client.delete_model_version(model, "2")
    mlflow_proxied.add_version(other, runs[0], "model")
    client.delete_registered_model(other)
    logged = client.create_logged_model(experiments[0], "logged", source_run_id=runs[1]).model_id
    alone = client.create_logged_model(experiments[1], "alone").model_id
    gone = client.create_logged_model(experiments[0], "gone", source_run_id=runs[1]).model_id
    client.delete_logged_model(gone)
    names = [f"{name} {mark}" for name in ("prod", "scratch")]
    return SimpleNamespace(runs=runs, names=names, model=model, other=other, logged=logged, alone=alone, gone=gone)


def test_the_word_for_all_is_mlflows() -> None:
    """Deleted ones too; the room that asks does not import mlflow."""
    assert catalogue.VIEW_ALL == ViewType.ALL


@pytest.mark.parametrize("is_many", [True, False], ids=["together", "one by one"])
def test_what_the_server_says(
    origin_of: MakeOrigin, mlflow_proxied: MlflowServer, held: SimpleNamespace, is_many: bool
) -> None:
    """Of each the whole truth, however few or many are asked for at a time."""
    runs, (prod, scratch) = held.runs, held.names
    origin = origin_of(mlflow_proxied.uri)
    missing = "f" * 32
    asked = [
        *(f"runs:/{run}" for run in (*runs, missing)),
        *(f"models:/{held.model}/{number}" for number in (1, 2, 3, 4, 9)),
        f"models:/{held.other}/1",
        *(f"models:/{model}" for model in (held.logged, held.alone, held.gone)),
        "s3://bucket/data",
    ]
    if is_many:
        told = origin.describe(asked, EVERYTHING)
    else:
        told = {uri: facts for one in asked for uri, facts in origin.describe([one], EVERYTHING).items()}
    assert list(told) == asked and all(facts.version == uri for uri, facts in told.items())
    assert all(facts.tracking_uri == mlflow_proxied.uri for facts in told.values())

    first = told[f"runs:/{runs[0]}"]
    assert (first.run_id, first.experiment, first.status, first.owner) == (runs[0], prod, "FINISHED", "user0")
    assert first.tags == {"team": "team0", "gpu": None} and first.is_deleted is False and first.model == ""
    assert first.ended_at == pytest.approx(time.time(), abs=600)
    failed = told[f"runs:/{runs[1]}"]
    assert (failed.experiment, failed.status) == (scratch, "FAILED")
    running = told[f"runs:/{runs[3]}"]
    assert (running.status, running.ended_at) == ("RUNNING", 0.0)
    deleted = told[f"runs:/{runs[4]}"]
    assert (deleted.is_deleted, deleted.experiment, deleted.owner) == (True, prod, "user4")
    nothing = told[f"runs:/{missing}"]
    assert (nothing.is_deleted, nothing.experiment, nothing.status, nothing.tags["team"]) == (True, "", "", None)

    versions = {number: told[f"models:/{held.model}/{number}"] for number in (1, 2, 3, 4, 9)}
    assert {n: (v.is_deleted, v.newer_count, v.aliases) for n, v in versions.items()} == {
        1: (False, 2, frozenset()),
        2: (True, 0, frozenset()),
        3: (False, 1, frozenset({"champion", "candidate"})),
        4: (False, 0, frozenset()),
        9: (True, 0, frozenset()),
    }
    assert (versions[3].run_id, versions[3].experiment, versions[3].status) == (runs[2], prod, "KILLED")
    assert versions[3].model == held.model and versions[3].tags["team"] == "team2"
    assert (versions[2].run_id, versions[2].experiment, versions[2].owner) == ("", "", "")
    assert (told[f"models:/{held.other}/1"].is_deleted, told[f"models:/{held.other}/1"].aliases) == (True, frozenset())

    logged, alone, gone = (told[f"models:/{model}"] for model in (held.logged, held.alone, held.gone))
    assert (logged.run_id, logged.experiment, logged.status, logged.is_deleted) == (runs[1], scratch, "FAILED", False)
    assert (alone.run_id, alone.experiment, alone.status, alone.is_deleted) == ("", scratch, "", False)
    assert gone.is_deleted is True and logged.model == alone.model == gone.model == ""
    assert told["s3://bucket/data"].run_id == "" and told["s3://bucket/data"].is_deleted is False


def test_many_are_asked_for_in_few_questions(
    origin_of: MakeOrigin, origin: CountingProxy, mlflow_proxied: MlflowServer, held: SimpleNamespace
) -> None:
    """250 runs are three searches and the experiments; a model is a question for aliases and one for versions."""
    client = mlflow_proxied.client
    experiment = client.get_experiment_by_name(held.names[0]).experiment_id
    runs = [client.create_run(experiment).info.run_id for _ in range(250)]
    asking = origin_of(origin.uri)
    before = origin.request_count
    told = asking.describe([f"runs:/{run}" for run in runs], frozenset({EXPERIMENT}))
    assert origin.request_count - before == 4
    assert {facts.experiment for facts in told.values()} == {held.names[0]}
    versions = [f"models:/{held.model}/{number}" for number in (1, 3, 4)]
    for needs, count in (({ALIASES}, 1), ({VERSIONS}, 1), ({ALIASES, VERSIONS, DELETED}, 2), (set[str](), 0)):
        before = origin.request_count
        asking.describe(versions, frozenset(needs))
        assert origin.request_count - before == count, needs


def test_a_server_that_is_away(origin_of: MakeOrigin, origin: CountingProxy, held: SimpleNamespace) -> None:
    """OriginUnavailable, and soon; what the names say is told without it."""
    versions = [f"runs:/{held.runs[0]}", f"models:/{held.model}/3"]
    asking = origin_of(origin.uri)
    with origin.down():
        with pytest.raises(OriginUnavailable):
            asking.describe(versions, EVERYTHING)
        run, version = asking.describe(versions, frozenset()).values()
    assert (run.run_id, run.is_deleted, run.status) == (held.runs[0], None, None)
    assert (version.number, version.aliases, version.is_deleted) == (3, None, None)
    assert asking.describe(versions[:1], EVERYTHING)[versions[0]].status == "FINISHED"


ANSWERS = {
    "404 of a proxy": (404, "<html>not here</html>"),
    "404 of another service": (404, '{"message": "no such route"}'),
    "404 in MLflow's words for a route": (404, '{"error_code": "ENDPOINT_NOT_FOUND"}'),
    "refused": (403, '{"error_code": "PERMISSION_DENIED"}'),
    "unauthenticated": (401, "You are not authenticated."),
    "a login page": (200, "<html>log in</html>"),
    "an empty object": (200, "{}"),
    "nothing": (200, ""),
    "nonsense": (200, '{"run": {"info": []}, "experiments": 5, "registered_model": "x", "model_versions": [7]}'),
    "about another run": (200, '{"run": {"info": {"run_id": "0", "lifecycle_stage": "deleted"}, "data": {}}}'),
}


@pytest.mark.parametrize(("status", "body"), ANSWERS.values(), ids=ANSWERS.keys())
def test_who_is_no_tracking_server_deletes_nothing(
    origin_of: MakeOrigin, tmp_path: Path, status: int, body: str
) -> None:
    """Whatever it answers, to single questions and to searches, is not known, or the origin is not there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = origin_of(f"http://127.0.0.1:{server.server_port}")
    few = ["runs:/" + "a" * 32, "models:/m-" + "b" * 32, "models:/resnet/3"]
    many = [f"runs:/{number:032x}" for number in range(5)]
    for versions in (few, many):
        try:
            told = origin.describe(versions, EVERYTHING)
        except OriginUnavailable:
            continue
        for facts in told.values():
            known = Facts.of(uris.parse(facts.version), facts.tracking_uri)
            assert facts == known and facts.is_deleted is None
    server.shutdown()
    server.server_close()
