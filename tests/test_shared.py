"""The shared tier, by real daemons with stores of their own, on a real object store: Swift's S3 interface, and moto."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from artifactcache import errors
from cacheserver.packing import BLOBS, FORMAT, PACKS
from cacheserver.tierstore import TierStore
from cacheserver.treerecords import TREES
from tests.conftest import CallerOf, StartDaemon
from tests.rig import azure, s3, trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.forward import forward
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.slow import slow_but
from tests.rig.until import until

BUCKET = "shared"
PREFIX = "tier"
FILES: trees.Files = {
    **trees.SMALL,
    **{f"small/{n}": f"small file {n}\n".encode() * 20 for n in range(50)},
    "large": os.urandom((20 << 20) + 1),
    "hollow/": b"",
}


@pytest.fixture(scope="module", params=slow_but(["swift", "moto"], lambda kind: kind == "swift"))
def endpoint(request: pytest.FixtureRequest, base: Path) -> Iterator[s3.Endpoint]:
    """An object store with a bucket."""
    if why := s3.reason_not_to_start(request.param):
        pytest.skip(why)
    with s3.endpoint(request.param, base / f"shared-{request.param}") as found:
        found.client.create_bucket(Bucket=BUCKET)
        yield found


ON_SWIFT = pytest.mark.parametrize("endpoint", ["swift"], indirect=True)  # it checks signatures, and is the slower one


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


def test_three_hosts_at_once(hosts: Hosts, listed: Listed, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """Each byte leaves the origin once, on a store with conditional writes and on one without."""
    files = trees.unique() | {"weights": os.urandom(3 << 20)}
    run, three, before = mlflow_proxied.run(files), [hosts() for _ in range(3)], origin.bytes
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda host: host.fetch(f"runs:/{run}"), three))
    assert all(trees.read(one.path) == files for one in found)
    assert origin.bytes - before == trees.size(files)
    published(listed)


@ON_SWIFT
def test_who_may_not_read_it_gets_nothing_of_it(
    hosts: Hosts, listed: Listed, origin: CountingProxy, mlflow_proxied: MlflowServer, bob: Caller
) -> None:
    """That another host has published it is no right: the host's own rules are asked, before and after."""
    run = mlflow_proxied.run(trees.unique())
    hosts().fetch(f"runs:/{run}")
    published(listed)
    assert bob.user is not None
    strict = hosts(f'[[grant]]\nto = ["{bob.user.name}"]\n', check="rules")
    with pytest.raises(errors.PermissionDenied):
        strict.fetch(f"runs:/{run}")
    mine = Caller(bob.interpreter, bob.user, strict.daemon.socket_dir, bob.cwd)
    assert mine.fetch(f"runs:/{run}").shared_bytes > 0
    with pytest.raises(errors.PermissionDenied):
        strict.fetch(f"runs:/{run}")


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@ON_SWIFT
@pytest.mark.parametrize("how", slow_but(["absent", "silent", "refusing", "no bucket"], lambda how: how != "absent"))
def test_a_tier_that_cannot_be_used_costs_its_patience(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    room: Path,
    endpoint: s3.Endpoint,
    silent: str,
    origin: CountingProxy,
    mlflow_proxied: MlflowServer,
    how: str,
) -> None:
    """The fetch is the origin's then, the log says what is wrong, and the next fetch does not wait."""
    files, other = trees.unique(), trees.unique()
    runs = mlflow_proxied.run(files), mlflow_proxied.run(other)
    where = {"absent": f"http://127.0.0.1:{free_port()}", "silent": silent}.get(how, endpoint.uri)
    bucket = "no-such-bucket" if how == "no bucket" else BUCKET
    env = endpoint.env | ({"AWS_SECRET_ACCESS_KEY": "another secret"} if how == "refusing" else {})
    more = f'[shared]\nurl = "s3://{bucket}/x"\nendpoint = "{where}"\npatience = 0.3\n'
    daemon = start_daemon(origin.uri, env=env, more=more)
    alice = caller_of(daemon, room)
    for run, expected in zip(runs, (files, other), strict=True):
        found = alice.fetch(f"runs:/{run}")
        assert trees.read(found.path) == expected and found.origin_bytes == trees.size(expected)
    until(lambda: f"s3://{bucket}/x" in daemon.read_log(), daemon.read_log)
    assert "another secret" not in daemon.read_log()
    assert "Traceback" not in daemon.read_log()


@ON_SWIFT  # moto takes the first part of a host's name for a bucket
def test_a_proxy_of_the_environment_is_used(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    room: Path,
    endpoint: s3.Endpoint,
    mlflow_proxied: MlflowServer,
) -> None:
    """For the origin and for the tier: of both only the proxy knows where they are."""
    upstream = {
        "mlflow.example:80": urlsplit(mlflow_proxied.uri).netloc,
        "store.example:80": urlsplit(endpoint.uri).netloc,
    }
    hosts = {name.removesuffix(":80"): at for name, at in upstream.items()} | upstream
    files = trees.unique()
    run = mlflow_proxied.run(files)
    more = f'[shared]\nurl = "s3://{BUCKET}/{room.name}-proxied"\nendpoint = "http://store.example"\n'
    with forward(hosts, renamed="mlflow.example") as proxy:
        way = proxy.uri.replace("//", "//ada:pass@")
        env = endpoint.env | {"HTTP_PROXY": way, "http_proxy": way, "NO_PROXY": "", "no_proxy": ""}
        first = start_daemon("http://mlflow.example", env=env, more=more)
        assert caller_of(first, room).fetch(f"runs:/{run}").origin_bytes == trees.size(files)
        wanted = {"Bucket": BUCKET, "Prefix": f"{room.name}-proxied/{TREES}"}
        until(lambda: bool(endpoint.client.list_objects_v2(**wanted)["KeyCount"]), first.read_log)
        second = start_daemon("http://mlflow.example", env=env, more=more)
        (room / "second").mkdir()
        found = caller_of(second, room / "second").fetch(f"runs:/{run}")
        assert trees.read(found.path) == files and found.shared_bytes and not found.origin_bytes
        assert {name.partition(":")[0] for name in proxy.asked} == {"mlflow.example", "store.example"}
        assert all(login.startswith("Basic ") for login in proxy.logins)


def test_azure(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    room: Path,
    origin: CountingProxy,
    mlflow_proxied: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same, in a container of Azurite's, with its conditional writes; and what is not there can be removed."""
    if why := azure.reason_not_to_start():
        pytest.skip(why)
    with azure.azurite(room / "azurite") as store:
        container = store.container()
        files = FILES | trees.unique()
        run = mlflow_proxied.run(files)
        more = f'[shared]\nurl = "az://{container.name}/prefix"\n'
        first, second = (start_daemon(origin.uri, env=azure.connection(store.uri), more=more) for _ in range(2))
        assert caller_of(first, room).fetch(f"runs:/{run}").origin_bytes == trees.size(files)
        until(lambda: any("/trees/" in blob for blob in container.client.list_blob_names()), first.read_log)
        (room / "second").mkdir()
        found = caller_of(second, room / "second").fetch(f"runs:/{run}")
        assert trees.read(found.path) == files and found.origin_bytes == 0
        for name, text in azure.connection(store.uri).items():
            monkeypatch.setenv(name, text)
        objects = TierStore(f"az://{container.name}/another", "", "", 30.0, 1 << 20)
        objects.put("v1/there", b"there")
        objects.delete(["v1/absent", "v1/there"])
        assert objects.get("v1/there", 100) is None and list(objects.list("v1/")) == []
