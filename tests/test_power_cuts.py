"""Power cuts of real filesystems, again and again: what had reached the disk is there after each, and is right."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import mounts
from tests.rig.lying import lying_origin
from tests.rig.mounts import Filesystem
from tests.rig.outdated import outdate
from tests.rig.survival import People, Survival, survival
from tests.rig.until import until

DISKS = ("xfs", "ext4")
DISK_BYTES = 1 << 30
LOAD_SECONDS_MAX = 0.6
STOP_SECONDS_MAX = 0.2
MIGRATION_SECONDS_MAX = 0.05


@pytest.mark.parametrize("cut_count", [10, pytest.param(200, marks=(pytest.mark.slow, pytest.mark.timeout(7200)))])
def test_power_cuts(room: Path, people: People, seed: int, cut_count: int) -> None:
    """In the middle of fetches, sweeps, checkpoints, migrations and stops: `fsck` finds the store sound, what was
    synced before is held without the origin, of what came later only the last is lost, and all that is served is right.
    """
    for name in DISKS:
        if reason := mounts.reason_not_to_mount(mounts.BY_NAME[name]):
            pytest.skip(reason)
    if not shutil.which("xfs_io"):
        pytest.skip("xfs_io is not installed")
    counts = Counter[str]()
    for number, name in enumerate(DISKS):
        folder = room / name
        folder.mkdir()
        try:
            disk = mounts.mount(mounts.BY_NAME[name], folder / "disk.img", folder / "disk", DISK_BYTES)
            with (
                lying_origin() as origin,
                survival(
                    origin, folder, people, seed + number, root=disk.root / "store", on_a_disk_that_dies=True
                ) as one,
            ):
                while one.counts["cuts"] < cut_count // len(DISKS):
                    for when in one.chance.sample(sorted(_CUTS), len(_CUTS)):
                        _round(one, disk, when)
            counts += one.counts + Counter({f"cuts of {name}": one.counts["cuts"]})
        finally:
            mounts.unmount_below(folder)
    print(dict(counts))
    print(f"{counts['cuts']} cuts survived, {counts['bytes']} bytes compared, differences: 0, seed {seed}")
    assert all(counts[what] for what in ("retried", "view", "copy"))


def _round(one: Survival, disk: Filesystem, when: str) -> None:
    """The clients work, the power is cut, and is back."""
    durable, pinned = one.versions(), one.pinned & one.versions(pinned=True)
    subprocess.run(("sync", "-f", disk.root), check=True)
    _CUTS[when](one, disk)
    one.counts.update({"cuts": 1, when: 1})
    mounts.mount_again(disk, disk.root.parent / "disk.img")
    one.assert_sound()
    one.spawner.start()
    there = one.versions()
    pinned &= one.pinned  # but for those that were unpinned meanwhile
    assert pinned <= one.versions(pinned=True)
    if one.was_swept:
        durable = pinned
    assert durable <= there, f"{durable} were on the disk, {there} are held after {when}"
    if not one.was_swept:
        for brought in one.brought:
            lasted = [number in there for number in brought if number not in durable]
            assert lasted == sorted(lasted, reverse=True), f"{brought} came in this order, {there} are held"
    one.check(there)
    one.retry(at_once=False)
    one.hear()


def _cut(one: Survival, disk: Filesystem) -> None:
    mounts.cut_power(disk)
    one.spawner.kill()


def _work(one: Survival, *, sweeps: bool) -> None:
    one.go(sweeps=sweeps)
    time.sleep(one.chance.uniform(0, LOAD_SECONDS_MAX))


def _fetches(one: Survival, disk: Filesystem) -> None:
    _work(one, sweeps=False)
    _cut(one, disk)
    one.hear()


def _sweeps(one: Survival, disk: Filesystem) -> None:
    _work(one, sweeps=True)
    _cut(one, disk)
    one.hear()


def _checkpoints(one: Survival, disk: Filesystem) -> None:
    with one.spawner.checkpointing():
        _work(one, sweeps=one.chance.random() < 0.3)
        mounts.cut_power(disk)
    one.spawner.kill()
    one.hear()


def _stop(one: Survival, disk: Filesystem) -> None:
    _work(one, sweeps=False)
    os.kill(one.spawner.pid, signal.SIGTERM)
    time.sleep(one.chance.uniform(0, STOP_SECONDS_MAX))
    _cut(one, disk)
    one.hear()


def _migration(one: Survival, disk: Filesystem) -> None:
    """The daemon opens a store of an older release, which knows nothing of pins, and its log has begun to grow."""
    spawner, index = one.spawner, one.spawner.daemon.root / "index.db"
    os.kill(spawner.pid, signal.SIGTERM)
    assert spawner.end() == 0
    outdate(index)
    subprocess.run(("sync", "-f", disk.root), check=True)
    one.was_swept, one.brought = False, []
    one.forget_pins()
    log = index.with_name("index.db-wal")
    spawner.launch()
    until(lambda: log.exists() and log.stat().st_size, "the migration to be written")
    time.sleep(one.chance.uniform(0, MIGRATION_SECONDS_MAX))
    _cut(one, disk)


_CUTS: dict[str, Callable[[Survival, Filesystem], None]] = {
    "in fetches": _fetches,
    "in sweeps": _sweeps,
    "in checkpoints": _checkpoints,
    "in a migration": _migration,
    "while stopping": _stop,
}
