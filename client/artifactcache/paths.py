"""Where the sockets of a user's own daemon are: one rule for the client and for the daemon."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping


def user_socket_dir(environ: Mapping[str, str], uid: int) -> str:
    """The folder for the sockets of the daemon of one user."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return os.path.join(runtime, "cacheserver")
    if os.path.isdir(f"/run/user/{uid}"):
        return f"/run/user/{uid}/cacheserver"
    return os.path.join(tempfile.gettempdir(), f"cacheserver-{uid}")
