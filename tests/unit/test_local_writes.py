"""Files of this host that are written to while they are read."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

from artifactcache.errors import Corrupted
from tests.rig.mounts import Filesystem
from tests.unit.test_local import copy, files


def test_a_single_write_is_not_read_while_it_lasts(filesystem: Filesystem, tmp_path: Path) -> None:
    """One write(2) overwrites a file with as many bytes, so slowly that a copy would overtake it: its time was noted
    when it began, before the copy looked. What comes is of one write, or nothing."""
    folder = filesystem.root / "slow"
    folder.mkdir(exist_ok=True)
    local, path, size = files(folder), folder / "x", 16 << 20
    slow = tmp_path / "slow"  # what is written comes from a disk, page by page
    slow.write_bytes(b"n" * size)
    overlaps = 0
    for number in range(4):
        path.write_bytes(b"o" * size)
        before = path.stat().st_ctime_ns
        with path.open("r+b") as target, slow.open("rb") as source:
            os.fsync(source.fileno())
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as new:
                new.madvise(mmap.MADV_RANDOM)
                writer = threading.Thread(target=os.pwrite, args=(target.fileno(), new, 0))
                writer.start()
                while writer.is_alive() and path.stat().st_ctime_ns == before:
                    pass
                try:
                    is_under_way = writer.is_alive()
                    copy(local, "x", tmp_path / f"copy-{number}", size)
                    overlaps += is_under_way
                    assert set((tmp_path / f"copy-{number}").read_bytes()) in ({ord("n")}, {ord("o")})
                except Corrupted:
                    pass
                finally:
                    writer.join()
    assert overlaps, "no copy began while a write was under way"
