"""What a caller is told when the origin has no such thing, or does not answer; and that what is held is served then."""

from __future__ import annotations

import os
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

MISSING = {
    "run": f"runs:/{'0' * 32}/model",
    "whole run": f"runs:/{'0' * 32}",
    "path": "runs:/{run_id}/nothing/here",
    "file as a folder": "runs:/{run_id}/MLmodel/below",
    "model": "models:/nobody/1",
    "version": "models:/doubler/99",
    "alias": "models:/doubler@nobody",
    "latest of no model": "models:/nobody/latest",
    "logged model": f"models:/m-{'0' * 32}",
    "path below a version": "models:/doubler/1/nothing",
    "bare artifact URI": "mlflow-artifacts:/no/such/thing",
}


@pytest.mark.parametrize("uri", MISSING.values(), ids=MISSING.keys())
@pytest.mark.usefixtures("model")
def test_what_the_origin_does_not_have(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer, uri: str) -> None:
    """NotFound, and nothing at the destination or in staging."""
    with pytest.raises(errors.NotFound):
        alice.fetch(uri.format(run_id=mlflow_proxied.run(SMALL)), alice.cwd / "dst")
    assert os.listdir(alice.cwd) == []
    assert daemon.staging() == []


def test_what_was_missing_can_come(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """That something was missing is not remembered."""
    run_id = mlflow_proxied.run({"a": b"a"})
    with pytest.raises(errors.NotFound):
        alice.fetch(f"runs:/{run_id}/late")
    trees.plant(mlflow_proxied.folder(run_id), {"late/b": b"b"})
    assert trees.read(alice.fetch(f"runs:/{run_id}/late").path) == {"b": b"b"}


@pytest.mark.parametrize(
    "run_id",
    ["x", "../../etc", "0" * 31, "0" * 33, "Ü" * 32, "a b", " ", "%2e%2e", "0" * 31 + "/", "0" * 31 + "?", "0" * 5000],
)
@pytest.mark.parametrize("form", ["uri", "run_id"])
def test_a_malformed_run_id(alice: Caller, run_id: str, form: str) -> None:
    """It is refused as the caller's mistake, or at most not found; never anything else."""
    with pytest.raises((errors.InvalidRequest, errors.NotFound)):
        if form == "uri":
            alice.fetch(f"runs:/{run_id}")
        else:
            alice.fetch(run_id=run_id)


def test_the_tracking_server_is_down(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Any, caller_of: CallerOf
) -> None:
    """What is held is served all the same; the rest is OriginUnavailable, and can be had when it is back."""
    proxy = CountingProxy(mlflow_proxied.uri)
    daemon = start_daemon(proxy.uri, unreachable_after=3.0)
    alice = caller_of(daemon, room)
    files = trees.unique()
    held, other = (f"runs:/{mlflow_proxied.run(files)}" for _ in range(2))
    alice.fetch(held)
    with proxy.down():
        handed = alice.fetch(held, alice.cwd / "held")
        assert (handed.hit, trees.read(handed.path)) == (True, files)
        assert alice.fetch(f"{held}/part").hit
        with pytest.raises(errors.OriginUnavailable):
            alice.fetch(other, alice.cwd / "other")
        with pytest.raises(errors.OriginUnavailable):
            alice.fetch(run_id=other.removeprefix("runs:/"))
        assert os.listdir(alice.cwd) == ["held"]
        daemon.restart()
        assert alice.fetch(held).hit
    assert trees.read(alice.fetch(other).path) == files
    proxy.disconnect()


def test_an_alias_while_the_tracking_server_is_down(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Any, caller_of: CallerOf, model: Any
) -> None:
    """An alias cannot be asked about then: what it pointed to last is served and called stale, or OriginUnavailable."""
    proxy = CountingProxy(mlflow_proxied.uri)
    alice = caller_of(start_daemon(proxy.uri, unreachable_after=3.0), room)
    fresh = alice.fetch("models:/doubler@champion")
    assert not fresh.stale
    with proxy.down():
        pinned = alice.fetch("models:/doubler/1")
        assert (pinned.hit, pinned.stale, pinned.digest) == (True, False, fresh.digest)
        try:
            handed = alice.fetch("models:/doubler@champion")
        except errors.OriginUnavailable:
            pass
        else:
            assert (handed.stale, handed.digest) == (True, fresh.digest)
    proxy.disconnect()


def test_a_download_that_breaks_off(
    alice: Caller, daemon: Daemon, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """OriginUnavailable or Corrupted, nothing half-made anywhere; afterwards the right bytes."""
    files = {"a": os.urandom(200_000), "b": os.urandom(200_000)}
    uri = f"runs:/{mlflow_proxied.run(files)}"
    with origin.breaking_off(after_bytes=0), pytest.raises(errors.OriginUnavailable):
        alice.fetch(uri, alice.cwd / "dst")
    assert os.listdir(alice.cwd) == []
    assert daemon.staging() == []
    assert trees.read(alice.fetch(uri, alice.cwd / "dst").path) == files


def test_a_download_that_breaks_off_again_and_again(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """A real server is asked for the rest, by its entity tag, as long as each answer has more; no byte comes twice."""
    files = {"a": os.urandom(500_000)}
    uri = f"runs:/{mlflow_proxied.run(files)}"
    before = origin.bytes
    with origin.breaking_off(after_bytes=100_000):
        assert trees.read(alice.fetch(uri, alice.cwd / "dst").path) == files
    assert origin.bytes - before == trees.size(files)


def test_a_refresh_while_the_tracking_server_is_down(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Any, caller_of: CallerOf
) -> None:
    """`refresh` that cannot be had is not passed off as fresh, and costs nothing of what is held."""
    proxy = CountingProxy(mlflow_proxied.uri)
    alice = caller_of(start_daemon(proxy.uri, unreachable_after=3.0), room)
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    alice.fetch(uri)
    with proxy.down():
        try:
            assert alice.fetch(uri, refresh=True).stale
        except errors.OriginUnavailable:
            pass
        assert trees.read(alice.fetch(uri).path) == SMALL
    proxy.disconnect()
