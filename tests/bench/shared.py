"""Three hosts with a second tier near by: what they still cost the origin, and what moves to who comes second.

Bytes are those of the links to the origin and to the object store, with heads of HTTP, questions and listings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import artifactcache
from tests.bench.cases import Ground, one_server
from tests.bench.figures import Figure, milliseconds
from tests.rig.cluster import Cluster, Host, cluster, reason_not_to_share, trees_below
from tests.rig.cluster import shared as shared_config
from tests.rig.mlflow_server import MlflowServer

PREFIX = "bench"
ROUNDS = 3
AT_ONCE_BYTES = 256 << 20
SMALL_FILES, SMALL_BYTES = 2000, 4096
BIG_BYTES = 1 << 30
ALL_BYTES = 2**62
Plant = Callable[[Path, Path | None], None]


def shared(ground: Ground) -> Iterator[Figure]:
    """All hosts at once; the second host's fetch against the first's; a fine-tune whose base the host has."""
    if why := reason_not_to_share():
        yield Figure("hosts that share", f"not measured: {why}", "", "", "")
        return
    folder = ground.folder / "cluster"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(one_server(ground.folder / "shared", proxied=True))
        hosts = cluster(
            folder, ground.interpreter, None, server.uri, unreachable_after=30.0, more=shared_config(PREFIX)
        )
        bench = _Bench(stack.enter_context(hosts), server, stack)
        yield from _at_once(bench)
        yield _second(bench, f"{SMALL_FILES:,} files of 4 KiB", _files(SMALL_FILES, SMALL_BYTES))
        yield _second(bench, "1 GiB", _files(1, BIG_BYTES))
        yield _fine_tune(bench, "one of 230 MiB, one of 26 MiB", _files(1, 230 << 20, tuned_bytes=26 << 20))
        yield _fine_tune(bench, "2,000 of 64 KiB", _files(2000, 64 << 10, tuned_count=200))
        yield _fine_tune(bench, "2,000 of 4 KiB", _files(2000, 4096, tuned_count=200))
    shutil.rmtree(folder)


class _Bench:
    """The cluster, a client for each of its hosts, and the server that they all are far from."""

    def __init__(self, one: Cluster, server: MlflowServer, stack: contextlib.ExitStack) -> None:
        self.one = one
        self.server = server
        self.clients = {
            host.address: stack.enter_context(artifactcache.Client(str(host.daemon.socket_dir))) for host in one.hosts
        }
        for client in self.clients.values():
            client.ping()

    def run(self, plant: Plant, base: str = "") -> tuple[str, int]:
        """A finished run of new files, or of those that differ from a base's; its URI and its size."""
        run_id = self.server.run({})
        folder = self.server.folder(run_id) / "model"
        folder.mkdir(parents=True)
        plant(folder, self.server.folder(base.split("/")[1]) / "model" if base else None)
        return f"runs:/{run_id}/model", sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def fetch(self, host: Host, uri: str) -> tuple[float, artifactcache.Fetched]:
        """Fetch what is not held; how many seconds that took, and what came."""
        begin = time.perf_counter()
        with self.clients[host.address].fetch(uri) as fetched:
            took = time.perf_counter() - begin
            assert fetched.origin_bytes or fetched.shared_bytes
            return took, fetched

    def publish(self, host: Host, uri: str) -> tuple[float, artifactcache.Fetched]:
        """The same, and wait until it is in the second tier."""
        before = self.one.store.keys(trees_below(PREFIX))
        found = self.fetch(host, uri)
        self.one.store.wait_for_trees(PREFIX, before)
        return found

    def clear(self) -> None:
        """What has been fetched is held no more."""
        for client in self.clients.values():
            client.sweep(free_bytes=ALL_BYTES)


def _at_once(bench: _Bench) -> Iterator[Figure]:
    """A model that none of the hosts has, and the second tier neither."""
    shares, hosts = [], bench.one.hosts
    for _ in range(ROUNDS):
        uri, size = bench.run(_files(16, AT_ONCE_BYTES // 16))
        before = bench.one.store.keys(trees_below(PREFIX))
        bench.one.forget()
        together = Barrier(len(hosts))

        def fetch(host: Host, uri: str = uri, together: Barrier = together) -> str:
            together.wait()
            return bench.fetch(host, uri)[1].digest

        with ThreadPoolExecutor(len(hosts)) as pool:
            assert len(set(pool.map(fetch, hosts))) == 1
        shares.append(bench.one.origin.total().down / size)
        bench.one.store.wait_for_trees(PREFIX, before)
        bench.clear()
    yield Figure(
        f"{len(hosts)} hosts at once, {AT_ONCE_BYTES >> 20} MiB: from the origin",
        f"{statistics.median(shares):.2f} × its size",
        f"{len(hosts):.1f} × without a second tier",
        f"worst of {ROUNDS}: {max(shares):.2f} ×",
        "1.1 ×",
    )


def _second(bench: _Bench, what: str, plant: Plant) -> Figure:
    """The first host has it from the origin, the second from the second tier."""
    first, second = bench.one.hosts[:2]
    rounds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        uri, _ = bench.run(plant)
        its, published = bench.publish(first, uri)
        bench.one.forget()
        ours, found = bench.fetch(second, uri)
        assert (found.digest, found.origin_bytes) == (published.digest, 0)
        rounds.append((ours, its))
        requests = bench.one.moved(second)[1].requests.total()
        bench.clear()
        shutil.rmtree(bench.server.folder(uri.split("/")[1]))
    ours, its = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    return Figure(
        f"the second host's fetch of {what}",
        milliseconds(ours),
        f"the first's {milliseconds(its)}; {requests} requests to the object store",
        f"{ratio:.2f} × faster",
        "",
    )


def _fine_tune(bench: _Bench, what: str, plant: Plant) -> Figure:
    """The second host holds the base, and the first has published both."""
    first, second = bench.one.hosts[:2]
    base, _ = bench.run(plant)
    tune, size = bench.run(plant, base)
    bench.publish(first, base)
    bench.publish(first, tune)
    bench.fetch(second, base)
    bench.one.forget()
    bench.fetch(second, tune)
    origin, store = bench.one.moved(second)
    bench.clear()
    return Figure(
        f"a fine-tune with 90 % of its base's bytes, {what}: moved",
        f"{(origin.down + store.down) / size:.1%} of {size / 2**20:.1f} MiB",
        f"{store.down / size:.1%} from the object store, {origin.down / size:.1%} from the origin",
        "",
        "11 %",
    )


def _files(count: int, size: int, *, tuned_count: int = 0, tuned_bytes: int = 0) -> Plant:
    """Files of random bytes in folders of a hundred. A fine-tune has its base's, but for the first `tuned_count` of
    them, or for one more of `tuned_bytes`."""

    def plant(folder: Path, base: Path | None) -> None:
        names = [f"folder{number // 100:02}/{number:05}.bin" for number in range(count)]
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(exist_ok=True)
            if base is None or number < tuned_count:
                _write(folder / name, size)
            else:
                shutil.copyfile(base / name, folder / name)
        if tuned_bytes:
            _write(folder / "tuned.bin", tuned_bytes)

    return plant


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for begin in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - begin)))
