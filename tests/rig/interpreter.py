"""A Python that every user of the host can run.

The interpreter of the tests is often below a home folder of mode 0700 (pyenv), and the checkout may be too; opening
those folders would be a change to somebody's machine. So three of their folders are shown at a place that everybody
can reach, by read-only bind mounts: the base interpreter, the virtual environment's site-packages and the checkout.
Around them stands a small virtual environment. That costs nothing, unlike a copy (2 GB), and works across filesystems,
unlike a tree of hard links. The shared libpython was linked with its old place as the run path, hence LD_LIBRARY_PATH.
The mounts are in our own mount namespace: in a private one the daemon could not make hard links for its clients.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import sysconfig
from pathlib import Path

from tests.rig.mounts import bind

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """How to start Python: `python -m …` with the environment `env` and nothing else."""

    python: Path
    env: dict[str, str]


def own_interpreter() -> Interpreter:
    """The interpreter that runs the tests: good for every process of the same user."""
    return Interpreter(Path(sys.executable), _environment(CHECKOUT))


def open_interpreter(folder: Path) -> Interpreter:
    """The same Python, shown below `folder` so that every user can run it. Needs root."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    bind(Path(sys.base_prefix).resolve(), folder / "base")
    bind(Path(sysconfig.get_path("purelib")), folder / "venv" / "lib" / version / "site-packages")
    bind(CHECKOUT, folder / "checkout")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(folder / "base" / "bin" / version)
    (folder / "venv" / "pyvenv.cfg").write_text(f"home = {folder / 'base' / 'bin'}\n")
    return Interpreter(python, _environment(folder / "checkout") | {"LD_LIBRARY_PATH": str(folder / "base" / "lib")})


def _environment(checkout: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "PYTHONPATH": os.pathsep.join((str(checkout), str(checkout / "client"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
