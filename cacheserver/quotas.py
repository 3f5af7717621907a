"""How much of something a user may have at a time, so that nobody can use it up for the others.

Law of this file: what was taken is given back, whatever happens; and who may not have it is told so at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from artifactcache.errors import QuotaExceeded


class Quota:
    """So many at a time, of all users together and of each.

    Args:
        what: in words that finish "… at a time".
        leaves_some: whether who has some gets one more only while more are left than he has, as in `shares`: so the
            last one is for somebody who has none, however many users have come before.
    """

    def __init__(self, what: str, *, per_user: int, total: int, leaves_some: bool = False) -> None:
        self._what = what
        self._leaves_some = leaves_some
        self._per_user = per_user
        self._total = total
        self._lock = threading.Lock()
        self._taken: Counter[int] = Counter()

    def take(self, uid: int, count: int = 1) -> None:
        """Takes some for a user. Raises QuotaExceeded."""
        with self._lock:
            if self._taken[uid] + count > self._per_user:
                raise QuotaExceeded(f"One user gets {self._per_user} {self._what} at a time: let some end first.")
            left = self._total - self._taken.total()
            if count > left:
                raise QuotaExceeded(f"This daemon has {self._total} {self._what} at a time: try later.")
            if self._leaves_some and self._taken[uid] >= left:
                raise QuotaExceeded(f"What is left of {self._total} {self._what} is for others: let yours end first.")
            self._taken[uid] += count

    def give_back(self, uid: int, count: int = 1) -> None:
        """Gives some of a user's back."""
        with self._lock:
            self._taken[uid] -= count
            if not self._taken[uid]:
                del self._taken[uid]

    @contextmanager
    def one(self, uid: int) -> Iterator[None]:
        """Takes one for as long as this lasts. Raises QuotaExceeded."""
        self.take(uid)
        try:
            yield
        finally:
            self.give_back(uid)

    def by_user(self) -> dict[int, int]:
        """How many are taken, by user ID."""
        with self._lock:
            return dict(self._taken)

    def standing(self, uid: int) -> tuple[str, int, int]:
        """What it is, how many a user has taken, and how many that user may."""
        with self._lock:
            return self._what, self._taken.get(uid, 0), self._per_user

    def total(self) -> int:
        """How many are taken."""
        with self._lock:
            return self._taken.total()
