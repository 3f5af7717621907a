"""Who may pin, unpin and sweep."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from cacheserver.operators import Operators
from cacheserver.sessions import Peer

OWN = 990  # the daemon's user ID
NOBODY = pwd.getpwnam("nobody")
GROUP = next(group for group in grp.getgrall() if group.gr_gid not in (0, NOBODY.pw_gid))


def peer(uid: int, gid: int = 54_321, *groups: int) -> Peer:
    """A client of this user and these groups."""
    return Peer(uid, gid, os.getpid(), groups)


def test_root_and_the_daemons_own_user_always_are() -> None:
    """Whatever the configuration names; and nobody else by himself."""
    operators = Operators([], OWN)
    assert operators.admits(peer(0)) and operators.admits(peer(OWN))
    assert not operators.admits(peer(NOBODY.pw_uid)) and not operators.admits(peer(54_321, OWN, 0))


def test_users_are_named() -> None:
    """By their names, not by those of their groups, nor by numbers."""
    operators = Operators(["nobody"], OWN)
    assert operators.admits(peer(NOBODY.pw_uid))
    assert not operators.admits(peer(54_321, NOBODY.pw_gid, NOBODY.pw_uid))
    assert not Operators([str(NOBODY.pw_uid), "@nobody"], OWN).admits(peer(NOBODY.pw_uid))


def test_groups_are_named() -> None:
    """With @; the first group of a process counts as much as the others, and a user of that name does not."""
    operators = Operators([f"@{GROUP.gr_name}"], OWN)
    assert operators.admits(peer(54_321, GROUP.gr_gid)) and operators.admits(peer(54_321, 1, 2, GROUP.gr_gid))
    assert not operators.admits(peer(GROUP.gr_gid, 54_321, 54_322))


def test_who_is_not_there_admits_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the host has got such a user or group: it is asked each time."""
    operators = Operators(["later", "@later", ""], OWN)
    assert not operators.admits(peer(4242, 4343))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", 4242, 1, "", "/", "/")))
    assert operators.admits(peer(4242))
    monkeypatch.undo()
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 4343, [])))
    assert operators.admits(peer(1, 4343)) and not operators.admits(peer(4242))
