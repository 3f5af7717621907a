"""The folder below which everything of one test session lies: short enough for a socket's path, open to every user.

pytest's own temporary folder is neither: it is 0700, so that no second user could reach anything in it. The name
carries the process ID, so that what a killed session left behind is found and cleared by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.rig.mounts import loops_below, mounts_below, unmount_below
from tests.rig.until import until

_NAME = re.compile(r"artifactcache-tests-(\d+)$")


def make_base() -> Path:
    """Make this session's folder, mode 0755."""
    parent = Path(tempfile.gettempdir())
    with clearing():
        for leftover in parent.glob("artifactcache-tests-*"):
            match = _NAME.search(leftover.name)
            if match and leftover.stat().st_uid == os.geteuid() and not Path("/proc", match[1]).exists():
                remove_base(leftover)
    base = parent / f"artifactcache-tests-{os.getpid()}"
    base.mkdir()
    base.chmod(0o755)
    return base


@contextlib.contextmanager
def clearing() -> Iterator[None]:
    """One session at a time clears what killed ones left behind: two at the same leftover fail at each other's work.

    The lock is on the folder of temporary files itself, so that it leaves nothing behind.
    """
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def remove_base(base: Path) -> None:
    """Unmount all that is below, make sure of it, and only then delete."""
    unmount_below(base)
    assert not mounts_below(base), f"still mounted, so not deleted: {mounts_below(base)}"
    shutil.rmtree(base)
    # The kernel lets go of a loop device a moment after its last user is gone.
    until(lambda: not loops_below(base), f"loop devices to be detached: {loops_below(base)}")
