"""An origin that fails while thirty clients wait for it: an answer for each, nothing left of it, and no herd after.

The origin is a real MLflow server behind a proxy that fails on command (`tests/rig/unsteady`); which single lies are
refused, and how, is held by `tests/test_lying_origin.py`.
"""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.downloads import DOWNLOADS_MAX
from cacheserver.http import CONNECTIONS_MAX
from cacheserver.proxied import ATTEMPTS_MAX
from tests.conftest import CallerOf, StartDaemon
from tests.rig import gauges, trees
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.slow import slow_but
from tests.rig.unsteady import UnsteadyOrigin, unsteady_origin
from tests.rig.until import until
from tests.rig.upkeep import call
from tests.rig.waiting import Crowd, crowd
from tests.rig.whole import assert_whole

UNREACHABLE_AFTER = 2.0
CLIENTS = 30
TOGETHER = CLIENTS // 2  # of them want the same artifact, the others one each
ARTIFACTS = CLIENTS - TOGETHER + 1
FILES = 2  # of an artifact
LARGE_BYTES = 17 << 20  # of one file more of that which many want: its beginning is kept when it is broken off

# Deadlines, not measurements: whoever has no answer by then gets DeadlineExceeded, which no fault below allows. There
# are two questions, each of which may wait for its turn and then for its answer. A file may be tried until patience
# ends, and then wait for its turn and for its answer once more; and all this again where something came of it. So may
# those be that a download worker has to do before it.
QUESTIONS_SECONDS_MAX = 2 * 2 * UNREACHABLE_AFTER
FILE_SECONDS_MAX = 2 * 3 * UNREACHABLE_AFTER
ANSWER_SECONDS_MAX = QUESTIONS_SECONDS_MAX + math.ceil((ARTIFACTS * FILES + 1) / DOWNLOADS_MAX) * FILE_SECONDS_MAX
RETURN_SECONDS_MAX = 60.0  # for all of them to have everything of an origin that works
# Nothing of a failure may stay, and there are dozens of each kind. A pool now and then takes one thread more, up to its
# limit, because another is not quite ready, or its users share it otherwise; connections are kept to the origin, and
# are few after it has hung up.
POOLS_GROWTH_MAX = 20
DOWNLOADS_PER_FILE_MAX = 1.5  # of all files together, where more attempts than one are needed for some
LOOKUPS_MAX = 4  # of a client, between the return and its success: where it is, what is in it, and both once more

OUT = "OriginUnavailable"
FAULTS = {
    "slow": {OUT},  # a question may take longer than is waited for it, with fifteen before it
    "hangs": {OUT},
    "half answers": {OUT, "Corrupted"},
    "resets": {OUT},
    "5xx storm": {OUT},
    "wrong lengths": {OUT, "Corrupted"},
    "changing": {OUT, "Corrupted"},
}
QUICK = {"hangs", "changing"}
_ANYTHING = gauges.Taken(1 << 60, 1 << 20, 1 << 20)


@dataclasses.dataclass
class Place:
    """The origin, the daemon, who waits, and what the daemon took up when it had nothing to do."""

    server: MlflowServer
    origin: UnsteadyOrigin
    daemon: Daemon
    people: Crowd
    idle: gauges.Taken = _ANYTHING

    def artifacts(self) -> list[str]:
        """A new run; what each client is to fetch of it."""
        run_id = self.server.run()
        names = ["same", *(f"own{number:02}" for number in range(ARTIFACTS - 1))]
        for number, name in enumerate(names):
            letter = string.ascii_letters[number].encode()
            files = {f"{n}.bin": letter * 3000 for n in range(FILES)}
            trees.plant(self.server.folder(run_id) / name, files)
        (self.server.folder(run_id) / "same" / "large.bin").write_bytes(b"L" * LARGE_BYTES)
        return [f"runs:/{run_id}/{name}" for name in ["same"] * TOGETHER + names[1:]]

    def there(self, uri: str) -> trees.Files:
        """What the origin has of an artifact now."""
        run_id, _, name = uri.removeprefix("runs:/").partition("/")
        return trees.read(self.server.folder(run_id) / name)

    def assert_idle(self, beginnings_max: int) -> None:
        """Threads and descriptors are what they were, and staging has beginnings of large files with their notes."""
        until(
            lambda: self._is_idle(beginnings_max),
            lambda: (
                f"{self.taken()} to be as good as {self.idle}, and at most {beginnings_max} of {self.daemon.staging()}"
            ),
        )

    def taken(self) -> gauges.Taken:
        """What the daemon takes up."""
        return gauges.taken(self.daemon.pid)

    def _is_idle(self, beginnings_max: int) -> bool:
        now, staging = self.taken(), set(self.daemon.staging())
        noted = {name.removesuffix(".from") for name in staging if name.endswith(".from")}
        only_beginnings = len(noted) <= beginnings_max and staging == noted | {f"{name}.from" for name in noted}
        is_back = (
            now.thread_count <= self.idle.thread_count + POOLS_GROWTH_MAX
            and now.descriptor_count <= self.idle.descriptor_count + CONNECTIONS_MAX
        )
        return only_beginnings and is_back


@pytest.fixture(scope="module")
def place(
    module_start: StartDaemon, module_room: Path, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> Iterator[Place]:
    """One for all faults. In the end its store is whole."""
    with unsteady_origin(mlflow_proxied) as origin:
        daemon = module_start(origin.uri, unreachable_after=UNREACHABLE_AFTER)
        with crowd([caller_of(daemon, module_room, role) for role in ("alice", "bob", "root")]) as people:
            place = Place(mlflow_proxied, origin, daemon, people)
            with origin.failing("hangs"):  # now every pool has as many threads as this crowd can make it have
                uris = place.artifacts()
                people.fetch(uris, ANSWER_SECONDS_MAX)
            people.wait_for(uris, RETURN_SECONDS_MAX)()
            people.release()
            place.idle = place.taken()
            yield place
        daemon.assert_no_traceback()
        assert_whole(daemon)


@pytest.mark.parametrize("kind", slow_but(FAULTS, QUICK.__contains__))
def test_thirty_clients_of_an_origin_that_fails(place: Place, caller_of: CallerOf, room: Path, kind: str) -> None:
    """While its downloads fail, and then all that it is asked, each client gets right bytes or a typed error in bounded
    time; then the daemon takes up no more than before. When the origin is back everybody who waits gets everything:
    each file is downloaded for all of them together, and no client has it asked more than a few questions."""
    origin, people = place.origin, place.people
    others, uris = place.artifacts(), place.artifacts()
    with origin.failing(kind, of_downloads_only=True):
        origin.forget()
        _assert_allowed(people.fetch(others, ANSWER_SECONDS_MAX), kind)
        assert origin.downloads, "nobody has come as far as a download"
    place.assert_idle(beginnings_max=1)
    with origin.failing(kind):
        _assert_allowed(people.fetch(uris, ANSWER_SECONDS_MAX), kind)
        place.assert_idle(beginnings_max=2)
        rest = people.wait_for(uris, ANSWER_SECONDS_MAX + RETURN_SECONDS_MAX)
        origin.forget()
    _assert_right(place, rest(), kind)
    # One download of a file, which on a busy machine may take more than one attempt: none for each of fifteen clients.
    assert max(origin.downloads.values(), default=0) <= ATTEMPTS_MAX, origin.downloads
    assert origin.downloads.total() <= DOWNLOADS_PER_FILE_MAX * (ARTIFACTS * FILES + 1), origin.downloads
    assert origin.question_count <= LOOKUPS_MAX * CLIENTS
    _assert_right(place, people.wait_for(others, RETURN_SECONDS_MAX)(), kind)
    people.release()
    place.assert_idle(beginnings_max=0)
    assert call(caller_of(place.daemon, room, "root"), "verify")["corrupted"] == []


def _assert_right(place: Place, found: dict[str, list[str]], kind: str) -> None:
    """Everybody has what the origin has; or, of files that have changed since, one version, whole."""
    if kind == "changing":
        _assert_allowed(found, "")
        return
    for uri, paths in found.items():
        for path in set(paths):
            assert trees.read(Path(path)) == place.there(uri), f"{uri}: {path}"


def _assert_allowed(found: dict[str, list[str]], kind: str) -> None:
    """Each is an error that this fault allows, or a view in which each file is one version, whole."""
    for uri, came in found.items():
        for one in set(came):
            if one.startswith("/"):
                sizes = {name: len(data) for name, data in trees.read(Path(one)).items() if len(set(data)) == 1}
                assert sorted(sizes.values()) in ([3000] * FILES, [3000] * FILES + [LARGE_BYTES]), f"{uri}: {sizes}"
            else:
                assert one.partition(":")[0] in FAULTS.get(kind, ()), f"{uri}: {one}"
