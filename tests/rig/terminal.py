"""An interactive shell at a terminal of its own, into which is typed."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS_MAX = 60.0


class Terminal:
    """What was typed is there, and what came of it is read until it is as expected."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.descriptor, text.encode())

    def wait_for_file(self, path: Path) -> str:
        """Read on until a file has a line; return what is in it."""
        deadline = time.monotonic() + SECONDS_MAX
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline, f"{path.name} was not written\n{self.shown}"
            if select.select([self.descriptor], [], [], 0.01)[0]:
                self.shown += os.read(self.descriptor, 65536).decode(errors="replace")
        return path.read_text()


@contextlib.contextmanager
def shell(command: tuple[str, ...], cwd: Path, env: dict[str, str]) -> Iterator[Terminal]:
    """Start a shell at a terminal; it ends with the block."""
    ours, theirs = os.openpty()
    env = env | {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    controlled = ("setsid", "--ctty", *command)  # fish wants the terminal to be its own
    with subprocess.Popen(controlled, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env) as process:
        os.close(theirs)
        try:
            yield Terminal(ours)
        finally:
            process.kill()
            os.close(ours)
