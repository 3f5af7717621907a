"""Ends of a daemon, one after the other, and what has to be true after each.

`Survival` knows what the clients of a fleet have been told, and so what the next daemon must still hold. How a daemon
ends, and when, is the caller's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from artifactcache.v1 import cache_pb2 as pb
from tests.rig import honest, wire
from tests.rig.caller import Caller, Job
from tests.rig.crowd import Shelf
from tests.rig.daemon import Daemon, config_text
from tests.rig.fleet import fleet
from tests.rig.interpreter import Interpreter
from tests.rig.lying import LyingOrigin
from tests.rig.spawner import Spawner
from tests.rig.until import until
from tests.rig.users import User


@dataclasses.dataclass(frozen=True)
class People:
    """Who takes part, and how they run Python."""

    users: dict[str, User]
    interpreter: Interpreter
    caller_of: Callable[[Daemon, Path, str], Caller]


@dataclasses.dataclass
class Survival:
    """One store, its clients, and what they know.

    Attributes:
        held: artifacts of which a client has been told that they are there, and which nothing has evicted since.
        pinned: those that an operator has pinned.
        brought: of each client, what came from the origin in the last round, in its order.
    """

    spawner: Spawner
    shelf: Shelf
    callers: Sequence[Caller]
    seed: int
    on_a_disk_that_dies: bool = False
    held: set[int] = dataclasses.field(default_factory=set)
    pinned: set[int] = dataclasses.field(default_factory=set)
    brought: list[list[int]] = dataclasses.field(default_factory=list)
    was_swept: bool = False
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    jobs: list[Job] = dataclasses.field(default_factory=list)
    _fleets: int = 0
    _stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """The fleet, for as long as the block."""
        with self._stack:
            self._embark()
            yield

    def _embark(self) -> None:
        self._fleets += 1
        told = fleet(
            self.callers,
            self.shelf,
            seed=self.seed + 1000 * self._fleets,
            on_a_disk_that_dies=self.on_a_disk_that_dies,
        )
        self.jobs = self._stack.enter_context(told)

    def go(self, *, sweeps: bool) -> None:
        """Every client works until its daemon ends."""
        for job in self.jobs:
            job.say({"sweeps": sweeps})

    def retry(self, *, at_once: bool) -> None:
        """Every client does again what was broken off; with `at_once` the daemon need not be there yet."""
        for job in self.jobs:
            job.say({"retry": "at once" if at_once else "now"})

    def hear(self) -> None:
        """Wait until every client has lost its daemon, or has done again what was broken off, and hear what it has been
        told until then."""
        reports = [job.hear() for job in self.jobs]
        for report in reports:
            self.counts.update(report["counts"])
        self.pinned = {number for report in reports for number in report["pinned"]}
        self.was_swept = any(report["swept"] for report in reports)
        self.brought = [report["brought"] for report in reports]
        if self.was_swept:
            self.held = set(self.pinned)
        else:
            self.held |= self.pinned.union(*(report["acked"] for report in reports))

    def kill_clients(self) -> None:
        """SIGKILL to all of them, in the middle of whatever they do; their reports are lost with them."""
        for job in self.jobs:
            job.kill()
        self._stack.close()
        self.held, self.pinned = set(), set()  # nobody knows what the last one that died had swept or unpinned

    def assert_nothing_of_the_dead(self) -> None:
        """The daemon that has just started has no lease, and clients may come."""
        with (
            wire.stub(self.spawner.daemon.socket_dir) as cache,
            wire.Handoff(self.spawner.daemon.socket_dir) as handoff,
        ):
            stats = cache.Stats(pb.StatsRequest(), metadata=wire.bearer(handoff.hello()))
        assert (stats.lease_count, stats.session_count) == (0, 1), stats
        self._embark()

    def assert_held(self) -> None:
        """What clients were told of is there, is a hit, is right, and needs no byte of the origin's."""
        assert self.pinned <= self.versions(pinned=True), f"{self.pinned} were pinned, {self.versions(pinned=True)} are"
        self.check(self.held)

    def check(self, numbers: set[int]) -> None:
        """One of the clients finds that these are held, and right."""
        self.jobs[0].say({"check": sorted(numbers)})
        self.counts.update(self.jobs[0].hear()["counts"])

    def forget_pins(self) -> None:
        """Nothing is pinned any more, and the operator is to know."""
        self.pinned = set()
        for job in self.jobs:
            job.say({"check": [], "unpinned": True})
            job.hear()

    def versions(self, *, pinned: bool = False) -> set[int]:
        """Which artifacts the daemon says that it holds, whole; with `pinned` those that are pinned."""
        by_uri = {self.shelf.uri_of(number): number for number in range(self.shelf.artifact_count)}
        with (
            wire.stub(self.spawner.daemon.socket_dir) as cache,
            wire.Handoff(self.spawner.daemon.socket_dir) as handoff,
        ):
            found = list(cache.List(pb.ListRequest(), metadata=wire.bearer(handoff.hello())))
        return {
            by_uri[one.version]
            for one in found
            if one.version in by_uri and not one.include and (one.pinned_until or not pinned)
        }

    def assert_staging_is_empty(self) -> None:
        """But for beginnings of large files, each with its note: nobody has asked the new daemon for anything yet. A
        view, or a large blob, that the one before was about to remove comes through it, too."""
        staging: Path = self.spawner.daemon.root / "staging"

        def others() -> set[str]:
            names = {path.name for path in staging.iterdir()}
            noted = {name.removesuffix(".from") for name in names if name.endswith(".from")}
            return names - noted - {f"{name}.from" for name in noted}

        until(lambda: not others(), lambda: f"nothing but beginnings in staging: {others()}")

    def assert_sound(self) -> None:
        """`cacheserver fsck` finds every row's bytes, and nothing that it would not have made."""
        status, said = self.spawner.run("fsck")
        assert status == 0 and said.endswith("sound\n") and not said.endswith("not sound\n"), said
        assert not any(word in said for word in ("wrong or gone", "quarantine", "not of the store's", "Traceback")), (
            said
        )
        self.counts["fscks"] += 1


@contextlib.contextmanager
def survival(
    origin: LyingOrigin,
    folder: Path,
    people: People,
    seed: int,
    *,
    root: Path | None = None,
    on_a_disk_that_dies: bool = False,
) -> Iterator[Survival]:
    """A daemon with its clients. At the end it is stopped as a daemon should be, and its store is sound.

    Args:
        folder: for all that they need, but the store where `root` says that it is elsewhere.
    """
    shelf = honest.open_shelf(origin, artifact_count=12, file_count=3, file_bytes=20_000, large_bytes=17 << 20)
    place = folder / "daemon"
    place.mkdir()
    root = root or place / "store"
    config = config_text(root, origin.uri, grace=0.0, unreachable_after=20.0)
    daemon = Daemon(people.interpreter, people.users.get("daemon"), place, root, config, is_system=bool(people.users))
    daemon.prepare()
    callers = [people.caller_of(daemon, folder, role) for role in ("alice", "bob", "root")]
    with contextlib.closing(Spawner(daemon)) as spawner:
        one = Survival(spawner, shelf, callers, seed, on_a_disk_that_dies=on_a_disk_that_dies)
        spawner.start()
        try:
            with one.clients():
                yield one
        except BaseException:
            print(dict(one.counts), daemon.read_log()[-4000:])
            raise
        os.kill(spawner.pid, signal.SIGTERM)
        assert spawner.end() == 0, daemon.read_log()[-4000:]
        one.assert_sound()
