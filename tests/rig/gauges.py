"""What a process and a store take up: read from /proc and from the disk, by nobody's word."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple


class Taken(NamedTuple):
    """What a daemon takes up at one moment."""

    rss_bytes: int
    descriptor_count: int
    thread_count: int


def taken(pid: int) -> Taken:
    """What a process takes up. Raises OSError where it has ended."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Taken(int(status["VmRSS"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def disk_bytes(folder: Path) -> int:
    """What a folder occupies on its disk: each inode once, as `du` counts. What goes meanwhile counts or does not."""
    blocks: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(path)
                blocks[found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


def state(pid: int) -> str:
    """A process's state, as proc_pid_stat(5) has it: "T" where it was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
