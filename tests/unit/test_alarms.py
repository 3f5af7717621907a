"""Unusual numbers: what is counted, and when it is told."""

from __future__ import annotations

from cacheserver.alarms import Alarm


def test_told_once_when_there_are_too_many() -> None:
    """The third of three tells, the fourth does not."""
    alarm = Alarm(3, 600)
    assert [alarm.count(1, now) for now in (0.0, 1.0, 2.0, 3.0)] == [False, False, True, False]


def test_told_again_after_the_time() -> None:
    """Who goes on is told of again, once in each time."""
    alarm = Alarm(2, 600)
    assert [now for now in range(0, 2400, 100) if alarm.count(1, float(now))] == [100, 700, 1300, 1900]


def test_what_is_old_does_not_count() -> None:
    """Three within the time, not three at all."""
    alarm = Alarm(3, 600)
    assert not any(alarm.count(1, now) for now in (0.0, 300.0, 600.0, 900.0, 1200.0))
    assert alarm.count(1, 1499.0), "900, 1200 and this one"


def test_users_are_counted_apart() -> None:
    """Nobody is told of for what another has done; those without a session are one."""
    alarm = Alarm(2, 600)
    assert [alarm.count(user, 0.0) for user in (1, 2, None, 1, 2, None)] == [False] * 3 + [True] * 3


def test_users_are_forgotten() -> None:
    """Of whom nothing was counted for the time, nothing is kept."""
    alarm = Alarm(2, 600)
    for user in range(1000):
        alarm.count(user, 0.0)
    alarm.count(5000, 599.0)
    assert len(alarm._users) == 1001
    alarm.count(5000, 600.0)
    assert len(alarm._users) == 1
