"""`make bench`: measures, prints the table, and keeps it in tests/bench/results.json.

python -m tests.bench [CASE …]     some cases, or all. Each is measured in one run, and kept with its date.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench import access, cases, cold, durability, eviction, names, object_store, scale, scraping, shared
from tests.bench.figures import Figure, table
from tests.rig.base import make_base, remove_base
from tests.rig.interpreter import own_interpreter

RESULTS = Path(__file__).with_name("results.json")
CASES: dict[str, Callable[[cases.Ground], Iterator[Figure]]] = {
    "hard_links": cases.hard_links,
    "views": cases.views,
    "warm": cases.warm,
    "cold": cold.cold,
    "s3": object_store.s3,
    "shared": shared.shared,
    "load_model": cold.load_model,
    "dead_server": cold.dead_server,
    "herd": cases.herd,
    "memory": cases.memory,
    "eviction": eviction.eviction,
    "scale": scale.scale,
    "names": names.names,
    "scraping": scraping.scraping,
    "access": access.access,
    "durability": durability.durability,
}


def main(chosen: list[str]) -> None:
    """Runs the chosen cases."""
    os.environ.update(
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", ARTIFACTCACHE="off", MLFLOW_DISABLE_TELEMETRY="true"
    )
    figures: list[Figure] = []
    base = make_base()
    try:
        ground = cases.Ground(base, own_interpreter())
        for case in chosen:
            found: list[Figure] = []
            for figure in CASES[case](ground):
                print(" · ".join(filter(None, dataclasses.astuple(figure))), flush=True)
                found.append(figure)
            _keep(case, found)
            figures += found
    finally:
        remove_base(base)
    print("\n" + table(figures))


def _keep(case: str, figures: list[Figure]) -> None:
    kept: dict[str, Any] = json.loads(RESULTS.read_text())
    kept[case] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "figures": [dataclasses.asdict(figure) for figure in figures],
    }
    in_order = {case: kept[case] for case in CASES if case in kept}
    RESULTS.write_text(json.dumps(in_order, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
