"""What stays and what goes: pins, leases, sweeps and explanations of a real daemon, for operators and for others."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.upkeep import ALL_BYTES, call, held, new_artifact, succeed, sweep_all

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy) -> Daemon:
    """One whose artifacts need not be of any age to go."""
    return module_start(origin.uri, grace=0.0)


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root, or the daemon's own user where the tests are not root's."""
    return caller_of(daemon, room, "root")


@pytest.fixture
def artifact(mlflow_proxied: MlflowServer) -> str:
    """An artifact that nobody has asked for yet, all of whose bytes are its own."""
    return new_artifact(mlflow_proxied)


@pytest.fixture
def alias(mlflow_proxied: MlflowServer) -> Iterator[tuple[str, str, str]]:
    """The URI of an alias, that of the version it stands for, and that of another version of its model."""
    name = f"pinned-{next(_numbers)}"
    for number in ("1", "2"):
        run_id = mlflow_proxied.run({f"model/{number}": os.urandom(3000)})
        assert mlflow_proxied.add_version(name, run_id, "model") == number
    mlflow_proxied.client.set_registered_model_alias(name, "champion", "1")
    yield f"models:/{name}@champion", f"models:/{name}/1", f"models:/{name}/2"
    mlflow_proxied.client.delete_registered_model(name)


# -- pins -------------------------------------------------------------------------------------------------------------


def test_a_pin_keeps_through_a_sweep(
    operator: Caller, daemon: Daemon, mlflow_proxied: MlflowServer, artifact: str
) -> None:
    """What is not pinned goes, files and all; when the pin is ended, so does what was."""
    other = new_artifact(mlflow_proxied)
    pinned = call(operator, "pin", artifact)
    assert (pinned["uri"], pinned["version"], pinned["until"]) == (artifact, artifact, None)
    assert pinned["owner"]
    call(operator, "warm", other)
    assert held(operator)[artifact]["pinned_until"] == math.inf
    assert held(operator)[other]["pinned_until"] is None
    swept = sweep_all(operator)
    assert other in swept
    assert artifact not in swept
    assert held(operator).keys() & {artifact, other} == {artifact}
    assert call(operator, "warm", artifact)[0]["hit"]

    assert call(operator, "unpin", artifact) == [artifact]
    blobs = [file["digest"] for file in call(operator, "inspect", artifact)["files"]]
    assert all(daemon.blob(digest).exists() for digest in blobs)
    assert artifact in sweep_all(operator)
    assert artifact not in held(operator)
    assert not any(daemon.blob(digest).exists() for digest in blobs)
    assert not call(operator, "warm", artifact)[0]["hit"]


def test_pin_makes_present(operator: Caller, artifact: str) -> None:
    """What is pinned need not be held before; a second pin prolongs the first, and neither keeps a lease."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            first = client.pin(uri, for_seconds=600)
            second = client.pin(uri)
            leases = client.explain(uri).artifact.lease_count
            ended = client.unpin(uri)
            result = [first.until, second.until, leases, ended]
    """
    before = time.time()
    first, second, leases, ended = operator.run(code, uri=artifact)
    assert before + 590 < first < time.time() + 610
    assert (second, leases, ended) == (None, 0, [artifact])


def test_a_pin_that_has_expired_is_no_promise(operator: Caller, artifact: str) -> None:
    """It is over by itself: not shown, not to be ended, and no reason to stay."""
    until = call(operator, "pin", artifact, for_seconds=1)["until"]
    assert artifact not in sweep_all(operator) or time.time() >= until, "it went too early"
    call(operator, "warm", artifact)
    time.sleep(max(0.0, until - time.time()) + 0.1)
    assert held(operator)[artifact]["pinned_until"] is None
    assert not call(operator, "explain", artifact)["is_kept"]
    assert artifact in sweep_all(operator)
    with pytest.raises(errors.NotFound):
        call(operator, "unpin", artifact)


def test_a_pin_of_an_alias(operator: Caller, mlflow_proxied: MlflowServer, alias: tuple[str, str, str]) -> None:
    """Pins the version that it stood for, also when it has moved on; by the alias it can be ended even then."""
    by_alias, one, two = alias
    assert call(operator, "pin", by_alias)["version"] == one
    mlflow_proxied.client.set_registered_model_alias(by_alias[8:].split("@")[0], "champion", "2")
    assert call(operator, "warm", by_alias)[0]["version"] == two
    assert held(operator)[one]["pinned_until"] == math.inf
    assert held(operator)[two]["pinned_until"] is None
    assert one not in sweep_all(operator)
    assert one in held(operator)
    assert call(operator, "unpin", by_alias) == [one]
    assert one in sweep_all(operator)


def test_a_pin_of_an_alias_is_ended_by_its_version(operator: Caller, alias: tuple[str, str, str]) -> None:
    """And then there is none to be ended by the alias."""
    by_alias, one, _ = alias
    call(operator, "pin", by_alias)
    assert call(operator, "unpin", one) == [one]
    with pytest.raises(errors.NotFound):
        call(operator, "unpin", by_alias)


def test_a_pin_of_a_part(operator: Caller, artifact: str) -> None:
    """Keeps that part, and not the whole."""
    run_id = artifact.removeprefix("runs:/")
    part = call(operator, "pin", run_id=run_id, artifact_path="part", include=["*.bin"], exclude=["0.bin"])
    assert part["version"] == f"{artifact}/part"
    sweep_all(operator)
    found = call(operator, "explain", f"{artifact}/part", include=["*.bin"], exclude=["0.bin"])
    assert found["is_kept"]
    assert (found["artifact"]["digest"], found["artifact"]["file_count"]) == (part["digest"], 2)
    ended = call(operator, "unpin", run_id=run_id, artifact_path="part", include=["*.bin"], exclude=["0.bin"])
    assert ended == [part["version"]]


def test_pins_outlive_the_daemon(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """They are in the index, as what they protect is."""
    daemon = start_daemon(mlflow_proxied.uri, grace=0.0)
    operator = caller_of(daemon, room, "root")
    artifact = new_artifact(mlflow_proxied)
    call(operator, "pin", artifact)
    daemon.restart()
    assert held(operator)[artifact]["pinned_until"] == math.inf
    assert call(operator, "stats")["pin_count"] == 1
    assert artifact not in sweep_all(operator)
    call(operator, "unpin", artifact)
    assert call(operator, "stats")["pin_count"] == 0


@pytest.mark.parametrize("verb", ["pin", "unpin", "explain"])
def test_what_is_unknown(operator: Caller, verb: str) -> None:
    """NotFound: no such run, no such pin, not held."""
    with pytest.raises(errors.NotFound, match="0000"):
        call(operator, verb, f"runs:/{'0' * 32}")
    done = operator.command(verb, f"runs:/{'0' * 32}", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "NotFound"


def test_what_is_not_pinned_cannot_be_unpinned(operator: Caller, artifact: str) -> None:
    """NotFound, though it is held."""
    call(operator, "warm", artifact)
    with pytest.raises(errors.NotFound):
        call(operator, "unpin", artifact)


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pin", "unpin", "sweep"])
def test_who_is_no_operator(bob: Caller, operator: Caller, artifact: str, verb: str) -> None:
    """Is refused, changes nothing, and is told whom to ask; explanations are for everybody."""
    call(operator, "pin", artifact)
    with pytest.raises(errors.PermissionDenied, match="operator"):
        call(bob, verb, *([] if verb == "sweep" else [artifact]))
    done = bob.command(verb, *([] if verb == "sweep" else [artifact]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "PermissionDenied" in done.stderr
    assert held(bob)[artifact]["pinned_until"] == math.inf
    assert call(bob, "explain", artifact)["is_kept"]
    call(operator, "unpin", artifact)


def test_a_dry_run_is_for_operators_too(bob: Caller) -> None:
    """It tells what others have fetched."""
    with pytest.raises(errors.PermissionDenied):
        call(bob, "sweep", dry_run=True)


def test_operators_by_name(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """Whom the configuration names may, by their own name or by a group's; nobody else."""
    daemon = start_daemon(mlflow_proxied.uri, grace=0.0)
    alice, bob = (caller_of(daemon, room, role) for role in ("alice", "bob"))
    if alice.user is None:
        pytest.skip("needs several users")
    artifact = new_artifact(mlflow_proxied)
    name, group = alice.run("import grp, pwd\nresult = [pwd.getpwuid(os.getuid())[0], grp.getgrgid(os.getgid())[0]]")
    for operators in ([name], [f"@{group}"]):
        daemon.stop()
        (daemon.folder / "config.toml").write_text(f"{daemon.config}operators = {json.dumps(operators)}\n")
        daemon.start()
        assert call(alice, "pin", artifact)["owner"] == name
        assert call(alice, "unpin", artifact) == [artifact]
        assert call(alice, "sweep", dry_run=True)["dry_run"]
        with pytest.raises(errors.PermissionDenied):
            call(bob, "pin", artifact)


# -- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(operator: Caller, daemon: Daemon, artifact: str) -> None:
    """Its plan has what a sweep then does."""
    call(operator, "warm", artifact)
    before = held(operator), call(operator, "stats")["evicted_count"]
    plan = call(operator, "sweep", dry_run=True, free_bytes=ALL_BYTES)
    assert plan["dry_run"]
    assert artifact in [version for each in plan["evicted"] for version in each["versions"]]
    assert (held(operator), call(operator, "stats")["evicted_count"]) == before
    assert call(operator, "warm", artifact)[0]["hit"]
    done = call(operator, "sweep", free_bytes=ALL_BYTES)
    assert not done["dry_run"]
    assert {each["digest"] for each in done["evicted"]} == {each["digest"] for each in plan["evicted"]}
    assert done["freed_bytes"] == plan["freed_bytes"]


def test_a_sweep_counts_what_it_does(operator: Caller, daemon: Daemon, artifact: str) -> None:
    """Bytes of files, in the result, in the counters and on the disk; with a reason for each."""
    sweep_all(operator)
    warmed = call(operator, "warm", artifact)[0]
    before = call(operator, "stats")
    swept = call(operator, "sweep", free_bytes=1)
    after = call(operator, "stats")
    assert [each["digest"] for each in swept["evicted"]] == [warmed["digest"]]
    (evicted,) = swept["evicted"]
    assert evicted["size_bytes"] == evicted["freed_bytes"] == swept["freed_bytes"] == warmed["size_bytes"]
    assert evicted["reason"]
    assert swept["wanted_bytes"] == 1
    assert swept["seconds"] >= 0
    assert after["evicted_count"] - before["evicted_count"] == 1
    assert after["evicted_bytes"] - before["evicted_bytes"] == warmed["size_bytes"]
    assert before["blob_bytes"] - after["blob_bytes"] == warmed["size_bytes"]


def test_a_sweep_frees_no_more_than_it_has_to(operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """Of two, one is enough."""
    sweep_all(operator)
    call(operator, "warm", new_artifact(mlflow_proxied), new_artifact(mlflow_proxied))
    assert call(operator, "sweep", free_bytes=1)["tree_count"] == 1
    assert call(operator, "sweep", free_bytes=ALL_BYTES)["tree_count"] == 1


def test_a_sweep_that_nothing_asks_for(operator: Caller, artifact: str) -> None:
    """The store is far from its limits: nothing goes."""
    call(operator, "warm", artifact)
    swept = call(operator, "sweep")
    assert (swept["evicted"], swept["tree_count"], swept["freed_bytes"], swept["wanted_bytes"]) == ([], 0, 0, 0)
    assert artifact in held(operator)
    assert operator.command("sweep").stdout == "Nothing has to go.\n"


def test_what_had_to_stay_is_told(operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """How many, by reason: pinned, leased."""
    pinned, leased = new_artifact(mlflow_proxied), new_artifact(mlflow_proxied)
    code = """
        import artifactcache
        with artifactcache.Client() as client, client.fetch(leased):
            client.pin(pinned)
            swept = client.sweep(free_bytes=all_bytes)
            kept = [[each.reason, each.tree_count] for each in swept.kept]
            result = [kept, sorted(held.version for held in client.list()), client.unpin(pinned)]
    """
    kept, versions, _ = operator.run(code, pinned=pinned, leased=leased, all_bytes=ALL_BYTES)
    assert {pinned, leased} <= set(versions)
    assert any("pin" in reason and count >= 1 for reason, count in kept), kept
    assert any("leas" in reason and count >= 1 for reason, count in kept), kept


def test_a_lease_keeps(alice: Caller, operator: Caller, artifact: str) -> None:
    """A view that somebody reads stays until they have let go."""
    code = """
        import artifactcache
        with artifactcache.fetch(uri) as view:
            say("leased")
            hear()
            found = sorted(os.listdir(view))
        say("released")
        hear()
        result = found
    """
    with alice.start(code, uri=artifact) as job:
        job.hear()
        assert artifact not in sweep_all(operator)
        assert held(operator)[artifact]["lease_count"] == 1
        job.say("look")
        job.hear()
        assert artifact in sweep_all(operator)
        job.say("end")
        assert job.result() == ["part", "top"]


# -- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands(operator: Caller, artifact: str) -> None:
    """From pin to sweep, as documents and as words, with status 0."""
    pinned = succeed(operator, "pin", artifact, "--for", "1h")
    assert time.time() + 3500 < pinned["until"] < time.time() + 3700
    assert succeed(operator, "pin", artifact)["until"] is None
    assert {each["version"]: each["pinned_until"] for each in succeed(operator, "ls")}[artifact] == "Infinity"
    assert [row.split()[-1] for row in operator.command("ls").stdout.splitlines() if artifact in row] == ["pinned"]
    assert "It is kept" in operator.command("explain", artifact).stdout
    assert succeed(operator, "explain", artifact)["is_kept"]
    assert succeed(operator, "stats")["pin_count"] >= 1
    assert operator.command("unpin", artifact).stdout == f"{artifact}: no longer pinned\n"
    plan = operator.command("sweep", "--dry-run", "--free", "1B")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "would go" in plan.stdout
    done = operator.command("sweep", "--free", "1PiB")
    assert done.returncode == 1, "so much is not there"
    assert artifact in done.stdout
    assert "less than the 1.0 PiB" in done.stdout
    assert artifact not in held(operator)


@pytest.mark.parametrize("command", ["pin", "unpin", "sweep", "explain"])
def test_no_daemon(operator: Caller, room: Path, command: str) -> None:
    """Without a daemon every command fails and says so."""
    wanted = [] if command == "sweep" else [f"runs:/{'0' * 32}"]
    done = operator.command(command, *wanted, "--json", env={"ARTIFACTCACHE_SOCKET_DIR": str(room)})
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "DaemonUnavailable"
