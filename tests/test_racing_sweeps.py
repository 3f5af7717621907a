"""Nobody who fetches misses a file, however much is swept meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import crowd
from tests.rig.mlflow_server import MlflowServer
from tests.rig.upkeep import call
from tests.rig.whole import assert_whole

SEED = 20_000
# Sweeps until it is told to stop: mostly down to what the limits want, now and then more, seldom all that may go.
_SWEEP = """
    import artifactcache, random, select, statistics, sys
    chance, sweeps, evicted, fill = random.Random(seed), 0, 0, []
    with artifactcache.Client() as client:
        while not select.select([sys.stdin], [], [], 0)[0]:
            stats = client.stats()
            fill.append(stats.blob_bytes / stats.capacity_bytes)
            swept = client.sweep(free_bytes=chance.choice([None] * 1800 + [1] * 160 + [some_bytes] * 39 + [2**62]))
            sweeps, evicted = sweeps + 1, evicted + swept.tree_count
    result = [sweeps, evicted, statistics.median(fill), max(fill)]
"""


@pytest.mark.parametrize(
    ("fetch_count", "artifact_count"),
    [(600, 60), pytest.param(10_000, 400, marks=(pytest.mark.slow, pytest.mark.timeout(1800)))],
)
def test_fetches_race_sweeps(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    mlflow_file: MlflowServer,
    room: Path,
    fetch_count: int,
    artifact_count: int,
) -> None:
    """Views, links and copies of four processes of two users, of a store that fills up to 95 % of its capacity and is
    swept without a pause, now and then empty: every file of every fetch is there and right, for as long as a view is
    kept, and nothing fails."""
    with crowd.shelf(mlflow_file, artifact_count=artifact_count, file_count=4, file_bytes=20_000) as shelf:
        daemon = start_daemon(
            mlflow_file.uri, grace=0.0, capacity=str(shelf.total_bytes * 6 // 10), high="99%", low="95%"
        )
        alice, bob, operator = (caller_of(daemon, room, role) for role in ("alice", "bob", "root"))
        call(alice, "warm", *map(shelf.uri_of, range(artifact_count)))
        stats = call(alice, "stats")
        assert stats["blob_bytes"] > 0.85 * stats["capacity_bytes"], "it is not full: the race would be none"
        with (
            operator.start(_SWEEP, seed=SEED, some_bytes=3 * shelf.artifact_bytes) as sweeping,
            crowd.crowd([alice, bob, alice, bob], shelf, seed=SEED, fetch_count=fetch_count // 4) as jobs,
        ):
            found = crowd.outcome(jobs)
            with contextlib.suppress(BrokenPipeError):  # it has met an error, which it tells
                sweeping.say("enough")
            sweeps, evicted, usual, fullest = sweeping.result()
        fill = f"filled to {usual:.1%} of its capacity as a rule (median), at most to {fullest:.1%}"
        print(dict(found), f"{sweeps} sweeps, {evicted} trees evicted by them, {fill}")
        assert found["fetches"] == fetch_count
        assert all(found[mode] for mode in ("view", "hardlink", "copy"))
        assert sweeps and evicted
    assert "disk is full" not in daemon.read_log()
    assert_whole(daemon)
