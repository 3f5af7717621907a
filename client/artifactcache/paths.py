"""Where the daemon's sockets are. The daemon follows the same rule: it imports it from here.

This room opens and connects nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

GRPC_SOCKET = "cache.sock"
HANDOFF_SOCKET = "handoff.sock"
SYSTEM_SOCKET_DIR = "/run/cacheserver"
SOCKET_DIR_VARIABLE = "ARTIFACTCACHE_SOCKET_DIR"


def user_socket_dir(environ: Mapping[str, str], uid: int) -> str:
    """Return the folder of the sockets of a daemon that user `uid` runs for themself.

    That is `cacheserver` in the user's run-time folder. Where there is none (cron, `su`, a container) it is
    `cacheserver-<uid>` in the folder for temporary files. Others can make a folder of that name there, so
    whoever connects checks whom the kernel says is at the other end.
    """
    runtime_dir = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime_dir):  # the XDG specification: relative paths are to be ignored
        return os.path.join(runtime_dir, "cacheserver")
    if os.path.isdir(f"/run/user/{uid}"):
        return f"/run/user/{uid}/cacheserver"
    return os.path.join(environ.get("TMPDIR") or "/tmp", f"cacheserver-{uid}")
