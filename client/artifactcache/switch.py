"""Whether MLflow's downloads are served by the daemon in this process.

Law of this file: it is loaded in the middle of `import mlflow`, so it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

SWITCH = "ARTIFACTCACHE"
_OFF = frozenset({"off", "0", "false", "no"})
# `mlflow server` sets these for its workers and for the jobs that they start.
_SERVER_VARIABLES = ("_MLFLOW_SERVER_ARTIFACT_ROOT", "_MLFLOW_SERVER_FILE_STORE")


def is_on(environ: Mapping[str, str]) -> bool:
    """Tell whether downloads of a process with this environment are to be served: not in a tracking server."""
    switched_off = environ.get(SWITCH, "").strip().lower() in _OFF
    return not switched_off and not any(name in environ for name in _SERVER_VARIABLES)
