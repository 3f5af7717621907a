"""Real filesystems on loop devices, and the certainty that none of them stays mounted.

The kernel's own list of mounts (/proc/self/mountinfo) decides what is there and what has to go, never our memory of
what we did: so the end of a session, the failure of a test and the leftovers of a killed session are one code path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.rig.until import until

IMAGE_BYTES = 2 << 30  # sparse: only what the tests write takes room


@dataclasses.dataclass(frozen=True)
class Kind:
    """A filesystem that can be made: `mkfs` is the command without the image, or None where none is needed."""

    name: str
    mkfs: tuple[str, ...] | None
    reflinks: bool


KINDS = (
    Kind("ext4", ("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"), reflinks=False),
    Kind("xfs", ("mkfs.xfs", "-q", "-f"), reflinks=True),
    Kind("btrfs", ("mkfs.btrfs", "-q", "-f"), reflinks=True),
    Kind("tmpfs", None, reflinks=False),
)
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclasses.dataclass(frozen=True)
class Filesystem:
    """A mounted filesystem; `root` can be traversed by every user."""

    kind: Kind
    root: Path


def reason_not_to_mount(kind: Kind) -> str | None:
    """Why this filesystem cannot be had here, or None where it can."""
    if os.geteuid() != 0:
        return f"mounting {kind.name} needs root"
    if kind.mkfs is not None and shutil.which(kind.mkfs[0]) is None:
        return f"{kind.mkfs[0]} is not installed"
    return None


def mount(kind: Kind, image: Path, root: Path, size_bytes: int = IMAGE_BYTES) -> Filesystem:
    """Make a filesystem in the file `image` and mount it at `root`; CalledProcessError where the kernel refuses."""
    root.mkdir()
    if kind.mkfs is None:
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", f"artifactcache-{kind.name}", root)
    else:
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run(*kind.mkfs, image)
        _run("mount", "-o", "loop", image, root)  # `-o loop`: the device goes with the mount
    root.chmod(0o755)
    return Filesystem(kind, root)


def cut_power(filesystem: Filesystem) -> None:
    """Nothing reaches the disk of an ext4 or XFS any more: what is there by now is what a host would find."""
    _run("xfs_io", "-x", "-c", "shutdown", filesystem.root)


def turn_read_only(filesystem: Filesystem) -> None:
    """An ext4 finds an error, and takes nothing more from now on (errors=remount-ro of ext4(5))."""
    _run("mount", "-o", "remount,errors=remount-ro", filesystem.root)
    device = subprocess.run(("findmnt", "-no", "SOURCE", filesystem.root), stdout=subprocess.PIPE, check=True).stdout
    Path("/sys/fs/ext4", Path(device.decode().strip()).name, "trigger_fs_error").write_text("an error of the disk")


def mount_again(filesystem: Filesystem, image: Path) -> None:
    """What a host does when its power is back. Waits until nobody has a file open there.

    And until no other mount namespace has it: a process of somebody else's that was started with one of its own may
    have taken a copy of ours, and mounting would then give the filesystem that was shut down once more.
    """
    command = ("umount", filesystem.root)
    until(lambda: subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0, "nobody to use it")
    until(lambda: not loops_below(image.parent), "every mount namespace to let go of it", 120)
    _run("mount", "-o", "loop", image, filesystem.root)


def bind(source: Path, target: Path) -> None:
    """Show the folder `source` at `target`, read-only."""
    target.mkdir(parents=True)
    _run("mount", "--bind", "-o", "ro", source, target)


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below `folder`, the deepest first, lazily where something is still in use."""
    for mountpoint in reversed(mounts_below(folder)):
        if subprocess.run(("umount", mountpoint), stderr=subprocess.DEVNULL, check=False).returncode != 0:
            _run("umount", "-l", mountpoint)


def mounts_below(folder: Path) -> list[str]:
    """The mount points at or below `folder`, in the order in which they were mounted."""
    points = [_unescape(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def loops_below(folder: Path) -> list[str]:
    """The backing files below `folder` that a loop device still holds."""
    files = (path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    return [file for file in files if Path(file).is_relative_to(folder)]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)
