"""The simulator's figures as a picture: seconds of refetching, and hits, over capacity.

Law of this file: it is the only one that imports matplotlib, when a plot is asked for; it draws to a file, never a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artifactcache.errors import InvalidRequest
from cacheserver.simulate import Outcome

GIB = 1 << 30
FORMATS = (".svg", ".png")
DOTS_PER_INCH = 150
HEIGHT, WIDTH = 5.2, 11.0  # inches
OURS = {"gdsf": "#1b6ca8", "lru": "#d1495b", "s3-fifo": "#6a994e", "offline best": "#333333"}


def check_name(path: str) -> None:
    """Raises InvalidRequest where a plot cannot have that name."""
    if not path.lower().endswith(FORMATS):
        raise InvalidRequest(f"--plot {path}: the name must end with {' or '.join(FORMATS)}.")


def draw(outcomes: Sequence[Outcome], trace: str, path: str) -> None:
    """Draws outcomes, a line for each policy. Raises InvalidRequest, or OSError where it cannot be written."""
    check_name(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest("matplotlib is not installed: pip install 'cacheserver[simulate]'.") from None
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    seconds, hits = figure.subplots(1, 2)
    by_policy: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_policy.setdefault(outcome.policy, []).append(outcome)
    for policy, found in by_policy.items():
        capacities = [outcome.capacity_bytes / GIB for outcome in found]
        style = _style(policy)
        seconds.plot(capacities, [outcome.refetch_seconds / 3600 for outcome in found], label=policy, **style)
        hits.plot(capacities, [100 * outcome.hit_ratio for outcome in found], label=policy, **style)
    for axes, title, label in (
        (seconds, "What more capacity would buy", "hours of refetching"),
        (hits, "Fetches that needed no origin", "hit ratio (%)"),
    ):
        axes.set(title=title, xlabel="capacity (GiB)", ylabel=label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"cacheserver simulate: {trace}", fontsize=11)
    handles, labels = seconds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _style(policy: str) -> dict[str, Any]:
    """Ours in full lines; in the way of libcachesim dashed, libcachesim's own thin and dotted."""
    name = policy.removesuffix(" (whole trees)")
    if policy.startswith("libcachesim"):
        return {"linestyle": ":", "linewidth": 1.2, "marker": ".", "markersize": 4}
    full = name == policy
    return {
        "color": OURS.get(name),
        "linestyle": "-" if full else "--",
        "linewidth": 2.0 if full else 1.0,
        "marker": "o" if full else ".",
        "markersize": 4,
    }
