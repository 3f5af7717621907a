"""A house whose origin has its artifacts in a folder of this host, which is ingested."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cacheserver.ingesting import Ingesting
from cacheserver.outcomes import Outcome, State
from cacheserver.settings import IngestConfig
from cacheserver.space import Limits
from cacheserver.words import Resolved
from tests.unit.house import ROOMY, FakeOrigin, House

SETTLE = 5.0


class Site(FakeOrigin):
    """A tracking server whose runs have their artifacts in a folder of this host."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.states: dict[str, State] = {}
        self.asked: list[list[str]] = []

    def add(self, number: int, state: State = State.DONE, size: int = 10) -> str:
        """A run of one file; returns its URI."""
        run_id = f"{number:032x}"
        path = self.folder / "1" / run_id / "artifacts"
        path.mkdir(parents=True)
        (path / "f").write_bytes(b"f")
        self.versions[f"runs:/{run_id}"] = Resolved(f"runs:/{run_id}", str(path), (), True)
        self.files[f"{path}/f"] = os.urandom(size)
        self.states[run_id] = state
        return f"runs:/{run_id}"

    def outcomes(self, asked: Sequence[tuple[str, str]]) -> dict[str, Outcome]:
        """What `states` says."""
        self._answer()
        self.asked.append([one for _, one in asked])
        return {one: Outcome(self.states[one], self.versions[f"runs:/{one}"].root) for _, one in asked}


class Yard(House):
    """A house that ingests a folder. Its clock is well after whatever a test writes."""

    origin: Site

    def __init__(self, root: Path, limits: Limits = ROOMY) -> None:
        self.folder = root / "mlruns"
        self.folder.mkdir()
        super().__init__(root / "store", limits, grace_seconds=0.0, origin=Site(self.folder))
        self.now = self.folder.stat().st_ctime + 10_000
        self.dropped = set[str]()
        self.ingesting = self.made()

    def made(self) -> Ingesting:
        """As a daemon has it that has just started."""
        return Ingesting(
            self.cache,
            self.index,
            self.origin,
            IngestConfig([str(self.folder)], settle=SETTLE, every=600.0),
            has_spare=self.reservations.has_spare,
            would_drop=lambda versions: self.dropped & set(versions),
            clock=lambda: self.now,
            ticks=lambda: self.ticks,
            pause=lambda: None,
        )

    def later(self, seconds: float) -> None:
        """Time passes, and it looks."""
        self.now += seconds
        self.ticks += seconds
        self.ingesting.look()

    def close(self) -> None:
        """Watches nothing any more."""
        self.ingesting.stop()
        self.ingesting.look()
        super().close()

    def touched(self) -> float:
        """The time, by the folder's filesystem."""
        (self.root / "clock").touch()
        return (self.root / "clock").stat().st_ctime

    def held(self) -> set[str]:
        """What is held, and was named."""
        return {one.uri for one in self.index.asked()}
