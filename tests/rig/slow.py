"""What `make test` leaves to `make test-slow`: cases that cost seconds each, and are like others that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], is_quick: Callable[[Any], bool]) -> list[Any]:
    """The values of a parameter, in tuples where it is several; all but the quick ones are for `make test-slow`."""
    return [value if is_quick(value) else pytest.param(*_each(value), marks=pytest.mark.slow) for value in values]


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
