"""Temporary folders of processes that begin and end together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROCESSES = 4
ROUNDS = 500

BEGIN_AND_END = f"""
import os, sys
from artifactcache import temporary
children = []
for _ in range({PROCESSES}):
    child = os.fork()
    if not child:
        for _ in range({ROUNDS}):
            assert os.path.isdir(temporary.make())
            temporary.remove_all()
        os._exit(0)
    children.append(child)
assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def test_processes_that_begin_together_do_not_sweep_each_others(tmp_path: Path) -> None:
    """A folder without its lock looks abandoned: who makes one gets one all the same, and nothing is left."""
    ran = subprocess.run(
        [sys.executable, "-c", BEGIN_AND_END],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []
