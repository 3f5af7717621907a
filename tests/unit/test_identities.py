"""Who callers are, by a name service that does what a test tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from artifactcache.errors import PermissionDenied
from cacheserver import libc
from cacheserver.access import Caller
from cacheserver.identities import RETRY_SECONDS, TOLD_SECONDS, Identities, NameService
from cacheserver.roles import Roles
from cacheserver.sessions import Peer
from cacheserver.settings import AccessConfig

PATIENCE_SECONDS = 30


class Names(NameService):
    """Its users, groups and memberships are dictionaries. `away`: it does not answer; `open`: it answers when set."""

    def __init__(self) -> None:
        self.users = {1001: ("ann", 100), 1002: ("ben", 100)}
        self.names = {100: "all", 200: "ops", 300: "staff"}
        self.members = {"ann": [200]}
        self.away = False
        self.open = threading.Event()
        self.open.set()
        self.question_count = 0

    def user(self, uid: int) -> tuple[str, int] | None:
        """By its number."""
        self.question_count += 1
        self._answer()
        return self.users.get(uid)

    def groups(self, user: str, gid: int) -> list[int]:
        """As getgrouplist: whoever is away is left out."""
        return [gid, *(() if self.away else self.members.get(user, ()))]

    def group(self, gid: int) -> str | None:
        """By its number."""
        self._answer()
        return self.names.get(gid)

    def _answer(self) -> None:
        if not self.open.wait(PATIENCE_SECONDS) or self.away:
            raise OSError(2, "No such file or directory")


class Clock:
    """Ticks as it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def peer(uid: int, gid: int = 100, *groups: int) -> Peer:
    """A process."""
    return Peer(uid, gid, 1, groups)


@pytest.fixture
def names() -> Iterator[Names]:
    """A name service."""
    names = Names()
    yield names
    names.open.set()


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def identities(names: Names, clock: Clock) -> Identities:
    """What asks it."""
    return Identities(clock, names)


def test_the_directorys_groups_count_where_it_knows_the_user(identities: Identities) -> None:
    """Not those that the process began with, which can only be denied."""
    one = identities.of(peer(1001, 300, 300, 999))
    assert one.caller == Caller("ann", frozenset({"all", "ops"}))
    assert one.is_denied_by(["@staff"]) and one.is_denied_by(["@ops"]) and one.is_denied_by(["ann"])
    assert not one.is_denied_by(["@others", "staff", "ben"])


def test_what_is_denied_by_number(identities: Identities) -> None:
    """Is denied though the host has a name for it, by now perhaps; a number grants nothing that has one."""
    one = identities.of(peer(1001, 300, 300, 999))
    for number in ("1001", "@200", "@300", "@999"):
        assert one.is_denied_by([number]), number
    assert not one.is_denied_by(["1002", "@1001", "200", "@201"])
    assert not any(one.caller.is_one_of([number]) for number in ("1001", "@200"))


def test_the_kernels_groups_count_where_it_does_not(identities: Identities) -> None:
    """By name where the host has one, else in digits; so does the user."""
    one = identities.of(peer(7777, 300, 8888))
    assert (one.caller, one.is_named, one.is_told) == (Caller("7777", frozenset({"staff", "8888"})), False, True)


def test_what_changes_is_noticed(identities: Identities, names: Names, clock: Clock) -> None:
    """After TOLD_SECONDS by the next call itself, however long nobody has called; before that nobody is asked twice."""
    assert identities.of(peer(1001)).caller.groups == {"all", "ops"}
    names.members["ann"] = [300]
    assert identities.of(peer(1001)).caller.groups == {"all", "ops"}
    assert names.question_count == 1
    clock.now += TOLD_SECONDS
    assert identities.of(peer(1001)).caller.groups == {"all", "staff"}


def test_a_directory_that_is_away(identities: Identities, names: Names, clock: Clock) -> None:
    """What it said last counts on; whom it has not told of has no name and no group, also not the kernel's. It is
    asked again after a while, not by each call."""
    known = identities.of(peer(1001))
    names.away = True
    clock.now += 10 * TOLD_SECONDS
    assert identities.of(peer(1001)) == known
    one = identities.of(peer(1002, 200))
    assert (one.caller, one.is_told) == (Caller("1002", frozenset()), False)
    asked = names.question_count
    assert identities.of(peer(1001)) == known and not identities.of(peer(1002, 200)).is_told
    assert names.question_count == asked
    names.away = False
    clock.now += RETRY_SECONDS
    assert identities.of(peer(1002, 200)).caller.user == "ben"


def test_a_directory_that_goes_between_two_questions(
    identities: Identities, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that are missing because it has just gone are not taken for all there are."""

    def groups(user: str, gid: int) -> list[int]:
        names.away = True
        return [gid]

    monkeypatch.setattr(names, "groups", groups)
    assert not identities.of(peer(1001)).is_told


def test_a_directory_that_hangs(
    identities: Identities, names: Names, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at somebody waits for it, but not for ever, and no later one does; nor does anybody who is known
    wait more than once. There is one question about each."""
    monkeypatch.setattr("cacheserver.identities.FIRST_LOOK_SECONDS", 0.05)
    monkeypatch.setattr("cacheserver.identities.PATIENCE_SECONDS", 0.05)
    known = identities.of(peer(1001))
    names.open.clear()
    clock.now += 10 * TOLD_SECONDS
    for _ in range(3):
        assert identities.of(peer(1001)) == known
        assert not identities.of(peer(1002)).is_told
        clock.now += 1
    assert names.question_count == 3


def test_the_host_itself() -> None:
    """Root is known, numbers that nobody has are not; that is no error."""
    assert (libc.user(0), libc.group(0)) == (("root", 0), "root")
    assert (libc.user(4_000_000_001), libc.group(4_000_000_001)) == (None, None)


# -- roles --------------------------------------------------------------------------------------------------------

OWN = 990  # the daemon's user ID


@contextmanager
def refused(words: str) -> Iterator[None]:
    """What is done in it is refused, with these words among others."""
    with pytest.raises(PermissionDenied, match=words):
        yield


def roles(identities: Identities, *, serves_all: bool = True, **lists: list[str]) -> Roles:
    """By these lists."""
    return Roles(AccessConfig(check="rules", **lists), identities, OWN, serves_all=serves_all)  # type: ignore[arg-type]


def test_a_daemon_of_ones_own_serves_its_user(identities: Identities) -> None:
    """And nobody else, not even root; no list changes that."""
    own = roles(identities, serves_all=False, allow=["ann", "root"])
    own.admit(peer(OWN))
    for uid in (0, 1001):
        with refused("only the user who started it"):
            own.admit(peer(uid))


def test_allow_and_deny(identities: Identities) -> None:
    """By user and by group; deny wins; root and the daemon's own user need no list; no name is no way around deny."""
    lists = roles(identities, allow=["@all", "@staff"], deny=["ben", "@ops"])
    for uid in (0, OWN):
        lists.admit(peer(uid))
    with refused("deny .* names you, ann"):
        lists.admit(peer(1001))
    with refused("deny .* names you, ben"):
        lists.admit(peer(1002))
    with refused("no user with uid 7777"):
        lists.admit(peer(7777, 300))
    roles(identities, allow=["@staff"]).admit(peer(7777, 300))
    roles(identities, deny=["ben"]).admit(peer(1001))
    with refused(r"allow .* neither you, ben, nor one of your groups \(all\)"):
        roles(identities, allow=["ann"]).admit(peer(1002))


def test_nobody_comes_in_while_the_directory_is_away(identities: Identities, names: Names) -> None:
    """Where there is a list; without one the daemon serves everybody, and asks for no name."""
    names.away = True
    for lists in (roles(identities, allow=["@all"]), roles(identities, deny=["ben"])):
        with refused("name service does not answer.*getent passwd 1001"):
            lists.admit(peer(1001))
    names.question_count = 0
    roles(identities, operators=["ann"]).admit(peer(1001))
    assert names.question_count == 0


def test_operators_and_administrators(identities: Identities) -> None:
    """Root and the daemon's user are both, administrators are operators, and nobody is what no list says."""
    given = roles(identities, operators=["@ops"], administrators=["ben"])
    assert given.of(peer(0)) == given.of(peer(OWN)) == given.of(peer(1002)) == ("operator", "administrator")
    assert given.of(peer(1001)) == ("operator",)
    assert given.of(peer(7777)) == () and given.sees_all(peer(1001)) and not given.sees_all(peer(7777))
    given.require(peer(1001), "operator", "pin")
    with refused("Only administrators may look: .* You are ann, uid 1001"):
        given.require(peer(1001), "administrator", "look")


def test_a_role_that_cannot_be_told_is_none(identities: Identities, names: Names) -> None:
    """And the refusal says why."""
    names.away = True
    with refused("Only operators may pin.*name service does not answer"):
        roles(identities, operators=["@ops"]).require(peer(1001, 200), "operator", "pin")
