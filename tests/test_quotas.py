"""Quotas of real users and their groups: who is refused what, with which words, and who is not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import call, held, new_artifact, sweep_all
from tests.rig.users import User, reason_not_to_add

KIB = 1024
_HOLD = "import artifactcache\nwith artifactcache.fetch(uri) as path:\n    say(str(path))\n    hear()\nresult = None"


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy, all_users: dict[str, User]) -> Daemon:
    """One with a quota for alice, for bob's group, and for nobody else."""
    if not all_users:
        pytest.skip(reason_not_to_add() or "")
    more = (
        f'[quotas.user.{all_users["alice"].name}]\nheld = "100KiB"\ndownloads = 1\n'
        f'[quotas.group.{all_users["bob"].name}]\nheld = "200KiB"\n'
    )
    return module_start(origin.uri, grace=0.0, more=more)


@pytest.fixture
def root(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root, who has no quota."""
    return caller_of(daemon, room, "root")


@pytest.fixture(autouse=True)
def _emptied(root: Caller) -> None:
    """Nobody holds anything of an earlier test."""

    def is_empty() -> bool:
        sweep_all(root)
        return not held(root)

    until(is_empty, "all to go")


def artifact(server: MlflowServer, kib: int) -> str:
    """An artifact of so many KiB that nobody has asked for."""
    name = new_artifact(server).removeprefix("runs:/")
    return f"runs:/{server.run({'data': name.encode() * (kib * KIB // len(name))})}"


def test_ones_own_goes_and_others_stays(alice: Caller, bob: Caller, root: Caller, mlflow_proxied: MlflowServer) -> None:
    """What only alice has makes room for what she fetches; what root has as well, and what bob has, does not."""
    shared, theirs = artifact(mlflow_proxied, 40), artifact(mlflow_proxied, 90)
    mine, more = artifact(mlflow_proxied, 60), artifact(mlflow_proxied, 60)
    for uri in (shared, mine):
        call(alice, "warm", uri)
    call(root, "warm", shared)
    call(bob, "warm", theirs)
    call(alice, "warm", more)
    assert {shared, theirs, more} <= held(root).keys() and mine not in held(root)


def test_a_refusal_comes_through_the_command(
    alice: Caller, bob: Caller, root: Caller, mlflow_proxied: MlflowServer
) -> None:
    """It says by how much, of how much, and which key would grant it; the same artifact is bob's for the asking, and
    then alice's as well: a hit is never refused."""
    assert alice.user
    large = artifact(mlflow_proxied, 150)
    done = alice.command("fetch", large, "large")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "150.0 KiB more are" in done.stderr and "too many for the user " + alice.user.name in done.stderr
    assert f"[quotas.user.{alice.user.name}] held" in done.stderr
    assert not (alice.cwd / "large").exists() and large not in held(root)
    with pytest.raises(errors.QuotaExceeded, match="What would free it"):
        alice.fetch(large)
    assert bob.fetch(large).origin_bytes
    assert alice.fetch(large, "large").hit


def test_a_group_has_its_own(bob: Caller, root: Caller, mlflow_proxied: MlflowServer) -> None:
    """Who is in it is what the kernel says."""
    assert bob.user
    large = artifact(mlflow_proxied, 250)
    with pytest.raises(
        errors.QuotaExceeded, match=rf"the group {bob.user.name}.*\[quotas\.group\.{bob.user.name}\] held"
    ):
        bob.fetch(large)
    assert root.fetch(large).origin_bytes


def test_what_is_in_use_is_named(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """What she has a view of stays, is why there is no room, and makes room when she lets it go."""
    first, second = artifact(mlflow_proxied, 80), artifact(mlflow_proxied, 80)
    with alice.start(_HOLD, uri=first) as job:
        job.hear()
        with pytest.raises(errors.QuotaExceeded, match=r"What would free it: releasing what has to stay.*1 leased"):
            alice.fetch(second)
        job.say("done")
        job.result()
    assert alice.fetch(second).origin_bytes


def test_downloads_at_a_time(alice: Caller, bob: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """The second is refused while the first is under way; to wait for what somebody brings is none, nor are others'."""
    first, second = artifact(mlflow_proxied, 1), artifact(mlflow_proxied, 1)
    fetch = "import artifactcache\nresult = artifactcache.fetch(uri, dst).origin_bytes"
    with contextlib.ExitStack() as jobs:
        with origin.holding():
            hers = [jobs.enter_context(alice.start(fetch, uri=first, dst=dst)) for dst in ("one", "two")]
            origin.wait_for_download()
            with pytest.raises(errors.QuotaExceeded, match=r"1 download.*let one of them end"):
                alice.fetch(second)
            his = jobs.enter_context(bob.start(fetch, uri=second, dst="other"))
            origin.wait_for_download(2)
        assert sorted(job.result() for job in hers) == [0, KIB]
        assert his.result() == KIB
    assert alice.fetch(artifact(mlflow_proxied, 1)).origin_bytes
