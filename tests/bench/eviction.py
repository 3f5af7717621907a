"""Eviction by cost: seconds of refetching of the default policy, against others on the same traces."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from cacheserver import comparing
from cacheserver.eviction import POLICIES
from cacheserver.foresight import offline_best
from cacheserver.simulate import ONE_BY_ONE, Outcome, replay
from cacheserver.workloads import generate
from tests.bench.cases import Ground
from tests.bench.figures import Figure

SEEDS = (11, 12, 13)  # the policy's constants were chosen on 1 to 4
REQUESTS = 20_000
PARTS = (0.05, 0.1, 0.2)  # of the trace's distinct bytes: 130 to 630 GiB; with more there is little refetching to save
GOALS = {"lru": "≤ 0.8×", "offline best": "≤ 1.25×"}


def eviction(ground: Ground) -> Iterator[Figure]:
    """GDSF against the others as the daemon runs them; then on whole trees, against libcachesim's too."""
    daemon: list[dict[str, Outcome]] = []
    whole: list[dict[str, Outcome]] = []
    for seed in SEEDS:
        fetches = generate("mixed", random.Random(seed), REQUESTS)
        apart = comparing.unshared(fetches)
        for part in PARTS:
            size = int(part * sum({blob: size for _, tree in fetches for blob, size in tree.blobs}.values()))
            found = {name: replay(fetches, policy, size) for name, policy in POLICIES.items()}
            daemon.append(found | {"offline best": offline_best(fetches, size)})
            size = int(part * sum({tree.name: tree.size_bytes for _, tree in apart}.values()))
            found = {name: replay(apart, POLICIES[name], size, ONE_BY_ONE) for name in ("gdsf", "lru")}
            found["offline best"] = offline_best(apart, size, ONE_BY_ONE)
            if comparing.is_installed():
                theirs = (comparing.compared(apart, name, size) for name in comparing.POLICIES)
                found |= {outcome.policy: outcome for outcome in theirs}
            whole.append(found)
    sizes = ", ".join(f"{part:.0%}" for part in PARTS)
    where = f"refetching, mixed trace, seeds {', '.join(map(str, SEEDS))}, {REQUESTS:,} fetches, capacity {sizes} of it"
    for outcomes, kind in ((daemon, ""), (whole, ", whole trees")):
        for other in outcomes[0]:
            if other != "gdsf":
                goal = "" if kind else GOALS.get(other, "")
                yield _against(outcomes, other, where + kind, goal)


def _against(outcomes: list[dict[str, Outcome]], other: str, what: str, goal: str) -> Figure:
    """The median over seeds and capacities; the ratio is that of the ratios, with the least and the most."""
    pairs = [(found["gdsf"].refetch_seconds, found[other].refetch_seconds) for found in outcomes]
    ratios = sorted(one / two for one, two in pairs if two)
    return Figure(
        what,
        f"gdsf {statistics.median(one for one, _ in pairs):,.0f} s",
        f"{other} {statistics.median(two for _, two in pairs):,.0f} s",
        f"{statistics.median(ratios):.2f}× ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        goal,
    )
