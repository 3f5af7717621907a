"""The shared tier, by real daemons with stores of their own, on a real object store: Swift's S3 interface, and moto."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheserver.packing import BLOBS, FORMAT, PACKS, TREES
from tests.conftest import CallerOf, StartDaemon
from tests.rig import s3, trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until

BUCKET = "shared"
PREFIX = "tier"
FILES: trees.Files = {
    **trees.SMALL,
    **{f"small/{n}": f"small file {n}\n".encode() * 20 for n in range(50)},
    "large": os.urandom((20 << 20) + 1),
    "hollow/": b"",
}


@pytest.fixture(scope="module", params=["swift", "moto"])
def endpoint(request: pytest.FixtureRequest, base: Path) -> Iterator[s3.Endpoint]:
    """An object store with a bucket."""
    if why := s3.reason_not_to_start(request.param):
        pytest.skip(why)
    with s3.endpoint(request.param, base / f"shared-{request.param}") as found:
        found.client.create_bucket(Bucket=BUCKET)
        yield found


class Host:
    """A daemon that shares, and alice, who calls it."""

    def __init__(self, daemon: Any, alice: Caller) -> None:
        self.daemon = daemon
        self.alice = alice

    def fetch(self, uri: str, **how: Any) -> Any:
        """What alice gets."""
        return self.alice.fetch(uri, **how)


Hosts = Callable[..., Host]


@pytest.fixture
def hosts(
    endpoint: s3.Endpoint, start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> Hosts:
    """Starts hosts that share one prefix, which is the test's own."""
    place = f"{PREFIX}-{room.name}"

    def start(more: str = "", **config: Any) -> Host:
        text = f'[shared]\nurl = "s3://{BUCKET}/{place}"\n{more}'
        daemon = start_daemon(origin.uri, env=endpoint.env, more=text, **config)
        home = room / f"at-{daemon.folder.name}"
        home.mkdir()
        return Host(daemon, caller_of(daemon, home))

    return start


@pytest.fixture
def listed(endpoint: s3.Endpoint, room: Path) -> Callable[[str], list[str]]:
    """The keys in the tier below a prefix."""

    def listed(below: str) -> list[str]:
        place = f"{PREFIX}-{room.name}/"
        pages = endpoint.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=place + below)
        return [found["Key"].removeprefix(place) for page in pages for found in page.get("Contents", ())]

    return listed


Listed = Callable[[str], list[str]]


def published(listed: Listed, count: int = 1) -> None:
    """Waits until so many trees are there, and nobody claims anything."""
    until(
        lambda: len(listed(TREES)) == count and not listed(f"{FORMAT}/claims"), lambda: f"{count} trees: {listed('')}"
    )


def test_a_second_host_asks_the_origin_for_no_byte(
    hosts: Hosts, listed: Listed, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """It takes the same tree from the tier, by any name that leads to the same place; small files come packed."""
    run = mlflow_proxied.run(FILES)
    first = hosts().fetch(f"runs:/{run}")
    assert trees.read(first.path) == FILES and first.origin_bytes == trees.size(FILES) and first.shared_bytes == 0
    published(listed)
    assert len(listed(PACKS)) == 1 and len(listed(BLOBS)) == 3
    before, second = origin.bytes, hosts()
    found = second.fetch(f"runs:/{run}")
    assert trees.read(found.path) == FILES and found.digest == first.digest
    assert (found.hit, found.origin_bytes, found.transport) == (True, 0, "shared")
    distinct = sum(map(len, set(FILES.values())))
    assert found.shared_bytes == distinct and origin.bytes == before
    assert second.fetch(f"runs:/{run}").shared_bytes == 0
