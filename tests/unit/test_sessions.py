"""Sessions and their leases."""

from __future__ import annotations

import pytest

from artifactcache.errors import InvalidRequest, QuotaExceeded, Unauthenticated
from cacheserver import sessions as room
from cacheserver.leases import Leases
from cacheserver.sessions import Peer, Sessions

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
