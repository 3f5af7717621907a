"""Leases: who promises that a tree stays, and how a sweep takes one that nobody needs.

Law of this file: a tree is doomed only while nobody has it leased, and leased only while it is not doomed; both under
one lock that is held for no longer than that takes. Who wants a doomed one waits for its end, which takes one step of a
sweep, and then looks whether it is there.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager


class Hold:
    """What one block holds of the trees of a store: each is leased once, however often it is asked for."""

    def __init__(self, leases: Leases, trees: list[str]) -> None:
        self._leases = leases
        self._trees = trees

    def __call__(self, tree: str) -> None:
        """Leases a tree until the block ends."""
        if tree not in self._trees:
            self._leases.take(tree)
            self._trees.append(tree)

    def let_go(self, trees: Sequence[str]) -> None:
        """Gives trees back before that: the block does not need them, and they stay for nobody's sake."""
        for tree in trees:
            self._trees.remove(tree)
            self._leases.give_back(tree)


class Leases:
    """The trees that are leased: to sessions, to downloads that count on them, to processes that outlived a daemon.

    Args:
        ticks: seconds of a clock that never jumps.
    """

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._lock = threading.Lock()
        self._spared = threading.Condition(self._lock)
        self._counts: Counter[str] = Counter()
        # What was just brought stays until then, whoever brought it: those who wait for it are about to lease it.
        self._until: dict[str, dict[object, float]] = {}
        self._doomed: set[str] = set()

    def take(self, tree: str) -> None:
        """Leases a tree. Whether it is held has to be looked at afterwards: it may have gone until now."""
        with self._spared:
            while tree in self._doomed:
                self._spared.wait()
            self._counts[tree] += 1

    def give_back(self, tree: str) -> None:
        """Takes back one lease of a tree."""
        with self._lock:
            self._counts[tree] -= 1
            if not self._counts[tree]:
                del self._counts[tree]

    @contextmanager
    def holding(self, who: object, trees: list[str], *, linger_seconds: float) -> Iterator[Hold]:
        """Leases what the block asks for until it ends, or lets it go; for some seconds more it stays all the same.

        Args:
            who: holds it: any object of one's own.
            trees: filled with what was asked for, the last at the end.
        """
        try:
            yield Hold(self, trees)
        finally:
            self.linger(who, trees, linger_seconds)
            for tree in trees:
                self.give_back(tree)

    def linger(self, who: object, trees: Iterable[str], seconds: float) -> None:
        """Trees stay for so many seconds from now on, for somebody's sake, whether or not anybody has leased them."""
        with self._lock:
            for tree in trees:
                self._until.setdefault(tree, {})[id(who)] = self._ticks() + seconds

    def is_leased(self, tree: str) -> bool:
        """Whether somebody has it, or is about to."""
        with self._lock:
            return self._is_leased(tree)

    def count(self, tree: str) -> int:
        """How many leases a tree has."""
        with self._lock:
            return self._counts.get(tree, 0)

    def total(self) -> int:
        """How many leases there are."""
        with self._lock:
            return self._counts.total()

    def doom(self, trees: Iterable[str]) -> list[str]:
        """Those of some trees that nobody has leased. Nobody can lease them until `spare` is called with them."""
        with self._lock:
            doomed = [tree for tree in trees if not self._is_leased(tree)]
            self._doomed.update(doomed)
            return doomed

    def forget_lingering(self) -> None:
        """Forgets what stays no longer."""
        with self._lock:
            now = self._ticks()
            for tree, untils in list(self._until.items()):
                left = {who: until for who, until in untils.items() if until > now}
                if left:
                    self._until[tree] = left
                else:
                    del self._until[tree]

    def spare(self, trees: Iterable[str]) -> None:
        """Whatever was to be done with doomed trees is done."""
        with self._spared:
            self._doomed.difference_update(trees)
            self._spared.notify_all()

    def _is_leased(self, tree: str) -> bool:
        untils = self._until.get(tree)
        return tree in self._counts or (untils is not None and max(untils.values()) > self._ticks())
