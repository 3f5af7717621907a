"""Tickets and keys of the page: for whom, how long, how many."""

from __future__ import annotations

import pytest

from artifactcache.errors import NotFound, Unauthenticated
from cacheserver.entrance import KEY_SECONDS, PER_USER_MAX, TICKET_SECONDS, TOTAL_MAX, Entrance
from cacheserver.sessions import Peer

ALICE, BOB = Peer(1, 1, 1), Peer(2, 2, 2)


class Door:
    """An entrance with a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.entrance = Entrance("127.0.0.1:1", lambda: self.now)

    def ticket(self, peer: Peer) -> str:
        """What is behind the # of an address."""
        return self.entrance.ticket(peer)[0].partition("#")[2]

    def enter(self, peer: Peer) -> str:
        """A key of somebody's."""
        return self.entrance.enter(self.ticket(peer))


@pytest.fixture
def door() -> Door:
    """One of the test's own."""
    return Door()


def test_a_ticket_is_good_once(door: Door) -> None:
    """And a key for as long as it lasts, for whom it was given."""
    url, seconds = door.entrance.ticket(ALICE)
    assert url.startswith("http://127.0.0.1:1/#") and seconds == TICKET_SECONDS
    ticket = url.partition("#")[2]
    key = door.entrance.enter(ticket)
    assert door.entrance.whose(key) == ALICE == door.entrance.whose(key) and key != ticket
    assert door.entrance.whose(door.enter(BOB)) == BOB
    for wrong in (ticket, "", key):
        with pytest.raises(Unauthenticated, match="opened already, or is too old"):
            door.entrance.enter(wrong)
    with pytest.raises(Unauthenticated):
        door.entrance.whose(ticket)


def test_both_have_an_end(door: Door) -> None:
    """To the second."""
    ticket, key = door.ticket(ALICE), door.enter(ALICE)
    door.now = TICKET_SECONDS
    with pytest.raises(Unauthenticated):
        door.entrance.enter(ticket)
    door.now = KEY_SECONDS - 1
    assert door.entrance.whose(key) == ALICE
    door.now = KEY_SECONDS
    with pytest.raises(Unauthenticated, match="Nobody has this key"):
        door.entrance.whose(key)


def test_there_is_an_end_to_them(door: Door) -> None:
    """Of one user, whose oldest goes and nobody else's; and of all."""
    others, keys = door.enter(BOB), [door.enter(ALICE) for _ in range(PER_USER_MAX + 3)]
    for key in keys[:3]:
        with pytest.raises(Unauthenticated):
            door.entrance.whose(key)
    assert all(door.entrance.whose(key) == ALICE for key in keys[3:]) and door.entrance.whose(others) == BOB
    for uid in range(10, 10 + TOTAL_MAX):
        door.enter(Peer(uid, uid, uid))
    with pytest.raises(Unauthenticated):
        door.entrance.whose(others)
    assert len(door.entrance._keys._good) == TOTAL_MAX


def test_without_a_page_there_is_no_address() -> None:
    """And it is said how there would be one."""
    with pytest.raises(NotFound, match=r'listen = "127.0.0.1:9465" into \[page\].*artifactcache top'):
        Entrance("", lambda: 0.0).ticket(ALICE)
