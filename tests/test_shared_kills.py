"""`kill -9` of hosts that share, and of the object store that they share by, under load: nothing wrong is served, and
what the object store says that it has, it has."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheserver.joining import objects_of
from cacheserver.settings import SharedConfig
from tests.rig.caller import Caller
from tests.rig.cluster import BUCKET, Cluster, cluster, reason_not_to_share, shared, trees_below
from tests.rig.crowd import Shelf, shelf
from tests.rig.mlflow_server import MlflowServer
from tests.rig.survival import People, Survival
from tests.rig.tier import lacking

PREFIX = "kills"
KILLS_OF_ONE_CLUSTER = 50  # so that there is always something that nobody has shared yet
LOAD_SECONDS_MAX = 0.6
PATIENCE_SECONDS = 60.0
ROLES = ("alice", "root")
# What dies of the object store: all of it, or one of its servers, while the others go on.
PARTS: tuple[tuple[str, ...], ...] = ((), (), ("proxy",), ("object",), ("container",))
_FETCH = """
import artifactcache
from pathlib import Path
from tests.rig.crowd import Shelf
from tests.rig.trees import read
of, result = Shelf(**shelf), {"wrong": [], "bytes": 0, "of the origin's": 0}
for number in range(of.artifact_count):
    with artifactcache.fetch(of.uri_of(number)) as fetched:
        if read(Path(fetched.path)) != of.files(number):
            result["wrong"].append(number)
        result["bytes"] += fetched.size_bytes
        result["of the origin's"] += fetched.origin_bytes
"""


@pytest.mark.parametrize(
    ("kill_count", "host_count"),
    [(10, 2), pytest.param(300, 3, marks=(pytest.mark.slow, pytest.mark.timeout(7200)))],
)
def test_kills(
    room: Path, people: People, mlflow_proxied: MlflowServer, seed: int, kill_count: int, host_count: int
) -> None:
    """Every byte that anybody got is the origin's; what was acknowledged is held; every client's next try succeeds,
    whatever becomes of the object store; and at the end no tree in it is without its blobs."""
    if why := reason_not_to_share():
        pytest.skip(why)
    chance, counts = random.Random(seed), Counter[str]()
    for number in range(-(-kill_count // KILLS_OF_ONE_CLUSTER)):
        with _storm(room / f"c{number}", people, mlflow_proxied, chance, host_count) as storm:
            while storm.counts["kills"] < min(kill_count - counts["kills"], KILLS_OF_ONE_CLUSTER):
                storm.round()
        counts += storm.counts
    print(dict(counts))
    print(
        f"{counts['of a host']} kills of hosts and {counts['of the object store']} of the object store survived,"
        f" {counts['bytes']} bytes compared, {counts['trees']} trees shared, differences: 0, seed {seed}"
    )
    assert all(counts[what] for what in ("of a host", "of the object store", "retried", "trees"))


class _Storm:
    """One cluster whose parts are killed. All clients work, but for a host's while that host is dead."""

    def __init__(self, one: Cluster, of: Shelf, survivors: list[Survival], chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._one = one
        self._of = of
        self._survivors = survivors
        self._chance = chance

    def begin(self) -> None:
        """Everybody begins to work."""
        for survivor in self._survivors:
            survivor.go(sweeps=True)

    def round(self) -> None:
        """Some of what runs is killed at a random moment, in any order, and comes back."""
        chance, store = self._chance, self._one.store
        time.sleep(chance.uniform(0, LOAD_SECONDS_MAX))
        victims: list[Survival | None] = [one for one in self._survivors if chance.random() < 0.4]
        if chance.random() < 0.5 or not victims:
            victims.append(None)
        chance.shuffle(victims)
        for victim in victims:
            if victim is None:
                store.launch()  # where it is dead since the round before
                store.kill(*chance.choice(PARTS))
            else:
                victim.spawner.kill()
            self.counts.update({"kills": 1, "of the object store" if victim is None else "of a host": 1})
            time.sleep(chance.choice((0, 0, chance.uniform(0, LOAD_SECONDS_MAX))))
        if chance.random() < 0.7:
            store.launch()
        for victim in filter(None, victims):
            victim.hear()
            victim.spawner.start()
            victim.assert_held()
            victim.retry(at_once=False)
            victim.hear()
            victim.go(sweeps=chance.random() < 0.9)

    def end(self, newcomer: Caller) -> None:
        """Nobody works any more. Who has nothing yet gets all of it, from wherever, and right; each host's store is
        sound; and so is what they have shared."""
        store = self._one.store
        store.start()
        found = newcomer.run(_FETCH, shelf=dataclasses.asdict(self._of))
        assert not found["wrong"], f"artifacts {found['wrong']} differ"
        self.counts.update({"bytes": found["bytes"], "of the origin's at the end": found["of the origin's"]})
        for host, survivor in zip(self._one.hosts, self._survivors, strict=False):
            host.stop()
            survivor.assert_sound()
            self.counts += survivor.counts
        store.catch_up()
        with pytest.MonkeyPatch.context() as patch:
            for name, text in store.endpoint.env.items():
                patch.setenv(name, text)
            tier = SharedConfig(f"s3://{BUCKET}/{PREFIX}", endpoint=store.endpoint.uri, patience=PATIENCE_SECONDS)
            assert lacking(objects_of(tier)) == []
        self.counts["trees"] += len(store.keys(trees_below(PREFIX)))


@contextlib.contextmanager
def _storm(
    folder: Path, people: People, server: MlflowServer, chance: random.Random, host_count: int
) -> Iterator[_Storm]:
    folder.mkdir()
    config: dict[str, Any] = {"grace": 0.0, "unreachable_after": 20.0, "more": shared(PREFIX)}
    user = people.users.get("daemon")
    with (
        shelf(server, artifact_count=20, file_count=3, file_bytes=20_000, large_bytes=17 << 20) as of,
        cluster(folder, people.interpreter, user, server.uri, host_count=host_count + 1, **config) as one,
    ):
        survivors = []
        for host in one.hosts[:host_count]:
            callers = [people.caller_of(host.daemon, host.daemon.folder, role) for role in ROLES]
            survivors.append(Survival(host.spawner, of, callers, chance.randrange(2**31)))
        storm = _Storm(one, of, survivors, chance)
        with contextlib.ExitStack() as clients:
            for survivor in survivors:
                clients.enter_context(survivor.clients())
            storm.begin()
            yield storm
        last = one.hosts[host_count].daemon
        storm.end(people.caller_of(last, last.folder, ROLES[0]))
