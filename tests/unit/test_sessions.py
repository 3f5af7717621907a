"""Sessions and their leases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import InvalidRequest, QuotaExceeded, Unauthenticated
from cacheserver import sessions as room
from cacheserver.leases import Leases
from cacheserver.register import Process, Register
from cacheserver.sessions import Peer, Session, Sessions
from tests.unit.house import PATIENCE_SECONDS

ALICE, ALICES_OTHER, BOB = Peer(1001, 1001, 50), Peer(1001, 1001, 51), Peer(1002, 1002, 52)


def test_a_token_names_its_session_until_that_ends() -> None:
    """Every session has a token of its own, long enough not to be guessed; after the end it is worth nothing."""
    sessions = Sessions(Leases(lambda: 0.0))
    one, other = sessions.open(ALICE), sessions.open(ALICE)
    assert one.token != other.token and len(one.token) >= 43
    assert sessions.get(one.token) is one and sessions.get(one.token).peer == ALICE
    sessions.close(one)
    for token in (one.token, "", "guessed", other.token[:-1]):
        with pytest.raises(Unauthenticated):
            sessions.get(token)
    assert sessions.get(other.token) is other


def test_only_the_same_process_of_the_same_user_joins() -> None:
    """A token that leaked to another user, or to another process, opens nothing."""
    sessions = Sessions(Leases(lambda: 0.0))
    session = sessions.open(ALICE)
    assert sessions.join(session.token, Peer(1001, 7, 50, (7,))) is session
    for peer in (ALICES_OTHER, BOB, Peer(1002, 1002, 50)):
        with pytest.raises(Unauthenticated):
            sessions.join(session.token, peer)


def test_a_lease_is_of_its_session_alone() -> None:
    """A lease gives the tree to the session it was given to, until it is released or the session ends."""
    leases = Leases(lambda: 0.0)
    sessions = Sessions(leases)
    alice, bob = sessions.open(ALICE), sessions.open(BOB)
    alices, bobs = sessions.lease(alice, "t1"), sessions.lease(bob, "t1")
    assert alices != bobs
    assert sessions.leased(alice, alices) == sessions.leased(bob, bobs) == "t1"
    for session, lease in ((alice, bobs), (bob, alices), (alice, 0), (alice, 10**9)):
        with pytest.raises(InvalidRequest):
            sessions.leased(session, lease)
    sessions.release(bob, alices)  # not bob's: nothing happens
    assert (sessions.count(), leases.count("t1")) == (2, 2)
    sessions.close(alice)
    sessions.close(alice)
    assert (sessions.count(), leases.count("t1")) == (1, 1)


def test_a_tree_given_twice_is_released_twice() -> None:
    """Two views of one tree in one process: the tree stays leased until both are released, and no longer."""
    leases = Leases(lambda: 0.0)
    sessions = Sessions(leases)
    alice = sessions.open(ALICE)
    number = sessions.lease(alice, "t1")
    assert sessions.lease(alice, "t1") == number
    other = sessions.lease(alice, "t2")
    assert leases.is_leased("t1") and leases.is_leased("t2")
    sessions.release(alice, number)
    assert sessions.leased(alice, number) == "t1"
    for _ in range(3):
        sessions.release(alice, number)
    with pytest.raises(InvalidRequest):
        sessions.leased(alice, number)
    assert leases.is_leased("t2") and not leases.is_leased("t1")
    assert len({number, other, sessions.lease(alice, "t1")}) == 3, "a number is never given again"


def test_a_session_that_has_ended_gets_no_lease() -> None:
    """A fetch that outlives its client leaves no promise behind."""
    leases = Leases(lambda: 0.0)
    sessions = Sessions(leases)
    session = sessions.open(ALICE)
    sessions.close(session)
    with pytest.raises(Unauthenticated):
        sessions.lease(session, "t")
    assert (sessions.count(), leases.total()) == (0, 0)


def test_there_is_an_end_to_sessions_and_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for more than the limits hears QuotaExceeded, and gets it again once something has ended."""
    monkeypatch.setattr(room, "SESSIONS_PER_USER_MAX", 2)
    monkeypatch.setattr(room, "LEASES_PER_USER_MAX", 2)
    sessions = Sessions(Leases(lambda: 0.0))
    one, other = sessions.open(ALICE), sessions.open(ALICES_OTHER)
    with pytest.raises(QuotaExceeded):
        sessions.open(ALICE)
    bobs = sessions.open(BOB)
    lease, _ = sessions.lease(one, "t"), sessions.lease(other, "t")
    for _ in range(20_000):
        assert sessions.lease(one, "t") == lease, "the same tree again is no other lease"
    with pytest.raises(QuotaExceeded):
        sessions.lease(one, "more")
    sessions.lease(bobs, "more")
    sessions.close(other)
    sessions.lease(one, "more")
    sessions.open(ALICE)
    with pytest.raises(QuotaExceeded):
        sessions.open(ALICE)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A client's process, which lives until it is told otherwise."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kills a process, and leaves nothing of it."""
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


class Daemon:
    """What of a daemon has to do with leases; another one on the same register is the one after it."""

    def __init__(self, path: Path) -> None:
        self.leases = Leases(lambda: 0.0)
        self.sessions = Sessions(self.leases, Register(str(path), "boot"))

    def open(self, pid: int) -> Session:
        """A session of a process."""
        return self.sessions.open(Peer(1001, 1001, pid))


TREES = [digit * 64 for digit in "abcd"]


def test_a_view_is_leased_by_the_next_daemon_until_its_process_ends(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    """The daemon is killed and started again, twice: who has a view still reads it; when he ends, it may go."""
    before = Daemon(tmp_path / "leases")
    mine, childs = before.open(os.getpid()), before.open(child.pid)
    for session, trees in ((mine, TREES[:2]), (childs, TREES[1:3])):
        for tree in trees:
            before.sessions.lease(session, tree, view=True)
    before.sessions.lease(childs, TREES[3])  # linked, or copied: when that is done nobody needs it
    for _ in range(2):
        after = Daemon(tmp_path / "leases")
        assert [after.leases.count(tree) for tree in TREES] == [1, 2, 1, 0] and after.sessions.count() == 0
        after.sessions.reap()
        assert after.leases.total() == 4, "all live"
    end(child)
    after.sessions.reap()
    after.sessions.reap()
    assert [after.leases.count(tree) for tree in TREES] == [1, 1, 0, 0]
    assert [Daemon(tmp_path / "leases").leases.count(tree) for tree in TREES] == [1, 1, 0, 0]


def test_a_view_that_is_released_is_not_leased_by_the_next_daemon(tmp_path: Path) -> None:
    """Nor are those of a connection that has ended; a tree that was given twice is until both are released."""
    before = Daemon(tmp_path / "leases")
    mine, other = before.open(os.getpid()), before.open(os.getpid())
    for tree in TREES[:3]:
        number = before.sessions.lease(mine, tree, view=True)
        before.sessions.lease(mine, tree, view=True)
        before.sessions.release(mine, number)
        if tree != TREES[0]:
            before.sessions.release(mine, number)
    for tree in TREES[2:]:
        before.sessions.lease(other, tree, view=True)
    before.sessions.close(other)
    after = Daemon(tmp_path / "leases")
    assert [after.leases.count(tree) for tree in TREES] == [1, 0, 0, 0]


def test_a_view_counts_whatever_else_of_its_tree_is_released(tmp_path: Path) -> None:
    """One process has a tree linked and as a view, in any order: one lease, which is registered while it lasts."""
    for view_first in (True, False):
        before = Daemon(tmp_path / "leases")
        mine = before.open(os.getpid())
        number = before.sessions.lease(mine, TREES[0], view=view_first)
        assert before.sessions.lease(mine, TREES[0], view=not view_first) == number
        before.sessions.release(mine, number)
        assert Daemon(tmp_path / "leases").leases.count(TREES[0]) == 1
        (tmp_path / "leases").unlink()


def test_who_comes_back_to_the_next_daemon_keeps_what_he_had(tmp_path: Path) -> None:
    """A process asks anew for the view that it has, and releases that: what it had before is its own until it ends."""
    before = Daemon(tmp_path / "leases")
    before.sessions.lease(before.open(os.getpid()), TREES[0], view=True)
    after = Daemon(tmp_path / "leases")
    again = after.open(os.getpid())
    number = after.sessions.lease(again, TREES[0], view=True)
    assert after.leases.count(TREES[0]) == 2
    after.sessions.release(again, number)
    after.sessions.close(again)
    assert after.leases.count(TREES[0]) == 1
    assert Daemon(tmp_path / "leases").leases.count(TREES[0]) == 1


def test_a_lease_waits_for_a_sweep_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """While one session waits for a doomed tree, others lease and end; who has gone meanwhile leaves no lease."""
    daemon = Daemon(tmp_path / "leases")
    mine, other = daemon.open(os.getpid()), daemon.open(os.getpid())
    assert daemon.leases.doom([TREES[0]]) == [TREES[0]]
    with ThreadPoolExecutor(2) as pool:
        stays, goes = (pool.submit(daemon.sessions.lease, one, TREES[0], view=True) for one in (mine, other))
        assert daemon.sessions.lease(mine, TREES[1], view=True)
        daemon.sessions.close(other)
        assert not stays.done() and not goes.done() and daemon.leases.count(TREES[0]) == 0
        daemon.leases.spare([TREES[0]])
        with pytest.raises(Unauthenticated):
            goes.result(timeout=PATIENCE_SECONDS)
        assert daemon.sessions.leased(mine, stays.result(timeout=PATIENCE_SECONDS)) == TREES[0]
    assert daemon.leases.count(TREES[0]) == 1 and daemon.leases.total() == 2


class Slow(Register):
    """A register whose disk hangs until it is told otherwise."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "boot")
        self.reached, self.go = threading.Semaphore(0), threading.Event()

    def _hang(self) -> None:
        self.reached.release()
        assert self.go.wait(PATIENCE_SECONDS)

    def add(self, one: Process, tree: str) -> None:
        """Writes it down, when the disk does."""
        self._hang()
        super().add(one, tree)

    def remove(self, one: Process, tree: str) -> None:
        """Writes it down, when the disk does."""
        self._hang()
        super().remove(one, tree)


def test_who_waits_for_the_registers_disk_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A view's line cannot be written, one that is given back or that a connection had neither: others open sessions,
    have them found, lease, release and end."""
    register = Slow(tmp_path / "leases")
    sessions, me = Sessions(Leases(lambda: 0.0), register), Peer(1001, 1001, os.getpid())

    def others() -> None:
        session = sessions.open(me)
        assert sessions.join(session.token, me) is session
        sessions.release(session, sessions.lease(session, TREES[3]))
        sessions.close(session)

    with ThreadPoolExecutor(2) as pool:
        session, closing = sessions.open(me), sessions.open(me)

        def check(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
            hanging = pool.submit(call, *args, **options)
            try:
                assert register.reached.acquire(timeout=PATIENCE_SECONDS)
                pool.submit(others).result(timeout=PATIENCE_SECONDS / 3)
                assert not hanging.done()
            finally:
                register.go.set()
            found = hanging.result(timeout=PATIENCE_SECONDS)
            register.go.clear()
            return found

        number = check(sessions.lease, session, TREES[0], view=True)
        check(sessions.release, session, number)
        check(sessions.lease, closing, TREES[1], view=True)
        check(sessions.close, closing)
    assert register.trees() == {}
