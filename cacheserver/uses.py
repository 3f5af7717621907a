"""Who was handed out what, until it is written down: a hit itself writes nothing.

Law of this file: what was taken to be written down, and could not be, is put back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Noted:
    """Uses, with the last time of each in seconds since the epoch.

    Attributes:
        artifacts: by URI and selection.
        trees: by digest, with how often.
        users: by digest and user ID.
    """

    artifacts: dict[tuple[str, str], float] = field(default_factory=dict)
    trees: dict[str, tuple[int, float]] = field(default_factory=dict)
    users: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, other: Noted) -> None:
        """Adds others, which came later."""
        self.artifacts.update(other.artifacts)
        for tree, (times, at) in other.trees.items():
            self.trees[tree] = self.trees.get(tree, (0, 0.0))[0] + times, at
        self.users.update(other.users)


class Uses:
    """Uses that nobody has written down yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted = Noted()

    def note(self, artifact: tuple[str, str], tree: str, uid: int, at: float, *, is_hit: bool) -> None:
        """A user was handed out an artifact (URI and selection) that is this tree. What brought it is no use of it."""
        with self._lock:
            self._noted.add(Noted({artifact: at}, {tree: (int(is_hit), at)}, {(tree, uid): at}))

    def brought(self, tree: str, uid: int, at: float) -> None:
        """A tree was brought on a user's account, whether or not it is handed out."""
        with self._lock:
            self._noted.add(Noted(users={(tree, uid): at}))

    def take(self) -> Noted:
        """All of them, to be written down."""
        with self._lock:
            noted, self._noted = self._noted, Noted()
            return noted

    def put_back(self, noted: Noted) -> None:
        """Those that could not be written down."""
        with self._lock:
            noted.add(self._noted)
            self._noted = noted
