"""Fixtures: dice whose seed is printed, and a whole cache over a real store and an origin that obeys the test."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.index import Index
from tests.unit.house import FILES, ROOT, House, Shelf
from tests.unit.rows import ORIGIN
from tests.unit.tiers import Street

MEMORY = "/dev/shm"


@pytest.fixture
def dice() -> random.Random:
    """Random numbers; set ARTIFACTCACHE_TEST_SEED to the printed seed to see the same ones again."""
    seed = int(os.environ.get("ARTIFACTCACHE_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"ARTIFACTCACHE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is such a thing: for stores that nobody cuts the power of."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the index is."""
    return str(tmp_path / "index.db")


@pytest.fixture
def index(path: str) -> Iterator[Index]:
    """An empty index."""
    index = Index(path, ORIGIN)
    yield index
    index.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A store on a real disk."""
    shelf = Shelf(tmp_path / "store")
    yield shelf
    shelf.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A store, and a cache of the fake origin over it."""
    house = House(tmp_path / "store")
    yield house
    house.close()


@pytest.fixture
def filled(house: House) -> House:
    """A house whose origin has FILES below ROOT."""
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    return house


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    """Hosts with stores of their own, one origin, one tier."""
    street = Street(tmp_path)
    yield street
    street.close()
