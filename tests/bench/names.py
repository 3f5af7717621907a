"""An index of 1,000,000 names beside 1,000,000 blobs: what the looks through it cost that nobody asks for."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator

from cacheserver.index import Index
from cacheserver.restoring import compare, look_through
from tests.bench.cases import Ground
from tests.bench.figures import Figure, seconds
from tests.bench.scale import DEAD, TREES, build

NAMES = 1_000_000  # half of them artifacts, half of them versions
ROUNDS = 5


def names(ground: Ground) -> Iterator[Figure]:
    """Builds the store; compares its index with the mirror, and looks through it, with nobody beside."""
    root = ground.folder / "names"
    build(root, sweepable=0, more=_rows)
    index = Index(str(root / "index.db"), DEAD)
    count = sum(index._tables.one(f"SELECT COUNT(*) FROM {table}")[0] for table in ("artifacts", "versions"))
    assert count == NAMES, count
    yield _figure(f"index of {NAMES:,} names, compared with its mirror", lambda: compare(index))
    yield _figure(f"index of {NAMES:,} names, looked through", lambda: look_through(index))
    assert not index.is_damaged
    index.close()
    shutil.rmtree(root)


def _figure(what: str, look: Callable[[], object]) -> Figure:
    began = time.process_time()
    took = [seconds(look) for _ in range(ROUNDS)]
    of_cpu = (time.process_time() - began) / ROUNDS
    return Figure(what, f"{statistics.median(took):.1f} s", f"{of_cpu:.1f} s of a processor's time", "", "")


def _rows(db: sqlite3.Connection) -> None:
    """Versions, and further artifacts of the trees that there are, as runs have them."""
    now, (origin,) = time.time(), db.execute("SELECT id FROM origins").fetchone()
    runs = [os.urandom(16).hex() for _ in range(NAMES // 2)]
    db.executemany(
        "INSERT INTO artifacts (origin, uri, selection, tree, file_name, standing, asked, fetched_at, used_at,"
        f" checked_at) VALUES ({origin}, ?, '', ?, '', 2, 0, {now}, {now}, {now})",
        ((f"runs:/{run}/model", number % TREES + 1) for number, run in enumerate(runs[TREES:])),
    )
    db.executemany(
        "INSERT INTO versions (origin, version, root, overlays, settled, resolved_at)"
        f" VALUES ({origin}, ?, ?, '[]', 1, {now})",
        ((f"runs:/{run}", f"mlflow-artifacts:/1/{run}/artifacts") for run in runs),
    )
