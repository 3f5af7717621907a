"""Counting: that nothing is lost, and in which interval a time falls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cacheserver.tallies import BOUNDS, Spread, Tally


def test_counts_and_amounts_by_labels() -> None:
    """What is known from the beginning is there with nothing."""
    tally = Tally([("a", "x")])
    tally.add("a", "y", amount=5)
    tally.add("a", "y", amount=7)
    assert tally.counts() == {("a", "x"): 0, ("a", "y"): 2}
    assert tally.amounts() == {("a", "x"): 0, ("a", "y"): 12}


def test_a_time_falls_below_the_first_bound_that_is_not_less() -> None:
    """A bound itself belongs below it, as Prometheus has it (`le`); what is longer than all is beyond the last."""
    spread = Spread(["hit"])
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 1e-9, BOUNDS[-1], BOUNDS[-1] + 1):
        spread.add("hit", seconds)
    counts, seconds = spread.values()["hit"]
    assert (counts[0], counts[1], counts[len(BOUNDS) - 1], counts[len(BOUNDS)], sum(counts)) == (2, 1, 1, 1, 5)
    assert abs(seconds - (2 * BOUNDS[0] + 2 * BOUNDS[-1] + 1)) < 1e-6
    assert sorted(BOUNDS) == list(BOUNDS)


def test_threads_lose_nothing() -> None:
    """Several count the same at once."""
    tally, spread = Tally(), Spread()

    def count(_: int) -> None:
        for _ in range(5000):
            tally.add("a", amount=2)
            spread.add("a", 1.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert (tally.counts(), tally.amounts()) == ({("a",): 20_000}, {("a",): 40_000})
    assert sum(spread.values()["a"][0]) == 20_000 == spread.values()["a"][1]
