"""A bare s3: URI, from an S3 endpoint of the tests' own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.daemon import Daemon
from tests.rig.process import free_port, stop_group
from tests.rig.until import until

BUCKET = "models"
FILES: trees.Files = {
    "MLmodel": b"flavors",
    "weights/a.bin": os.urandom(70_000),
    "weights/b c#d.bin": b"b",
    "empty": b"",
}


@pytest.fixture(scope="module")
def environment(base: Path) -> Iterator[dict[str, str]]:
    """What a client of the endpoint has to have in its environment."""
    port = free_port()
    env = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    log = base / "s3.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            (sys.executable, "-m", "moto.server", "-p", str(port)), stdout=out, stderr=out, start_new_session=True
        )
    try:
        client = _client(env)
        until(lambda: _answers(client), lambda: f"the S3 endpoint to answer\n{log.read_text()}", 60.0)
        client.create_bucket(Bucket=BUCKET)
        for name, content in FILES.items():
            client.put_object(Bucket=BUCKET, Key=f"resnet/{name}", Body=content)
        yield env
    finally:
        stop_group(process)


def _client(env: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=env["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_DEFAULT_REGION"],
    )


def _answers(client: Any) -> bool:
    try:
        client.list_buckets()
    except BotoCoreError:
        return False
    return True


@pytest.fixture
def s3_daemon(start_daemon: StartDaemon, environment: dict[str, str]) -> Daemon:
    """A daemon with credentials for the endpoint; its tracking server is not needed for bare URIs."""
    return start_daemon("http://127.0.0.1:9", env=environment, unreachable_after=10.0)


def test_a_folder_and_a_file(s3_daemon: Daemon, caller_of: CallerOf, room: Path) -> None:
    """A prefix is a folder, a key is a file; both are held after the first fetch."""
    alice = caller_of(s3_daemon, room)
    first = alice.fetch(f"s3://{BUCKET}/resnet", alice.cwd / "resnet")
    assert trees.read(first.path) == FILES and (first.hit, first.origin_bytes) == (False, trees.size(FILES))
    part = alice.fetch(f"s3://{BUCKET}/resnet/weights/a.bin")
    assert part.path.read_bytes() == FILES["weights/a.bin"] and part.hit
    assert alice.fetch(f"s3://{BUCKET}/resnet").hit


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}/nothing", "s3://no-such-bucket/x"])
def test_what_is_not_there(s3_daemon: Daemon, caller_of: CallerOf, room: Path, uri: str) -> None:
    """A missing key and a missing bucket are NotFound."""
    with pytest.raises(errors.NotFound):
        caller_of(s3_daemon, room).fetch(uri)


def test_secrets_stay_secret(
    start_daemon: StartDaemon, environment: dict[str, str], caller_of: CallerOf, room: Path
) -> None:
    """Without credentials the error is typed; with them no log has the secret."""
    daemon = start_daemon("http://127.0.0.1:9", env=environment, unreachable_after=10.0)
    caller_of(daemon, room).fetch(f"s3://{BUCKET}/resnet")
    assert environment["AWS_SECRET_ACCESS_KEY"] not in daemon.read_log()
    bare = start_daemon("http://127.0.0.1:9", env={"MLFLOW_S3_ENDPOINT_URL": environment["MLFLOW_S3_ENDPOINT_URL"]})
    with pytest.raises(errors.CacheError):
        caller_of(bare, room, "bob").fetch(f"s3://{BUCKET}/resnet")
