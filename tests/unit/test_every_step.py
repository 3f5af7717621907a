"""Every step of every verb fails, before and after it was done, with each errno that can occur there; and the daemon
dies there.

`make test` takes a sample, whose seed is printed and set by `--seed`; `make faults` takes all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cacheserver.removal import remove
from tests.rig.seam import KILL, Fault, Seam
from tests.unit.mortal import mortal
from tests.unit.survival import faults, steps_of, survive
from tests.unit.verbs import VERBS, Verb

SAMPLE = 6  # faults of each verb
SHOWN_MAX = 40


@pytest.fixture(scope="module")
def seam(memory: Path) -> Iterator[Seam]:
    """The seam, in place."""
    seam = Seam()
    with mortal(seam, memory / "empty"):
        yield seam


class Trial:
    """Verbs that fail, each time in a folder of its own."""

    def __init__(self, base: Path, seam: Seam, seed: int) -> None:
        self._folder, self._seam, self._seed = base / "place", seam, seed

    def of(self, verb: Verb, sample: int | None) -> None:
        """Has a verb fail in every way, or in a sample of them. AssertionError with those that it has not survived."""
        with self._place() as folder:
            steps = steps_of(verb, folder, self._seam)
        cases = list(faults(steps))
        if sample is not None and len(cases) > sample:
            cases = random.Random(f"{self._seed}/{verb}").sample(cases, sample)
        failed = [why for fault in cases if (why := self._failure(verb, fault))]
        kills = sum(fault.errno == KILL for fault in cases)
        print(f"{verb}: {len(steps)} steps, {len(cases)} cases, {kills} of them kills; --seed {self._seed}")
        assert not failed, "\n".join([f"{len(failed)} of {len(cases)}:", *failed[:SHOWN_MAX]])

    def _failure(self, verb: Verb, fault: Fault) -> str:
        try:
            with self._place() as folder:
                survive(verb, fault, folder, self._seam)
        except AssertionError as error:
            return str(error)
        return ""

    @contextmanager
    def _place(self) -> Iterator[Path]:
        self._folder.mkdir()
        try:
            yield self._folder
        finally:
            assert remove(str(self._folder)) is None  # views are read-only


@pytest.fixture
def trial(memory: Path, seam: Seam, request: pytest.FixtureRequest) -> Trial:
    """With the seed that was given."""
    seed = request.config.getoption("--seed")
    return Trial(memory, seam, random.SystemRandom().randrange(2**32) if seed is None else seed)


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_whatever_fails_all_is_well(trial: Trial, verb: Verb) -> None:
    """The error is one of ours; what was held is held, by this daemon or the next one; nothing of the failure stays;
    and the same verb works."""
    trial.of(verb, SAMPLE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_whatever_fails_at_any_step_all_is_well(trial: Trial, verb: Verb) -> None:
    """The same, in every way there is."""
    trial.of(verb, None)
