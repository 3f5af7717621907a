"""A power cut: what the store counts on has reached the disk by then."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheserver.words import Standing
from tests.rig import mounts
from tests.rig.mounts import Filesystem
from tests.unit.house import Shelf


def after_a_power_cut(disk: Filesystem, folder: Path) -> Path:
    """The filesystem as a host would find it that lost its power now: what was sent to the device, and no more."""
    image = folder / "cut.img"
    shutil.copyfile(disk.root.parent / "disk.img", image)  # what the filesystem has not sent is not in it
    (folder / "cut").mkdir()
    subprocess.run(("mount", "-o", "loop", image, folder / "cut"), check=True)
    return folder / "cut"


def _arrivals(shelf: Shelf) -> None:
    path = shelf.store.stage()
    Path(path).write_bytes(b"1")
    shelf.store.keep({"s3://b/x": shelf.store.measure(path)}, Standing.FINISHED, 1.0)
    _synced(shelf)
    assert shelf.store.leftovers.expire(2.0) == 1


def _wrong(shelf: Shelf) -> None:
    held = shelf.put({"x": b"1"})
    _synced(shelf)
    shelf.damage(shelf.digest(held, "x"))
    assert shelf.store.unsound(shelf.tree(held))


def _evicted(shelf: Shelf) -> None:
    held = shelf.put({"x": b"1"})
    _synced(shelf)
    assert shelf.store.departures.evict([held.tree], now=1e9, young_since=1e9).blobs


def _synced(shelf: Shelf) -> None:
    subprocess.run(("sync", "-f", shelf.root), check=True)


@pytest.mark.parametrize("remove", [_arrivals, _wrong, _evicted])
def test_a_row_is_gone_for_good_before_its_file_is(
    small_disk: Filesystem, room: Path, remove: Callable[[Shelf], None]
) -> None:
    """The disk may take the removal of a file at once: the row of it must not come back."""
    shelf = Shelf(small_disk.root / "store")
    try:
        remove(shelf)
        cut = after_a_power_cut(small_disk, room)
    finally:
        shelf.close()
    try:
        after = Shelf(cut / "store")
        try:
            assert after.index.all_digests() == []
        finally:
            after.close()
    finally:
        mounts.unmount_below(room)
        (room / "cut.img").unlink()
