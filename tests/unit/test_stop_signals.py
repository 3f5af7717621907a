"""The signals that stop the daemon: one that comes counts, whenever it comes and whichever thread takes it."""

from __future__ import annotations

import subprocess

import pytest

from tests.rig.interpreter import own_interpreter

PROGRAM = """
import os, signal, sys, threading, time
from cacheserver.signals import Signals

signals = Signals()
assert not signals.has_ended(0)
{comes}
assert signals.has_ended(20), "nobody heard of it"
"""

COMES = {
    "before it is waited for": "signal.raise_signal(signal.SIGTERM)",
    "twice": "signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGINT)",
    # The kernel gives a signal for the process to any thread that does not block it.
    "to another thread, while it is waited for": """
main = threading.main_thread().native_id

def send():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    while open(f"/proc/self/task/{main}/stat").read().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Thread(target=send).start()
""",
}


@pytest.mark.parametrize("comes", COMES)
def test_a_signal_is_heard(comes: str) -> None:
    """Also where no Python of the main thread runs to take it."""
    interpreter = own_interpreter()
    done = subprocess.run(
        (str(interpreter.python), "-c", PROGRAM.format(comes=COMES[comes])),
        env=interpreter.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
