"""A disk that loses what it took: who counted on the bytes hears of it, and nobody else's question hides it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.disk import SYNC_ONE_BY_ONE_MAX, Disk
from cacheserver.staging import Staged
from tests.rig import mounts

BATCH_FILES = SYNC_ONE_BY_ONE_MAX + 4
FILE_BYTES = 1 << 20
BACKING_BYTES = 8 << 20  # less than one batch: the rest cannot be written back


@pytest.fixture
def losing_disk(base: Path) -> Iterator[Path]:
    """A filesystem that has room, on a device that has none: writes succeed, and writing them back does not."""
    # Without a journal, which would end all writing at the first block that it loses.
    kind = dataclasses.replace(
        mounts.BY_NAME["ext4"], mkfs=("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1")
    )
    for needed in (kind, mounts.BY_NAME["tmpfs"]):
        reason = mounts.reason_not_to_mount(needed)
        if reason is not None:
            pytest.skip(reason)
    folder = base / "losing"
    folder.mkdir()
    try:
        backing = mounts.mount(mounts.BY_NAME["tmpfs"], folder, folder / "backing", size_bytes=BACKING_BYTES)
        yield mounts.mount(kind, backing.root / "disk.img", folder / "disk", size_bytes=64 << 20).root
    finally:
        mounts.unmount_below(folder)


def batch(disk: Disk) -> list[Staged]:
    """Files of a download, finished and not synced."""
    paths = [disk.stage() for _ in range(BATCH_FILES)]
    for path in paths:
        Path(path).write_bytes(os.urandom(FILE_BYTES))
    return [disk.measure(path) for path in paths]


def test_lost_bytes_are_no_blobs_whoever_asks_first(losing_disk: Path) -> None:
    """Two batches on their way when the disk loses some of their bytes: neither counts as safe.

    The kernel tells of a lost write once per open file; the second batch must not take silence for safety.
    """
    disk = Disk(str(losing_disk / "store"), shared=False)
    try:
        batches = [batch(disk), batch(disk)]
        lost = []
        for one in batches:
            try:
                disk.sync(one)
            except OSError:
                lost.append(one)
        assert lost == batches
        for one in batches:
            with pytest.raises(OSError):
                disk.sync(one[:1])  # nor does a part of it become safe by asking again
    finally:
        disk.close()
