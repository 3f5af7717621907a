"""What lacks bytes is fetched again, as long as somebody holds it, and by the name that it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import OriginUnavailable
from cacheserver import uris
from cacheserver.healing import RETRY_SECONDS, Healing
from cacheserver.words import Held
from tests.unit.healer import Healer
from tests.unit.house import FILES, ROOT

HOUR = 3600.0


class Hurt(Healer):
    """A house in which something is hurt."""

    def hurt(self, held: Held, name: str) -> None:
        """A blob of an artifact goes, and somebody notices."""
        row = self.index.blobs([self.digest(held, name)])
        os.unlink(self.blob(self.digest(held, name)))
        assert not self.store.verifier.recheck(next(iter(row.values())))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Hurt]:
    """With one artifact."""
    house = Hurt(tmp_path / "store")
    house.fill()
    yield house
    house.close()


def test_what_was_not_healed_before_a_restart_is_found(house: Hurt) -> None:
    """Nobody has to ask for it: what it lacks has no row that a scrub could look at."""
    held = house.bring(ROOT).held
    house.origin.down = True
    house.hurt(held, "top")
    house.heal()
    assert house.healing.count() == 1
    house.healing = Healing(house.cache, house.index, lambda: house.ticks)  # as one that has just been started
    house.heal()
    assert house.healing.count() == 0
    house.healing.search()
    assert house.healing.count() == 1
    house.origin.down = False
    house.heal()
    assert house.healing.count() == 0
    house.origin.down = True
    found = house.find(ROOT)
    assert found is not None and house.content(found.held) == FILES


def test_nothing_is_found_that_lacks_nothing(house: Hurt) -> None:
    """Empty files, empty folders, and one blob under two names among it."""
    house.origin.files["file:///twice/a"] = house.origin.files["file:///twice/b"] = b"same"
    house.origin.files["file:///twice/empty"] = b""
    house.bring("file:///twice")
    house.healing.search()
    assert house.healing.count() == 0


def test_what_is_held_no_more_is_not_fetched(house: Hurt) -> None:
    """It was evicted meanwhile: nobody wants it."""
    held = house.bring(ROOT).held
    house.origin.down = True
    house.hurt(held, "top")
    house.heal()
    house.origin.down = False
    house.now, house.ticks = house.now + 24 * HOUR, house.ticks + RETRY_SECONDS
    house.sweeper.sweep(free_bytes=2**40)
    assert house.index.held(held.uri, held.selection) is None
    before = house.origin.downloads.copy()
    house.heal()
    assert house.healing.count() == 0 and house.origin.downloads == before


def test_what_the_origin_has_deleted_is_not_asked_for_for_ever(house: Hurt) -> None:
    """It is forgotten, as by whoever asks for it."""
    held = house.bring(ROOT).held
    house.hurt(held, "top")
    house.origin.files.clear()
    for _ in range(3):
        house.heal()
        house.now, house.ticks = house.now + 24 * HOUR, house.ticks + 24 * HOUR
    assert house.index.held(held.uri, held.selection) is None
    assert house.healing.count() == 0


def test_a_name_that_was_written_down_has_no_escapes(house: Hurt) -> None:
    """A `%20` in the name of a file is one: read once more it would be a space, and another file."""
    uri = uris.parse("file:///data/a%2520b").uri
    assert uri == "file:///data/a%20b" and uris.stored(uri).uri == uri
    for other in ("runs:/1/a%20b", "models:/a/1", "s3://bucket/a%20b"):
        assert uris.stored(other) == uris.parse(other)
    house.origin.files = {f"{uri}/x": b"right", "file:///data/a b/x": b"another"}
    house.hurt(house.bring("file:///data/a%2520b").held, "x")
    house.heal()
    house.origin.down = True
    found = house.find("file:///data/a%2520b")
    assert found is not None and house.content(found.held) == {"x": b"right"}
    with pytest.raises(OriginUnavailable):
        house.bring("file:///data/a%20b")
