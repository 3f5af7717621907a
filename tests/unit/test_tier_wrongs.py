"""The shared tier as an attacker, a broken host or an unlucky one leaves it: what it costs others, and for how long."""

from __future__ import annotations

import pytest

from cacheserver.packing import BLOBS
from tests.unit.tiers import TIERED as FILES
from tests.unit.tiers import Street, content, published

SIZE = sum(map(len, FILES.values()))
EXPECTED = {path: None if path.endswith("/") else c for path, c in FILES.items()}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_whichever_part_of_a_large_file_is_wrong_is_written_anew(street: Street, number: int) -> None:
    """The digest says only that one of them is: all are written by whoever has found that out."""
    uri = published(street)
    key = street.cupboard.keys(BLOBS)[number]
    right = street.cupboard.bytes_of(key)
    street.cupboard.spoil(key)
    second = street.house()
    assert second.bring(uri).origin_bytes and content(second, uri) == EXPECTED
    street.settle(second)
    assert street.cupboard.bytes_of(key) == right
    assert street.house().bring(uri).origin_bytes == 0


def test_what_the_tier_has_wrong_is_asked_for_once(street: Street) -> None:
    """A fetch that has found it out asks the origin, and not the tier again for as many bytes."""
    uri = published(street)
    street.cupboard.spoil(street.cupboard.keys(BLOBS)[0])
    read = street.cupboard.read_bytes
    second = street.house()
    assert second.bring(uri).origin_bytes == len(FILES["large"])
    assert street.cupboard.read_bytes - read <= SIZE
