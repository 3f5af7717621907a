"""Pipes, and locks that somebody removes: what root may do to a store keeps nobody waiting, and lets nobody in."""

from __future__ import annotations

import fcntl
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from cacheserver.register import Register
from cacheserver.words import Manifest
from tests.unit.healer import Healer
from tests.unit.house import FILES, ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one artifact, which nobody has open."""
    house = Healer(tmp_path / "store")
    house.fill()
    house.bring(ROOT)
    house.close()
    return tmp_path / "store"


@pytest.mark.parametrize(
    "name", ["doors", "doors.new", "leases", "leases.new", "ballast", "staging/7.from", "staging/7", "lock"]
)
def test_a_store_with_a_pipe_opens(root: Path, name: str) -> None:
    """Who opens a pipe waits for somebody at its other end: it is not waited for, and what is held is served."""
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    Disk(str(root), shared=True, doors=Doors.GUARDED).close()
    Register(str(root / "leases"), "this boot").close()
    house = Healer(root)
    try:
        house.origin.down = True
        found = house.find(ROOT)
        assert found is not None and house.content(found.held) == FILES
    finally:
        house.close()
    if name not in ("lock", "ballast"):
        left = root / name
        assert not left.exists() or stat.S_ISREG(left.lstat().st_mode)


def test_a_store_whose_lock_was_removed(root: Path) -> None:
    """It has its daemon all the same, and a second one is told so."""
    disk = Disk(str(root), shared=False)
    (root / "lock").unlink()
    with pytest.raises(CacheError, match="Another daemon uses"):
        Disk(str(root), shared=False)
    disk.close()
    Disk(str(root), shared=False).close()


def test_whoever_can_open_the_folder_cannot_hold_the_lock(root: Path) -> None:
    """flock(2) asks for no right but to read: what is locked is what nobody else can open."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        Disk(str(root), shared=True).close()
    finally:
        os.close(fd)
    assert all(stat.S_IMODE((root / name).stat().st_mode) in (0o600, 0o700) for name in ("lock", "blobs"))


def test_a_manifest_that_has_grown_is_not_read_into_memory(root: Path) -> None:
    """It is hashed a piece at a time, and is not what its name says."""
    disk = Disk(str(root), shared=False)
    try:
        tree = Manifest.of([]).digest
        disk.write_manifest(Manifest.of([]))
        path = root / "manifests" / tree[:2] / tree[2:]
        path.chmod(0o644)
        os.truncate(path, 1 << 30)  # of holes only
        tracemalloc.start()
        assert disk.read_manifest(tree) is None
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
        disk.close()
