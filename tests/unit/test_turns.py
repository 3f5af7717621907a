"""Turns: one at a time for each name."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cacheserver.turns import Turns
from tests.unit.house import PATIENCE_SECONDS


def test_one_at_a_time_for_each_name_and_nothing_is_remembered() -> None:
    """Many threads and few names: nobody meets another in the same name, and at the end no lock is left."""
    turns, inside, met, start = Turns(), [0] * 3, [False] * 3, threading.Barrier(12)

    def work(n: int) -> None:
        start.wait(PATIENCE_SECONDS)
        for _ in range(500):
            with turns.of(str(n)):
                inside[n] += 1
                met[n] |= inside[n] != 1
                inside[n] -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, [n % 3 for n in range(12)]))
    assert met == [False] * 3 and len(turns) == 0


def test_another_name_is_free_and_a_failure_ends_a_turn() -> None:
    """Whoever has one name's turn keeps nobody from another's; an error inside gives the turn back."""
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.of("a"), turns.of("b"):
        raise ZeroDivisionError
    assert len(turns) == 0
    with turns.of("a"):
        pass
