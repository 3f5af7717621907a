"""Sweeps of a shared tier in memory: what goes, what stays, and what stops one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import pytest

from artifactcache.errors import CacheError, OriginUnavailable
from cacheserver import tiersweep
from cacheserver.claims import Claims
from cacheserver.packing import BLOBS, PACKS
from cacheserver.retaining import GONE_AT_ONCE_MIN
from cacheserver.retention import Facts, Rule
from cacheserver.tierplan import How
from cacheserver.tierstore import TierError
from cacheserver.tiersweep import SWEEP
from cacheserver.treerecords import CLAIMS, CONDEMNED, TREES, Condemned, TreeRecord
from tests.rig.tier import lacking
from tests.unit.house import TRACKING_URI
from tests.unit.tiers import Broom, Street

COMMON = os.urandom((1 << 20) + 1)
DAY = 86_400.0
AT_ONCE = How(grace=0.0)


class Told:
    """A tracking server that says what a test has it say."""

    name = TRACKING_URI

    def __init__(self, answer: Callable[[str], Facts]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def describe(self, versions: list[str], needs: frozenset[str]) -> dict[str, Facts]:
        """What is known of each."""
        self.asked += versions
        return {version: self.answer(version) for version in versions}


def have(street: Street, *names: str, count: int = 1) -> None:
    """Trees that were published: each has a small file and `count` large ones of its own, and a large one that all of
    them have."""
    house = street.houses[0] if street.houses else street.house()
    for name in names:
        files = {f"large{n}": f"{name} {n}".encode() * 400_000 for n in range(count)}
        house.put(files | {"small": name.encode(), "common": COMMON}, f"s3://bucket/{name}")
        assert house.sharing and house.sharing.publishing
        house.sharing.publishing.want(f"s3://bucket/{name}", "")
    street.settle(house)
    assert len(street.cupboard.keys(TREES)) >= len(names)


def key_of(street: Street, name: str) -> str:
    """The record of a tree."""
    return next(key for key in street.cupboard.keys(TREES) if record(street, key).uri == f"s3://bucket/{name}")


def record(street: Street, key: str) -> TreeRecord:
    """What an object says."""
    return TreeRecord.decode(key, street.cupboard.bytes_of(key), None)


def named(street: Street, name: str, version: str) -> None:
    """Has a record say as which version the tree was asked for."""
    found = record(street, key := key_of(street, name))
    street.cupboard.put(key, TreeRecord(**{**found.__dict__, "versions": (version,)}).encode(None))


def condemned(street: Street) -> frozenset[str]:
    """What is about to go."""
    return Condemned.decode(got.data).keys if (got := street.cupboard.get(CONDEMNED, 1 << 20)) else frozenset()


def all_of(street: Street) -> dict[str, tuple[bytes, float]]:
    """Every object, and when it was written."""
    return {found.key: (street.cupboard.bytes_of(found.key), found.written_at) for found in street.cupboard.objects()}


def test_what_no_record_needs_goes_and_what_another_needs_stays(street: Street) -> None:
    """All that is freed is counted, and the list of what was to go is empty after it."""
    have(street, "a", "b")
    street.cupboard.delete([key_of(street, "a")])
    there = street.cupboard.objects()
    report = Broom(street.cupboard).sweep(AT_ONCE)
    assert (report.objects, report.kept()) == (2, 1) and not lacking(street.cupboard)
    assert len(street.cupboard.keys(BLOBS)) == 2 and len(street.cupboard.keys(PACKS)) == 1
    left = [found for found in street.cupboard.objects() if found.key != CONDEMNED]
    assert report.bytes_freed == sum(found.size for found in {*there} - {*left}) and len(there) - len(left) == 2
    assert not condemned(street)
    assert not street.cupboard.keys(CLAIMS)


def test_what_is_younger_than_the_grace_stays(street: Street) -> None:
    """It may be of a tree that is being published."""
    have(street, "a")
    street.cupboard.delete(street.cupboard.keys(TREES))
    broom, there = Broom(street.cupboard), len(street.cupboard.keys())
    assert broom.sweep(How()).objects == 0 and len(street.cupboard.keys()) == there
    broom.ahead = DAY + 1
    assert broom.sweep(How()).objects == there


def test_a_dry_run_changes_nothing(street: Street) -> None:
    """Not even for a moment; and says the same as the sweep."""
    have(street, "a", "b", "c")
    street.cupboard.delete([key_of(street, "a")])
    street.cupboard.put(f"{CLAIMS}old", b"{}")
    named(street, "b", "models:/b/1")
    rule = Rule("b", tracking_uri="*", model="b", drop=0.0)
    before = all_of(street)
    broom, writes = Broom(street.cupboard), street.cupboard.calls["put"] + street.cupboard.calls["create"]
    broom.ahead = 2 * DAY
    dry = broom.sweep(How([rule], is_dry=True))
    assert all_of(street) == before and street.cupboard.calls["put"] + street.cupboard.calls["create"] == writes
    assert broom.said == ["would go: 'models:/b/1': rule \"b\" drops models:/b/1 at once"]
    wet = broom.sweep(How([rule]))
    assert (dry.objects, dry.bytes_freed, dry.claims, dry.decisions) == (4, wet.bytes_freed, 1, wet.decisions)
    assert wet.objects == 4 and wet.claims == 1 and wet.document() == dry.document() | {"dry_run": False}
    assert "would be removed" in dry.summary() and "would" not in wet.summary()


def test_rules_are_judged_by_what_the_tracking_server_says(street: Street) -> None:
    """It is asked once about each version; what has been written since it was asked stays."""
    have(street, "a", "b")
    named(street, "a", "runs:/a/model")
    named(street, "b", "runs:/b/model")
    told = Told(lambda version: Facts(version, TRACKING_URI, run_id=version[6:], status="FAILED", ended_at=1.0))

    def written_anew(version: str) -> Facts:
        street.cupboard.put(key_of(street, "b"), street.cupboard.bytes_of(key_of(street, "b")))
        return Facts(version, TRACKING_URI, run_id=version[6:], status="FAILED", ended_at=1.0)

    rules = [Rule("failed", status="FAILED", drop=DAY)]
    broom = Broom(street.cupboard, told)
    assert broom.sweep(How(rules)).kept() == 2
    broom.ahead = 2 * DAY
    told.answer = written_anew
    time.sleep(0.002)  # the store in memory tells times in microseconds
    report = broom.sweep(How(rules))
    assert [d.reason for d in report.decisions if d.is_kept] == ["it was written anew meanwhile"]
    assert [record(street, key).uri for key in street.cupboard.keys(TREES)] == ["s3://bucket/b"]
    assert told.asked == 2 * ["runs:/a", "runs:/b"] and not lacking(street.cupboard)


def test_a_tracking_server_that_is_away_keeps(street: Street) -> None:
    """What depends on it stays; what does not goes; and it is told, as trouble."""
    have(street, "a", "b")
    named(street, "a", "runs:/a")
    named(street, "b", "models:/b/1")

    def away(version: str) -> Facts:
        raise OriginUnavailable("http://origin.example does not answer")

    rules = [Rule("failed", status="FAILED", drop=0.0), Rule("b", model="b", drop=0.0)]
    report = Broom(street.cupboard, Told(away)).sweep(How(rules, grace=0.0))
    assert [record(street, key).versions for key in street.cupboard.keys(TREES)] == [("runs:/a",)]
    assert len(report.troubles) == 1 and "does not answer" in report.troubles[0]


def test_a_tracking_server_that_has_lost_everything_is_not_believed(street: Street) -> None:
    """Unless one version is there still."""
    names = [f"r{n}" for n in range(GONE_AT_ONCE_MIN)]
    have(street, *names, count=0)
    for name in names:
        named(street, name, f"runs:/{name}")
    told = Told(lambda version: Facts(version, TRACKING_URI, is_deleted=True))
    how = How([Rule("deleted", deleted=True, drop=0.0)], grace=0.0)
    report = Broom(street.cupboard, told).sweep(how)
    assert report.kept() == len(names) and "not believed" in report.troubles[0]
    told.answer = lambda version: Facts(version, TRACKING_URI, is_deleted=version != "runs:/r3")
    assert Broom(street.cupboard, told).sweep(how).kept() == 1 and not lacking(street.cupboard)


def test_what_is_no_record_is_told_and_goes_after_the_grace(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense, and what is larger than any record, which is not even read; it stops nothing."""
    have(street, "a")
    street.cupboard.put(f"{TREES}ab/nonsense", b"nonsense")
    street.cupboard.put(f"{TREES}cd/large", bytes(100_000))
    monkeypatch.setattr(tiersweep, "RECORD_BYTES_MAX", 50_000)
    broom = Broom(street.cupboard)
    assert broom.sweep(How()).kept() == 3
    assert broom.said == [
        f"stays: '{TREES}ab/nonsense': it does not begin as a record does; it goes 1d after it was written",
        f"stays: '{TREES}cd/large': it is larger than any record; it goes 1d after it was written",
    ]
    broom.ahead = DAY
    assert broom.sweep(How()).kept() == 1 and len(street.cupboard.keys(TREES)) == 1


def test_what_another_has_signed_goes_after_the_grace_and_its_blobs_not_before(street: Street) -> None:
    """It is no record; but as long as it is there, hosts may go by it."""
    have(street, "a")
    secret, key = bytes(range(32)), key_of(street, "a")
    have(street, "b")
    other = key_of(street, "b")
    street.cupboard.put(other, record(street, other).encode(secret))
    broom = Broom(street.cupboard, secret=secret)
    street.cupboard.written_at = lambda listed: listed.written_at - 100.0 * (not listed.key.startswith(TREES))
    assert broom.sweep(How(grace=10.0)).kept() == 2 and not lacking(street.cupboard)
    assert "has the key of [shared] key_file" in broom.said[0] and key in street.cupboard.keys(TREES)
    broom.ahead = 20.0
    assert broom.sweep(How(grace=10.0)).objects == 2 and street.cupboard.keys(TREES) == [other]
    assert not lacking(street.cupboard, secret)


def test_with_the_wrong_key_nothing_goes(street: Street) -> None:
    """Where not one record is of this key, it is the key that is wrong."""
    have(street, "a", "b")
    before = all_of(street)
    broom = Broom(street.cupboard, secret=bytes(32))
    broom.ahead = 2 * DAY
    with pytest.raises(CacheError, match=r"None of the 2 records .* key_file"):
        broom.sweep(How())
    assert all_of(street) == before


def test_two_sweeps_at_a_time_are_one_too_many(street: Street) -> None:
    """The second is refused, in words, and takes nothing; where the first has died, it does what is left."""
    have(street, "a")
    street.cupboard.delete(street.cupboard.keys(TREES))
    first = Claims(street.cupboard, "host-of-the-first", time.time, time.monotonic, lambda seconds: False)
    _, claim = first.take(SWEEP, lambda: None, lambda: True)
    assert claim is not None
    before, second = street.cupboard.keys(), Broom(street.cupboard)
    street.cupboard.before = lambda what, key: (
        first.renew() if what == "get" and key == SWEEP and not renewing else None
    )
    renewing: list[bool] = []

    def renew(what: str, key: str) -> None:
        if what == "get" and key == SWEEP and not renewing:
            renewing.append(True)
            first.renew()
            renewing.clear()

    street.cupboard.before = renew
    with pytest.raises(CacheError, match=r"is running, on 'host-of-the-first': wait until it has ended"):
        second.sweep(AT_ONCE)
    assert street.cupboard.keys() == before
    street.cupboard.before = lambda what, key: None
    assert second.sweep(AT_ONCE).objects == 3 and second.ahead >= 15.0
    assert not first.holds(claim)


def test_where_nothing_can_be_written_that_is_told(street: Street) -> None:
    """And not that another sweep runs."""

    def refuse(what: str, key: str) -> None:
        if what == "create":
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: HTTP 403")

    street.cupboard.before = refuse
    with pytest.raises(TierError, match="HTTP 403"):
        Broom(street.cupboard).sweep(AT_ONCE)


def test_a_sweep_that_was_taken_over_stops(street: Street) -> None:
    """Who has slept for so long that another has begun removes nothing more."""
    have(street, "a")
    street.cupboard.delete(street.cupboard.keys(TREES))
    broom, there = Broom(street.cupboard), len(street.cupboard.keys())
    broom.meanwhile = lambda: street.cupboard.put(SWEEP, b'{"owner": "another 123", "renewals": 0}')
    with pytest.raises(CacheError, match="Another sweep"):
        broom.sweep(AT_ONCE)
    assert len(street.cupboard.keys(BLOBS) + street.cupboard.keys(PACKS)) == there
    assert condemned(street), "which is the other's now"


def test_nothing_goes_after_half_an_hour(street: Street) -> None:
    """For publishers look at the list for an hour: what is left is on the next one."""
    have(street, "a")
    street.cupboard.delete(street.cupboard.keys(TREES))
    broom = Broom(street.cupboard)
    assert broom.sweep(How(grace=0.0, settle=1801.0)).objects == 0 and len(street.cupboard.keys(BLOBS)) == 2
    assert not condemned(street)


def test_more_than_one_list_has_room_for(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes list by list, each with its own time to settle."""
    monkeypatch.setattr(tiersweep, "CONDEMNED_KEYS_MAX", 3)
    monkeypatch.setattr(tiersweep, "BATCH", 2)
    have(street, "a", count=6)
    have(street, "b", count=1)
    street.cupboard.delete([key_of(street, "a")])
    sizes: list[int] = []
    broom = Broom(street.cupboard)
    broom.meanwhile = lambda: sizes.append(len(condemned(street)))
    assert broom.sweep(AT_ONCE).objects == 7 and sizes == [3, 3, 1] and not lacking(street.cupboard)


def test_what_is_written_while_it_waits_is_seen(street: Street) -> None:
    """By a host that looked before there was a list."""
    have(street, "a", "b")
    key = key_of(street, "a")
    data = street.cupboard.bytes_of(key)
    street.cupboard.delete([key])
    broom = Broom(street.cupboard)
    broom.meanwhile = lambda: street.cupboard.put(key, data)
    assert broom.sweep(AT_ONCE).objects == 0 and not lacking(street.cupboard)


def test_a_record_that_changes_within_a_second_is_seen(street: Street) -> None:
    """Object stores list times in whole seconds: what tells is the tag."""
    have(street, "a", "b")
    old, new = key_of(street, "a"), key_of(street, "b")
    data = TreeRecord(**{**record(street, new).__dict__, "uri": record(street, old).uri}).encode(None)
    street.cupboard.delete([new])
    broom = Broom(street.cupboard)
    broom.meanwhile = lambda: street.cupboard.put(old, data)
    street.cupboard.written_at = lambda listed: 1.0
    assert broom.sweep(AT_ONCE).objects == 0 and not lacking(street.cupboard)


def test_whenever_it_is_killed_the_next_one_finishes(street: Street) -> None:
    """At each of its calls; nothing that is needed has gone, and nobody is kept from publishing after the next one."""
    have(street, "a", "b", "c")
    named(street, "b", "models:/b/1")
    street.cupboard.delete([key_of(street, "a")])
    how = How([Rule("b", tracking_uri="*", model="b", drop=0.0)], grace=0.0)
    objects = {key: data for key, (data, _) in all_of(street).items()}
    wanted = {key_of(street, "c")}
    step = 0

    class Killed(BaseException):
        pass

    def killed_at(last: int) -> bool:
        count = 0

        def die() -> None:
            nonlocal count
            count += 1
            if count >= last:
                raise Killed

        street.cupboard.delete(street.cupboard.keys())
        for key, data in objects.items():
            street.cupboard.put(key, data)
        street.cupboard.step = die
        try:
            Broom(street.cupboard).sweep(how)
        except Killed:
            return True
        finally:
            street.cupboard.step = lambda: None
        return False

    while killed_at(step := step + 1):
        assert not lacking(street.cupboard), step
        broom = Broom(street.cupboard)
        broom.sweep(how)
        assert set(street.cupboard.keys(TREES)) == wanted and not lacking(street.cupboard), step
        assert len(street.cupboard.keys(BLOBS) + street.cupboard.keys(PACKS)) == 3, step
        assert not condemned(street), step
        assert not street.cupboard.keys(CLAIMS), step
    assert step > 15


def test_a_tier_that_fails_leaves_the_list(street: Street) -> None:
    """For the object store may still do what it was asked for."""
    have(street, "a")
    street.cupboard.delete(street.cupboard.keys(TREES))
    broom = Broom(street.cupboard)
    broom.meanwhile = lambda: setattr(street.cupboard, "is_down", True)
    with pytest.raises(TierError, match="it is down"):
        broom.sweep(AT_ONCE)
    street.cupboard.is_down = False
    assert len(condemned(street)) == 3


def test_claims_that_nobody_renews_go_after_a_day(street: Street) -> None:
    """Younger ones may be of hosts that are bringing something."""
    have(street, "a")
    street.cupboard.put(f"{CLAIMS}old", b"{}")
    broom = Broom(street.cupboard)
    assert broom.sweep(How()).claims == 0
    broom.ahead = DAY
    assert broom.sweep(How()).claims == 1 and not street.cupboard.keys(CLAIMS)


def test_capacity(street: Street) -> None:
    """The oldest go first; what a rule keeps does not, and that is told."""
    have(street, "a", "b", "c")
    for name in ("a", "b", "c"):
        named(street, name, f"models:/{name}/1")
        time.sleep(0.002)
    size = sum(found.size for found in street.cupboard.objects())
    report = Broom(street.cupboard).sweep(How(capacity=size - 1, grace=0.0))
    assert {record(street, key).uri[-1] for key in street.cupboard.keys(TREES)} == {"b", "c"}
    assert not report.troubles
    keep = Rule("keep", tracking_uri="*", keep=math.inf)
    report = Broom(street.cupboard).sweep(How([keep], capacity=1000, grace=0.0))
    assert report.kept() == 2 and report.excess > 1 << 20 and "retention rules keep it" in report.troubles[0]
    assert not lacking(street.cupboard)
