"""Opens plain files: what else may stand at a file's name, a pipe say, would be waited for.

Law of this file: nothing here waits for anybody.
"""

from __future__ import annotations

import errno
import os
import stat


def open_plain(path: str | bytes, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """A descriptor of a plain file, through no symlink; one that is made is its owner's alone.

    Raises OSError: ENXIO where something else stands there, as open(2) does for a pipe that nobody reads.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.ENXIO, "it is no plain file", os.fsdecode(path))
        os.set_blocking(fd, True)  # as whoever it is handed to expects it
    except BaseException:
        os.close(fd)
        raise
    return fd
