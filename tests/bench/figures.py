"""What the benchmarks have in common: rounds, medians, ratios, a table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, against what, and the ratio's goal."""

    what: str
    value: str
    against: str
    ratio: str
    goal: str


def seconds(work: Work) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(first: Work, second: Work, rounds: int, after_each: Work = lambda: None) -> tuple[float, float, float]:
    """Medians of both in seconds, and the median of the ratios pair by pair: a machine's drift falls out of these."""
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        one = seconds(first)
        after_each()
        other = seconds(second)
        after_each()
        pairs.append((one, other))
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(one / other for one, other in pairs),
    )


def milliseconds(value: float) -> str:
    """Seconds for the table."""
    return f"{value * 1000:,.{2 if value < 0.01 else 0}f} ms"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    names = ("what", "value", "against", "ratio", "goal")
    rows = [names, *(dataclasses.astuple(figure) for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
