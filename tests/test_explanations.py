"""Why an artifact is kept, or when it goes: what the daemon says of what is pinned, leased, and neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.upkeep import call, held, new_artifact, sweep_all


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


def test_explain_what_may_go(alice: Caller, artifact: str) -> None:
    """Its place in the queue, what its going would free, and what it would take to have it again."""
    warmed = call(alice, "warm", artifact)[0]
    found = call(alice, "explain", artifact)
    assert (found["artifact"]["version"], found["artifact"]["digest"]) == (artifact, warmed["digest"])
    assert not found["is_kept"]
    assert 1 <= found["place"] <= found["queue_length"]
    assert found["freed_bytes"] == warmed["size_bytes"]
    assert found["refetch_seconds"] > 0
    assert found["reasons"]
    assert all(reason.strip() for reason in found["reasons"])


def test_explain_what_goes_first(operator: Caller, artifact: str) -> None:
    """Number 1 of the queue is what a sweep takes."""
    sweep_all(operator)
    call(operator, "warm", artifact)
    found = call(operator, "explain", artifact)
    assert (found["place"], found["queue_length"]) == (1, 1)
    assert call(operator, "sweep", free_bytes=1)["evicted"][0]["versions"] == [artifact]


def test_explain_what_is_pinned(operator: Caller, artifact: str) -> None:
    """It is kept, has no place, and the pin is named."""
    owner = call(operator, "pin", artifact, for_seconds=600)["owner"]
    found = call(operator, "explain", artifact)
    assert (found["is_kept"], found["place"]) == (True, None)
    assert any("pin" in reason and owner in reason for reason in found["reasons"]), found["reasons"]
    call(operator, "unpin", artifact)
    assert not call(operator, "explain", artifact)["is_kept"]


def test_explain_what_is_leased(alice: Caller, artifact: str) -> None:
    """It is kept for as long as somebody has it."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            with client.fetch(uri):
                inside = client.explain(uri)
            after = client.explain(uri)
            result = [inside.is_kept, inside.place, list(inside.reasons), inside.artifact.lease_count, after.is_kept]
    """
    is_kept, place, reasons, leases, after = alice.run(code, uri=artifact)
    assert (is_kept, place, leases, after) == (True, None, 1, False)
    assert any("leas" in reason for reason in reasons), reasons


def test_explain_asks_nobody(alice: Caller, artifact: str) -> None:
    """What is not held is not brought to be explained."""
    with pytest.raises(errors.NotFound):
        call(alice, "explain", artifact)
    assert artifact not in held(alice)
