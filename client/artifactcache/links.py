"""Ways to make a file of one's own from a blob's descriptor, and what their errors mean."""

from __future__ import annotations

import errno
import fcntl
import os

from artifactcache.deadline import Deadline
from artifactcache.errors import Corrupted

FICLONE = 0x40049409  # ioctl_ficlone(2)
COPY_BYTES_MAX = 64 * 1024 * 1024  # of one step: how long a deadline or Ctrl-C may have to wait
BUFFER_BYTES = 1024 * 1024

# "Not here, but perhaps in another way": everything else is an error of the destination.
TRY_NEXT_AFTER_CLONE = frozenset(
    {
        errno.EACCES,  # SELinux and its like may forbid just this
        errno.EINVAL,  # unsuitable descriptor, or a filesystem with the call but without the feature
        errno.ENOSYS,
        errno.ENOTTY,  # a filesystem that does not know the ioctl
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EXDEV,
    }
)
TRY_NEXT_AFTER_COPY = TRY_NEXT_AFTER_CLONE | {errno.EBADF, errno.EIO, errno.EOVERFLOW}  # some FUSE and NFS


def clone(source: int, target: int) -> None:
    """Make `target` share the blocks of `source`. Raises OSError."""
    fcntl.ioctl(target, FICLONE, source)


def copy(source: int, target: int, size_bytes: int, deadline: Deadline) -> None:
    """Copy all of `source`, in the kernel where it can. Raises OSError, DeadlineExceeded and Corrupted."""
    done = 0
    in_kernel = True
    while done < size_bytes:
        deadline.remaining()
        step = min(size_bytes - done, COPY_BYTES_MAX)
        if in_kernel:
            try:
                count = os.copy_file_range(source, target, step, offset_src=done, offset_dst=done)
            except OSError as error:
                if error.errno not in TRY_NEXT_AFTER_COPY:
                    raise
                count = 0
            # Some filesystems say 0 instead of an error; whether the file is really too short, reading tells.
            in_kernel = count > 0
        else:
            count = _read_and_write(source, target, done, min(step, BUFFER_BYTES))
            if not count:
                raise Corrupted(f"a blob ended after {done} of {size_bytes} bytes")
        done += count


def _read_and_write(source: int, target: int, offset: int, size_bytes: int) -> int:
    data = memoryview(os.pread(source, size_bytes, offset))
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], offset + written)
    return written
