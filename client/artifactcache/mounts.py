"""Which mount and which filesystem a descriptor or a path lies on, as the kernel tells this process."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount."""

    number: str
    """The kernel's number of it; empty where that is not told."""
    kind: str
    """The filesystem's kind, such as "ext4"; empty of a mount of another mount namespace, as is `filesystem`."""
    filesystem: str
    """The filesystem's number, as in "8:1": the same on every mount of it."""

    @property
    def is_here(self) -> bool:
        """Whether this process has it in its mount namespace."""
        return bool(self.filesystem)


def mount_of(descriptor: int) -> Mount:
    """Look up the mount of an open file (proc_pid_fdinfo(5), proc_pid_mountinfo(5)). Whatever is not told is empty."""
    number = ""
    with contextlib.suppress(OSError):  # no /proc
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
            number = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                fields, _, rest = line.partition(" - ")
                found, _, filesystem = fields.split()[:3]
                if found == number:
                    return Mount(number, rest.split()[0], filesystem)
    return Mount(number, "", "")


def mount_at(path: bytes) -> Mount:
    """Look up the mount of a folder. Raises OSError where it cannot be opened."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_of(descriptor)
    finally:
        os.close(descriptor)
