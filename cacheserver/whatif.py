"""`cacheserver simulate`: what more capacity, or another policy, would buy.

Law of this file: it reads or makes a trace, has it replayed, and says what came of it; the figures are `simulate`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from artifactcache.errors import InvalidRequest
from cacheserver import comparing, foresight
from cacheserver.eviction import POLICIES
from cacheserver.plots import WHOLE, check_name, draw
from cacheserver.simulate import LOW_HIGH, ONE_BY_ONE, Outcome, Watermarks, replay
from cacheserver.space import parse_amount, show
from cacheserver.traces import Fetch, read
from cacheserver.workloads import WORKLOADS, generate

CAPACITIES = ("5%", "10%", "20%", "40%", "60%")  # of the trace's distinct bytes
REQUESTS = 10_000  # a month of a busy host; half a minute of work
REQUESTS_MAX = 1_000_000
FORESIGHT = "offline-best"
CHOICES = (*POLICIES, FORESIGHT, *(f"libcachesim-{name}" for name in comparing.POLICIES))
COLUMNS = ("policy", "capacity", "hits", "bytes hit", "fetching", "refetching", "evictions", "more capacity saves")


class Question(NamedTuple):
    """What is asked.

    Attributes:
        trace: a file; where there is none, `workload` is generated from `seed`.
        capacities: amounts, per cent are of the trace's distinct bytes; by default several.
        policies: names of `CHOICES`; by default all that can be had.
    """

    trace: str | None = None
    workload: str = "mixed"
    seed: int = 1
    requests: int = REQUESTS
    capacities: Sequence[str] = ()
    policies: Sequence[str] = ()


class Answer(NamedTuple):
    """What came of it.

    Attributes:
        distinct_bytes: of all blobs of the trace, each once.
        outcomes: by policy, then by capacity.
        notes: what else has to be said.
    """

    trace: str
    requests: int
    tree_count: int
    distinct_bytes: int
    outcomes: list[Outcome]
    notes: list[str]

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"trace: {self.trace}; {self.requests:,} fetches of {self.tree_count:,} trees"
        yield f"distinct bytes: {show(self.distinct_bytes)}; per cent of capacity are of these"
        yield ""
        yield from _table([COLUMNS, *self._rows()])
        if self.notes:
            yield ""
            yield from self.notes

    def document(self) -> dict[str, Any]:
        """For a script."""
        return {
            "trace": self.trace,
            "requests": self.requests,
            "trees": self.tree_count,
            "distinct_bytes": self.distinct_bytes,
            "outcomes": [
                outcome._asdict() | {"hit_ratio": outcome.hit_ratio, "byte_hit_ratio": outcome.byte_hit_ratio}
                for outcome in self.outcomes
            ],
            "notes": self.notes,
        }

    def _rows(self) -> Iterator[tuple[str, ...]]:
        above: Outcome | None = None
        for outcome in self.outcomes:
            saved = "-"
            if above and above.policy == outcome.policy:
                seconds = above.refetch_seconds - outcome.refetch_seconds
                more = outcome.capacity_bytes - above.capacity_bytes
                saved = f"{seconds:,.0f} s for {show(more)}"
            yield (
                outcome.policy,
                show(outcome.capacity_bytes),
                f"{outcome.hit_ratio:.1%}",
                f"{outcome.byte_hit_ratio:.1%}",
                f"{outcome.fetch_seconds:,.0f} s",
                f"{outcome.refetch_seconds:,.0f} s",
                f"{outcome.evictions:,}",
                saved,
            )
            above = outcome


def answer(question: Question, plot: str | None = None) -> Answer:
    """Replays the trace, and draws what came of it. Raises InvalidRequest where that cannot be done."""
    if not 1 <= question.requests <= REQUESTS_MAX:
        raise InvalidRequest(f"--requests must be from 1 to {REQUESTS_MAX:,}.")
    if plot:
        check_name(plot)  # before the work, not after it
    name, fetches = _fetches(question)
    if not fetches:
        raise InvalidRequest(f"{name} has no fetches: nothing can be said of it.")
    trees = {tree.name: tree for _, tree in fetches}
    distinct = sum({blob: size for tree in trees.values() for blob, size in tree.blobs}.values())
    capacities = sorted({_capacity(text, distinct) for text in question.capacities or CAPACITIES})
    runs, notes = _runs(question.policies, fetches)
    outcomes = [run(capacity) for run in runs for capacity in capacities]
    found = Answer(name, len(fetches), len(trees), distinct, outcomes, notes)
    if plot:
        draw(outcomes, name, plot)
    return found


def _fetches(question: Question) -> tuple[str, list[Fetch]]:
    if question.trace:
        with open(question.trace, encoding="ascii", errors="replace") as file:
            return question.trace, read(file, question.trace)
    if question.workload not in WORKLOADS:
        raise InvalidRequest(f"There is no workload {question.workload!r}: choose one of {', '.join(WORKLOADS)}.")
    dice = random.Random(question.seed)
    return f"{question.workload}, seed {question.seed}", generate(question.workload, dice, question.requests)


def _capacity(text: str, distinct: int) -> int:
    try:
        found = parse_amount(text).of(distinct)
    except ValueError:
        found = 0
    if found <= 0:
        raise InvalidRequest(f'--capacity {text}: must be bytes as in "2TiB", or per cent of the trace as in "10%".')
    return found


Run = Callable[[int], Outcome]


def _runs(chosen: Sequence[str], fetches: list[Fetch]) -> tuple[list[Run], list[str]]:
    """What is to be done for each capacity, and what else has to be said."""
    for name in chosen:
        if name not in CHOICES:
            raise InvalidRequest(f"There is no policy {name!r}: choose among {', '.join(CHOICES)}.")
    theirs = [name for name in comparing.POLICIES if not chosen or f"libcachesim-{name}" in chosen]
    future = foresight.Future(fetches)

    def ours(name: str, trace: Sequence[Fetch], marks: Watermarks = LOW_HIGH) -> Run:
        if name == FORESIGHT:
            return lambda size: foresight.offline_best(trace, size, marks, future)
        return lambda size: replay(trace, POLICIES[name], size, marks)

    names = [name for name in (*POLICIES, FORESIGHT) if not chosen or name in chosen]
    runs = [ours(name, fetches) for name in names]
    notes = [f"{foresight.NAME}: the best of {len(foresight.ORDERS)} orders that know the future, as no daemon does."]
    notes = notes if FORESIGHT in names else []
    if theirs and not comparing.is_installed():
        return runs, [*notes, f"{comparing.MISSING}; there are LRU, S3-FIFO, SIEVE and Belady to compare with."]
    if theirs:
        whole = comparing.unshared(fetches)
        runs += [_named(ours(name, whole, ONE_BY_ONE)) for name in names]
        runs += [_theirs(name, whole) for name in theirs]
        notes.append(f"libcachesim knows no shared blobs and evicts one by one;{WHOLE}: ours in the same way.")
    return runs, notes


def _named(run: Run) -> Run:
    def renamed(size: int) -> Outcome:
        outcome = run(size)
        return outcome._replace(policy=outcome.policy + WHOLE)

    return renamed


def _theirs(name: str, whole: list[Fetch]) -> Run:
    return lambda size: comparing.compared(whole, name, size)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *rest]).rstrip()
