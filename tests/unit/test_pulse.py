"""A daemon whose one thread for hand-overs does not turn any more gives no sign of life, and nothing else stops it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from cacheserver.connections import Connections
from cacheserver.pulse import Pulse


def test_a_thread_that_does_not_turn_is_noticed() -> None:
    """And one that turns again is alive again."""
    turns, alive = [1], list[int]()
    pulse = Pulse(lambda: turns[0], lambda: alive.append(turns[0]))
    pulse.look()
    turns[0] = 2
    pulse.look()
    assert (alive, pulse.is_alive) == ([1, 2], True)
    pulse.look()
    pulse.look()
    assert (alive, pulse.is_alive) == ([1, 2], False)
    turns[0] = 3
    pulse.look()
    assert (alive, pulse.is_alive) == ([1, 2, 3], True)


def test_a_thread_that_turns_at_once_is_not_taken_for_dead() -> None:
    """It has turned before the look is over; a moment later it takes its time, and that is no sign of death."""
    connections: Any = SimpleNamespace(_turn_count=0, _wake=lambda: None)

    def turn() -> None:
        connections._turn_count += 1

    pulse = Pulse(lambda: Connections.turns(cast(Connections, connections)), lambda: None)
    connections._wake = turn
    pulse.look()
    connections._wake = lambda: None
    pulse.look()
    assert pulse.is_alive
