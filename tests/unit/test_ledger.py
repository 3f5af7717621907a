"""Whose account holds how much: shares, members, and what they add up to."""

from __future__ import annotations

import random

import pytest

from tests.unit.accounts import ALICE, BOB, CAROL, account, fetch, give
from tests.unit.house import House, Shelf
from tests.unit.sweeping import ALL

A, B, C = 1, 2, 3  # user IDs
ONE, TWO = 10, 20  # group IDs


def charge(shelf: Shelf, *pairs: tuple[str, int]) -> None:
    """Puts trees on users' accounts."""
    shelf.index.ledger.charge(dict.fromkeys(pairs, 1.0))


def test_a_tree_of_ones_own_counts_in_full(shelf: Shelf) -> None:
    """Each blob once, however many files it is; nobody else has anything."""
    tree = shelf.put({"a": b"x" * 100, "again": b"x" * 100, "b": b"y" * 7, "zero": b"", "hollow/": b""}).tree
    charge(shelf, (tree, A))
    assert shelf.index.ledger.of_user(A) == 107 == shelf.index.totals()["blob_bytes"]
    assert shelf.index.ledger.of_user(B) == 0


def test_a_shared_blob_is_split_among_trees_and_each_part_among_users(shelf: Shelf) -> None:
    """100 bytes in two trees are 50 for each tree; of the first, 25 for each of its two users."""
    common = {"common": b"c" * 100}
    first = shelf.put(common | {"one": b"1" * 8}, "s3://bucket/1").tree
    second = shelf.put(common | {"two": b"2" * 3}, "s3://bucket/2").tree
    charge(shelf, (first, A), (first, B), (second, A))
    assert shelf.index.ledger.of_user(A) == (50 + 8) / 2 + 50 + 3
    assert shelf.index.ledger.of_user(B) == (50 + 8) / 2


def test_what_is_on_nobodys_account_takes_its_part(shelf: Shelf) -> None:
    """A tree that nobody has fetched, such as one kept warm, halves what it shares for those who have."""
    common = {"common": b"c" * 100}
    mine = shelf.put(common, "s3://bucket/1").tree
    charge(shelf, (mine, A))
    assert shelf.index.ledger.of_user(A) == 100
    shelf.put(common | {"more": b"m"}, "s3://bucket/2")
    assert shelf.index.ledger.of_user(A) == 50


@pytest.mark.parametrize("everything", [True, False])
def test_all_accounts_add_up_to_what_the_store_holds(shelf: Shelf, dice: random.Random, everything: bool) -> None:
    """Whatever is shared with whom: to all of it where every tree is on an account, and never to more."""
    blobs = [dice.randbytes(dice.randrange(1, 200)) for _ in range(12)]
    for number in range(25):
        files = {str(n): blob for n, blob in enumerate(dice.sample(blobs, dice.randrange(1, 6)))}
        tree = shelf.put(files | {"own": b"%d" % number}, f"s3://bucket/{number}").tree
        users = dice.sample((A, B, C), dice.randrange(1 if everything else 0, 4))
        charge(shelf, *((tree, user) for user in users))
    total, stored = sum(map(shelf.index.ledger.of_user, (A, B, C))), shelf.index.totals()["blob_bytes"]
    assert total == pytest.approx(stored) if everything else total < stored


def test_who_fetches_again_pays_once(shelf: Shelf) -> None:
    """And what is not held any more comes on no account."""
    tree = shelf.put({"a": b"x" * 10}).tree
    for _ in range(3):
        charge(shelf, (tree, A), ("f" * 64, A))
    assert shelf.index.ledger.of_user(A) == 10


def test_a_groups_account_is_that_of_its_members_together(shelf: Shelf) -> None:
    """Each member's part of what they share among themselves, and with others; nobody else is in it."""
    ledger = shelf.index.ledger
    both, one = (shelf.put({"f": content * 60}, f"s3://bucket/{content!r}").tree for content in (b"x", b"y"))
    charge(shelf, (both, A), (both, B), (both, C), (one, B))
    ledger.record_members({A: (frozenset({ONE}), frozenset({ONE, TWO}))})
    assert (ledger.of_group(ONE), ledger.of_group(TWO)) == (20, 0)
    ledger.record_members({B: (frozenset({ONE, TWO}), frozenset({ONE, TWO}))})
    assert (ledger.of_group(ONE), ledger.of_group(TWO)) == (20 + 20 + 60, 20 + 60)
    assert sorted(ledger.members(ONE)) == [A, B]


def test_who_has_left_a_group_is_no_member(shelf: Shelf) -> None:
    """So far as groups that count are concerned; memberships in others stay as they were."""
    ledger = shelf.index.ledger
    ledger.record_members({A: (frozenset({ONE, TWO}), frozenset({ONE, TWO}))})
    ledger.record_members({A: (frozenset(), frozenset({ONE}))})
    assert (ledger.members(ONE), ledger.members(TWO)) == ([], [A])


def test_what_has_gone_is_on_no_account(house: House) -> None:
    """Who has it brought again pays, and those who had it before do not."""
    house.sweeper.grace_seconds = 0.0
    brought = give(house, "a", 30, ALICE)
    fetch(house, brought.held.uri, BOB)
    assert account(house, ALICE) == account(house, BOB) == 15
    house.now += 100
    house.ticks += 100  # what was just brought is about to be leased
    assert [one.tree for one in house.sweeper.sweep(free_bytes=ALL).leaving] == [brought.held.tree]
    assert account(house, ALICE) == account(house, BOB) == 0
    fetch(house, brought.held.uri, CAROL)
    assert (account(house, ALICE), account(house, CAROL)) == (0, 30)


def test_a_hit_comes_on_the_account_as_well(house: House) -> None:
    """When uses are written down; before that it writes nothing."""
    uri = give(house, "a", 30, ALICE).held.uri
    assert account(house, ALICE) == 30
    fetch(house, uri, BOB)
    assert house.index.ledger.of_user(BOB.uid) == 0
    assert account(house, BOB) == 15


def test_what_accounts_show(house: House) -> None:
    """Bytes and trees of each user, the fullest first; what two have is half on each."""
    shared = give(house, "a", 30, ALICE).held
    fetch(house, shared.uri, BOB)
    more = give(house, "b", 100, BOB).held
    account(house, ALICE)  # what was used is written down
    ledger = house.index.ledger
    assert ledger.usage(None) == [(BOB.uid, 2, 115.0), (ALICE.uid, 1, 15.0)]
    assert ledger.usage(ALICE.uid) == [(ALICE.uid, 1, 15.0)]
    assert ledger.usage(CAROL.uid) == []
    assert (ledger.trees(ALICE.uid), ledger.trees(BOB.uid)) == ({shared.tree}, {shared.tree, more.tree})
