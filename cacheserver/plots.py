"""The simulator's figures as a picture: seconds of refetching, and hits, over capacity.

Law of this file: it is the only one that imports matplotlib, when a plot is asked for; it draws to a file, never to a
screen. What libcachesim's way of counting makes of it stands in a row of its own: the two cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artifactcache.errors import InvalidRequest
from cacheserver.simulate import Outcome

GIB = 1 << 30
FORMATS = (".svg", ".png")
DOTS_PER_INCH = 150
HEIGHT, WIDTH = 4.6, 11.0  # inches, of a row
THEIRS = "libcachesim"
WHOLE = " (whole trees)"
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
        from matplotlib.ticker import StrMethodFormatter
    except ImportError:
        raise InvalidRequest("matplotlib is not installed: pip install 'cacheserver[simulate]'.") from None
    rows = [found for is_whole in (False, True) if (found := [o for o in outcomes if _is_whole(o.policy) is is_whole])]
    figure = Figure(figsize=(WIDTH, HEIGHT * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for found, (seconds, hits) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        way = "whole trees, one by one" if _is_whole(found[0].policy) else "as in the daemon"
        for policy in dict.fromkeys(outcome.policy for outcome in found):
            line = [outcome for outcome in found if outcome.policy == policy]
            capacities = [outcome.capacity_bytes / GIB for outcome in line]
            style = _style(policy)
            seconds.plot(capacities, [outcome.refetch_seconds for outcome in line], label=policy, **style)
            hits.plot(capacities, [100 * outcome.hit_ratio for outcome in line], label=policy, **style)
        seconds.set(title=f"What more capacity would buy: {way}", ylabel="refetching (s)")
        seconds.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        hits.set(title="Fetches that needed no origin", ylabel="hit ratio (%)")
        for axes in (seconds, hits):
            axes.set_xlabel("capacity (GiB)")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        hits.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    figure.suptitle(f"cacheserver simulate: {trace}", fontsize=11)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _is_whole(policy: str) -> bool:
    return policy.startswith(THEIRS) or policy.endswith(WHOLE)


def _style(policy: str) -> dict[str, Any]:
    """Ours in full lines and colours of their own, libcachesim's dotted."""
    if policy.startswith(THEIRS):
        return {"linestyle": ":", "linewidth": 1.5, "marker": ".", "markersize": 5}
    return {"color": OURS.get(policy.removesuffix(WHOLE)), "linewidth": 2.0, "marker": "o", "markersize": 4}
