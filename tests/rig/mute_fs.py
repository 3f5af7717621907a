"""A filesystem that answers nothing: whoever asks it anything waits until it is unmounted.

It speaks the first exchange of FUSE's protocol (linux/fuse.h), which a mount needs, and then no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_INIT = 26
_VERSION = (7, 31)
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def reason_not_to_mount() -> str | None:
    """Why it cannot be mounted here, or None."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if os.path.exists("/dev/fuse") else "this kernel has no FUSE"


@contextlib.contextmanager
def mute(folder: Path) -> Iterator[None]:
    """Mount it for a while. At the end whatever waits for an answer is let go."""
    folder.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"mute", os.fsencode(folder), b"fuse.mute", 0, options.encode()) != 0:
        number = ctypes.get_errno()
        os.close(device)
        raise OSError(number, os.strerror(number))
    try:
        request = os.read(device, 1 << 17)
        _, opcode, unique = struct.unpack_from("IIQ", request)
        assert opcode == _INIT
        answer = struct.pack("IIIIHHIIHHI7I", *_VERSION, 65536, 0, 12, 9, 65536, 1, 1, 0, 0, *(0,) * 7)
        os.write(device, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)
        yield
    finally:
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)
        os.close(device)  # ends the connection: what waits gets an error
