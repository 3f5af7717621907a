"""Clean environments: a Python of this host, a wheel of ours, and what that needs, and nothing of the checkout.

They are installed from a folder of wheels (`make .venv-wheels/done`), so that the installer resolves what our metadata
says, as it would for anybody, and asks no index.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.dist import build
from tools.locked import TOP

WHEELS = TOP / ".venv-wheels"
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"  # the Python whose wheels of all that a host needs are there
SECONDS_MAX = 180.0


def reason_not_to() -> str | None:
    """Why there can be none here, or None where there can."""
    return None if (WHEELS / "done").exists() else f"{WHEELS.name} is not there: `make {WHEELS.name}/done`"


@functools.cache
def python(version: str) -> str | None:
    """A Python of this version ("3.12") that runs: the tests' own, the system's, one on the path, or pyenv's."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates = [sys.executable] if version == OWN else []
    candidates += [shutil.which(f"python{version}") or ""]
    candidates += sorted(glob.glob(f"{glob.escape(root)}/versions/{version}.*/bin/python"), reverse=True)
    code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):  # pyenv's shims are there for versions that are not chosen
        done = subprocess.run((candidate, "-c", code), capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def wheels(folder: Path) -> tuple[Path, Path]:
    """The wheels of this checkout: the client's and the daemon's."""
    for source in (TOP / "client", TOP):
        build(source, folder, "wheel")
    (client,), (daemon,) = folder.glob("artifactcache-*.whl"), folder.glob("cacheserver-*.whl")
    return client, daemon


class Environment:
    """A virtual environment in a folder of its own; what runs in it has a working directory and a home elsewhere."""

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.folder = folder
        self.home = folder.with_name(f"{folder.name}-home")
        self.home.mkdir()
        command = (interpreter, "-m", "venv", "--without-pip", str(folder))
        subprocess.run(command, check=True, timeout=SECONDS_MAX, cwd=self.home)
        self.python = folder / "bin" / "python"
        self.env = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home),
            "LANG": "C.UTF-8",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }

    def install(self, *what: str | Path) -> None:
        """Install these, and whatever they say that they need, from the folder of wheels alone."""
        command = (sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-compile")
        options = ("--disable-pip-version-check", "--no-index", "--only-binary", ":all:", "--find-links", str(WHEELS))
        done = self._do((*command, *options, *map(str, what)), os.environ | self.env)
        assert done.returncode == 0, done.stderr

    def command(self, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of its commands to its end."""
        first, *rest = words
        return self._do((str(self.folder / "bin" / first), *map(str, rest)), self.env | (env or {}))

    def run(self, code: str, env: dict[str, str] | None = None, **args: Any) -> Any:
        """Run a snippet with `args` as its variables; return what it leaves in `result`."""
        lines = ["import json, sys", "globals().update(json.load(sys.stdin))", textwrap.dedent(code)]
        code = "\n".join((*lines, "print('result:' + json.dumps(result))"))
        command = (str(self.python), "-c", code)
        done = self._do(command, self.env | (env or {}), json.dumps(args))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout[done.stdout.rindex("result:") + len("result:") :])

    def _do(
        self, command: Sequence[str], env: dict[str, str], told: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.home,
            env=env,
            input=told,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
