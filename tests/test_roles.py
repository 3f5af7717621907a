"""What each role may see and do: readers, operators and administrators of a daemon that checks access."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.upkeep import call, held, new_artifact, succeed
from tests.rig.users import User


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, mlflow_proxied: MlflowServer, all_users: dict[str, User]) -> Daemon:
    """One that checks access by a grant for everybody, and gives every user at most 1 GiB."""
    if not all_users:
        pytest.skip("needs several users")
    more = '[quotas.user."*"]\nheld = "1GiB"\n[[grant]]\nname = "everything"\nto = ["*"]\n'
    return module_start(mlflow_proxied.uri, check="rules", more=more)


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root."""
    return caller_of(daemon, room, "root")


def test_ls_shows_others_what_they_have_fetched(
    alice: Caller, bob: Caller, operator: Caller, mlflow_proxied: MlflowServer
) -> None:
    """Operators see all of it; a fetch, be it a hit, puts it on one's own list."""
    first, second = new_artifact(mlflow_proxied), new_artifact(mlflow_proxied)
    call(alice, "warm", first)
    alice.fetch(second, alice.cwd / "dst")
    bob.fetch(second, bob.cwd / "dst")
    assert {first, second} <= held(alice).keys() and {first, second} <= held(operator).keys()
    assert held(bob).keys() & {first, second} == {second}


def test_only_operators_verify_everything(alice: Caller, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """Others what they name."""
    uri = new_artifact(mlflow_proxied)
    call(alice, "warm", uri)
    assert call(alice, "verify", uri)["blobs_checked"] > 0
    with pytest.raises(errors.PermissionDenied, match="Only operators may verify everything"):
        call(alice, "verify")
    assert call(operator, "verify")["corrupted"] == []


def test_quota(alice: Caller, bob: Caller, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """Everybody sees their own account, administrators every one; what two have fetched is half on each."""
    before = call(bob, "usage")[0]
    uri = f"runs:/{mlflow_proxied.run({'bytes': os.urandom(3000)})}"
    alice.fetch(uri, alice.cwd / "dst")
    bob.fetch(uri, bob.cwd / "dst")
    (mine,) = call(bob, "usage")
    assert (mine["uid"], mine["held_bytes_max"]) == (bob.uid, 1 << 30)
    assert (mine["held_bytes"] - before["held_bytes"], mine["tree_count"] - before["tree_count"]) == (1500, 1)
    with pytest.raises(errors.PermissionDenied, match="Only administrators may see everybody's accounts"):
        call(bob, "usage", everybody=True)
    everybody = call(operator, "usage", everybody=True)
    assert mine in everybody and {alice.uid, bob.uid} <= {each["uid"] for each in everybody}
    assert [each["held_bytes"] for each in everybody] == sorted((e["held_bytes"] for e in everybody), reverse=True)
    assert succeed(bob, "quota") == [mine] and mine in succeed(operator, "quota", "--all")
    shown = bob.command("quota").stdout.splitlines()
    assert shown[0].split() == ["USER", "HELD", "OF", "TREES"] and "1.0 GiB" in shown[1]
    assert bob.command("quota", "--all").returncode == 1


def test_whoami_shows_roles_and_groups(alice: Caller, operator: Caller) -> None:
    """By name."""
    assert succeed(operator, "whoami")["roles"] == ["operator", "administrator"]
    me = succeed(alice, "whoami")
    assert (me["roles"], me["groups"]) == ([], [me["user"]])
    assert f"roles reader; groups by name {me['user']}" in alice.command("whoami").stdout


def test_administrators_by_name(
    start_daemon: StartDaemon,
    room: Path,
    caller_of: CallerOf,
    all_users: dict[str, User],
    mlflow_proxied: MlflowServer,
) -> None:
    """They are operators too; whom deny names is told so, and has no session."""
    if not all_users:
        pytest.skip("needs several users")
    lists = {"administrators": [all_users["alice"].name], "deny": [all_users["bob"].name]}
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lists.items())
    daemon = start_daemon(mlflow_proxied.uri, more=more)
    alice, bob = (caller_of(daemon, room, role) for role in ("alice", "bob"))
    call(alice, "usage", everybody=True)
    assert call(alice, "sweep", dry_run=True)["dry_run"]
    with pytest.raises(errors.PermissionDenied, match="deny in the daemon's configuration names you"):
        call(bob, "whoami")
