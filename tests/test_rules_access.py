"""check = "rules": who may read what is written in [[grant]]s, for which the daemon asks with an account of its own.

A real MLflow server with its basic-auth app, where nobody but the daemon has an account.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.guarded_server import GuardedServer, guarded
from tests.rig.users import User

FILES = {"public/one": b"1", "public/deep/two": b"22", "private": b"333"}
PATIENCE = 30.0

GRANTS = """
[[grant]]
name = "vision"
to = ["{alice}"]
experiment = "vision/*"

[[grant]]
name = "open runs"
to = ["*"]
tag = {{ confidential = "no" }}

[[grant]]
name = "public parts"
to = ["@{bob}"]
experiment = "shared"
path = "public/*"

[[grant]]
name = "released"
to = ["{bob}"]
model = "released-*"

[[grant]]
name = "released from vision"
to = ["{bob}"]
model = "careful-*"
experiment = "vision/*"
"""


@pytest.fixture(scope="module")
def server(module_room: Path) -> Iterator[GuardedServer]:
    """The daemon's account may read everything that is made here."""
    with guarded(module_room / "guarded") as server:
        server.add_user("service")
        server.auth.update_user_admin("service", True)
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, server: GuardedServer, all_users: dict[str, User]) -> Daemon:
    """Goes by grants to alice, to bob and to everybody."""
    if not all_users:
        pytest.skip("grants to several users need root, who makes them")
    grants = GRANTS.format(alice=all_users["alice"].name, bob=all_users["bob"].name)
    return module_start(server.uri, check="rules", unreachable_after=PATIENCE, env=server.login("service"), more=grants)


@pytest.fixture(scope="module")
def vision(server: GuardedServer) -> str:
    """A run of an experiment of alice's team."""
    return server.run_in(server.experiment_of("vision/detectors"), FILES, {"confidential": "yes"})


@pytest.fixture(scope="module")
def shared(server: GuardedServer) -> str:
    """A run of which a part is for bob."""
    return server.run_in(server.experiment_of("shared"), FILES)


def refused(caller: Caller, uri: str, kind: type[Exception] = errors.PermissionDenied) -> str:
    """What a caller is told."""
    with pytest.raises(kind) as told:
        caller.fetch(uri)
    return str(told.value)


def test_what_no_grant_names_is_refused(alice: Caller, bob: Caller, server: GuardedServer, vision: str) -> None:
    """Hit or miss; the words name what was asked for and who may change it, and no account of the daemon's."""
    uri = f"runs:/{vision}"
    refused(bob, uri)
    assert alice.fetch(uri).file_count == 3 and alice.fetch(uri).hit
    words = refused(bob, uri)
    assert vision in words and "[[grant]]" in words and server.passwords["service"] not in words
    for part in ("/private", "/public", ""):
        refused(bob, f"{server.artifact_uri(vision)}{part}")
    assert alice.fetch(f"{server.artifact_uri(vision)}/private").hit


def test_a_tag_grants_to_everybody(alice: Caller, bob: Caller, server: GuardedServer) -> None:
    """And one with another value, or none, does not."""
    experiment = server.experiment_of("tagged")
    for tags, granted in (({"confidential": "no"}, True), ({"confidential": "yes"}, False), ({}, False)):
        uri = f"runs:/{server.run_in(experiment, {'x': b'x'}, tags)}"
        for caller in (alice, bob):
            if granted:
                assert caller.fetch(uri).file_count == 1
            else:
                refused(caller, uri)


def test_a_part_is_granted_and_the_whole_is_not(bob: Caller, server: GuardedServer, shared: str) -> None:
    """By its path in the run, whatever it is named by; no selection of files makes a part of the whole."""
    assert bob.fetch(f"runs:/{shared}/public/deep").file_count == 1
    assert bob.fetch(f"{server.artifact_uri(shared)}/public/one").file_count == 1
    for uri in (f"runs:/{shared}", f"runs:/{shared}/private", f"runs:/{shared}/public", server.artifact_uri(shared)):
        refused(bob, uri)
    with pytest.raises(errors.PermissionDenied):
        bob.fetch(f"runs:/{shared}", include=["public/**"])


def test_a_registered_model(alice: Caller, bob: Caller, server: GuardedServer, vision: str, shared: str) -> None:
    """By its name alone, or together with what its bytes are; the run itself is not granted by that."""
    made_of = {"released-1": (vision, True), "careful-1": (vision, True), "careful-2": (shared, False)}
    for name, (run_id, granted) in made_of.items():
        number = server.add_version(name, run_id, "public")
        server.client.set_registered_model_alias(name, "champion", number)
        for uri in (f"models:/{name}@champion", f"models:/{name}/{number}", f"models:/{name}/latest"):
            if granted:
                assert bob.fetch(uri).file_count == 2
            else:
                refused(bob, uri)
        if run_id == vision:  # what it is made of is hers by whatever name
            assert alice.fetch(f"models:/{name}/{number}").file_count == 2
        else:
            refused(alice, f"models:/{name}/{number}")
    refused(bob, f"runs:/{vision}/public")


def test_what_does_not_exist_is_granted_to_nobody(alice: Caller) -> None:
    """It is in no experiment."""
    refused(alice, f"runs:/{'0' * 32}")
    refused(alice, "s3://bucket/key")


def test_what_is_listed_is_ones_own(alice: Caller, bob: Caller, vision: str) -> None:
    """Names of what others have fetched are none of bob's business."""
    alice.fetch(f"runs:/{vision}")
    code = "import artifactcache\nwith artifactcache.Client() as c:\n    result = [h.version for h in c.list()]"
    assert any(vision in version for version in alice.run(code))
    assert not any(vision in version for version in bob.run(code))


def test_both_ways_together(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, server: GuardedServer, all_users: dict[str, User]
) -> None:
    """Beside "caller" a grant narrows: the tracking server and a grant both have to let a caller in."""
    if not all_users:
        pytest.skip("grants to several users need root, who makes them")
    server.add_user("both")
    run_id = server.run_in(server.experiment_of("both", "both"), FILES)
    other = server.run_in(server.experiment_of("other", "both"), FILES)
    grants = f'[[grant]]\nto = ["{all_users["alice"].name}"]\nexperiment = "both"\n'
    daemon = start_daemon(
        server.uri, check="caller", unreachable_after=PATIENCE, env=server.login("service"), more=grants
    )
    alice, bob = caller_of(daemon, room, "alice"), caller_of(daemon, room, "bob")
    assert alice.fetch(f"runs:/{run_id}", env=server.login("both")).file_count == 3
    for caller, run, login in ((bob, run_id, "both"), (alice, other, "both")):
        with pytest.raises(errors.PermissionDenied):
            caller.fetch(f"runs:/{run}", env=server.login(login))
    with pytest.raises(errors.Unauthenticated):
        alice.fetch(f"runs:/{run_id}")
