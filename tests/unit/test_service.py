"""The gRPC edge, with both sockets and the client library around it."""

from __future__ import annotations

import grp
import json
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

import artifactcache.session
from artifactcache import Client, errors
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import server, statuses
from cacheserver import service as room
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.cache import Cache
from cacheserver.disk import Space
from cacheserver.programs import program
from cacheserver.reservations import FILE_BYTES
from cacheserver.settings import QuotasConfig
from cacheserver.words import File, Resolved
from tests.rig.until import until
from tests.rig.wire import Handoff as Wire
from tests.rig.wire import bearer, error_name, stub
from tests.unit.accounts import ALICE, held, start
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate, House
from tests.unit.serving import Served

Serve = Callable[..., Path]


@pytest.fixture
def serving(filled: House, tmp_path: Path) -> Iterator[Serve]:
    """Serves the house at a folder below the test's own, and returns that folder."""
    running: list[Served] = []

    def start(name: str = "sockets") -> Path:
        running.append(Served(filled, tmp_path / name))
        return running[-1].folder

    yield start
    for served in running:
        served.stop()


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
    monkeypatch.setattr(server, "CONNECTION_IDLE_SECONDS", 0.05)
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
    assert 2 * artifactcache.session.IDLE_SECONDS < server.CONNECTION_IDLE_SECONDS


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


def attempts(folder: Path, count: int) -> list[dict[str, Any]]:
    """The audit log beside a folder of sockets, once it has so many lines."""
    path = folder.parent / "audit.jsonl"
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{count} lines")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_each_fetch_has_a_line_in_the_audit_log(serving: Serve) -> None:
    """Who took what: user, process, version, tree, what was handed out, bytes, and whether the origin was asked."""
    folder, size = serving(), sum(map(len, FILES.values()))
    with Client(str(folder)) as client:
        tree = client.warm(ROOT)[0].digest
        client.fetch(ROOT)
        miss, hit = attempts(folder, 2)
    assert datetime.fromisoformat(miss.pop("time")).timestamp() == pytest.approx(time.time(), abs=60)
    assert 0 < hit["seconds"] < PATIENCE_SECONDS and 0 < miss.pop("seconds") < PATIENCE_SECONDS
    me = pwd.getpwuid(os.geteuid()).pw_name
    groups = [grp.getgrgid(gid).gr_name for gid in dict.fromkeys((os.getegid(), *os.getgroups()))]
    assert (miss.pop("command"), miss.pop("container")) == program(os.getpid())
    assert miss == {
        "user": me,
        "uid": os.geteuid(),
        "groups": groups,
        "pid": os.getpid(),
        "verb": "Fetch",
        "artifact": ROOT,
        "version": ROOT,
        "tree": tree,
        "bytes": size,
        "hit": False,
        "origin_bytes": size,
        "shared_bytes": 0,
        "transport": "file",
        "given": "lease",
        "decision": "granted",
        "reason": "check = none",
    }
    assert (hit["hit"], hit["origin_bytes"], hit["transport"], hit["given"]) == (True, 0, "", "view")


def test_each_other_look_at_an_artifact_has_a_line_in_the_audit_log(serving: Serve) -> None:
    """Inspect, Verify of an artifact, Explain and Pin; with what was found, and without bytes. Nothing else has one."""
    folder = serving()
    with Client(str(folder)) as client:
        tree = client.warm(ROOT)[0].digest
        client.inspect(ROOT)
        client.verify(ROOT)
        client.explain(ROOT)
        client.verify()
        client.list()
        client.stats()
        client.pin(ROOT)
        client.unpin(ROOT)
        with pytest.raises(errors.NotFound):
            client.inspect(f"{ROOT}/none")
        found = attempts(folder, 7)
    told = [(each["verb"], each["decision"], each["tree"], each["given"]) for each in found]
    assert told == [
        ("Fetch", "granted", tree, "lease"),
        ("Inspect", "granted", tree, ""),
        ("Verify", "granted", tree, ""),
        ("Explain", "granted", tree, ""),
        ("Fetch", "granted", tree, "lease"),
        ("Pin", "granted", tree, ""),
        ("Inspect", "failed", "", ""),
    ]
    assert {(each["hit"], each["bytes"]) for each in found if each["verb"] != "Fetch"} == {(None, 0)}


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


def test_each_refused_fetch_has_a_line_in_the_audit_log(serving: Serve) -> None:
    """With what was asked for and the error, on one line, and without passwords. Who has no session is unknown."""
    folder = serving()
    asked = {
        "s3://user:secret@bucket/none": ("s3://bucket/none", "InvalidRequest"),
        "https://host/x?signature=secret": ("https://host/x", "NotFound: "),
        "s3://bucket/none?X-Amz-Signature=secret": ("s3://bucket/none?X-Amz-Signature=…", "NotFound: "),
        "none\n{}\x1b[2J\x7f": ("none\n{}\x1b[2J\x7f", "InvalidRequest: "),
        "s3://user:" + "secret" * 2000 + "@bucket/none": ("(too long)", "InvalidRequest"),
    }
    with stub(folder) as cache, Wire(folder) as handoff:
        token = handoff.hello()
        for count, (uri, (told, error)) in enumerate(asked.items(), 1):
            request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri))
            with pytest.raises(grpc.RpcError):
                list(cache.Fetch(request, metadata=bearer(token)))
            last = attempts(folder, count)[-1]
            assert (last["uid"], last["artifact"], last["decision"]) == (os.geteuid(), told, "failed")
            assert last["reason"].startswith(error) and (last["version"], last["bytes"]) == ("", 0)
        with pytest.raises(grpc.RpcError):
            list(cache.Fetch(pb.FetchRequest(artifact=pb.ArtifactSelection(run_id="r", artifact_path="p"))))
        last = attempts(folder, len(asked) + 1)[-1]
    who = [last[name] for name in ("user", "uid", "groups", "pid", "command", "container")]
    assert who == [None, None, [], None, None, None]
    assert (last["artifact"], last["decision"]) == ("runs:/r/p", "refused")
    assert last["reason"].startswith("Unauthenticated: ")
    text = (folder.parent / "audit.jsonl").read_bytes()
    assert b"secret" not in text and not set(text) - set(range(32, 127)) - {10}


def test_room_is_promised_for_the_folders_of_a_view(
    serving: Serve, filled: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost a block each, however few the bytes of their files: where the disk has no room for them that is told,
    and no view is begun; one that is there needs none."""
    free = 3 * FILE_BYTES - 1  # for the view itself, a/ and b/
    with Client(str(serving())) as client:
        client.warm(ROOT)
        monkeypatch.setattr(filled.disk, "space", lambda: Space(10**9, free))
        with pytest.raises(errors.NoSpace, match="of the store's disk are free"):
            client.fetch(ROOT)
        assert os.listdir(filled.root / "views") == [] and client.stats().lease_count == 0
        assert client.warm(ROOT)[0].hit
        free += 1
        view = client.fetch(ROOT).path
        free = 0
        assert client.fetch(ROOT).path == view and filled.reservations.fill().unwritten == 0


def test_who_joins_what_fails_for_anothers_quota_has_it_brought(serving: Serve, filled: House) -> None:
    """On the own account, which grants it; who began it is refused."""
    mine = pwd.getpwuid(os.geteuid()).pw_name
    filled.budgets._quotas = QuotasConfig(users={EVERYBODY: held(1), mine: Allowance()})
    listing, go = threading.Event(), threading.Event()

    def hold(files: list[File]) -> list[File]:
        listing.set()
        assert go.wait(PATIENCE_SECONDS)
        return files

    filled.origin.edit_listing = hold
    with Client(str(serving())) as client, ThreadPoolExecutor(1) as pool:
        flight = start(filled, ROOT, ALICE)
        assert listing.wait(PATIENCE_SECONDS)
        joined = pool.submit(client.warm, ROOT)
        until(lambda: flight.waiting == 2, "the client to join")
        go.set()
        with pytest.raises(errors.QuotaExceeded):
            flight.future.result(PATIENCE_SECONDS)
        assert joined.result(PATIENCE_SECONDS)[0].file_count == len(FILES)
    filled.cache.leave(flight)


def test_a_request_that_is_no_message(serving: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Is refused with its name, unary or a stream, and costs no line of the log: anybody can send many."""
    with grpc.insecure_channel(f"unix:{serving() / 'cache.sock'}") as channel:
        for rpc in ("Release", "Fetch", "Audit"):
            ask = channel.unary_stream(
                f"/artifactcache.v1.Cache/{rpc}", request_serializer=bytes, response_deserializer=bytes
            )
            with pytest.raises(grpc.RpcError) as caught:
                list(ask(b"\xff\xff", timeout=PATIENCE_SECONDS))
            assert error_name(caught.value) == "InvalidRequest", rpc
    assert caplog.text == ""
