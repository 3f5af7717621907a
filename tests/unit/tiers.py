"""A shared tier in memory that does what a test tells it: obstore's own, behind the room that asks a real one."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from obstore.store import MemoryStore

from cacheserver.claims import Claims
from cacheserver.publishing import Publishing
from cacheserver.retaining import Describes
from cacheserver.settings import SharedConfig
from cacheserver.tierplan import How, Report
from cacheserver.tierstore import Got, Object, Opened, Tag, TierError, TierStore, Unsupported
from cacheserver.tiersweep import TierSweep
from cacheserver.treerecords import TREES, TreeRecord
from tests.unit.house import FakeOrigin, House

PATIENCE_SECONDS = 30.0
TIERED = {f"d{n % 3}/{n}": f"file {n}".encode() * 50 for n in range(40)} | {
    "large": os.urandom((20 << 20) + 5),
    "zero": b"",
    "hollow/": b"",
}


Keys = list[str]  # in a class that has a `list` of its own
Objects = list[Object]


class Cupboard(TierStore):
    """Objects in memory. `before` is told of each call for one object, by its name and key, and may raise; `step` comes
    before each call of any kind; `written_at` says when a listed object was written; `is_conditional` whether there are
    conditional writes, `is_heedless` whether their conditions have no effect, `is_down` whether nothing answers."""

    def __init__(self) -> None:
        super().__init__("s3://bucket/prefix", "", "", 1.0, 1 << 20)
        self._memory = MemoryStore()
        self.before: Callable[[str, str], None] = lambda what, key: None
        self.received: Callable[[str, bytes], None] = lambda key, data: None
        self.step: Callable[[], None] = lambda: None
        self.written_at: Callable[[Object], float] = lambda listed: listed.written_at
        self.is_conditional = True
        self.is_heedless = False
        self.is_down = False
        self.calls: Counter[str] = Counter()
        self.read_bytes = self.written_bytes = 0
        self._counting = threading.Lock()

    def _opener(self) -> Callable[[float], Opened]:
        return lambda whole: (self._memory, tuple)

    def _note(self, what: str, key: str) -> None:
        with self._counting:
            self.calls[what] += 1
        self.step()
        if self.is_down:
            raise TierError("The shared tier s3://bucket/prefix cannot be used now: it is down")
        self.before(what, key)

    def get(self, key: str, bytes_max: int) -> Got | None:
        """As the real one."""
        self._note("get", key)
        found = super().get(key, bytes_max)
        if found:
            self.received(key, found.data)
        return found

    def read(self, key: str, begin: int, length: int) -> memoryview | None:
        """The same."""
        self._note("read", key)
        self.read_bytes += length
        return super().read(key, begin, length)

    def has(self, key: str, size: int) -> bool:
        """The same."""
        self._note("has", key)
        return super().has(key, size)

    def is_still(self, key: str, tag: Tag) -> bool:
        """The same."""
        self._note("get", key)
        return super().is_still(key, tag)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """The same."""
        self._note("put", key)
        self.written_bytes += len(data)
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """The same."""
        self._note("create", key)
        if not self.is_conditional:
            raise Unsupported
        if self.is_heedless:
            super().put(key, data)
            return True
        return super().create(key, data)

    def replace(self, key: str, data: bytes, tag: Tag) -> bool:
        """The same."""
        self._note("replace", key)
        if not self.is_conditional:
            raise Unsupported
        if self.is_heedless:
            super().put(key, data)
            return True
        return super().replace(key, data, tag)

    def delete(self, keys: Sequence[str]) -> None:
        """The same."""
        self._note("delete", ",".join(keys))
        super().delete(keys)

    def list(self, prefix: str) -> Iterator[Object]:
        """The same."""
        self.step()
        return (one._replace(written_at=self.written_at(one)) for one in super().list(prefix))

    # -- for tests --------------------------------------------------------------------------------------------------

    def keys(self, below: str = "") -> Keys:
        """What there is."""
        return [found.key for found in self.objects(below)]

    def objects(self, below: str = "") -> Objects:
        """The same, with sizes."""
        return sorted(super().list(below))

    def bytes_of(self, key: str) -> bytes:
        """An object."""
        found = super().get(key, 1 << 40)
        assert found is not None, key
        return found.data

    def spoil(self, key: str) -> None:
        """Turns the last byte of an object into another one."""
        data = bytearray(self.bytes_of(key))
        data[-1] ^= 0xFF
        super().put(key, bytes(data))


class Broom:
    """Who sweeps a cupboard; `said` is what it has told. Its clocks are the machine's, but for `ahead` seconds that
    were waited for without waiting; `meanwhile` is done while it waits for hosts to finish what they are publishing."""

    def __init__(self, cupboard: Cupboard, origin: Describes | None = None, secret: bytes | None = None) -> None:
        self.cupboard = cupboard
        self.origin = origin
        self.secret = secret
        self.said: list[str] = []
        self.ahead = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def sweep(self, how: How) -> Report:
        """Sweeps once."""
        claims = Claims(self.cupboard, "sweeper", self._clock, self._ticks, self._skip)
        clocks = self._clock, self._ticks
        return TierSweep(
            self.cupboard, claims, self.secret, self.origin, how, *clocks, self._settle, self.said.append
        ).run()

    def _clock(self) -> float:
        return time.time() + self.ahead

    def _ticks(self) -> float:
        return time.monotonic() + self.ahead

    def _skip(self, seconds: float) -> bool:
        self.ahead += seconds
        return False

    def _settle(self, seconds: float) -> None:
        self.ahead += seconds
        self.meanwhile()


class Street:
    """Houses of one origin that share a cupboard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = FakeOrigin()
        self.cupboard = Cupboard()
        self.houses: list[House] = []

    def house(self, **shared: Any) -> House:
        """One house more. Nothing is published before `settle`."""
        house = House(
            self.folder / str(len(self.houses)), origin=self.origin, tier=self.cupboard, shared=SharedConfig(**shared)
        )
        self.houses.append(house)
        return house

    def files(self, files: dict[str, bytes], uri: str = "s3://bucket/model") -> str:
        """The origin has these."""
        self.origin.files |= {f"{uri}/{name}": content for name, content in files.items()}
        return uri

    def settle(self, house: House) -> None:
        """Publishes all that is due in a house, in this thread, and gives its claims back."""
        assert house.sharing is not None
        publish_due(house.sharing.publishing)

    def close(self) -> None:
        """Closes all of them."""
        for house in self.houses:
            house.close()


def publish_due(publishing: Publishing | None) -> None:
    """Publishes all that is due, in this thread."""
    assert publishing is not None
    while publishing.publish_next():
        pass


def published(street: Street, files: dict[str, bytes] | None = None, uri: str = "s3://bucket/model") -> str:
    """What a first host has brought, and put into the tier."""
    first = street.house()
    street.files(files or TIERED, uri)
    assert first.bring(uri).origin_bytes == sum(map(len, (files or TIERED).values()))
    street.settle(first)
    return uri


def content(house: House, uri: str) -> dict[str, bytes | None]:
    """What a house holds of something."""
    held = house.index.held(uri, "")
    assert held is not None
    return house.content(held)


def record_of(street: Street, uri: str) -> TreeRecord:
    """What the tier says of a location."""
    found = (TreeRecord.decode(key, street.cupboard.bytes_of(key), None) for key in street.cupboard.keys(TREES))
    return next(record for record in found if record.uri == uri)
