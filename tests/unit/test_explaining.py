"""Why something is kept, or what would have to happen for it to go, in words."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from cacheserver.eviction import MIB, POLICIES, Item, Usage
from cacheserver.explaining import Circumstances, sentences
from cacheserver.holdings import PINNED, YOUNG, Tree
from cacheserver.pins import CONFIGURATION, Pin
from cacheserver.planning import Blob

NOW = 1_700_000_000.0
ITEM = Item("t" * 64, 6 * MIB, 2.5, Usage(0, 1.0, 3, NOW - 7200))
TREE = Tree(ITEM, 2.5, level=0, kept="", use_count=3, recorded_at=NOW - 86_400, kept_until=0.0, drop_at=None)
BLOBS = (Blob(1, 4 * MIB, 1), Blob(2, 2 * MIB, 1))
PIN = Pin("models:/m/1", 1000, "models:/m@champion", math.inf)


def given(**changes: Any) -> Circumstances:
    """A tree that nothing keeps, but for what is changed."""
    nothing = Circumstances(
        tree=TREE,
        lease_count=0,
        is_leased=False,
        pins=(),
        owners=(),
        ruled=(),
        blobs=BLOBS,
        place=3,
        length=20,
        grace_seconds=60.0,
        policy=POLICIES["gdsf"],
        now=NOW,
    )
    return replace(nothing, **changes)


def told(**changes: Any) -> str:
    """What is said of it."""
    return "\n".join(sentences(given(**changes)))


def test_what_nothing_keeps() -> None:
    """Its place, what its going gives and costs, and that the others before it go first."""
    text = told()
    assert not given().is_kept and given().freed_bytes == 6 * MIB
    for words in ("Nothing keeps it", "the 2 before it", "3 of 20 (gdsf)", "6.0 MiB back", "2.5 s", "2 h ago"):
        assert words in text
    for words in ("leased", "pinned", "rule", "part of other", "hard-linked", "grace"):
        assert words not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lease_count": 2, "is_leased": True}, "leased 2 times"),
        ({"is_leased": True}, "a moment ago"),
        (
            {"pins": (PIN,), "owners": ("ada",), "tree": TREE._replace(kept=PINNED)},
            "pinned by ada, as models:/m@champion",
        ),
        ({"tree": TREE._replace(kept=YOUNG, recorded_at=NOW - 20)}, "came 20 s ago: nothing goes before.*in 40 s"),
    ],
    ids=["leased", "lingering", "pinned", "young"],
)
def test_what_keeps_it(changes: dict[str, Any], words: str) -> None:
    """One sentence for each reason, and what ends it; and that it can go afterwards."""
    found = given(**changes)
    assert found.is_kept
    text = "\n".join(sentences(found))
    assert re.search(words, text)
    assert "Nothing keeps it" not in text and "When nothing of this is so any more" in text


def test_pins_say_how_they_end() -> None:
    """When, and by which command; those of the configuration, where."""
    ends = PIN._replace(expires_at=NOW + 60, asked="models:/m/1")
    warm = PIN._replace(owner=CONFIGURATION)
    text = told(pins=(PIN, ends, warm), owners=("ada", "bob", ""), tree=TREE._replace(kept=PINNED))
    assert "pinned by ada, as models:/m@champion, without end: `artifactcache unpin models:/m@champion`" in text
    assert "pinned by bob, as models:/m/1, until 2023-11-14 22:14:20 UTC: `artifactcache unpin models:/m/1`" in text
    assert "what models:/m@champion stands for, which [[warm]] in the configuration keeps present" in text
    assert text.count("unpin") == 2


def test_a_time_that_no_calendar_has() -> None:
    """A pin of a hundred million years is explained as well."""
    pin = PIN._replace(expires_at=1e18)
    assert "a time that no calendar has" in told(pins=(pin,), owners=("ada",), tree=TREE._replace(kept=PINNED))


def test_rules_are_told() -> None:
    """Their own sentences stand between what keeps it and what lets it go; what they want gone goes by itself."""
    text = told(ruled=("The rule one keeps it.",), tree=TREE._replace(drop_at=NOW + 60))
    assert "The rule one keeps it." in text and "it goes at 2023-11-14 22:14:20 UTC" in text
    assert "as soon as nothing else keeps it" in told(tree=TREE._replace(drop_at=NOW))


def test_what_others_have_as_well() -> None:
    """Stays with them: its going gives back only the rest."""
    blobs = (Blob(1, 4 * MIB, 3), Blob(2, 2 * MIB, 1))
    assert given(blobs=blobs).freed_bytes == 2 * MIB
    text = told(blobs=blobs)
    assert "2.0 MiB back" in text and "4.0 MiB of it are part of other trees" in text and "hard-linked" not in text


@pytest.mark.parametrize(
    ("blobs", "freed", "words"),
    [
        ((Blob(1, 4 * MIB, 1, True), Blob(2, 2 * MIB, 1, True)), 0, "only where the capacity itself is exceeded"),
        ((Blob(1, 4 * MIB, 1, True), Blob(2, 2 * MIB, 1)), 2 * MIB, "4.0 MiB of it are hard-linked outside the store"),
        ((Blob(1, 4 * MIB, 1, True), Blob(2, 2 * MIB, 2)), 0, "4.0 MiB of it are hard-linked outside the store"),
    ],
    ids=["all of it", "some of it", "and the rest is of others"],
)
def test_what_is_linked_outside(blobs: tuple[Blob, ...], freed: int, words: str) -> None:
    """Its bytes would stay on the disk."""
    assert given(blobs=blobs).freed_bytes == freed
    assert words in told(blobs=blobs)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_says_why_it_goes(policy: Any) -> None:
    """By its name, and in words of its own."""
    text = told(policy=policy)
    assert f"({policy.name})" in text and policy.words(ITEM, NOW) in text


def test_a_clock_that_was_set_back() -> None:
    """What came at a time that is yet to come is not young, as eviction has it."""
    assert "grace" not in told(tree=TREE._replace(recorded_at=NOW + 1e9))


def test_every_sentence_is_one() -> None:
    """It begins with a capital letter or a number and ends with a full stop: people read it."""
    everything = given(
        lease_count=1,
        is_leased=True,
        pins=(PIN, PIN._replace(owner=CONFIGURATION)),
        owners=("ada", ""),
        tree=TREE._replace(kept=PINNED, drop_at=NOW, recorded_at=NOW),
        blobs=(Blob(1, 4 * MIB, 3), Blob(2, 2 * MIB, 1, True)),
    )
    for sentence in sentences(everything):
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence.endswith(".") and not sentence.endswith("..") and "  " not in sentence
