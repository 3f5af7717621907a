"""The gRPC edge, with both sockets and the client library around it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

import artifactcache.session
from artifactcache import Client, errors
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import service as room
from cacheserver import statuses
from cacheserver.administration import Administration
from cacheserver.cache import Cache
from cacheserver.handoff import Handoff
from cacheserver.service import Service, serve
from cacheserver.sessions import Sessions
from cacheserver.words import Resolved
from tests.rig.until import until
from tests.rig.wire import Handoff as Wire
from tests.rig.wire import bearer, error_name, stub
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate, House

Serve = Callable[..., Path]


@pytest.fixture
def serving(filled: House, tmp_path: Path) -> Iterator[Serve]:
    """Serves the house at a folder below the test's own, and returns that folder."""
    ends: list[Callable[[], object]] = []

    def start(name: str = "sockets") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.fsencode(folder / "handoff.sock"))
        listener.listen(100)
        sessions = Sessions(filled.leases)
        handoff = Handoff(listener, sessions, filled.store, lambda peer: True)
        administration = Administration(
            filled.cache, filled.store, filled.sweeper, lambda peer: True, lambda tree: (), lambda: filled.now
        )
        service = Service(
            filled.cache, filled.store, sessions, filled.sweeper, administration, {}, hardlink_for_root=True
        )
        server = serve(service, str(folder / "cache.sock"))
        handoff.start()
        server.start()
        ends.extend((handoff.stop, lambda: server.stop(0).wait()))
        return folder

    yield start
    for end in ends:
        end()


def connected(folder: Path) -> int:
    """How many connections a folder's cache.sock has, by the kernel's list."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {folder}/cache.sock") and line.split()[5] == "03" for line in lines)


@pytest.mark.parametrize("name", ["a%20b", "a b", "a#b", "a?b", "é→", "100%", "a&b;c=d", "%2e%2e", "[::1]:80"])
def test_folders_with_odd_names(serving: Serve, name: str) -> None:
    """The sockets are where the folder's name says, whatever that means in a URI."""
    folder = serving(name)
    assert sorted(os.listdir(folder)) == ["cache.sock", "handoff.sock"]
    with Client(str(folder)) as client:
        assert client.ping().pid == os.getpid()
        assert client.warm(ROOT)[0].file_count == len(FILES)


def test_a_connection_without_calls_ends(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold a descriptor for ever; a client whose connection was closed goes on without noticing."""
    monkeypatch.setattr(room, "CONNECTION_IDLE_SECONDS", 0.05)
    folder = serving()
    with Client(str(folder)) as client:
        view = client.fetch(ROOT)
        for _ in range(5):
            until(lambda: not connected(folder), "the connection to be closed")
            assert client.fetch(ROOT).path == view.path
        assert client.stats().session_count == 1, "the session and its leases are not touched"
        assert client.stats().lease_count >= 1


def test_the_client_closes_first() -> None:
    """grpc looks every so often, so it may take twice as long; what the daemon closes it tells on standard error."""
    assert 2 * artifactcache.session.IDLE_SECONDS < room.CONNECTION_IDLE_SECONDS


def test_a_long_message_with_odd_characters(serving: Serve) -> None:
    """It arrives cut, with its error's class: gRPC triples each byte that is not ASCII, and refuses much text."""
    folder = serving()
    uri = "s3://bucket/" + "/".join(["→" * 84] * 15)  # near the limits of a component and of a path
    with stub(folder) as cache, Wire(folder) as handoff:
        token = handoff.hello()
        for _ in range(20):  # it throws such a message away at random
            with pytest.raises(grpc.RpcError) as caught:
                artifact = pb.ArtifactSelection(uri=uri)
                list(cache.Inspect(pb.InspectRequest(artifact=artifact), metadata=bearer(token)))
            assert (error_name(caught.value), caught.value.code()) == ("NotFound", grpc.StatusCode.NOT_FOUND)
            assert (caught.value.details() or "").startswith(uri[:300])


def test_a_message_is_cut_where_it_has_to_be() -> None:
    """What fits is left alone; what is no character is told by its number."""
    most = statuses.DETAILS_BYTES_MAX
    assert statuses.details("x" * most) == "x" * most
    assert statuses.details("x" * (most + 1)) == "x" * most + " [...]"
    assert statuses.details("é" * most) == "é" * (most // 6) + " [...]"
    assert statuses.details("a\udcffb") == "a\\udcffb"


def test_a_password_of_the_origins_own_uri_is_not_told(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's documented way to write a root for FTP has one in it."""

    def fail(*args: object, **options: object) -> None:
        raise errors.Corrupted("ftp://ada:s3cret@host/run: the origin lists one name twice.")

    monkeypatch.setattr(Cache, "version_of", fail)
    with Client(str(serving())) as client, pytest.raises(errors.Corrupted) as told:
        client.fetch("runs:/r/x")
    assert "s3cret" not in str(told.value) and "ftp://host/run: the origin" in str(told.value)


def lengthy(client: Client) -> list[Callable[[], object]]:
    """Calls that may take their time; the last one for its view alone, which is not there yet."""
    return [
        client.list,
        client.verify,
        lambda: client.inspect(ROOT),
        lambda: client.warm(f"{ROOT}/a"),
        lambda: client.warm(ROOT, refresh=True),
        lambda: client.fetch(ROOT),
    ]


def test_lengthy_calls_have_a_quota_of_their_own(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has as many as one may is refused more; what takes no time is answered all the same."""
    with Client(str(serving("before"))) as client:
        client.warm(ROOT)
    monkeypatch.setattr(room, "LENGTHY_PER_USER_MAX", 0)
    with Client(str(serving("full"))) as client:
        for call in lengthy(client):
            with pytest.raises(errors.QuotaExceeded, match="lengthy calls"):
                call()
        assert client.warm(ROOT)[0].hit
        assert client.stats().lease_count == 0
    monkeypatch.setattr(room, "LENGTHY_PER_USER_MAX", 1)
    with Client(str(serving("one at a time"))) as client:
        for call in lengthy(client):
            call()
        view = client.fetch(ROOT).path
    monkeypatch.setattr(room, "LENGTHY_PER_USER_MAX", 0)
    with Client(str(serving("full again"))) as client:
        assert client.fetch(ROOT).path == view


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of fetches since the last time, without how long they took."""
    found = [re.sub(r" seconds=\d+\.\d+$", "", m) for m in caplog.messages if m.startswith("fetch ")]
    caplog.clear()
    return found


def test_each_fetch_has_a_line_in_the_log(serving: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Who took what: user, process, version, tree, what was handed out, bytes, and whether the origin was asked."""
    caplog.set_level(logging.INFO, "cacheserver")
    who, size = f"fetch uid={os.geteuid()} pid={os.getpid()}", sum(map(len, FILES.values()))
    with Client(str(serving())) as client:
        tree = client.warm(ROOT)[0].digest
        client.fetch(ROOT)
        until(lambda: len([m for m in caplog.messages if m.startswith("fetch ")]) == 2, "two lines")
        assert lines(caplog) == [
            f"{who} version='{ROOT}' tree={tree} given=lease bytes={size} hit=no transport=file",
            f"{who} version='{ROOT}' tree={tree} given=view bytes={size} hit=yes transport=none",
        ]


def test_nobody_joins_a_flight_of_a_model_that_was_made_anew(serving: Serve, filled: House) -> None:
    """The old one is under way still; who asks by the alias, which has the new one by now, gets the new one."""
    gate, alias = Gate(filled, "top"), "models:/m@champion"
    filled.origin.versions["models:/m/1"] = Resolved("models:/m/1", ROOT, (), True, "monday")
    filled.origin.aliases[alias] = "1"
    filled.origin.files["s3://bucket/new/x"] = b"new"
    folder = serving()
    with Client(str(folder)) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.warm, alias)
        gate.wait()
        filled.now += 1
        filled.origin.versions["models:/m/1"] = Resolved("models:/m/1", "s3://bucket/new", (), True, "tuesday")
        questions = filled.origin.alias_count
        second = pool.submit(client.warm, alias)
        until(lambda: filled.origin.alias_count > questions, "the second to ask for the alias")
        gate.open()
        assert second.result(PATIENCE_SECONDS)[0].size_bytes == len(b"new")
        first.result(PATIENCE_SECONDS)
        assert client.warm(alias)[0].size_bytes == len(b"new")


def test_each_refused_fetch_has_a_line_in_the_log(serving: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """With the class of the error, on one line, and without passwords."""
    caplog.set_level(logging.INFO, "cacheserver")
    who = f"fetch uid={os.geteuid()} pid={os.getpid()}"
    folder = serving()
    asked = {
        "s3://user:secret@bucket/none": ("'s3://bucket/none'", "InvalidRequest"),
        "https://host/x?signature=secret": ("'https://host/x'", "NotFound"),
        "none\nfetch uid=0": (r"'none\nfetch uid=0'", "InvalidRequest"),
        "s3://user:" + "secret" * 2000 + "@bucket/none": ("(too long)", "InvalidRequest"),
    }
    with stub(folder) as cache, Wire(folder) as handoff:
        token = handoff.hello()
        for uri, (told, error) in asked.items():
            request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri))
            with pytest.raises(grpc.RpcError):
                list(cache.Fetch(request, metadata=bearer(token)))
            assert lines(caplog) == [f"{who} asked={told} refused={error}"]
        with pytest.raises(grpc.RpcError):
            list(cache.Fetch(pb.FetchRequest(artifact=pb.ArtifactSelection(run_id="r", artifact_path="p"))))
        assert lines(caplog) == ["fetch uid=unknown pid=unknown asked='runs:/r/p' refused=Unauthenticated"]
    assert "secret" not in caplog.text
