"""A store on a disk that is smaller than what is asked of it: it is never full, unless others fill it.

`make soak-disk` runs the long form alone: a disk of 1 GiB, 20 GiB of fetches.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import crowd, mounts
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.until import until
from tests.rig.upkeep import call
from tests.rig.whole import assert_whole

SEED = 1_000
LOOK_SECONDS = 0.005
FULL = ("disk is full", "No space left", "ENOSPC", "NoSpace", "Traceback")


@pytest.fixture
def disk(base: Path, room: Path) -> Iterator[Callable[[int], Filesystem]]:
    """Mounts an ext4 filesystem of so many bytes that belongs to one test."""
    kind = mounts.BY_NAME["ext4"]
    reason = mounts.reason_not_to_mount(kind)
    if reason is not None:
        pytest.skip(reason)
    try:
        yield lambda size: mounts.mount(kind, room / "disk.img", room / "disk", size_bytes=size)
    finally:
        mounts.unmount_below(room)


class Gauge:
    """Looks again and again how much is free."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = threading.Event()
        self.least_bytes = self.free()

    def free(self) -> int:
        """Bytes, as an ordinary user sees it."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Keeps `least_bytes` while the block runs."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.least_bytes = min(self.least_bytes, self.free())


@pytest.mark.parametrize(
    ("disk_bytes", "artifact_count", "file_count", "file_bytes", "fetch_count"),
    [
        pytest.param(96 << 20, 80, 3, 500_000, 520, id="1GiB-on-96MiB"),
        pytest.param(
            1 << 30, 150, 7, 2 << 20, 1300, id="20GiB-on-1GiB", marks=(pytest.mark.slow, pytest.mark.timeout(3600))
        ),
    ],
)
def test_the_disk_is_never_full(
    disk: Callable[[int], Filesystem],
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    mlflow_file: MlflowServer,
    disk_bytes: int,
    artifact_count: int,
    file_count: int,
    file_bytes: int,
    fetch_count: int,
) -> None:
    """Four processes of two users fetch many times the disk's size, as views that some keep for a while, as hard links
    and as copies, which are on the same disk: not one error, every byte right, and always something free."""
    small = disk(disk_bytes)
    with crowd.shelf(mlflow_file, artifact_count=artifact_count, file_count=file_count, file_bytes=file_bytes) as shelf:
        assert shelf.total_bytes > disk_bytes
        assert fetch_count * shelf.artifact_bytes > 10 * disk_bytes
        daemon = start_daemon(mlflow_file.uri, root=small.root / "store", grace=0.0, min_free="10%")
        callers = _on_the_disk(small, daemon, caller_of)
        gauge = Gauge(small.root)
        with gauge.looking(), crowd.crowd(callers, shelf, seed=SEED, fetch_count=fetch_count // 4) as jobs:
            found = crowd.outcome(jobs)
        evicted = call(callers[0], "stats")
    print(dict(found), f"{evicted['evicted_count']} evicted, never less than {gauge.least_bytes:,} bytes free")
    assert found["fetches"] == fetch_count
    assert all(found[mode] for mode in ("view", "hardlink", "copy"))
    assert evicted["evicted_count"] > artifact_count
    assert gauge.least_bytes > 0
    assert [word for word in FULL if word in daemon.read_log()] == []
    assert_whole(daemon)


def test_another_program_fills_the_disk_meanwhile(
    disk: Callable[[int], Filesystem], start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer
) -> None:
    """While four processes fetch, somebody takes all that is free: fetches are served or NoSpace, what is held stays
    right, and the store gives way. When the others are gone all is well, and nothing is lost."""
    small = disk(96 << 20)
    min_free = 10 << 20
    with crowd.shelf(mlflow_file, artifact_count=80, file_count=3, file_bytes=500_000) as shelf:
        daemon = start_daemon(mlflow_file.uri, root=small.root / "store", grace=0.0, min_free=str(min_free))
        callers, gauge = _on_the_disk(small, daemon, caller_of), Gauge(small.root)
        holder = callers[0]
        keep = """
            import artifactcache
            from tests.rig.trees import read
            view = artifactcache.fetch(uri)
            say(view.digest)
            hear()
            result = sum(map(len, read(view.path).values()))
        """
        with (
            holder.start(keep, uri=shelf.uri_of(0)) as keeping,
            crowd.crowd(callers, shelf, seed=SEED, fetch_count=60, tolerated=("NoSpace",), say_after=20) as jobs,
        ):
            keeping.hear()
            for job in jobs:
                job.hear()
            filler = _take(small.root / "filler", gauge)
            found = crowd.outcome(jobs)
            print(dict(found), f"{gauge.free():,} bytes free when they had ended")
            assert holder.fetch(shelf.uri_of(0)).hit, "a held one is served from a full disk"
            until(lambda: gauge.free() >= min_free, lambda: f"the store to give way\n{daemon.read_log()[-6000:]}", 60)
            keeping.say("end")
            assert keeping.result() == shelf.artifact_bytes
        assert found["fetches"] + found["NoSpace"] == 240
        filler.unlink()
        with crowd.crowd(callers, shelf, seed=SEED + 10, fetch_count=20) as jobs:
            assert crowd.outcome(jobs)["fetches"] == 80
    assert "Traceback" not in daemon.read_log()
    assert_whole(daemon)


def _take(path: Path, gauge: Gauge) -> Path:
    """Takes what is free now, and not what the store gives back then: root asks for no store's leave."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1)
        taken = 1
        with contextlib.suppress(OSError):  # the store was faster
            while (free := gauge.free()) > 64 << 10 and taken < 30 << 20:
                os.posix_fallocate(file.fileno(), taken, free)
                taken += free
    return path


def _on_the_disk(small: Filesystem, daemon: Daemon, caller_of: CallerOf) -> list[Caller]:
    """Two processes of each of two users, whose folders are on the store's disk."""
    homes = small.root / "homes"
    homes.mkdir(mode=0o755)
    alice, bob = caller_of(daemon, homes, "alice"), caller_of(daemon, homes, "bob")
    return [alice, bob, alice, bob]
