"""Waiting for a condition, with a deadline. Nothing in the tests sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str | Callable[[], str], seconds: float = 30.0) -> T:
    """Call `condition` until it gives something true, and return that.

    Raises AssertionError naming `what`, which is asked for only then, when `seconds` have passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)
