"""A soak: clients of three users for as long as asked, with all that troubles a daemon in a week put into minutes.

The store is too small, so that sweeps go on all the time; the origin fails by turns; client processes are killed; the
daemon reads its configuration anew, and is stopped by SIGTERM and started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import StartDaemon
from tests.rig import crowd, gauges, soaker
from tests.rig.caller import Caller, Job
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.survival import People
from tests.rig.unsteady import unsteady_origin
from tests.rig.until import until
from tests.rig.upkeep import call
from tests.rig.weather import RESTART, Weather
from tests.rig.whole import assert_whole

UNREACHABLE_AFTER = 3.0
PATIENCE_SECONDS = 4 * UNREACHABLE_AFTER  # two questions, each with its turn to wait for
FILL_SECONDS_MAX = 180.0
CAPACITY_SHARE = 0.6  # of all artifacts together: more than all clients can lease and wait for at once

RSS_GROWTH_MAX = 0.10
DESCRIPTORS_GROWTH_MAX = 10
THREADS_GROWTH_MAX = 10
DISK_EXCESS_BYTES_MAX = 40 << 20  # beyond the capacity: ballast, index and its log, mirror, audit log, folders of views


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        restarts: when, of the whole time; then comes the life that is the longest, in which all is to be flat.
        fair, foul: seconds of the origin's weather, at least and at most.
    """

    seconds: float
    process_count: int
    clients_each: int
    artifact_count: int
    restarts: tuple[float, ...]
    fair: tuple[float, float]
    foul: tuple[float, float]
    kill_every: tuple[float, float]
    reload_every: float
    sample_every: float


SHORT = Scale(20.0, 4, 3, 48, (0.3,), (1.0, 2.5), (0.5, 2.0), (2.0, 4.0), 5.0, 0.5)
LONG = Scale(0.0, 16, 4, 256, (0.15, 0.3, 0.45), (5.0, 25.0), (1.0, 8.0), (4.0, 15.0), 20.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One look at the daemon, in one of its lives."""

    life: int
    taken: gauges.Taken
    disk_bytes: int


class Soak:
    """What is under way: the processes of clients, the weather, and what has been seen of the daemon."""

    def __init__(
        self, daemon: Daemon, callers: Sequence[Caller], shelf: crowd.Shelf, weather: Weather, seed: int, scale: Scale
    ) -> None:
        self._daemon = daemon
        self._callers = callers
        self._shelf = shelf
        self._weather = weather
        self._seed = seed
        self._scale = scale
        self._chance = random.Random(seed)
        self._jobs: list[Job] = []
        self.counts: Counter[str] = Counter()
        self.samples: list[Sample] = []

    @property
    def homes(self) -> list[Path]:
        """Where clients write down what they did."""
        return [caller.cwd for caller in self._callers]

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """All of them, each process of the next user. None is there after the block, however it ends."""
        try:
            self._jobs = [self._start(slot) for slot in range(self._scale.process_count)]
            yield
            for job in self._jobs:
                job.say("enough")
            for job in self._jobs:
                job.result()
        finally:
            for job in self._jobs:
                job.kill()

    def run(self) -> None:
        """Everything at its moment, until the time is over."""
        scale, begin = self._scale, time.monotonic()
        restarts = [begin + share * scale.seconds for share in scale.restarts]
        kill_at, sample_at = begin + self._chance.uniform(*scale.kill_every), begin
        reload_at = begin + scale.reload_every
        self._weather.changes_at = begin + scale.fair[0]
        while (now := time.monotonic()) < begin + scale.seconds:
            if now >= self._weather.changes_at:
                self._weather.change(now)
            if now >= kill_at:
                self._kill()
                kill_at = now + self._chance.uniform(*scale.kill_every)
            if now >= reload_at:
                self._reload()
                reload_at = now + scale.reload_every
            if restarts and now >= restarts[0]:
                del restarts[0]
                self._restart()
            if now >= sample_at:
                self._sample()
                sample_at = now + scale.sample_every
            time.sleep(0.05)
        self._weather.clear(time.monotonic())

    def note_evictions(self) -> None:
        """What the daemon has evicted in this life; its next one begins to count anew."""
        stats = call(self._callers[-1], "stats")
        self.counts["evictions"] += stats["evicted_count"]

    def _start(self, slot: int) -> Job:
        self.counts["processes"] += 1
        caller = self._callers[slot % len(self._callers)]
        seed = self._seed + self.counts["processes"]
        return soaker.start(caller, self._shelf, slot=slot, seed=seed, client_count=self._scale.clients_each)

    def _kill(self) -> None:
        slot = self._chance.randrange(len(self._jobs))
        assert self._jobs[slot].process.poll() is None, f"process {slot} ended by itself"
        self._jobs[slot].kill()
        self.counts["kills"] += 1
        self._jobs[slot] = self._start(slot)

    def _reload(self) -> None:
        """Another configuration by turns, which the daemon notices by itself."""
        first, second = "relist_after = 120.0", "relist_after = 121.0"
        path = self._daemon.folder / "config.toml"
        text = path.read_text()
        path.write_text(text.replace(first, second) if first in text else text.replace(second, first))
        self.counts["reloads"] += 1

    def _restart(self) -> None:
        self.note_evictions()
        begin = time.monotonic()
        self._daemon.restart()
        self._weather.note_restart(begin, time.monotonic())
        self.counts["restarts"] += 1

    def _sample(self) -> None:
        assert self._daemon.process is not None and self._daemon.process.poll() is None, self._daemon.read_log()[-4000:]
        assert not soaker.wrongs(self.homes), soaker.wrongs(self.homes)
        life, disk = self.counts["restarts"], gauges.disk_bytes(self._daemon.root)
        self.samples.append(Sample(life, gauges.taken(self._daemon.pid), disk))


@pytest.mark.parametrize("kind", ["short", pytest.param("long", marks=(pytest.mark.slow, pytest.mark.timeout(0)))])
def test_soak(
    start_daemon: StartDaemon,
    people: People,
    mlflow_proxied: MlflowServer,
    room: Path,
    seed: int,
    kind: str,
    pytestconfig: pytest.Config,
) -> None:
    """Every byte that anybody gets is the origin's; errors are typed, and of a kind that the origin's failure of that
    moment, or a restart, allows; the store keeps to its capacity and is whole at the end. In the long form, with 64
    clients, also: memory, descriptors and threads are flat, from the second sixth of the daemon's longest life to its
    last one."""
    scale = SHORT if kind == "short" else dataclasses.replace(LONG, seconds=60.0 * pytestconfig.getoption("--minutes"))
    chance = random.Random(seed)
    with (
        unsteady_origin(mlflow_proxied) as origin,
        crowd.shelf(mlflow_proxied, artifact_count=scale.artifact_count, file_count=3, file_bytes=100 << 10) as shelf,
    ):
        capacity = int(shelf.total_bytes * CAPACITY_SHARE)
        daemon = start_daemon(
            origin.uri,
            capacity=str(capacity),
            grace=0.0,
            unreachable_after=UNREACHABLE_AFTER,
            relist_after=120.0,
            more='[audit]\nmax_bytes = "1MiB"\nfiles = 2\n',
        )
        callers = [people.caller_of(daemon, room, role) for role in ("alice", "bob", "root")]
        weather = Weather(origin, chance, patience=PATIENCE_SECONDS, fair=scale.fair, foul=scale.foul)
        soak = Soak(daemon, callers, shelf, weather, seed, scale)
        until(lambda: _is_filled(callers[0], shelf), "the store to be full from the beginning", FILL_SECONDS_MAX)
        with soak.clients():
            soak.run()
        soak.note_evictions()
        wrong = soaker.wrongs(soak.homes)
        assert not wrong, wrong
        notes = list(soaker.notes(soak.homes))
        _report(notes, soak, weather, capacity, seed)
        until(lambda: not daemon.staging(), lambda: f"staging to be empty: {daemon.staging()}")
        assert_whole(daemon)
    unaccounted = [
        note
        for note in notes
        if note.what[0].isupper()
        and note.what != "DeadlineExceeded"  # only clients who had set a deadline note it
        and not weather.accounts_for(note.what, note.begin, note.end)
    ]
    assert not unaccounted, (len(unaccounted), unaccounted[:10], weather.spells)
    assert {note.what for note in notes} >= {"view", "copy", "hardlink"}
    assert soak.counts["kills"] and soak.counts["restarts"] and soak.counts["evictions"]
    assert daemon.read_log().count("the configuration was read anew") >= soak.counts["reloads"] / 2  # but at a restart
    assert max(sample.disk_bytes for sample in soak.samples) <= capacity + DISK_EXCESS_BYTES_MAX
    if kind == "long":
        _assert_flat(soak.samples)


def _is_filled(caller: Caller, shelf: crowd.Shelf) -> bool:
    """Everything was fetched once; a busy machine's origin may not answer in time at first."""
    try:
        call(caller, "warm", *map(shelf.uri_of, range(shelf.artifact_count)))
    except errors.OriginUnavailable:
        return False
    return True


def _sixths(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The second and the last sixth of the daemon's longest life."""
    life = Counter(sample.life for sample in samples).most_common(1)[0][0]
    within = [sample for sample in samples if sample.life == life]
    sixth = max(len(within) // 6, 1)
    return within[sixth : 2 * sixth] or within, within[-sixth:]


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    found = {name: statistics.median(getattr(s.taken, name) for s in samples) for name in gauges.Taken._fields}
    return found | {"disk_bytes": statistics.median(s.disk_bytes for s in samples)}


def _assert_flat(samples: Sequence[Sample]) -> None:
    early, late = map(_medians, _sixths(samples))
    assert late["rss_bytes"] <= early["rss_bytes"] * (1 + RSS_GROWTH_MAX)
    assert late["descriptor_count"] <= early["descriptor_count"] + DESCRIPTORS_GROWTH_MAX
    assert late["thread_count"] <= early["thread_count"] + THREADS_GROWTH_MAX


def _report(notes: Sequence[soaker.Note], soak: Soak, weather: Weather, capacity: int, seed: int) -> None:
    early, late = map(_medians, _sixths(soak.samples))
    print(f"\n{'quantity':<20}{'second sixth':>14}{'last sixth':>14}{'most':>14}")
    most = {name: max(getattr(s.taken, name) for s in soak.samples) for name in gauges.Taken._fields}
    most["disk_bytes"] = max(s.disk_bytes for s in soak.samples)
    for name in early:
        print(f"{name:<20}{early[name]:>14,.0f}{late[name]:>14,.0f}{most[name]:>14,.0f}")
    print(f"{'capacity_bytes':<20}{capacity:>42,}")
    print(f"\n{'hits by mode':<20}{'count':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for mode in sorted({note.what for note in notes if note.is_hit}):
        hits = sorted(1000 * (note.end - note.begin) for note in notes if note.is_hit and note.what == mode)
        p50, p95, p99 = (hits[int(len(hits) * share)] for share in (0.5, 0.95, 0.99))
        print(f"{mode:<20}{len(hits):>10,}{p50:>10.1f}{p95:>10.1f}{p99:>10.1f}")
    spells = Counter(spell.kind for spell in weather.spells if spell.kind != RESTART)
    errors = Counter(note.what for note in notes if note.what[0].isupper())
    fetched = len(notes) - errors.total()
    hits_share = sum(note.is_hit for note in notes) / max(fetched, 1)
    print(f"\nfailures of the origin: {dict(spells)}; errors of clients: {dict(errors)}")
    print(
        f"{fetched:,} fetches, {hits_share:.0%} hits, {soak.counts['kills']} kills,"
        f" {soak.counts['restarts']} restarts, {soak.counts['reloads']} configurations,"
        f" {soak.counts['evictions']:,} evictions,"
        f" {sum(note.bytes for note in notes):,} bytes compared, differences: 0, seed {seed}"
    )
