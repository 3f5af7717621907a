"""Stand-ins for the standard library: copies of its modules, to be changed at will, and threads that are none.

Law of this file: nothing of the real modules changes; whoever else uses them does not notice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class AtOnce(Executor):
    """Threads that are none: whatever is submitted is done at once, so that steps come in one order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Does it."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is the future's to raise
            future.set_exception(error)
        return future


def copy(name: str) -> Any:
    """A module that is written in Python, made once more from its source."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_of(module: ModuleType) -> Any:
    """A module that has what another has by now."""
    found = ModuleType(module.__name__)
    vars(found).update(vars(module))
    return found
