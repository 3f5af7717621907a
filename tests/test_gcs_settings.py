"""gs: URIs: as whom, and how, the endpoint is asked; what obstore cannot is left to MLflow's own client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.lying import Answer, Reply
from tests.rig.lying_gcs import LyingGcs, lying_gcs
from tests.rig.lying_s3 import refuses
from tests.rig.process import free_port, stop_group
from tests.rig.until import until
from tests.test_gcs import TRACKING, served
from tests.test_s3 import FILES

EMAIL = "reader@tests.iam.example"


@pytest.fixture(scope="module")
def gcs() -> Iterator[LyingGcs]:
    """One endpoint for all tests of this module."""
    with lying_gcs() as server:
        yield server


def test_tokens_are_those_of_googles_client(
    start_daemon: StartDaemon, gcs: LyingGcs, caller_of: CallerOf, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it renews is renewed for obstore; neither a message nor the log has one; no stranger gets one."""
    monkeypatch.setattr(gcs, "tokens_from", EMAIL)
    monkeypatch.setattr(gcs, "expires_seconds", 1)
    bucket = gcs.bucket()
    bucket.put("run", {str(i): b"0123456789" for i in range(4)})
    daemon = start_daemon(TRACKING, env=gcs.env_of(room / "account.json", EMAIL), unreachable_after=10.0)
    alice, since = caller_of(daemon, room), len(gcs.seen)
    assert alice.fetch(f"gs://{bucket.name}/run").transport == "gcs"
    assert len({authorization for _, authorization in gcs.seen[since:]}) > 1
    token = ""

    def refused(reply: Reply) -> None:
        nonlocal token
        token = reply.header("authorization").removeprefix("Bearer ")
        refuses(403, "AccessDenied", f"You, {token}, may not")(reply)

    with pytest.raises(errors.PermissionDenied) as said:
        alice.fetch(served(bucket, refused), refresh=True)
    assert token.startswith("token-of-") and token not in f"{said.value}{daemon.read_log()}"
    with lying_gcs() as stranger:
        port = stranger.uri.rpartition(":")[2]
        away: Answer = lambda reply: reply.head(307, Location=f"http://localhost:{port}/x", Content_Length=0)  # noqa: E731
        with pytest.raises(errors.OriginUnavailable):
            alice.fetch(served(bucket, away), refresh=True)
        assert stranger.request_count == 0
    daemon.assert_no_traceback()


def test_credentials_that_are_replaced(
    start_daemon: StartDaemon, gcs: LyingGcs, caller_of: CallerOf, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of credentials that somebody writes anew is read anew when the old ones are refused."""
    bucket = gcs.bucket()
    bucket.put("run", {"x": b"x"})
    monkeypatch.setattr(gcs, "tokens_from", "old@tests.example")
    env = gcs.env_of(room / "account.json", "old@tests.example")
    alice = caller_of(start_daemon(TRACKING, env=env, unreachable_after=10.0), room)
    assert alice.fetch(f"gs://{bucket.name}/run").transport == "gcs"
    monkeypatch.setattr(gcs, "tokens_from", "new@tests.example")
    bucket.put("run", {"x": b"y"})
    with pytest.raises(errors.Unauthenticated):
        alice.fetch(f"gs://{bucket.name}/run", refresh=True)
    gcs.env_of(room / "account.json", "new@tests.example")
    assert trees.read(alice.fetch(f"gs://{bucket.name}/run", refresh=True).path) == {"x": b"y"}


@pytest.mark.parametrize("why", ["GOOGLE_CLOUD_QUOTA_PROJECT", "HTTP_PROXY"])
def test_what_obstore_cannot_is_left_to_mlflow(
    start_daemon: StartDaemon,
    gcs: LyingGcs,
    caller_of: CallerOf,
    room: Path,
    why: str,
) -> None:
    """A project that pays, and a proxy: MLflow's own client brings the bytes, and the log says why."""
    bucket = gcs.bucket()
    bucket.put("run", FILES)
    with lying_gcs() as proxy:  # it answers whatever host a request is for
        proxy.buckets = gcs.buckets
        env = gcs.env_of(room / "account.json", EMAIL)
        env |= {"HTTP_PROXY": proxy.uri, "http_proxy": proxy.uri} if why == "HTTP_PROXY" else {why: "payer"}
        daemon = start_daemon(TRACKING, env=env, unreachable_after=10.0)
        found = caller_of(daemon, room).fetch(f"gs://{bucket.name}/run")
        assert trees.read(found.path) == FILES and found.transport == "mlflow"
        assert ("through a proxy" if why == "HTTP_PROXY" else "x-goog-user-project") in daemon.read_log()


def test_variables_that_only_obstore_knows_change_nothing(
    start_daemon: StartDaemon, gcs: LyingGcs, caller_of: CallerOf, room: Path
) -> None:
    """What MLflow's own client would not heed is not heeded."""
    bucket = gcs.bucket()
    bucket.put("run", {"x": b"x"})
    with lying_gcs() as stranger:
        env = gcs.env | {
            "GOOGLE_BASE_URL": stranger.uri,
            "GOOGLE_BEARER_TOKEN": "a-token-of-nobody",
            "GOOGLE_BUCKET": "another",
            "GOOGLE_PROXY_URL": stranger.uri,
            "GOOGLE_SKIP_SIGNATURE": "false",
            "GOOGLE_APPLICATION_CREDENTIALS": str(room / "not-there.json"),
        }
        since = len(gcs.seen)
        found = caller_of(start_daemon(TRACKING, env=env), room).fetch(f"gs://{bucket.name}/run")
        assert found.transport == "gcs" and stranger.request_count == 0
        assert {authorization for _, authorization in gcs.seen[since:]} == {""}


# -- an emulator ------------------------------------------------------------------------------------------------------


def test_an_emulator_that_is_not_like_the_service_is_left_to_mlflow(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path
) -> None:
    """gcp-storage-emulator lists as the service does, but its XML API tells no generations: nothing is lost by that."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    folder, uri = room / "emulator", f"http://127.0.0.1:{(port := free_port())}"
    folder.mkdir()
    start = ("start", "--host", "127.0.0.1", "--port", str(port), "--in-memory")
    with (folder / "log").open("wb") as out:
        command = (sys.executable, "-m", "gcp_storage_emulator", *start)
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, cwd=folder)
    try:
        until(lambda: _answers(uri), lambda: f"the emulator\n{(folder / 'log').read_text()}", 60.0)
        client = storage.Client(
            project="tests", credentials=AnonymousCredentials(), client_options={"api_endpoint": uri}
        )
        bucket = client.create_bucket("models")
        for name, content in FILES.items():
            bucket.blob(f"resnet/{name}").upload_from_string(content)
        daemon = start_daemon(TRACKING, env={"STORAGE_EMULATOR_HOST": uri}, unreachable_after=10.0)
        alice = caller_of(daemon, room)
        assert trees.read(alice.fetch("gs://models/resnet").path) == FILES
        assert "left to MLflow's own client" in daemon.read_log()
        assert alice.fetch("gs://models/resnet", refresh=True).transport == "mlflow"
    finally:
        stop_group(process)


def _answers(uri: str) -> bool:
    try:
        return requests.get(uri, timeout=5).ok
    except requests.ConnectionError:
        return False
