"""The cache against a dictionary, by Hypothesis: the same sequences each time, and with `slow` many more, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rig.seam import Seam
from tests.unit.model import CacheModel
from tests.unit.mortal import mortal

EXAMPLES, STEPS = 12, 25
EXAMPLES_SLOW, STEPS_SLOW = 300, 60

COMMON = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
)


@pytest.fixture(scope="module")
def model(memory: Path) -> Iterator[type[CacheModel]]:
    """The machine, on the seam."""
    CacheModel.seam, CacheModel.base = Seam(), memory
    with mortal(CacheModel.seam, memory / "empty"):
        yield CacheModel


def test_the_cache_is_a_dictionary(model: type[CacheModel]) -> None:
    """Whatever is done, in whatever order, with faults and deaths in between."""
    some = settings(COMMON, max_examples=EXAMPLES, stateful_step_count=STEPS, derandomize=True)
    run_state_machine_as_test(model, settings=some)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_cache_is_a_dictionary_for_long(model: type[CacheModel], request: pytest.FixtureRequest) -> None:
    """The same, longer, by a seed that is printed; `--seed` sets it."""
    told = request.config.getoption("--seed")
    number = random.SystemRandom().randrange(2**32) if told is None else told
    print(f"--seed {number}")
    many = settings(COMMON, max_examples=EXAMPLES_SLOW, stateful_step_count=STEPS_SLOW)
    run_state_machine_as_test(seed(number)(model), settings=many)
