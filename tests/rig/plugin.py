"""Callers that use MLflow, of the version that is installed or of another one, with the plugin on or off.

The other versions lie in folders of their own below `.venv-mlflow`, where `make` puts them, and stand before the
installed one on the path. So does the distribution's entry points as `client/pyproject.toml` has them: what an older
installation of this checkout has recorded does not matter.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import tomllib

from tests.rig.caller import Caller, Job
from tests.rig.interpreter import CHECKOUT

GROUP = "mlflow.artifact_repository"
FOLDER = CHECKOUT / ".venv-mlflow"
INSTALLED = importlib.metadata.version("mlflow-skinny")
OLDEST = "2.22.5"
MIDDLE = "3.1.4"
VERSIONS = (OLDEST, MIDDLE, INSTALLED)


def entry_points() -> dict[str, str]:
    """What the distribution registers with MLflow, by scheme."""
    project = tomllib.loads((CHECKOUT / "client" / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = project["entry-points"][GROUP]
    return found


def write_distribution(folder: Path) -> Path:
    """Make a folder that shows the entry points to whoever has it on the path."""
    place = folder / "artifactcache-0.1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: artifactcache\nVersion: 0.1.0\n")
    lines = "".join(f"{scheme} = {target}\n" for scheme, target in entry_points().items())
    (place / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    return folder


def reason_not_to_run(version: str) -> str | None:
    """Why a version, or `torch`, cannot be used here; None where it can."""
    if version == INSTALLED or (FOLDER / version).is_dir():
        return None
    return f"{FOLDER.name}/{version} is not there: make {FOLDER.name}/done"


@dataclasses.dataclass
class MlflowUser:
    """A caller who has MLflow of one version, artifactcache beside it, and a tracking server."""

    caller: Caller
    distribution: Path
    tracking_uri: str
    version: str = INSTALLED
    with_torch: bool = False

    def env(self, **more: str) -> dict[str, str]:
        """The environment of such a process."""
        shown = Path(self.caller.env["PYTHONPATH"].split(os.pathsep)[0])  # the checkout, where this user can read it
        folders = [self.distribution]
        folders += [shown / FOLDER.name / self.version] if self.version != INSTALLED else []
        folders += [shown / FOLDER.name / "torch"] if self.with_torch else []
        path = os.pathsep.join([*map(str, folders), self.caller.env["PYTHONPATH"]])
        temporary = self.caller.cwd / "tmp"
        return {
            "PYTHONPATH": path,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "TMPDIR": str(temporary),
        } | more

    def make_temporary(self) -> Path:
        """The user's folder for temporary files."""
        folder = self.caller.cwd / "tmp"
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, self.caller.uid, -1)
        return folder

    def run(self, code: str, *, env: dict[str, str] | None = None, **args: Any) -> Any:
        """Run a snippet with `mlflow` imported."""
        self.make_temporary()
        return self.caller.run(PREPARE + code, env=self.env(**(env or {})), **args)

    def start(self, code: str, *, env: dict[str, str] | None = None, **args: Any) -> Job:
        """Start such a snippet."""
        self.make_temporary()
        return self.caller.start(PREPARE + code, env=self.env(**(env or {})), **args)


PREPARE = """
import warnings
warnings.simplefilter("ignore")
import mlflow, tempfile, logging
logging.getLogger("mlflow").setLevel(logging.CRITICAL)
"""

# What the plugin says.
LISTEN = """
said = []
class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("artifactcache").addHandler(Listener())
"""

# Runs calls one by one, each in an empty folder of its own, and says what came of each.
OUTCOMES = """
import pathlib, re, shutil

def tree(top):
    top = pathlib.Path(top)
    found = {}
    for at, folders, files in os.walk(top):
        for name in files:
            path = pathlib.Path(at, name)
            found[str(path.relative_to(top))] = path.read_bytes().hex()
        if not folders and not files:
            found[os.path.relpath(at, top) + "/"] = ""
    return found

def plain(text, d):
    text = text.replace(str(d), "D")
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/(artifactcache-mlflow-\\w+/)?tmp\\w+", "TEMP", text)
    return re.sub(r"0x[0-9a-f]+|\\b\\d+\\.\\d+ ?s\\b", "N", text)

def outcome(expression, d, scope):
    try:
        value = eval(expression, scope | {"d": d, "mlflow": mlflow, "os": os})
    except BaseException as error:
        return {
            "error": type(error).__name__,
            "code": getattr(error, "error_code", None),
            "message": plain(str(error), d).splitlines()[:3],
            "tree": tree(d),
        }
    if not isinstance(value, str) or not value.startswith("/"):
        return {"value": plain(repr(value), d), "tree": tree(d)}
    shown = plain(value, d)
    if shown.startswith("TEMP"):
        top = value[: len(value) - len(shown) + 4] if len(shown) > 4 else value
        return {"path": shown, "tree": tree(top) if os.path.isdir(top) else None}
    return {"path": shown, "tree": tree(d)}

os.umask(0o022)
for name, expression in calls.items():
    d = os.path.join(os.getcwd(), "calls", str(len(os.listdir("calls"))) if os.path.isdir("calls") else "0")
    os.makedirs(d)
    say([name, outcome(expression, d, scope)])
    hear()
"""


class Counted(Protocol):
    """What knows how much an origin has sent so far."""

    @property
    def bytes(self) -> int: ...


@contextmanager
def outcomes(
    user: MlflowUser, origin: Counted, calls: dict[str, str], scope: dict[str, Any], **env: str
) -> Iterator[dict[str, tuple[Any, int]]]:
    """What comes of each call, and how many artifact bytes the origin sent for it."""
    found: dict[str, tuple[Any, int]] = {}
    with user.start(OUTCOMES, calls=calls, scope=scope, env=env) as job:
        for _ in calls:
            before = origin.bytes
            name, outcome = job.hear()
            found[name] = outcome, origin.bytes - before
            job.say("go on")
        job.result()
    yield found
