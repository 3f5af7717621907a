"""Fetches race sweeps that take all they may: whoever is handed something out has all of it, and all of it is right."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifactcache.errors import CacheError, NoSpace
from cacheserver import uris
from cacheserver.errands import Ask
from cacheserver.selection import Selection
from cacheserver.sessions import Peer, Session, Sessions
from cacheserver.space import Amount, Limits
from cacheserver.sweeper import Swept
from tests.unit.house import House, fsck_command

ARTIFACTS, FETCHERS, FETCHES_EACH, HAND_OVER_ATTEMPTS = 30, 4, 300, 50
FETCHES_PER_SWEEP_MAX = 60  # where all goes all the time, there is nothing to race for
ALL = 2**62
MINUTES = 120.0


def content(number: int) -> dict[str, bytes]:
    """The files of an artifact: its own, some that it has twice or shares with others, an empty one."""
    own = f"artifact {number} ".encode() * 40
    shared = f"shared by some {number % 5} ".encode() * 20
    return {"own": own, "again/own": own, "shared": shared, "all": b"of all" * 30, "empty": b""}


class Race:
    """One house, and those who fetch from it as the service does: find or bring, lease, look, hand out, release."""

    def __init__(self, house: House, folder: Path, seed: int) -> None:
        self.house, self.folder, self.seed = house, folder, seed
        self.sessions = Sessions(house.leases)
        self.done, self.wrong, self.swept = threading.Event(), list[str](), list[Swept]()
        self.counted = Counter[str]()
        self.fetched = threading.Semaphore(0)

    def fetch_many(self, which: int) -> None:
        """One client: it fetches this and that, as a view or linked into a folder of its own, and reads all of it."""
        chance = random.Random(self.seed + which)
        session = self.sessions.open(Peer(1000 + which, 1000, 0))
        try:
            for turn in range(FETCHES_EACH):
                if self.wrong:
                    return
                number = min(int(chance.expovariate(0.15)), ARTIFACTS - 1)
                self.fetch(session, number, view=chance.random() < 0.5, target=self.folder / f"{which}-{turn}")
        finally:
            self.sessions.close(session)

    def fetch(self, session: Session, number: int, *, view: bool, target: Path) -> None:
        """One fetch."""
        artifact, house = uris.parse(f"s3://bucket/{number}"), self.house
        with contextlib.ExitStack() as ends:
            for _ in range(HAND_OVER_ATTEMPTS):
                found = house.cache.find(artifact, Selection(), view=view)
                self.counted["hits" if found else "misses"] += 1
                if found is None:
                    flight = house.cache.bring(artifact, Selection(), Ask.WHAT_IS_DUE)[0]
                    ends.callback(house.cache.leave, flight)
                    try:
                        found = flight.future.result(timeout=MINUTES)
                    except NoSpace:
                        self.counted["no space"] += 1
                        return
                lease = self.sessions.lease(session, found.held.tree, view=view)
                if house.index.holdings.has(found.held.tree):
                    break
                self.counted["gone before it was leased"] += 1
                self.sessions.release(session, lease)
            else:
                self.wrong.append(f"{number} is evicted again and again")
                return
        try:
            if view:
                target = Path(house.store.view(found.held.tree))
            else:
                (target / "again").mkdir(parents=True)
                fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    house.store.link(found.held.tree, fd, os.geteuid())
                finally:
                    os.close(fd)
            read = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
            expected = {name: data for name, data in content(number).items() if view or data}
            if read != expected:
                self.wrong.append(f"{number}: {sorted(read)} of {sorted(expected)}, or other bytes")
            self.counted["views" if view else "links"] += 1
            if not view:
                shutil.rmtree(target)  # what is linked outside of the store frees nothing, and stays
        except (CacheError, OSError) as error:
            self.wrong.append(f"{number}: {error!r}")
        finally:
            self.sessions.release(session, lease)
            self.fetched.release()

    def sweep_all(self) -> None:
        """Sweeps everything that may go, again and again, and tidies now and then."""
        chance = random.Random(self.seed)
        while not self.done.is_set():
            for _ in range(chance.randint(0, FETCHES_PER_SWEEP_MAX)):
                self.fetched.acquire(timeout=MINUTES)
            self.swept.append(self.house.sweeper.sweep(free_bytes=ALL))
            if len(self.swept) % 10 == 0:
                self.house.sweeper.tidy()
                self.house.sweeper.watch()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where the host has one: what is raced here is not the disk, which syncs a thousand times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("policy", ["gdsf", "s3-fifo"])
def test_fetches_race_sweeps(memory: Path, dice: random.Random, policy: str) -> None:
    """Some thousand fetches of a store that has room for half of it, while all that may go does: no file is missing or
    wrong, nothing fails, and at the end the index and the files agree."""
    capacity = sum(map(len, {data for number in range(ARTIFACTS) for data in content(number).values()})) // 2
    house = House(memory / "store", Limits(Amount(capacity), Amount(0)), policy=policy, grace_seconds=0.0)
    for number in range(ARTIFACTS):
        house.origin.files |= {f"s3://bucket/{number}/{name}": data for name, data in content(number).items()}
    race = Race(house, memory / "folders", dice.randrange(2**32))
    with ThreadPoolExecutor(FETCHERS + 1) as pool:
        sweeping = pool.submit(race.sweep_all)
        try:
            for fetching in [pool.submit(race.fetch_many, which) for which in range(FETCHERS)]:
                fetching.result(timeout=MINUTES)
        finally:
            race.done.set()
            race.fetched.release(FETCHES_PER_SWEEP_MAX)
        sweeping.result(timeout=MINUTES)
    evicted = sum(len(swept.leaving) for swept in race.swept)
    print(
        dict(race.counted), f"{len(race.swept)} sweeps, {evicted} evicted by them, {house.sweeper.evicted_count} in all"
    )
    assert race.wrong == []
    assert race.counted["views"] and race.counted["links"] and evicted > ARTIFACTS
    assert race.counted["no space"] == 0, "four at a time are not half of all"
    assert house.leases.total() == 0 and house.reservations.fill().coming == 0
    assert house.index.totals()["blob_bytes"] <= capacity
    house.sweeper.sweep(free_bytes=ALL)
    assert house.index.totals() == dict.fromkeys(house.index.totals(), 0)
    for number in range(0, ARTIFACTS, 3):
        house.store.view(house.bring(f"s3://bucket/{number}").held.tree)
    house.close()
    before = {path for path in house.root.rglob("*") if not path.name.startswith("index.db")}
    assert fsck_command(house.root) == 0
    after = {path for path in house.root.rglob("*") if not path.name.startswith("index.db")}
    assert before == after, "no strays"
    assert not os.listdir(house.root / "quarantine"), "nothing right was taken for wrong"
