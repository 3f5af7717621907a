"""Houses in which things are swept, and what is in them."""

from __future__ import annotations

from pathlib import Path

from cacheserver.space import Amount, Limits
from cacheserver.sweeper import Swept
from cacheserver.words import Brought
from tests.unit.house import House

ALL = 2**62  # bytes that a sweep is to free: all that may go


class Place:
    """Houses whose artifacts have one file each, so large and so dear to fetch as a test says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.houses: list[House] = []

    def house(self, capacity: float = 10**15, *, min_free: float = 0, **options: object) -> House:
        """A house of so many bytes, in which nothing is young unless the test says so."""
        limits = Limits(Amount(capacity), Amount(min_free))
        house = House(self.root / f"store{len(self.houses)}", limits, **{"grace_seconds": 0.0} | options)  # type: ignore[arg-type]
        self.houses.append(house)
        return house


def offer(house: House, name: str, size: int, seconds: float = 1.0, *, shared: bytes = b"") -> str:
    """Gives the origin an artifact of so many bytes that takes so long to fetch; with one that others share."""
    uri = f"s3://bucket/{name}"
    house.origin.files[f"{uri}/data"] = (name.encode() + b"." * size)[:size]
    if shared:
        house.origin.files[f"{uri}/shared"] = shared
    before = house.origin.before_download

    def download(which: str) -> None:
        before(which)
        house.ticks += seconds if which == f"{uri}/data" else 0.0

    house.origin.before_download = download
    return uri


def bring(house: House, name: str, size: int, seconds: float = 1.0, *, shared: bytes = b"") -> Brought:
    """Brings it, with its view."""
    brought = house.bring(offer(house, name, size, seconds, shared=shared))
    house.store.view(brought.held.tree)
    return brought


def names(house: House) -> str:
    """What is held: the names of the artifacts, one letter each."""
    return "".join(sorted(held.uri[-1] for held in house.index.asked()))


def left(swept: Swept) -> list[str]:
    """What went in a sweep, in order, as `names` has it; one that was held as nothing any more has no name."""
    return [one.names[0][-1] if one.names else "" for one in swept.leaving]
