"""Pins: whose, of what, until when."""

from __future__ import annotations

import math

import pytest

from cacheserver.index import Index
from cacheserver.pins import CONFIGURATION, EXPIRED_SECONDS, Pin
from tests.unit.rows import record

ONE, TWO, ALIAS = "models:/m/1", "models:/m/2", "models:/m@champion"
NOW = 1000.0


@pytest.fixture
def held(index: Index) -> Index:
    """An index with two versions."""
    record(index, ONE, "x")
    record(index, TWO, "y")
    return index


def owners(index: Index, uri: str, now: float = NOW) -> list[int]:
    """Who has pinned an artifact, the longest first."""
    return [pin.owner for pin in index.pins.of_artifact(uri, "", now)]


def test_what_is_not_held_cannot_be_pinned(held: Index) -> None:
    """Nor what is held with other patterns, or of another origin."""
    assert not held.pins.pin("models:/m/3", "", owner=1, asked="x", now=NOW)
    assert not held.pins.pin(ONE, '[["a"],[]]', owner=1, asked="x", now=NOW)
    assert held.pins.untils(NOW) == {}


def test_a_pin_ends_when_its_time_is_over(held: Index) -> None:
    """To the second, whether or not anybody takes it away; one without end never does."""
    assert held.pins.pin(ONE, "", owner=1, asked=ALIAS, now=NOW, seconds=10)
    assert held.pins.pin(ONE, "", owner=2, asked=ONE, now=NOW)
    assert held.pins.of_artifact(ONE, "", NOW + 9.9) == [Pin(ONE, 2, ONE, math.inf), Pin(ONE, 1, ALIAS, NOW + 10)]
    assert owners(held, ONE, NOW + 10) == [2] == owners(held, ONE, 1e300)
    held.pins.expire(NOW + 9)
    assert owners(held, ONE, NOW) == [2, 1]
    held.pins.expire(NOW + 10)
    assert owners(held, ONE, NOW) == [2, 1], "a clock that is ahead for a while takes nothing away"
    held.pins.expire(NOW + 10 + EXPIRED_SECONDS)
    assert owners(held, ONE, NOW) == [2]


def test_each_owner_has_one_pin_of_an_artifact(held: Index) -> None:
    """The last one counts: longer, shorter or by another name."""
    for seconds, asked in ((10.0, ONE), (math.inf, ALIAS), (5.0, ONE)):
        held.pins.pin(ONE, "", owner=1, asked=asked, now=NOW, seconds=seconds)
    assert held.pins.of_artifact(ONE, "", NOW) == [Pin(ONE, 1, ONE, NOW + 5)]


def test_unpinning_ends_the_pins_of_all_operators(held: Index) -> None:
    """By the artifact, or by what it was pinned by; those of the configuration stay."""
    for owner, uri, asked in ((1, ONE, ONE), (2, ONE, ALIAS), (1, TWO, ALIAS)):
        held.pins.pin(uri, "", owner=owner, asked=asked, now=NOW)
    assert held.pins.keep_warm("models:/m@warm", "", ONE, now=NOW)
    assert held.pins.unpin(["models:/m/3"], "", NOW) == [] == held.pins.unpin([ONE], "patterns", NOW)
    assert held.pins.unpin([ALIAS], "", NOW) == [ONE, TWO]
    assert owners(held, ONE) == [1, CONFIGURATION] or owners(held, ONE) == [CONFIGURATION, 1]
    assert held.pins.unpin([ONE, "models:/m@warm"], "", NOW) == [ONE]
    assert owners(held, ONE) == [CONFIGURATION]


def test_pins_are_told_by_artifact_and_by_tree(held: Index) -> None:
    """A tree has those of all its names; the longest says until when."""
    tree = record(held, "s3://b/same", "x").digest
    held.pins.pin(ONE, "", owner=1, asked=ONE, now=NOW, seconds=10)
    held.pins.pin(ONE, "", owner=2, asked=ONE, now=NOW, seconds=30)
    held.pins.pin("s3://b/same", "", owner=3, asked="s3://b/same", now=NOW, seconds=20)
    assert [pin.owner for pin in held.pins.of_tree(tree, NOW)] == [2, 3, 1]
    assert [pin.owner for pin in held.pins.of_tree(tree, NOW + 20)] == [2]
    assert held.pins.untils(NOW) == {(ONE, ""): NOW + 30, ("s3://b/same", ""): NOW + 20}
    assert held.pins.untils(NOW + 30) == {}
    assert held.pins.held_bytes(NOW) == 1, "a tree counts once"
    held.pins.pin(TWO, "", owner=1, asked=TWO, now=NOW)
    assert (held.pins.held_bytes(NOW), held.pins.held_bytes(NOW + 30)) == (2, 1)


def test_a_pin_goes_with_the_artifact(held: Index) -> None:
    """Where that is another tree now, that one is pinned, and the one before it is not."""
    held.pins.pin(ONE, "", owner=1, asked=ONE, now=NOW)
    after = record(held, ONE, "other", now=6.0).digest
    assert [pin.owner for pin in held.pins.of_tree(after, NOW)] == [1]
    evicted = held.holdings.evict(held.tree_digests(), now=NOW, young_since=NOW)
    assert after not in evicted.trees and len(evicted.trees) == 2


def test_pins_are_of_one_origin(path: str, held: Index) -> None:
    """Another daemon's names are others; but nothing that is pinned goes, whoever sweeps."""
    held.pins.pin(ONE, "", owner=1, asked=ONE, now=NOW)
    trees = held.tree_digests()
    held.close()
    other = Index(path, "http://other.example")
    try:
        record(other, ONE, "z")
        assert other.pins.of_artifact(ONE, "", NOW) == [] and other.pins.untils(NOW) == {}
        assert set(other.holdings.evict(trees, now=NOW, young_since=NOW).trees) == {trees[1]}
    finally:
        other.close()
        held.__init__(path, "http://one.example")  # type: ignore[misc]


def test_what_the_configuration_keeps_warm_moves_with_its_name(held: Index) -> None:
    """Once the new version is held; until then the old one stays."""
    assert held.pins.keep_warm(ALIAS, "", ONE, now=NOW)
    assert not held.pins.keep_warm(ALIAS, "", "models:/m/3", now=NOW)
    assert owners(held, ONE) == [CONFIGURATION]
    assert held.pins.keep_warm(ALIAS, "", TWO, now=NOW)
    assert owners(held, ONE) == [] and owners(held, TWO) == [CONFIGURATION]


def test_what_is_not_configured_any_more_is_not_kept(held: Index) -> None:
    """Whatever stands in the configuration now, operators' pins stay."""
    held.pins.keep_warm(ALIAS, "", ONE, now=NOW)
    held.pins.keep_warm(TWO, "", TWO, now=NOW)
    held.pins.pin(ONE, "", owner=1, asked=ALIAS, now=NOW)
    held.pins.forget_warm({(TWO, ""), ("other", "")})
    assert owners(held, ONE) == [1] and owners(held, TWO) == [CONFIGURATION]
    held.pins.forget_warm(set())
    assert owners(held, ONE) == [1] and owners(held, TWO) == []


@pytest.mark.parametrize("how", ["it moves on", "it is configured no more"])
def test_two_warm_names_of_one_version_keep_it_each(held: Index, how: str) -> None:
    """Champion and production are the same version; production becomes another one, and champion stays warm."""
    held.pins.keep_warm(ALIAS, "", ONE, now=NOW)
    held.pins.keep_warm("models:/m@production", "", ONE, now=NOW)
    if how == "it moves on":
        held.pins.keep_warm("models:/m@production", "", TWO, now=NOW)
    else:
        held.pins.forget_warm({(ALIAS, "")})
    assert owners(held, ONE) == [CONFIGURATION]
