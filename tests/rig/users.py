"""Real users of the host: the daemon's own, and two people who do not trust each other."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

from tests.rig.base import clearing

_NAME = re.compile(r"ac-[a-z]+-(\d+)$")


@dataclasses.dataclass(frozen=True)
class User:
    """One user; no group but their own."""

    name: str
    uid: int
    gid: int


def reason_not_to_add() -> str | None:
    """Why users cannot be made here, or None where they can."""
    if os.geteuid() != 0:
        return "running as several users needs root"
    if shutil.which("useradd") is None:
        return "useradd is not installed"
    return None


def add_user(role: str) -> User:
    """Make a user `ac-<role>-<this process>` without a home."""
    name = f"ac-{role}-{os.getpid()}"
    subprocess.run(("useradd", "--system", "--user-group", "--no-create-home", name), check=True)
    entry = pwd.getpwnam(name)
    return User(name, entry.pw_uid, entry.pw_gid)


def remove_users() -> None:
    """Remove this session's users, and those of sessions that were killed, where none of their processes is left."""
    with clearing():
        for entry in pwd.getpwall():
            match = _NAME.match(entry.pw_name)
            own = match is not None and int(match[1]) == os.getpid()
            if own or (match and not Path("/proc", match[1]).exists()):
                # Of another session something may still run: then its users stay, for the next one to remove.
                subprocess.run(("userdel", entry.pw_name), check=own)
