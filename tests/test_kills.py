"""`kill -9` at any moment, again and again: whoever comes after finds all that was acknowledged, and right bytes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.rig.lying import lying_origin
from tests.rig.survival import People, Survival, survival

LOAD_SECONDS_MAX = 0.4
START_SECONDS_MAX = 0.5
STOP_SECONDS_MAX = 0.2
WITH_CLIENTS_EVERY = 6  # rounds


@pytest.mark.parametrize("kill_count", [15, pytest.param(1000, marks=(pytest.mark.slow, pytest.mark.timeout(7200)))])
def test_kills(room: Path, people: People, seed: int, kill_count: int) -> None:
    """Under load, while it starts, while it stops: the store is sound, nothing acknowledged is lost, every client's
    next try succeeds, no lease of a dead client is left, and every byte that anybody got is the origin's."""
    with lying_origin() as origin, survival(origin, room, people, seed) as one:
        while one.counts["kills"] < kill_count:
            _round(one)
    print(dict(one.counts))
    print(f"{one.counts['kills']} kills survived, {one.counts['bytes']} bytes compared, differences: 0, seed {seed}")
    assert all(one.counts[what] for what in ("retried", "view", "hardlink", "copy"))


def _round(one: Survival) -> None:
    """The clients work, the daemon is killed, another one starts."""
    chance, spawner = one.chance, one.spawner
    one.go(sweeps=chance.random() < 0.4)
    time.sleep(chance.uniform(0, LOAD_SECONDS_MAX))
    one.counts["rounds"] += 1
    with_clients = one.counts["rounds"] % WITH_CLIENTS_EVERY == 0
    is_stopping = chance.random() < 0.2
    if is_stopping:
        os.kill(spawner.pid, signal.SIGTERM)
        time.sleep(chance.uniform(0, STOP_SECONDS_MAX))
    if with_clients:
        one.kill_clients()
    _kill(one, "while it was stopping" if is_stopping else "under load")
    if not with_clients:
        one.hear()
    if chance.random() < 0.1:
        one.assert_sound()
    at_once = chance.random() < 0.4 and not with_clients
    if at_once:
        one.retry(at_once=True)
    while chance.random() < 0.35:
        spawner.launch()
        time.sleep(chance.uniform(0, START_SECONDS_MAX))
        _kill(one, "while it was starting")
    spawner.start()
    if with_clients:
        one.assert_nothing_of_the_dead()
    elif at_once:
        one.hear()
        one.assert_held()
    else:
        one.assert_staging_is_empty()
        one.assert_held()
        one.retry(at_once=False)
        one.hear()


def _kill(one: Survival, when: str) -> None:
    one.spawner.kill()
    one.counts.update({"kills": 1, when: 1})
