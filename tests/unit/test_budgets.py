"""Quotas for bytes that are held: what goes for what comes, what stays, and what is refused, with which words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace, OriginUnavailable, QuotaExceeded
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.holdings import PINNED, RULED
from cacheserver.retention import Verdict
from cacheserver.space import Amount
from cacheserver.sweeper import LEASED
from tests.unit.accounts import (
    ALICE,
    BOB,
    CAROL,
    OTHER_TEAM,
    TEAM,
    Homes,
    account,
    fetch,
    give,
    held,
    in_team,
    name,
    start,
)
from tests.unit.house import PATIENCE_SECONDS
from tests.unit.sweeping import names, offer


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Homes]:
    """Where houses with quotas are."""
    homes = Homes(tmp_path)
    yield homes
    for house in homes.houses:
        house.close()


def test_ones_own_goes_for_what_one_brings(homes: Homes) -> None:
    """In the policy's order, no more of it than it takes, and nothing that is others'."""
    house = homes.house({name(ALICE): held(100)})
    for which in "abc":
        give(house, which, 30, ALICE)
    give(house, "x", 50, BOB)
    fetch(house, "s3://bucket/a", ALICE)
    give(house, "d", 30, ALICE)
    assert names(house) == "acdx" and account(house, ALICE) == 90
    give(house, "e", 60, ALICE)
    assert names(house) == "dex" and account(house, ALICE) == 90
    give(house, "f", 100, ALICE)
    assert names(house) == "fx" and account(house, ALICE) == 100


def test_what_others_have_fetched_too_stays(homes: Homes) -> None:
    """It counts in part only, and does not go for what one of them brings, however long nobody has used it."""
    house = homes.house({name(ALICE): held(100)})
    shared = give(house, "s", 80, ALICE).held.uri
    fetch(house, shared, BOB)
    give(house, "a", 50, ALICE)
    assert account(house, ALICE) == 90
    give(house, "b", 60, ALICE)
    assert names(house) == "bs"
    with pytest.raises(QuotaExceeded, match=r"70 B more are 70 B too many.*100 B of 100 B"):
        give(house, "c", 70, ALICE)
    assert shared in {one.uri for one in house.index.asked()}


def test_nothing_goes_where_it_would_not_be_enough(homes: Homes) -> None:
    """What is more than all of the quota evicts nothing, nor does what cannot be had because of what must stay."""
    house = homes.house({name(ALICE): held(100)})
    tree = give(house, "a", 60, ALICE).held.tree
    give(house, "b", 40, ALICE)
    with pytest.raises(QuotaExceeded, match="101 B more are 101 B too many"):
        give(house, "c", 101, ALICE)
    house.leases.take(tree)
    with pytest.raises(QuotaExceeded, match="50 B more are 50 B too many"):
        give(house, "d", 50, ALICE)
    assert names(house) == "ab" and house.sweeper.evicted_count == 0
    assert house.staging() == []
    house.leases.give_back(tree)
    give(house, "d", 50, ALICE)
    assert "d" in names(house)


def test_a_refusal_says_by_how_much_and_what_would_free_it(homes: Homes) -> None:
    """Who, how much of how much, what has to stay and why, and the key of the configuration."""
    house = homes.house({name(ALICE): held(100)})
    leased, pinned, ruled = (give(house, which, 30, ALICE).held for which in "lpr")
    house.leases.take(leased.tree)
    house.index.pins.pin(pinned.uri, "", owner=0, asked=pinned.uri, now=house.now)
    house.index.rulings.record({ruled.tree: Verdict(kept_until=house.now + 1000)})
    with pytest.raises(QuotaExceeded) as refused:
        give(house, "d", 45, ALICE)
    said = str(refused.value)
    assert f"s3://bucket/d: 45 B more are 35 B too many for the user {name(ALICE)}, who holds 90 B of 100 B" in said
    assert all(f"1 {reason}" in said for reason in (LEASED, PINNED, RULED))
    assert f"a higher [quotas.user.{name(ALICE)}] held." in said
    assert names(house) == "lpr"


def test_a_hit_is_never_refused(homes: Homes) -> None:
    """Who is far over the quota by what others have brought is handed it out, and pays with what is brought next."""
    house = homes.house({name(ALICE): held(50)})
    for which in "abc":
        give(house, which, 60, BOB)
        fetch(house, f"s3://bucket/{which}", ALICE)
    assert account(house, ALICE) == 90
    assert fetch(house, "s3://bucket/b", ALICE).origin_bytes == 0
    with pytest.raises(QuotaExceeded, match="1 B more are 41 B too many"):
        give(house, "d", 1, ALICE)


def test_a_hit_is_not_refused_by_a_full_disk(homes: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which group somebody is cannot be written down then: that is for the next time."""
    house = homes.house(groups={TEAM.gr_name: held(100)})
    uri = give(house, "a", 10, BOB).held.uri

    def full(*args: object) -> None:
        raise NoSpace("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(house.index.ledger, "record_members", full)
        assert fetch(house, uri, in_team(ALICE)).origin_bytes == 0
        house.cache.record_uses()
    house.cache.record_uses()
    assert house.index.ledger.members(TEAM.gr_gid) == [ALICE.uid]


def test_a_group_has_one_account(homes: Homes) -> None:
    """All members that were seen count, others do not; what only members have goes, whoever of them brought it."""
    house = homes.house(groups={TEAM.gr_name: held(100)})
    alice, bob = in_team(ALICE), in_team(BOB)
    give(house, "a", 50, alice)
    fetch(house, "s3://bucket/a", bob)
    give(house, "b", 50, bob)
    give(house, "x", 500, CAROL)
    give(house, "c", 40, alice)
    assert names(house) == "bcx"
    with pytest.raises(QuotaExceeded, match=rf"the group {TEAM.gr_name}, who .*\[quotas\.group\.{TEAM.gr_name}\] held"):
        give(house, "d", 101, bob)
    give(house, "e", 101, BOB)  # as who is no member any more
    house.cache.record_uses()
    assert "e" in names(house) and house.index.ledger.members(TEAM.gr_gid) == [ALICE.uid]


def test_a_user_and_a_group_both_grant(homes: Homes) -> None:
    """What is below a user's own quota can be above that of a group, and the other way round."""
    both = {TEAM.gr_name: held(100), OTHER_TEAM.gr_name: held(10)}
    house = homes.house({name(ALICE): held(60), EVERYBODY: held(1000)}, both)
    with pytest.raises(QuotaExceeded, match=r"\[quotas\.user\."):
        give(house, "a", 70, in_team(ALICE))
    with pytest.raises(QuotaExceeded, match=r"\[quotas\.group\."):
        give(house, "b", 170, in_team(BOB))
    with pytest.raises(QuotaExceeded, match=rf"group {OTHER_TEAM.gr_name}"):
        give(house, "c", 20, CAROL._replace(groups=(OTHER_TEAM.gr_gid,)))
    give(house, "d", 60, in_team(ALICE))


def test_everybody_has_a_quota_of_their_own(homes: Homes) -> None:
    """ "*" is for each user by themself; an entry of one's own takes its place, and an empty one lifts it."""
    house = homes.house({EVERYBODY: held(50), name(BOB): held(80), name(CAROL): Allowance()})
    give(house, "a", 50, ALICE)
    give(house, "b", 80, BOB)
    give(house, "c", 500, CAROL)
    assert names(house) == "abc"
    with pytest.raises(QuotaExceeded, match="of 80 B"):
        give(house, "d", 81, BOB)


def test_the_key_that_is_named_is_the_one_that_grants(homes: Homes) -> None:
    """Where it is the one for everybody, an entry of one's own is what there is not."""
    house = homes.house({EVERYBODY: Allowance(held=Amount(50), downloads=1)})
    with pytest.raises(QuotaExceeded, match=r'\[quotas\.user\."\*"\] held'):
        give(house, "a", 60, ALICE)


def test_per_cent_are_of_the_filesystem(homes: Homes) -> None:
    """As of every amount of the configuration."""
    house = homes.house({name(ALICE): Allowance(held=Amount(100, percent=True))})
    give(house, "a", 100, ALICE)
    house = homes.house({name(ALICE): Allowance(held=Amount(0.0, percent=True))})
    with pytest.raises(QuotaExceeded, match="1 B more are 1 B too many"):
        give(house, "a", 1, ALICE)


def test_nobody_pays_for_what_the_daemon_brings(homes: Homes) -> None:
    """What is kept warm comes whatever the quotas are, and is on nobody's account."""
    house = homes.house({EVERYBODY: Allowance(Amount(10), 1, 1)})
    flight = start(house, offer(house, "w", 100), None)
    assert flight.future.result(timeout=PATIENCE_SECONDS).origin_bytes == 100
    house.cache.leave(flight)
    assert account(house, ALICE) == 0


def test_what_one_holds_twice_goes_twice(homes: Homes) -> None:
    """Two trees that share a blob free it only together: both go where that is what it takes."""
    house = homes.house({name(ALICE): held(200)})
    house.sweeper.tidy()  # from now on each tree has its place when it comes
    give(house, "a", 5, ALICE, shared=b"s" * 80)
    give(house, "b", 5, ALICE, shared=b"s" * 80)
    assert account(house, ALICE) == 90
    give(house, "c", 195, ALICE)
    assert names(house) == "c"


def test_what_frees_nothing_does_not_go(homes: Homes) -> None:
    """Where the other tree with the same blob must stay, letting one go is no help."""
    house = homes.house({name(ALICE): held(200)})
    house.sweeper.tidy()  # from now on each tree has its place when it comes
    give(house, "a", 5, ALICE, shared=b"s" * 80)
    other = give(house, "b", 5, ALICE, shared=b"s" * 80).held
    house.leases.take(other.tree)
    with pytest.raises(QuotaExceeded, match=f"1 {LEASED}"):
        give(house, "c", 150, ALICE)
    assert names(house) == "ab"


def test_two_at_once_do_not_both_fit(homes: Homes) -> None:
    """However they fall together, what is held afterwards is within the quota, and one of them at least has come."""
    house = homes.house({name(ALICE): held(100)})
    uris = [offer(house, which, 60) for which in "abcdef"]
    barrier, refused = threading.Barrier(len(uris)), list[str]()

    def bring(uri: str) -> None:
        barrier.wait(PATIENCE_SECONDS)
        try:
            fetch(house, uri, ALICE)
        except QuotaExceeded:
            refused.append(uri)

    threads = [threading.Thread(target=bring, args=(uri,)) for uri in uris]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert account(house, ALICE) == 60 and len(refused) < len(uris)


def test_what_comes_counts_before_it_is_here(homes: Homes) -> None:
    """A download that has begun has its place; another that does not fit beside it is refused, a smaller one is not."""
    house = homes.house({name(ALICE): held(100)})
    reached, opened = threading.Event(), threading.Event()
    first = offer(house, "a", 60)
    offer(house, "b", 60)
    offer(house, "c", 40)

    def hold(uri: str) -> None:
        if uri == f"{first}/data":
            reached.set()
            assert opened.wait(PATIENCE_SECONDS)

    house.origin.before_download = hold
    flight = start(house, first, ALICE)
    assert reached.wait(PATIENCE_SECONDS)
    with pytest.raises(QuotaExceeded, match="60 B more are 20 B too many"):
        fetch(house, "s3://bucket/b", ALICE)
    fetch(house, "s3://bucket/b", BOB)
    fetch(house, "s3://bucket/c", ALICE)
    opened.set()
    flight.future.result(timeout=PATIENCE_SECONDS)
    house.cache.leave(flight)


def test_what_has_come_counts_before_it_is_handed_out(homes: Homes) -> None:
    """Who hangs up when it is here, or is not handed it yet, has it on the account all the same."""
    house = homes.house({name(ALICE): held(100)})
    flight = start(house, offer(house, "a", 60), ALICE)
    flight.future.result(timeout=PATIENCE_SECONDS)
    with pytest.raises(QuotaExceeded, match="60 B more are 20 B too many"):
        fetch(house, offer(house, "b", 60), ALICE)
    house.cache.leave(flight)
    assert account(house, ALICE) == 60


def test_a_download_that_fails_gives_its_place_back(homes: Homes) -> None:
    """Whatever it failed of: the next one may use all that there is, and as many at a time."""
    house = homes.house({name(ALICE): Allowance(Amount(100), downloads=1)})
    uri = offer(house, "a", 100)
    ready = house.origin.before_download

    def fail(which: str) -> None:
        raise OriginUnavailable("it broke off")

    for _ in range(3):
        house.origin.before_download = fail
        with pytest.raises(OriginUnavailable):
            fetch(house, uri, ALICE)
    house.origin.before_download = ready
    with pytest.raises(QuotaExceeded):
        give(house, "b", 101, ALICE)
    assert fetch(house, uri, ALICE).origin_bytes == 100
