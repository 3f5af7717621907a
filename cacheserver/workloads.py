"""Traces that nobody recorded: what jobs on a shared host, a CI runner and a researcher's sweeps fetch.

Law of this file: dice and a number of fetches in, fetches out, the same for the same dice. Sizes, speeds and habits are
what this field has, and each has a name; they are not chosen for a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from cacheserver.traces import Fetch, Tree

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HOUR, DAY = 3_600.0, 86_400.0
START = 1_767_225_600.0  # Thursday, 1 January 2026, 00:00 UTC
FETCHES_A_DAY = 400.0  # of one busy host
NOISE = 0.3  # standard deviation of the logarithm of what a fetch takes: other traffic


class Dice(Protocol):
    """What is asked of `random.Random`."""

    def random(self) -> float:
        """From 0 to 1."""

    def expovariate(self, lambd: float) -> float:
        """The time between two events that come `lambd` times a second."""

    def lognormvariate(self, mu: float, sigma: float) -> float:
        """A size: its logarithm is normal."""

    def randrange(self, start: int, stop: int) -> int:
        """A whole number below `stop`."""


class Origin(NamedTuple):
    """Where trees come from: bytes and files a second, and seconds until it begins."""

    bytes_a_second: float
    files_a_second: float
    begins_after: float


FAR_BUCKET = Origin(60e6, 150, 0.5)  # another region's, over the internet: 8 requests of 50 ms at a time
SERVER = Origin(200e6, 230, 0.1)  # `mlflow server` with one worker in the building: 2,000 files in 8.7 s


class Kind(NamedTuple):
    """A kind of artifact: the median of its size, how far sizes spread (sigma of the logarithm), bytes of a file."""

    median_bytes: float
    spread: float
    file_bytes: float


CLASSIC = Kind(12 * MIB, 1.4, 2 * MIB)  # scikit-learn, boosted trees
NETWORK = Kind(400 * MIB, 1.0, 100 * MIB)  # vision, embeddings, small language models
LANGUAGE = Kind(14 * GIB, 0.6, 4 * GIB)  # 7 to 70 thousand million parameters, in shards
SMALL_FILES = Kind(200 * MIB, 1.0, 24 * KIB)  # data sets of images, texts or tables, one file each
TABLES = Kind(3 * GIB, 1.0, 256 * MIB)  # data sets in Parquet
SIZE_MIN, SIZE_MAX = 1 * MIB, 64 * GIB
KINDS = ((CLASSIC, 0.35), (NETWORK, 0.3), (LANGUAGE, 0.1), (SMALL_FILES, 0.1), (TABLES, 0.15))


class _World:
    """The dice, and what is made with them."""

    def __init__(self, dice: Dice, name: str, days: float) -> None:
        self.dice = dice
        self.days = days
        self._name = name
        self._count = 0

    def chance(self, share: float) -> bool:
        """Whether something happens that happens so often."""
        return self.dice.random() < share

    def kind(self) -> Kind:
        """One of all kinds."""
        at = self.dice.random()
        for kind, share in KINDS:
            at -= share
            if at < 0:
                return kind
        return KINDS[0][0]

    def origin(self) -> Origin:
        """One of both."""
        return FAR_BUCKET if self.chance(0.5) else SERVER

    def size(self, kind: Kind) -> int:
        """Bytes of one of its kind."""
        found = self.dice.lognormvariate(math.log(kind.median_bytes), kind.spread)
        return int(min(max(found, SIZE_MIN), SIZE_MAX))

    def tree(self, kind: Kind, origin: Origin, size: int | None = None, shared: Sequence[tuple[str, int]] = ()) -> Tree:
        """A new tree, with these blobs of others in it; its own bytes are one blob for each of a few files."""
        self._count += 1
        name = f"{self._name}-{self._count}"
        own = self.size(kind) if size is None else size
        bytes_all = own + sum(each for _, each in shared)
        seconds = origin.begins_after + bytes_all / origin.bytes_a_second
        seconds += max(1.0, own / kind.file_bytes) / origin.files_a_second
        seconds *= self.dice.lognormvariate(0, NOISE)
        pieces = min(8, max(1, int(own // kind.file_bytes)))
        blobs = [(f"{name}/{n}", own // pieces + (own % pieces if n == 0 else 0)) for n in range(pieces)]
        return Tree(name, round(seconds, 3), (*shared, *blobs))

    def working(self, at: float) -> float:
        """The first moment from `at` on at which people work: more by day, few at night, fewer on weekends."""
        while not self.chance(_activity(at)):
            at += self.dice.expovariate(1 / (0.5 * HOUR))
        return at

    def moment(self) -> float:
        """Some time at which people work."""
        while True:
            at = START + self.dice.random() * self.days * DAY
            if self.chance(_activity(at)):
                return at

    def soon(self, at: float, mean: float) -> float:
        """A while later."""
        return at + self.dice.expovariate(1 / mean)

    def ranked(self, count: int, alpha: float) -> Callable[[], int]:
        """Dice for 0 to count - 1, by Zipf's law: the n-th is asked for 1 / n^alpha as often as the first."""
        sums, total = [], 0.0
        for n in range(1, count + 1):
            total += n**-alpha
            sums.append(total)

        def throw() -> int:
            point, low, high = self.dice.random() * total, 0, count - 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if sums[middle] > point else (middle + 1, high)
            return low

        return throw


def _activity(at: float) -> float:
    day, hour = int(at // DAY) % 7, at % DAY / HOUR  # the epoch began on a Thursday: 2 and 3 are the weekend
    return (0.3 if day in (2, 3) else 1.0) * (1.0 if 8 <= hour < 19 else 0.2)


def _zipf(world: _World, count: int) -> Iterator[Fetch]:
    """A catalogue of models and data sets, some much asked for and most hardly: ranks never change."""
    catalogue = [world.tree(world.kind(), world.origin()) for _ in range(max(20, count // 20))]
    rank = world.ranked(len(catalogue), 0.9)
    for _ in range(count):
        yield Fetch(world.moment(), catalogue[rank()])


def _versions(world: _World, count: int) -> Iterator[Fetch]:
    """Registered models whose new versions take the place of old ones: most jobs ask for the newest."""
    models = []
    for _ in range(40):
        kind, origin = world.kind(), world.origin()
        size, at, versions = world.size(kind), START, list[tuple[float, Tree]]()
        every = DAY * world.dice.lognormvariate(math.log(7), 0.8)
        while at < START + world.days * DAY:
            grown = int(size * world.dice.lognormvariate(0, 0.05))
            versions.append((at, world.tree(kind, origin, grown)))
            at = world.working(world.soon(at, every))
        models.append(versions)
    rank = world.ranked(len(models), 0.8)
    for _ in range(count):
        at, versions = world.moment(), models[rank()]
        newest = max(n for n, (since, _) in enumerate(versions) if since <= at)
        back = 0 if world.chance(0.92) else 1 + int(world.dice.expovariate(1.0))
        yield Fetch(at, versions[max(0, newest - back)][1])


def _finetunes(world: _World, count: int) -> Iterator[Fetch]:
    """Fine-tunes of few base models, whose files they share: most are tried for some days, few are kept."""
    bases = []
    for _ in range(5):
        origin = world.origin()
        base = world.tree(LANGUAGE, origin)
        bases.append((base, origin))
    rank = world.ranked(len(bases), 1.0)
    left = count
    while left > 0:
        base, origin = bases[rank()]
        delta = world.size(NETWORK) if world.chance(0.8) else max(SIZE_MIN, base.size_bytes // 20)
        tuned = world.tree(NETWORK, origin, delta, base.blobs)
        kept = world.chance(0.1)
        times = min(left, 1 + int(world.dice.expovariate(1 / (40 if kept else 6))))
        left -= times
        born = at = world.moment()
        for _ in range(times):
            yield Fetch(at, base if world.chance(0.05) else tuned)
            at = world.moment() if kept else world.working(world.soon(at, 0.7 * DAY))
            at = max(at, born)


def _ci(world: _World, count: int) -> Iterator[Fetch]:
    """Pipelines: a push starts many jobs that fetch the same few artifacts within minutes; they seldom change."""
    pipelines = []
    for _ in range(20):
        kinds = [world.kind() for _ in range(world.dice.randrange(1, 5))]
        pipelines.append([world.tree(kind, world.origin()) for kind in kinds if kind is not LANGUAGE])
    rank = world.ranked(len(pipelines), 0.8)
    pushes, left = list[float](), count
    while left > 0:
        pushes.append(world.moment())
        left -= 14  # fetches of a push in the middle
    left = count
    for at in sorted(pushes):
        fetched = pipelines[rank()]
        if fetched and world.chance(0.04):
            place = world.dice.randrange(0, len(fetched))
            fetched[place] = world.tree(world.kind(), world.origin())
        for _ in range(world.dice.randrange(2, 10)):
            job = world.soon(at, 5 * 60)
            for tree in fetched[:left]:
                yield Fetch(world.soon(job, 20), tree)
                left -= 1


def _experiments(world: _World, count: int) -> Iterator[Fetch]:
    """Sweeps: each run fetches the data set and is looked at once; a tenth again."""
    left = count
    while left > 0:
        start, origin = world.moment(), world.origin()
        data = world.tree(SMALL_FILES if world.chance(0.4) else TABLES, origin)
        model = NETWORK if world.chance(0.8) else CLASSIC
        size = world.size(model)
        for _ in range(world.dice.randrange(10, 60)):
            at = world.soon(start, 1.0 * DAY)
            run = world.tree(model, origin, size)
            again = 1 if world.chance(0.9) else world.dice.randrange(2, 8)
            yield Fetch(at, data)
            left -= 1 + again
            for _ in range(again):
                at = world.working(world.soon(at, 0.3 * DAY))
                yield Fetch(at, run)


def _mixed(world: _World, count: int) -> Iterator[Fetch]:
    """All of it on one host, at the same time."""
    for name, share in MIXTURE.items():
        part = _World(world.dice, name, world.days)
        yield from WORKLOADS[name](part, int(count * share))


Workload = Callable[[_World, int], Iterator[Fetch]]
MIXTURE = {"zipf": 0.2, "versions": 0.25, "finetunes": 0.15, "ci": 0.25, "experiments": 0.15}
WORKLOADS: Mapping[str, Workload] = {
    "zipf": _zipf,
    "versions": _versions,
    "finetunes": _finetunes,
    "ci": _ci,
    "experiments": _experiments,
    "mixed": _mixed,
}


def generate(name: str, dice: Dice, count: int) -> list[Fetch]:
    """About `count` fetches of a workload, in the order of time."""
    world = _World(dice, name, max(7.0, count / FETCHES_A_DAY))
    end = START + world.days * DAY
    return sorted((fetch for fetch in WORKLOADS[name](world, count) if fetch.at < end), key=lambda fetch: fetch[0])
