"""A house whose origin has three versions of a model, and one who keeps some of it warm."""

from __future__ import annotations

from pathlib import Path

from cacheserver.selection import Selection
from cacheserver.settings import QuotasConfig
from cacheserver.warming import Warm, Warming
from cacheserver.words import Resolved
from tests.unit.house import PATIENCE_SECONDS, ROOMY, House

CHAMPION, CANARY = "models:/m@champion", "models:/m@canary"
EVERY = 600.0


def house_of_versions(folder: Path) -> House:
    """A house in which nothing is young, whose origin has three versions of a model; `champion` is the first."""
    house = House(folder / "store", ROOMY, grace_seconds=0.0, quotas=QuotasConfig())
    for number in "123":
        root = f"s3://bucket/m/{number}"
        house.origin.versions[f"models:/m/{number}"] = Resolved(f"models:/m/{number}", root, (), True)
        house.origin.files |= {
            f"{root}/weights.onnx": number.encode() * 100,
            f"{root}/notes.md": b"notes " + number.encode(),
        }
    house.origin.aliases = {CHAMPION: "1", CANARY: "1"}
    return house


def warming(house: House, *wanted: str | Warm) -> Warming:
    """As a daemon has it that has just started."""
    warm = [one if isinstance(one, Warm) else Warm(one, EVERY, Selection()) for one in wanted]
    return Warming(house.cache, house.index, warm, lambda: house.now, lambda: house.ticks, lambda at: 0.0)


def move(house: House, alias: str, number: str) -> None:
    """An alias stands for another version from now on."""
    house.origin.aliases[alias] = number


def look(keeper: Warming) -> None:
    """Has it look after what is due, and again when that is here."""
    keeper.look()
    under_way = list(keeper._under_way.values())
    for flight in under_way:
        flight.future.exception(timeout=PATIENCE_SECONDS)
    if under_way:
        keeper.look()


def later(house: House, seconds: float) -> None:
    """Time passes."""
    house.now += seconds
    house.ticks += seconds


def pinned(house: House) -> set[str]:
    """The numbers of the versions that are kept."""
    return {uri[-1] for uri, _ in house.index.pins.untils(house.now)}
