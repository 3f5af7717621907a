"""The rig of several hosts, and what they cost an origin who share nothing: as much for each of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import botocore.exceptions
import pytest

from tests.conftest import CallerOf
from tests.rig import network, swift, trees
from tests.rig.cluster import BUCKET, ORIGIN_PORT, Cluster, cluster, reason_not_to
from tests.rig.counting import CountingProxy
from tests.rig.interpreter import Interpreter
from tests.rig.link import KINDS, PIECE_BYTES
from tests.rig.mlflow_server import MlflowServer
from tests.rig.network import SITE
from tests.rig.s3 import Endpoint
from tests.rig.until import until
from tests.rig.users import User

HEADS_BYTES_MAX = 100_000  # questions, listings and heads of HTTP, where a few files are fetched
CONTENT = os.urandom(300_000)
ANSWER_SECONDS_MAX = 10.0
SILENCE_SECONDS = 0.5
_FETCH = """
import artifactcache
say("ready")
hear()
fetched = artifactcache.fetch(uri, "got")
result = [fetched.hit, fetched.origin_bytes]
"""


pytestmark = pytest.mark.slow  # what the tests' own hosts, links and stores do is no news of the daemon's


@pytest.fixture(scope="module")
def one(
    module_room: Path, all_users: dict[str, User], interpreter: Interpreter, origin: CountingProxy
) -> Iterator[Cluster]:
    """Three hosts without a second tier."""
    if why := reason_not_to():
        pytest.skip(why)
    with cluster(module_room, interpreter, all_users.get("daemon"), origin.uri) as found:
        yield found


def test_three_hosts_at_once_and_nothing_shared(
    one: Cluster, origin: CountingProxy, mlflow_proxied: MlflowServer, caller_of: CallerOf
) -> None:
    """Each gets the right bytes, and each costs the origin all of them; what moves is counted for the host that it
    moves for. Afterwards each holds them."""
    files = trees.unique(4, 250_000)
    uri, size = f"runs:/{mlflow_proxied.run(files)}", trees.size(files)
    callers = [caller_of(host.daemon, host.daemon.folder) for host in one.hosts]
    before = origin.bytes
    one.forget()
    jobs = [caller.start(_FETCH, uri=uri) for caller in callers]
    for job in jobs:
        assert job.hear() == "ready"
    for job in jobs:
        job.say("go")
    assert [job.result() for job in jobs] == [[False, size]] * 3
    assert [trees.read(caller.cwd / "got") for caller in callers] == [files] * 3
    assert origin.bytes - before == 3 * size
    for host in one.hosts:
        moved, shared = one.moved(host)
        assert size < moved.down < size + HEADS_BYTES_MAX and 0 < moved.up < HEADS_BYTES_MAX
        assert moved.requests["GET"] > len(files) and (shared.down, shared.up) == (0, 0)
    again = callers[0].fetch(uri)
    assert again.hit and again.origin_bytes == 0 and trees.read(again.path) == files


def test_a_host_has_the_site_and_nothing_else(one: Cluster, mlflow_proxied: MlflowServer) -> None:
    """It reaches the origin and the object store at the site's address, but not what the machine has at its own; and
    nobody listens on a host, so that hosts have nothing to ask each other."""
    there = urlsplit(mlflow_proxied.uri)
    assert there.hostname and there.port
    for host in one.hosts:
        with host.namespace.inside():
            for port in (there.port, urlsplit(one.store.endpoint.uri).port):
                with pytest.raises(OSError):
                    socket.create_connection((there.hostname, port), timeout=ANSWER_SECONDS_MAX)
            assert sorted(name for _, name in socket.if_nameindex()) == ["eth0", "lo"]
            connection = http.client.HTTPConnection(SITE, ORIGIN_PORT, timeout=ANSWER_SECONDS_MAX)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
        assert _listening(host.spawner.pid) == []
    socket.create_connection((there.hostname, there.port)).close()  # this thread is where it was


def _listening(pid: int) -> list[str]:
    """The addresses at which somebody listens in a process's network, in the kernel's own words."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return [line.split()[1] for line in lines if line.split()[3] == "0A"]


def test_a_host_is_killed_and_comes_back(one: Cluster, mlflow_proxied: MlflowServer, caller_of: CallerOf) -> None:
    """With what it held, in the same network; the others do not notice."""
    victim, other = one.hosts[:2]
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    alice = caller_of(victim.daemon, victim.daemon.folder)
    assert not alice.fetch(uri).hit
    others = other.spawner.pid
    victim.spawner.kill()
    victim.spawner.start()
    assert alice.fetch(uri).hit
    assert other.spawner.pid == others
    assert os.stat(f"/proc/{victim.spawner.pid}/ns/net").st_ino == os.stat(victim.namespace.path).st_ino
    one.forget()
    assert not alice.fetch(f"runs:/{mlflow_proxied.run(trees.unique())}").hit
    assert one.moved(victim)[0].down and not one.moved(other)[0].down


def _get(one: Cluster, seconds: float = ANSWER_SECONDS_MAX) -> bytes:
    """The object as the first host gets it."""
    host = one.hosts[0]
    endpoint = Endpoint(one.store.uri, swift.USER, swift.KEY, seconds)
    with host.namespace.inside():
        content: bytes = endpoint.client.get_object(Bucket=BUCKET, Key="some/thing")["Body"].read()
    return content


def test_the_object_store_is_killed_and_comes_back(one: Cluster) -> None:
    """With what it held. Meanwhile it refuses; what moves is counted for the host that it moves for."""
    one.store.endpoint.put(BUCKET, "some", {"thing": CONTENT})
    one.forget()
    assert _get(one) == CONTENT
    origin, moved = one.moved(one.hosts[0])
    assert len(CONTENT) < moved.down < len(CONTENT) + HEADS_BYTES_MAX and moved.requests == {"GET": 1}
    assert (origin.down, one.store.link.total().down) == (0, moved.down)
    one.store.kill()
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        _get(one)
    one.store.start()
    assert _get(one) == CONTENT
    assert one.store.keys("some/") == {"some/thing"}


FAILURES: dict[str, tuple[type[Exception], ...]] = {
    "silent": (botocore.exceptions.ReadTimeoutError,),
    "half answers": (botocore.exceptions.ResponseStreamingError, botocore.exceptions.IncompleteReadError),
    "absent": (botocore.exceptions.EndpointConnectionError,),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_fails_on_command(one: Cluster, kind: str) -> None:
    """Each fault is what it says, to a client that knows nothing of it; before and after it the object comes whole."""
    one.store.endpoint.put(BUCKET, "some", {"thing": CONTENT})
    assert _get(one) == CONTENT
    pauses = one.store.link.pauses
    with one.store.link.failing(kind):
        if kind == "slow":
            assert _get(one) == CONTENT
            assert one.store.link.pauses - pauses > len(CONTENT) // PIECE_BYTES
        else:
            with pytest.raises(FAILURES[kind]):
                _get(one, SILENCE_SECONDS if kind == "silent" else ANSWER_SECONDS_MAX)
        one.forget()
        if kind == "half answers":
            with pytest.raises(FAILURES[kind]):
                _get(one)
            assert len(CONTENT) // 2 < one.store.link.total().down < len(CONTENT) // 2 + HEADS_BYTES_MAX
    assert _get(one) == CONTENT


_MAKE = """
import os, sys
from tests.rig.network import Site
site = Site()
print(site.hosts[site.add()].path, flush=True)
sys.stdin.read()
"""


def test_nothing_stays_of_a_network() -> None:
    """A site's interfaces are nowhere but in it, and are gone when who has made it is killed."""
    if why := network.reason_not_to():
        pytest.skip(why)
    before = socket.if_nameindex()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        (sys.executable, "-c", _MAKE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as maker:
        try:
            assert maker.stdout is not None
            host = network.Namespace(maker.stdout.readline().decode().strip())
            with host.inside():
                assert [name for _, name in socket.if_nameindex()] == ["lo", "eth0"]
            assert socket.if_nameindex() == before
        finally:
            maker.kill()
    with contextlib.closing(host), host.inside():  # the other end of eth0 was in the site
        until(lambda: [name for _, name in socket.if_nameindex()] == ["lo"], "the site's namespace to end")
