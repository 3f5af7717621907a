"""Retention rules and what is kept warm, with a real daemon on a real tracking server."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import call, held, new_artifact, sweep_all
from tests.rig.users import User

_numbers = itertools.count(1)
RULES = """
[[retention]]
name = "champions"
model = "ruled-*"
alias = "champion"
keep = "always"

[[retention]]
name = "failed"
status = "FAILED"
drop = "0s"

[[retention]]
name = "gone"
deleted = true
drop = "0s"
"""


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy) -> Daemon:
    """One with rules, whose artifacts need not be of any age to go."""
    return module_start(origin.uri, grace=0.0, more=RULES)


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root, or the daemon's own user where the tests are not root's."""
    return caller_of(daemon, room, "root")


class Model:
    """A registered model of two versions; `champion` is the first."""

    def __init__(self, server: MlflowServer, name: str) -> None:
        self.server = server
        self.name = name
        for number in ("1", "2"):
            run_id = server.run({f"model/{number}": os.urandom(3000)})
            assert server.add_version(name, run_id, "model") == number
        self.promote("1")
        self.champion, self.one, self.two = f"models:/{name}@champion", f"models:/{name}/1", f"models:/{name}/2"

    def promote(self, number: str) -> None:
        """`champion` is this version from now on."""
        self.server.client.set_registered_model_alias(self.name, "champion", number)


@pytest.fixture
def model(mlflow_proxied: MlflowServer) -> Model:
    """One that the rules are about."""
    return Model(mlflow_proxied, f"ruled-{next(_numbers)}")


def finish(server: MlflowServer, status: str) -> str:
    """A run with a few files that ended so."""
    run_id: str = server.client.create_run(server.experiment).info.run_id
    trees.plant(server.folder(run_id), trees.unique())
    server.client.set_terminated(run_id, status)
    return f"runs:/{run_id}"


def goes(operator: Caller, version: str, sweep: Callable[[Caller], Any]) -> None:
    """Sweeps until something is not held any more: what is asked of the origin takes a moment."""

    def gone() -> bool:
        sweep(operator)
        return version not in held(operator)

    until(gone, lambda: f"{version} to go: {call(operator, 'explain', version)['reasons']}")


def tidy(operator: Caller) -> Any:
    """A sweep that wants no room: what a rule wants gone goes."""
    return call(operator, "sweep")


# -- retention rules --------------------------------------------------------------------------------------------------


def test_what_an_alias_points_to_stays(operator: Caller, model: Model) -> None:
    """Through a sweep that takes all it can get, at once and by what the server says; what it is not goes."""
    call(operator, "warm", model.one, model.two)
    assert model.one in held(operator)
    goes(operator, model.two, sweep_all)
    operator.command("sweep", "--free", "1TiB")
    assert model.one in held(operator)
    explained = call(operator, "explain", model.one)
    assert explained["is_kept"] and any('"champions" keeps' in reason for reason in explained["reasons"])


def test_a_new_model_is_kept_before_the_server_was_asked(operator: Caller, origin: CountingProxy, model: Model) -> None:
    """What a rule may keep stays for as long as nobody knows better."""
    call(operator, "warm", model.one, model.two)
    with origin.down():
        sweep_all(operator)
        assert {model.one, model.two} <= held(operator).keys()


def test_a_rule_follows_an_alias_that_moves(daemon: Daemon, operator: Caller, model: Model) -> None:
    """With the next time that the server is asked about everything, which a daemon does when it starts."""
    call(operator, "warm", model.one, model.two)
    model.promote("2")
    daemon.restart()
    goes(operator, model.one, sweep_all)
    assert model.two in held(operator)


def test_a_failed_run_goes_by_itself(operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """No room is wanted; what is like it and did not fail stays."""
    failed, finished = finish(mlflow_proxied, "FAILED"), finish(mlflow_proxied, "FINISHED")
    call(operator, "warm", finished, failed)
    goes(operator, failed, tidy)
    assert finished in held(operator)


def test_what_is_in_use_does_not_go(operator: Caller, alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """A failed run's files stay for as long as somebody has a view of them, and go then."""
    failed, sentinel = finish(mlflow_proxied, "FAILED"), finish(mlflow_proxied, "FAILED")
    view = "import artifactcache\nwith artifactcache.fetch(uri) as path:\n    say(str(path))\n    hear()\nresult = None"
    with alice.start(view, uri=failed) as job:
        job.hear()
        call(operator, "warm", sentinel)
        goes(operator, sentinel, tidy)
        assert failed in held(operator)
        job.say("done")
        job.result()
    goes(operator, failed, tidy)


@pytest.mark.parametrize("what", ["run", "version"])
def test_what_is_deleted_at_the_origin_is_noticed(
    what: str, daemon: Daemon, operator: Caller, mlflow_proxied: MlflowServer, model: Model
) -> None:
    """And a rule lets it go; what is not deleted stays, and a rule that keeps has no more to say of it."""
    run, other = finish(mlflow_proxied, "FINISHED"), finish(mlflow_proxied, "FINISHED")
    deleted = run if what == "run" else model.one
    call(operator, "warm", deleted, other)
    tidy(operator)
    assert deleted in held(operator)
    if what == "run":
        mlflow_proxied.client.delete_run(run.removeprefix("runs:/"))
    else:
        mlflow_proxied.client.delete_model_version(model.name, "1")
    daemon.restart()
    goes(operator, deleted, tidy)
    assert other in held(operator)


def test_rules_survive_a_server_that_is_away(
    daemon: Daemon, operator: Caller, alice: Caller, origin: CountingProxy, model: Model, mlflow_proxied: MlflowServer
) -> None:
    """By keeping: what was kept stays, also for a daemon that starts meanwhile, and nothing is dropped that was not
    known to be in for it."""
    run = finish(mlflow_proxied, "FINISHED")
    call(operator, "warm", model.one, model.two, run)
    goes(operator, model.two, sweep_all)
    call(operator, "warm", run)
    with origin.down():  # before anybody can be told that it has gone
        mlflow_proxied.client.delete_run(run.removeprefix("runs:/"))
        daemon.restart()
        tidy(operator)
        assert {model.one, run} <= held(operator).keys()
        sweep_all(operator)
        assert model.one in held(operator)
        assert alice.fetch(model.one).hit


def test_a_rule_that_was_mended_drops_nothing_by_what_it_was(
    start_daemon: StartDaemon, origin: CountingProxy, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """A daemon goes by the rules that it starts with, from its first sweep on."""
    dropping = '[[retention]]\nname = "all"\ndrop = "1s"\n'
    daemon = start_daemon(origin.uri, grace=0.0, more=dropping)
    operator = caller_of(daemon, room, "root")
    kept = new_artifact(mlflow_proxied)
    call(operator, "warm", kept)
    daemon.stop()
    daemon.config = daemon.config.replace('drop = "1s"', 'keep = "always"')
    (daemon.folder / "config.toml").write_text(daemon.config)
    daemon.start()
    tidy(operator)
    assert kept in held(operator)


# -- what is kept warm ------------------------------------------------------------------------------------------------


def test_the_champion_is_here_before_anybody_asks(
    start_daemon: StartDaemon, origin: CountingProxy, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """And the next one, when the alias has moved: whoever asks first takes no byte of the origin."""
    model = Model(mlflow_proxied, f"warm-{next(_numbers)}")
    more = f'[[warm]]\nuri = "{model.champion}"\nevery = "1s"\n'
    daemon = start_daemon(origin.uri, grace=0.0, more=more)
    operator, alice = caller_of(daemon, room, "root"), caller_of(daemon, room, "alice")

    def kept() -> set[str]:
        return {version for version, one in held(operator).items() if one["pinned_until"] is not None}

    until(lambda: kept() == {model.one}, "the champion to be here")
    before = origin.bytes
    assert alice.fetch(model.champion).version == model.one
    sweep_all(operator)
    assert kept() == {model.one}
    model.promote("2")
    until(lambda: kept() == {model.two}, "the new champion to be here")
    brought = origin.bytes
    fetched = alice.fetch(model.champion)
    assert (fetched.version, fetched.hit, fetched.origin_bytes) == (model.two, True, 0)
    assert origin.bytes == brought > before
    assert sweep_all(operator) == [model.one]
    with pytest.raises(errors.NotFound, match="configuration"):
        call(operator, "unpin", model.champion)


def test_what_is_kept_warm_waits_for_its_server(
    start_daemon: StartDaemon, origin: CountingProxy, room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """A daemon starts without it, serves what it has, and keeps what it kept."""
    model = Model(mlflow_proxied, f"warm-{next(_numbers)}")
    daemon = start_daemon(origin.uri, grace=0.0, more=f'[[warm]]\nuri = "{model.champion}"\nevery = "1s"\n')
    operator, alice = caller_of(daemon, room, "root"), caller_of(daemon, room, "alice")
    until(lambda: (held(operator).get(model.one) or {}).get("pinned_until"), "the champion to be here, and kept")
    with origin.down():
        daemon.restart()
        sweep_all(operator)
        assert alice.fetch(model.champion).version == model.one
    model.promote("2")
    until(lambda: model.two in held(operator), "the new champion to be here")


# -- the trace --------------------------------------------------------------------------------------------------------


def test_the_trace_can_be_simulated(
    start_daemon: StartDaemon,
    origin: CountingProxy,
    room: Path,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
    all_users: dict[str, User],
) -> None:
    """What a daemon has recorded, over a kill and a start, is what `cacheserver simulate` takes."""
    folder = room / "traces"
    folder.mkdir()
    if all_users:
        os.chown(folder, all_users["daemon"].uid, all_users["daemon"].gid)
    trace = folder / "trace"
    daemon = start_daemon(origin.uri, grace=0.0, trace=str(trace))
    alice = caller_of(daemon, room, "alice")
    first, second = new_artifact(mlflow_proxied), new_artifact(mlflow_proxied)

    def fetches(count: int) -> None:
        until(lambda: trace.exists() and trace.read_text().count('"fetch"') == count, f"{count} fetches in the trace")

    for uri in (first, second, first):
        alice.fetch(uri)
    fetches(3)
    daemon.kill()
    with trace.open("a") as file:
        file.write('{"at":17')
    daemon.start()
    alice.fetch(second)
    fetches(4)
    command = (str(daemon.interpreter.python), "-c", "import sys; from cacheserver.cli import main; sys.exit(main())")
    done = subprocess.run(
        (*command, "simulate", "--trace", str(trace), "--json"),
        env=daemon.interpreter.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
