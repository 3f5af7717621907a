"""What is wrong, in words."""

from __future__ import annotations

from typing import Any

import pytest

from cacheserver.troubles import Condition, faults


def test_where_all_is_well_there_is_nothing() -> None:
    """Not even what was counted and harms nobody."""
    assert faults(Condition()) == []
    quiet = Condition(free_bytes=10, min_free_bytes=10, alarms={"refusals": 0}, errors={"": 100, "NotFound": 7})
    assert faults(quiet) == []


@pytest.mark.parametrize(
    ("of", "kind", "is_grave", "words"),
    [
        ({"is_origin_away": True, "origin": "http://x"}, "origin", True, "http://x does not answer"),
        ({"is_index_damaged": True}, "index", True, "being made anew"),
        ({"is_short": True}, "sweep", True, "raise [store] capacity"),
        ({"free_bytes": 1024, "min_free_bytes": 2048}, "disk", True, "has 1.0 KiB free, and 2.0 KiB are to stay"),
        ({"damaged_count": 1}, "damage", False, "1 artifact lacks bytes"),
        ({"damaged_count": 2}, "damage", False, "2 artifacts lack bytes"),
        ({"quarantine_count": 3}, "quarantine", False, "3 files of wrong bytes in quarantine"),
        ({"scrub_wrong_count": 1}, "scrub", False, "found 1 wrong blob."),
        ({"alarms": {"refusals": 2}}, "alarm", False, "2 times one user had unusually many refusals"),
        ({"lost_count": 4}, "audit", True, "4 attempts missing in the audit log"),
        ({"errors": {"NoSpace": 5}}, "errors", False, "5 calls failed with NoSpace"),
    ],
)
def test_each_is_said_with_what_can_be_done(of: dict[str, Any], kind: str, is_grave: bool, words: str) -> None:
    """One sentence of one kind."""
    (found,) = faults(Condition(**of))
    assert (found.kind, found.is_grave) == (kind, is_grave) and words in found.words


def test_the_gravest_comes_first() -> None:
    """Whatever else there is."""
    found = faults(Condition(quarantine_count=1, damaged_count=1, lost_count=1, is_short=True))
    assert [one.is_grave for one in found] == [True, True, False, False]
