"""What an overview of a real daemon tells, and to whom, and that the page shows each just that."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.until import until
from tests.rig.upkeep import call, new_artifact
from tests.rig.users import User

HOLD = "import artifactcache\nfetched = artifactcache.fetch(uri)\nsay(1)\nhear()\nresult = 1"
GRANTS = '[[grant]]\nname = "everything"\nto = ["*"]\n'


@pytest.fixture(scope="module")
def port() -> int:
    """Where the module's daemon shows its page."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy, all_users: dict[str, User], port: int) -> Daemon:
    """One that checks access, with a page, and bob for an operator."""
    if not all_users:
        pytest.skip("needs several users")
    more = f'operators = ["{all_users["bob"].name}"]\n[page]\nlisten = "127.0.0.1:{port}"\n{GRANTS}'
    return module_start(origin.uri, check="rules", grace=0, more=more)


@pytest.fixture
def administrator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root."""
    return caller_of(daemon, room, "root")


def seen(caller: Caller) -> dict[str, Any]:
    """An overview, as somebody sees it."""
    found: dict[str, Any] = call(caller, "overview")
    return found


def operators(caller: Caller) -> str:
    """The line of the configuration that makes somebody one."""
    assert caller.user is not None
    return f'operators = ["{caller.user.name}"]'


@contextlib.contextmanager
def configured(daemon: Daemon, line: str, instead: str) -> Iterator[None]:
    """Another line in the configuration as long as this lasts; it counts a moment later."""
    path = daemon.folder / "config.toml"
    path.write_text(daemon.config.replace(line, instead))
    try:
        yield
    finally:
        path.write_text(daemon.config)


@contextlib.contextmanager
def as_reader(daemon: Daemon, caller: Caller) -> Iterator[None]:
    """Somebody is no operator as long as this lasts."""
    with configured(daemon, operators(caller), ""):
        until_seen(caller, lambda found: not found["sees_all"])
        yield
    until_seen(caller, lambda found: bool(found["sees_all"]))


def until_seen(caller: Caller, is_right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for it: what is added up for an overview may be some seconds old."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [seen(caller)]
        return is_right(found[0])

    until(look, lambda: f"another overview than {found}")
    return found[0]


def parts(one: dict[str, Any]) -> dict[str, Any]:
    """What is held, by version."""
    return {part["version"]: part for group in one["groups"] for part in group["parts"]}


def queued(one: dict[str, Any]) -> set[str]:
    """The versions in the queue."""
    return {version for tree in one["queue"] for version in tree["versions"]}


def test_a_reader_sees_their_own(
    alice: Caller, bob: Caller, administrator: Caller, mlflow_proxied: MlflowServer
) -> None:
    """What is on their account, and no name of anybody else's artifact or user; nothing of the queue."""
    mine, others = new_artifact(mlflow_proxied), new_artifact(mlflow_proxied)
    call(alice, "warm", mine)
    call(bob, "warm", others)
    one = until_seen(alice, lambda found: mine in parts(found))
    assert not one["roles"] and not one["sees_all"] and parts(one)[mine]["users"] == []
    assert others.removeprefix("runs:/") not in json.dumps(one)
    assert (one["queue"], one["queue_length"]) == ([], 0)
    assert [each["usage"]["uid"] for each in one["users"]] == [alice.uid] and one["users"][0]["session_count"] >= 1
    assert one["held"]["artifact_count"] == len(call(alice, "list"))
    assert one["held"]["share_bytes"] == sum(group["share_bytes"] for group in one["groups"])


def test_an_operator_sees_all_and_who_reads_it(
    alice: Caller, bob: Caller, mlflow_proxied: MlflowServer, all_users: dict[str, User]
) -> None:
    """And the queue with its reasons; but of accounts their own only."""
    mine = new_artifact(mlflow_proxied)
    call(alice, "warm", mine)
    one = until_seen(bob, lambda found: mine in parts(found) and mine in queued(found))
    assert one["sees_all"] and one["roles"] == ["operator"]
    assert parts(one)[mine]["users"] == [all_users["alice"].name]
    assert all(tree["reason"] or tree["kept"] for tree in one["queue"]) and one["queue_length"] >= len(one["queue"]) > 0
    assert {each["usage"]["uid"] for each in one["users"]} == {bob.uid}


def test_an_administrator_sees_accounts(
    alice: Caller, bob: Caller, administrator: Caller, mlflow_proxied: MlflowServer
) -> None:
    """Everybody's, the fullest first, with what they do now."""
    for caller in (alice, bob):
        call(caller, "warm", new_artifact(mlflow_proxied))
    hold = (
        "import artifactcache\nclient = artifactcache.Client()\nfetched = client.fetch(uri)\nsay(1)\nhear()\nresult = 1"
    )
    with alice.start(hold, uri=new_artifact(mlflow_proxied)) as job:
        job.hear()
        found: dict[int, Any] = {}

        def are_there() -> bool:
            found.update({each["usage"]["uid"]: each for each in seen(administrator)["users"]})
            return {alice.uid, bob.uid, 0} <= found.keys() and found[alice.uid]["lease_count"] == 1

        until(are_there, lambda: f"accounts and a lease: {found}")
        job.say("end")
        job.result()
    assert found[alice.uid]["session_count"] == 1 and found[alice.uid]["usage"]["held_bytes"] > 0
    bytes_ = [each["usage"]["held_bytes"] for each in seen(administrator)["users"]]
    assert bytes_ == sorted(bytes_, reverse=True)


def test_a_download_is_seen_by_who_waits_for_it(
    daemon: Daemon,
    alice: Caller,
    bob: Caller,
    origin: CountingProxy,
    mlflow_proxied: MlflowServer,
    all_users: dict[str, User],
) -> None:
    """How far it is, by those who began or joined it and by operators, who are told for whom; not by other readers."""
    uri = f"runs:/{mlflow_proxied.run({'f': os.urandom(2_000_000)})}"
    fetch = "import artifactcache\nresult = artifactcache.fetch(uri).size_bytes"
    with origin.stalling(500_000), alice.start(fetch, uri=uri) as job:

        def shown() -> Any:
            (one,) = seen(alice)["downloads"] or [None]
            return one if one and one["progress"]["bytes_done"] >= 100_000 else None

        one = until(shown, "the download")
        assert (one["version"], one["progress"]["bytes_total"], one["waiting_count"]) == (uri, 2_000_000, 1)
        name = all_users["alice"].name
        assert one["users"] == [name] and seen(bob)["downloads"][0]["users"] == [name]
        with as_reader(daemon, bob):
            assert seen(bob)["downloads"] == []
    with alice.start(fetch, uri=uri) as job:
        assert job.result() == 2_000_000
    assert seen(alice)["downloads"] == []


def test_everybody_sees_all_where_access_is_not_checked(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """As `ls` shows it to them; but who reads what, and others' accounts, are for those who have the roles."""
    daemon = start_daemon(mlflow_proxied.uri)
    alice, root = caller_of(daemon, room, "alice"), caller_of(daemon, room, "root")
    uri = new_artifact(mlflow_proxied)
    call(root, "warm", uri)
    one = seen(alice)
    assert one["sees_all"] and uri in parts(one) and one["queue_length"] == 1
    if alice.uid != root.uid:
        assert parts(one)[uri]["users"] == [] and [each["usage"]["uid"] for each in one["users"]] == [alice.uid]
    with pytest.raises(errors.NotFound, match=r"\[page\]"):
        call(alice, "page")


def test_the_counters_of_a_history_grow(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """A sample each ten seconds; asked for from where one was, only what came after it."""
    uri = new_artifact(mlflow_proxied)
    call(alice, "warm", uri)
    fetches = seen(alice)["stats"]["fetch_count"]
    until(lambda: (found := seen(alice)["history"]) and found[-1]["fetch_count"] >= fetches, "the next sample", 40)
    history = seen(alice)["history"]
    assert [one["at"] for one in history] == sorted(one["at"] for one in history)
    assert history[-1]["served_bytes"] >= history[-1]["saved_bytes"] and history[-1]["blob_bytes"] > 0
    assert all(one["at"] > history[0]["at"] for one in call(alice, "overview", since=history[0]["at"])["history"])


def test_faults_are_told(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """A blob that was damaged, and a sweep that could not free what has to go."""
    daemon = start_daemon(mlflow_proxied.uri, capacity="100KB", high="50%", low="40%", grace=0)
    root = caller_of(daemon, room, "root")
    assert seen(root)["faults"] == []
    uri = f"runs:/{mlflow_proxied.run({'f': os.urandom(60_000)})}"
    with root.start(HOLD, uri=uri) as job:
        job.hear()
        until(lambda: any(one["kind"] == "sweep" for one in seen(root)["faults"]), lambda: str(seen(root)["faults"]))
        assert any("raise [store] capacity" in one["words"] and one["is_grave"] for one in seen(root)["faults"])
        job.say("end")
        job.result()
    until(lambda: not any(one["kind"] == "sweep" for one in seen(root)["faults"]), "the sweep to succeed", 60)


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """A request of a program, without a browser."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith(b"{") else body.decode()


def key_of(caller: Caller, port: int) -> str:
    """A key of somebody's."""
    url, seconds = call(caller, "page")
    address, _, ticket = url.partition("#")
    assert address == f"http://127.0.0.1:{port}/" and seconds == 60
    status, told = ask(port, "POST", "/enter", Authorization=f"Ticket {ticket}")
    assert status == 200 and ask(port, "POST", "/enter", Authorization=f"Ticket {ticket}")[0] == 401
    return str(told["key"])


def test_the_page_shows_each_what_they_may_see(
    daemon: Daemon, alice: Caller, bob: Caller, port: int, mlflow_proxied: MlflowServer
) -> None:
    """By their key, and by their roles of that moment: who is no operator any more sees no more than a reader, and whom
    deny names is shown nothing."""
    others = new_artifact(mlflow_proxied)
    call(bob, "warm", others)
    keys = {caller: key_of(caller, port) for caller in (alice, bob)}

    def shown(caller: Caller) -> tuple[int, Any]:
        return ask(port, "GET", "/overview", Authorization=f"Bearer {keys[caller]}")

    until(lambda: others in parts(shown(bob)[1]), "what bob has fetched")
    assert shown(bob)[1]["sees_all"] and not shown(alice)[1]["sees_all"]
    assert others.removeprefix("runs:/") not in json.dumps(shown(alice))
    assert ask(port, "GET", "/overview")[0] == 401
    assert ask(port, "GET", "/overview", Authorization=f"Bearer {keys[bob]}", Host="evil.example")[0] == 421
    with as_reader(daemon, bob):
        until(lambda: not shown(bob)[1]["sees_all"], "bob to be a reader")
        assert others in parts(shown(bob)[1]) and shown(bob)[1]["queue"] == []
    with configured(daemon, operators(bob), f'deny = ["{bob.user and bob.user.name}"]'):
        until(lambda: shown(bob)[0] == 403, "bob to be refused")
    until(lambda: shown(bob)[0] == 200 and shown(bob)[1]["sees_all"], "bob's page again")
