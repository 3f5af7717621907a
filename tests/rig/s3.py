"""S3 endpoints: moto, which is quick to start, and OpenStack Swift's S3 interface, which is a real store."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.rig import swift
from tests.rig.process import free_port, stop_group
from tests.rig.until import until

START_SECONDS_MAX = 60.0
REGION = "us-east-1"


class Endpoint:
    """One endpoint, that is waited for so many seconds. `env` is what a client of it has to have in its environment."""

    def __init__(self, uri: str, access_key: str, secret_key: str, seconds: float = 60.0) -> None:
        self.uri = uri
        self.env = {
            "MLFLOW_S3_ENDPOINT_URL": uri,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=uri,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=16,
                retries={"max_attempts": 1},
                connect_timeout=seconds,
                read_timeout=seconds,
            ),
        )

    def put(self, bucket: str, prefix: str, files: dict[str, bytes]) -> None:
        """Store objects below a prefix."""
        for name, content in files.items():
            self.client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)

    def wait(self, why: Callable[[], str]) -> None:
        """Wait until it answers."""
        until(self._answers, lambda: f"the S3 endpoint to answer\n{why()}", START_SECONDS_MAX)

    def _answers(self) -> bool:
        """Whether everything behind it is there: Swift answers for some things before it does for others."""
        try:
            with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):  # it was started before
                self.client.create_bucket(Bucket="ready")
            self.client.put_object(Bucket="ready", Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True


def reason_not_to_start(kind: str) -> str | None:
    """Why there cannot be such an endpoint here; None where there can."""
    return swift.reason_not_to_start() if kind == "swift" else None


@contextlib.contextmanager
def endpoint(kind: str, folder: Path) -> Iterator[Endpoint]:
    """A running endpoint, "moto" or "swift", with nothing in it."""
    folder.mkdir()
    with _swift(folder) if kind == "swift" else _moto(folder) as found:
        found.wait(lambda: "\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log")))
        yield found


@contextlib.contextmanager
def _swift(folder: Path) -> Iterator[Endpoint]:
    with swift.running(folder) as store:
        yield Endpoint(store.uri, swift.USER, swift.KEY)


@contextlib.contextmanager
def _moto(folder: Path) -> Iterator[Endpoint]:
    port = free_port()
    with (folder / "moto.log").open("wb") as out:
        command = (sys.executable, "-m", "moto.server", "-p", str(port))
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield Endpoint(f"http://127.0.0.1:{port}", "tests", "secret-of-the-tests")
    finally:
        stop_group(process)
