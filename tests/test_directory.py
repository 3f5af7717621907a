"""Users of a directory, real LDAP by nslcd: who they are, what their groups give, and what happens while it is away."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from cacheserver.identities import TOLD_SECONDS
from tests.rig import directory
from tests.rig.caller import Caller, Job
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.directory import Directory
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import call
from tests.rig.users import User

# The host itself knows none of these numbers.
ANN, BEN, CLEO, DAN = (
    User(f"directory-{name}", 710_001 + n, 710_000) for n, name in enumerate(("ann", "ben", "cleo", "dan"))
)
OPS_GID = 710_100
GROUPS = {
    "directory-all": (710_000, []),
    "directory-ops": (OPS_GID, [ANN.name]),
    "directory-staff": (710_101, [ANN.name, BEN.name, DAN.name]),
    "directory-banned": (710_102, []),
}
NOTICED_SECONDS = TOLD_SECONDS + 30  # on a busy machine
_ASK = """
import artifactcache
with artifactcache.Client() as client:
    while True:
        try:
            me = client.whoami()
            say([me.user, sorted(me.groups), list(me.roles)])
        except artifactcache.CacheError as error:
            say([type(error).__name__, str(error)])
        if not hear():
            break
result = None
"""


@pytest.fixture(scope="module")
def ldap(module_room: Path, all_users: dict[str, User]) -> Iterator[Directory]:
    """The directory."""
    if (reason := directory.reason_not_to_serve()) is not None:
        pytest.skip(reason)
    with directory.serving(module_room / "directory", [ANN, BEN, CLEO, DAN], GROUPS) as served:
        yield served


@pytest.fixture
def daemon(
    ldap: Directory, room: Path, all_users: dict[str, User], interpreter: Interpreter, mlflow_proxied: MlflowServer
) -> Iterator[Daemon]:
    """One that knows the directory's users, and serves its staff, and alice of the host's own files."""
    lists = {
        "allow": ["@directory-staff", all_users["alice"].name],
        "deny": ["@directory-banned"],
        "operators": ["@directory-ops"],
    }
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lists.items())
    folder = room / "of-the-directory"
    folder.mkdir()
    text = config_text(folder / "store", mlflow_proxied.uri, more=more)
    told = Daemon(interpreter, all_users["daemon"], folder, folder / "store", text, is_system=True, wrap=ldap.wrap)
    with running(told):
        yield told


def caller(daemon: Daemon, user: User) -> Caller:
    """A process of somebody's."""
    return Caller(daemon.interpreter, user, daemon.socket_dir, Path("/"))


def again(job: Job) -> list[Any]:
    """What a session that is open hears when it asks once more."""
    job.say(True)
    answer: list[Any] = job.hear()
    return answer


def test_users_of_a_directory_are_named(daemon: Daemon) -> None:
    """With their groups there, which the kernel knows nothing of; those of the host's files as well."""
    me = call(caller(daemon, ANN), "whoami")
    assert (me["uid"], me["gids"], me["user"]) == (ANN.uid, [ANN.gid], ANN.name)
    assert me["groups"] == ["directory-all", "directory-ops", "directory-staff"]
    assert me["roles"] == ["operator"]
    assert call(caller(daemon, BEN), "whoami")["roles"] == []
    with pytest.raises(errors.PermissionDenied, match=f"allow .* names neither you, {CLEO.name}.*directory-all"):
        call(caller(daemon, CLEO), "whoami")


def test_a_change_in_the_directory_is_noticed(daemon: Daemon, ldap: Directory) -> None:
    """By sessions that are open, while the kernel still says that their process is in the group: who is put out of the
    operators' group is none any more, and who comes into a group that is denied is served no more."""
    still_in_ops = dataclasses.replace(ANN, gid=OPS_GID)
    with caller(daemon, still_in_ops).start(_ASK) as ann, caller(daemon, BEN).start(_ASK) as ben:
        assert ann.hear() == [ANN.name, ["directory-all", "directory-ops", "directory-staff"], ["operator"]]
        assert ben.hear() == [BEN.name, ["directory-all", "directory-staff"], []]
        ldap.change_members("directory-ops", remove=ANN.name)
        ldap.change_members("directory-banned", add=BEN.name)
        try:
            until(lambda: "operator" not in again(ann)[-1], "ann to be no operator", NOTICED_SECONDS)
            until(lambda: again(ben)[0] == "PermissionDenied", "ben to be denied", NOTICED_SECONDS)
            with pytest.raises(errors.PermissionDenied, match="Only operators may sweep"):
                call(caller(daemon, still_in_ops), "sweep", dry_run=True)
            with pytest.raises(errors.PermissionDenied, match=f"deny .* names you, {BEN.name}"):
                call(caller(daemon, BEN), "whoami")
        finally:
            ldap.change_members("directory-ops", add=ANN.name)
            ldap.change_members("directory-banned", remove=BEN.name)


def test_without_the_directory(daemon: Daemon, ldap: Directory, all_users: dict[str, User]) -> None:
    """Be it the LDAP server or nslcd that is stopped: who was known is served on, also when what is known of them is
    old, and who was not is refused, with words, until it is back. The host's own users are known all the time."""
    with caller(daemon, ANN).start(_ASK) as ann:
        known = ann.hear()
        ldap.stop_slapd()
        try:
            with pytest.raises(errors.PermissionDenied, match=r"name service does not answer.*getent passwd"):
                call(caller(daemon, DAN), "whoami")
            ldap.stop_nslcd()
            with pytest.raises(errors.PermissionDenied, match=r"name service does not answer.*getent passwd"):
                call(caller(daemon, BEN), "whoami")
            assert call(caller(daemon, all_users["alice"]), "whoami")["user"] == all_users["alice"].name
            asked_at = time.monotonic()
            until(lambda: time.monotonic() > asked_at + TOLD_SECONDS, "what is known of ann to be old", 60)
            assert again(ann) == known
        finally:
            ldap.start_slapd()
            if ldap.nslcd is None:
                ldap.start_nslcd()
        until(ldap.is_known, "nslcd to have found its server again")
        until(lambda: _is_served(caller(daemon, DAN)), "somebody new to be known")
    assert f"does not say who uid {DAN.uid} is" in daemon.read_log()


def test_a_directory_that_hangs_hangs_nobody(daemon: Daemon, ldap: Directory, all_users: dict[str, User]) -> None:
    """Who was known is answered, who was not is refused; calls that need no name are not even late."""
    root = Caller(daemon.interpreter, User("root", 0, 0), daemon.socket_dir, Path("/"))
    with caller(daemon, ANN).start(_ASK) as ann:
        known = ann.hear()
        with ldap.hanging():
            with pytest.raises(errors.PermissionDenied, match="name service does not answer"):
                call(caller(daemon, DAN), "whoami", timeout=60)
            assert again(ann) == known
            assert call(root, "stats", timeout=60)["session_count"] >= 1
        until(lambda: _is_served(caller(daemon, DAN)), "somebody new to be known")


def _is_served(somebody: Caller) -> bool:
    try:
        return bool(call(somebody, "whoami")["user"])
    except errors.PermissionDenied:
        return False
