"""The map that forgets what was not asked for lately."""

from __future__ import annotations

import random

from cacheserver.bounded import Bounded


def test_what_was_not_asked_for_lately_goes_first() -> None:
    """As soon as all together weigh more than allowed."""
    memory: Bounded[str, int] = Bounded(3)
    for n, key in enumerate("abc"):
        memory.put(key, n)
    assert memory.get("a") == 0
    memory.put("d", 3)
    assert [memory.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_what_is_too_heavy_alone_stays_alone() -> None:
    """The last one put is the one that is needed next."""
    memory: Bounded[str, int] = Bounded(3)
    memory.put("a", 1)
    memory.put("heavy", 2, weight=100)
    assert memory.get("heavy") == 2 and memory.get("a") is None
    memory.put("a", 1)
    assert memory.get("heavy") is None and memory.get("a") == 1


def test_nothing_is_so_light_that_it_is_not_counted() -> None:
    """What weighs nothing takes room as well."""
    memory: Bounded[int, int] = Bounded(10)
    for n in range(100):
        memory.put(n, n, weight=0)
    assert sum(memory.get(n) is not None for n in range(100)) == 10


def test_the_weight_is_that_of_what_is_there(dice: random.Random) -> None:
    """Put again, forgotten, evicted, cleared: what is there weighs no more than allowed, and what fits is not lost."""
    memory: Bounded[int, int] = Bounded(50)
    for _ in range(5000):
        key, weight = dice.randrange(20), dice.randrange(1, 20)
        if dice.random() < 0.3:
            memory.forget(key)
        elif dice.random() < 0.01:
            memory.clear()
        else:
            memory.put(key, weight, weight)
            assert memory.get(key) == weight
    for key in range(20):
        memory.forget(key)
        memory.forget(key)
    assert all(memory.get(key) is None for key in range(20))
    for key in range(5):
        memory.put(key, 10, 10)
    assert [memory.get(key) for key in range(5)] == [10] * 5
