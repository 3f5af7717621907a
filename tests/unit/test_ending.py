"""The end of the daemon: every part is ended, and the last ones have their time."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from cacheserver import daemon
from cacheserver.ending import Ending


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_waits_have_one_purse() -> None:
    """What one has used up, the next one has not."""
    clock = Clock()
    ending = Ending(8.0, clock)
    assert ending.left(5.0) == 5.0
    clock.now += 6.0
    assert ending.left(5.0) == 2.0 and ending.left(1.0) == 1.0
    clock.now += 60.0
    assert ending.left(5.0) == 0.0
    ending.until(5.0, lambda: False)


def test_what_cannot_be_ended_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With where it was; and what comes after it is ended."""
    ended: list[str] = []

    def fail() -> None:
        raise KeyError("a defect")

    Ending(1.0, Clock()).of([lambda: ended.append("first"), fail, lambda: ended.append("last")])
    assert ended == ["first", "last"]
    assert [(one.levelno, bool(one.exc_info)) for one in caplog.records] == [(logging.ERROR, True)]


class Ended(BaseException):
    """The process."""


class Everything:
    """Whatever of a daemon's parts is asked for: it notes what was called, and some of it fails."""

    def __init__(self, calls: list[str], name: str = "") -> None:
        self._calls, self._name = calls, name

    def __getattr__(self, name: str) -> Everything:
        return Everything(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *_: object) -> Any:
        self._calls.append(self._name)
        if self._name in ("register.close", "handoff.stop", "audit.stop"):
            raise OSError(5, "Input/output error")
        return 0 if self._name.endswith("_count") else SimpleNamespace(wait=lambda seconds: None)


def test_the_index_is_closed_whatever_fails_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A register that cannot be written, say: uses are written down, and the index is closed all the same."""
    calls: list[str] = []

    def leave(status: int) -> NoReturn:
        raise Ended

    monkeypatch.setattr("cacheserver.daemon.os._exit", leave)
    monkeypatch.setattr("cacheserver.daemon.logging.shutdown", lambda: calls.append("logging"))
    with pytest.raises(Ended):
        daemon._end(cast(Any, Everything(calls)), cast(Any, Everything(calls, "server")), [], [])
    assert "register.close" in calls
    assert calls[-4:] == ["cache.close", "recorder.write", "store.index.close", "logging"]
    assert calls.index("sweeper.stop") < calls.index("server.stop"), "they have the time of all the others to end"


def test_what_is_waited_for_leaves_time_to_close() -> None:
    """The parts are no more than the whole."""
    assert daemon.CLOSE_SECONDS > 0
    waits = daemon.HAND_OVER_SECONDS_MAX + daemon.LANDING_SECONDS_MAX + daemon.ANSWER_SECONDS_MAX
    assert waits + daemon.CLOSE_SECONDS <= daemon.STOP_SECONDS_MAX
