"""Child processes in a process group of their own, so that none of them outlives the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process(Protocol):
    """What `subprocess.Popen` has, as far as it is needed here."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Its status, once it has ended. Raises subprocess.TimeoutExpired."""


def stop_group(process: Process, seconds: float = 10.0) -> int:
    """Stop the process, which leads its group: SIGTERM, then SIGKILL to the whole group. Returns its exit status.

    What its threads were doing is printed where SIGTERM did not end it in `seconds`.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"{process.pid} did not end within {seconds:g} s of SIGTERM:", *_threads(process.pid), sep="\n")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(seconds)


def _threads(pid: int) -> Iterator[str]:
    """What each thread of a process waits for in the kernel, as far as that may be known."""
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            yield f"{(task / 'comm').read_text().strip()}: {(task / 'syscall').read_text().strip()}"
            yield (task / "stack").read_text()
