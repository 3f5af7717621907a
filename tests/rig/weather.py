"""An origin's weather: fair and foul in turns that follow from a seed; and which errors of clients it accounts for.

All times are those of time.monotonic(), which every process of a host reads alike.
"""

from __future__ import annotations

import contextlib
import math
import random
from typing import NamedTuple

from tests.rig.unsteady import UnsteadyOrigin

OUT = frozenset({"OriginUnavailable"})
KINDS = {
    "slow": OUT,  # a question waits behind others that are slow, too
    "hangs": OUT,
    "half answers": OUT | {"Corrupted"},
    "resets": OUT,
    "5xx storm": OUT,
    "wrong lengths": OUT | {"Corrupted"},
}
RESTART = "restart"  # of the daemon
_ALLOWS = KINDS | {RESTART: frozenset({"DaemonUnavailable"})}


class Spell(NamedTuple):
    """Something that clients may have suffered from, and when."""

    kind: str
    begin: float
    end: float


class Weather:
    """What the origin does.

    Args:
        patience: seconds after the end of a foul spell in which somebody may still suffer from it: for so long the
            daemon waits for an answer, and looks whether the server is back.
        fair, foul: the least and most seconds of a spell.
    """

    def __init__(
        self,
        origin: UnsteadyOrigin,
        chance: random.Random,
        *,
        patience: float,
        fair: tuple[float, float],
        foul: tuple[float, float],
    ) -> None:
        self.spells: list[Spell] = []
        self.changes_at = 0.0
        self._origin = origin
        self._chance = chance
        self._patience = patience
        self._fair = fair
        self._foul = foul
        self._block = contextlib.ExitStack()

    def change(self, now: float) -> None:
        """Fair becomes foul, and foul fair, from now until `changes_at`."""
        if self.spells and self.spells[-1].end == math.inf:
            self.clear(now)
            self.changes_at = now + self._chance.uniform(*self._fair)
            return
        kind = self._chance.choice(sorted(KINDS))
        self._block.enter_context(self._origin.failing(kind, of_downloads_only=self._chance.random() < 0.4))
        self.spells.append(Spell(kind, now, math.inf))
        self.changes_at = now + self._chance.uniform(*self._foul)

    def clear(self, now: float) -> None:
        """Fair from now on."""
        self._block.close()
        self.spells = [spell._replace(end=min(spell.end, now)) for spell in self.spells]

    def note_restart(self, begin: float, end: float) -> None:
        """The daemon was away."""
        self.spells.insert(0, Spell(RESTART, begin, end))

    def accounts_for(self, error: str, begin: float, end: float) -> bool:
        """Whether a call of that time may have failed with that error."""
        return any(
            error in _ALLOWS[spell.kind]
            and spell.begin <= end
            and begin <= spell.end + (0 if spell.kind == RESTART else self._patience)
            for spell in self.spells
        )
