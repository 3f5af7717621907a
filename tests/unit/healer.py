"""A house that fetches again what lacks bytes."""

from __future__ import annotations

from pathlib import Path

from cacheserver.healing import Healing
from tests.unit.house import FILES, ROOT, House


class Healer(House):
    """It heals when it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.healing = Healing(self.cache, self.index, lambda: self.ticks)
        self.store.verifier.damaged = self.healing.want

    def fill(self) -> None:
        """Brings one artifact of a few files."""
        self.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
        self.bring(ROOT)

    def heal(self) -> None:
        """Until nothing is under way."""
        self.healing.look()
        for wound in list(self.healing._wounds.values()):
            if wound.flight:
                wound.flight.future.exception(timeout=30)
        self.healing.look()
