"""A house that asks its origin as whoever calls, and an origin that shows different things to different logins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from artifactcache.errors import CacheError, NotFound
from cacheserver.access import Caller
from cacheserver.credentials import Credentials
from cacheserver.gate import Gate, Tracking
from cacheserver.retention import Facts
from cacheserver.sources import Place, Proof
from cacheserver.uris import Artifact, Kind
from cacheserver.words import Listing, Location, Resolved
from tests.unit.house import FakeOrigin, House

KEPT_SECONDS = 60.0


class ShownOrigin(FakeOrigin):
    """What it says to a login of a version, of an alias or of a root is an error where `instead` has one for both.

    Called with the login and the version: `asked` by each question whether a caller may read it, `resolving` by each
    where it lies, which has been answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.instead: dict[tuple[str, str], CacheError] = {}
        self.asked: Callable[[str, str], None] = lambda login, version: None
        self.resolving: Callable[[str, str], None] = lambda login, version: None

    def as_caller(self, headers: Mapping[str, str]) -> Shown:
        """As somebody sees it who sends these headers."""
        return Shown(self, headers.get("Authorization", ""))

    def prove(self, artifact: Artifact, credentials: Credentials) -> Proof:
        """Whether a login is shown a version, and what of it."""
        seen = self.as_caller(credentials.headers)
        self.asked(seen.login, artifact.base)
        resolved = seen.shown(artifact)
        root = resolved.root if artifact.kind is Kind.MODEL_VERSION else ""
        parts = frozenset(root for _, root in resolved.overlays) if artifact.kind is Kind.RUN else None
        return Proof("shown", root, parts)

    def place(self, artifact: Artifact) -> Place:
        """No grant asks for it."""
        raise AssertionError(artifact)

    def describe(self, versions: Iterable[str], needs: frozenset[str]) -> dict[str, Facts]:
        """No grant asks for it."""
        raise AssertionError(versions)


class Shown:
    """The origin as one login sees it. A logged model that there is not, or not for this login, does not show in a run;
    one that is refused makes the run so: as MLflow's server has it."""

    is_own = False

    def __init__(self, origin: ShownOrigin, login: str) -> None:
        self._origin = origin
        self.login = login

    def __getattr__(self, name: str) -> Any:
        return getattr(self._origin, name)

    def version_of(self, artifact: Artifact, *, patience: float | None = None) -> tuple[Artifact, str]:
        """As `FakeOrigin.version_of`."""
        self._look(artifact.base)
        return self._origin.version_of(artifact, patience=patience)

    def resolve(self, artifact: Artifact, *, patience: float | None = None) -> Resolved:
        """As `FakeOrigin.resolve`, without what is not shown."""
        found = self.shown(artifact)
        self._origin.resolving(self.login, artifact.base)
        return found

    def shown(self, artifact: Artifact) -> Resolved:
        """The same, which nobody hears of."""
        self._look(artifact.base)
        found = self._origin.resolve(artifact)
        shown = tuple((name, root) for name, root in found.overlays if self._shows(root))
        return Resolved(found.version, found.root, shown, found.settled, found.stamp)

    def listing(self, location: Location, *, named_by_client: bool, patience: float | None = None) -> Listing:
        """As `FakeOrigin.listing`."""
        self._look(location.root)
        return self._origin.listing(location, named_by_client=named_by_client, patience=patience)

    def _shows(self, root: str) -> bool:
        try:
            self._look(root)
        except NotFound:
            return False
        return True

    def _look(self, what: str) -> None:
        if error := self._origin.instead.get((self.login, what)):
            raise type(error)(str(error))


class ShownHouse(House):
    """A house over such an origin, with the gate of a daemon with check = "caller"."""

    origin: ShownOrigin

    def __init__(self, root: Path) -> None:
        super().__init__(root, origin=ShownOrigin())
        self.gate = Gate(
            cast(Tracking, self.origin),
            asks_as_caller=True,
            grants=(),
            kept_seconds=KEPT_SECONDS,
            who=lambda peer: Caller(str(peer.uid), frozenset()),
            is_administrator=lambda peer: False,
            ticks=lambda: self.ticks,
        )
