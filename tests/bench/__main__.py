"""`make bench`: measures, prints the table, and writes it to tests/bench/results.json.

python -m tests.bench [CASE …]     the cases: hard_links, views, against_mlflow, s3, herd, memory; all without arguments
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from pathlib import Path

from tests.bench import cases, object_store
from tests.bench.figures import Figure, table
from tests.rig.base import make_base, remove_base
from tests.rig.interpreter import own_interpreter
from tests.rig.mlflow_server import serving

RESULTS = Path(__file__).with_name("results.json")
CASES = ("hard_links", "views", "against_mlflow", "s3", "herd", "memory")


def main(chosen: list[str]) -> None:
    """Runs the chosen cases."""
    os.environ.update(
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", ARTIFACTCACHE="off", MLFLOW_DISABLE_TELEMETRY="true"
    )
    figures: list[Figure] = []
    base = make_base()
    try:
        ground = cases.Ground(base, own_interpreter())
        with serving(base / "servers") as servers:
            for case in chosen:
                arguments = {"against_mlflow": (servers,), "herd": (servers[0],), "memory": (servers[0],)}.get(case, ())
                for figure in getattr(object_store if case == "s3" else cases, case)(ground, *arguments):
                    print(" · ".join(filter(None, dataclasses.astuple(figure))), flush=True)
                    figures.append(figure)
    finally:
        remove_base(base)
    print("\n" + table(figures))
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    if chosen == list(CASES):
        document = {"machine": machine, "figures": [dataclasses.asdict(figure) for figure in figures]}
        RESULTS.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{machine}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
