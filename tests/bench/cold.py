"""The cases of the cold path, of the plugin, and of a tracking server that is dead."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path

import artifactcache
from tests.bench.cases import Ground, one_server
from tests.bench.figures import Figure, milliseconds, seconds
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until

ROUNDS = 3
SMALL_FILES, SMALL_BYTES = 2000, 4096
BIG_BYTES = 1 << 30
CALLS = 100
LOADS = 5
_LOAD = """
import json, sys, time, warnings
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
took = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    mlflow.pyfunc.load_model(sys.argv[2])
    took.append(time.perf_counter() - began)
print(json.dumps(took))
"""


def cold(ground: Ground) -> Iterator[Figure]:
    """Cold fetches of 2,000 files of 4 KiB and of one of 1 GiB, against MLflow's own download, in turn."""
    for name, proxied, workers in (("HTTP, 1 worker", True, 1), ("HTTP, 4 workers", True, 4), ("file://", False, 1)):
        with one_server(ground.folder / f"cold{workers}{proxied}", proxied=proxied, workers=workers) as server:
            goals = {1: "1.25 ×", 4: "6 ×"} if proxied else {}
            yield from _against_mlflow(ground, server, name, "2,000 files", _small, goals.get(workers, ""))
            yield from _against_mlflow(ground, server, name, "1 GiB", _big, "")


def load_model(ground: Ground) -> Iterator[Figure]:
    """pyfunc's load_model of a small real model: with the plugin off, on and cold, on and warm; one process each."""
    if not any(point.value.startswith("artifactcache.") for point in entry_points(group="mlflow.artifact_repository")):
        yield Figure(
            "pyfunc load_model", "not measured: MLflow does not find the plugin here; run make bench", "", "", ""
        )
        return
    with one_server(ground.folder / "load", proxied=True, workers=1) as server:
        server.log_model("loaded")
        off = _loads(server, "models:/loaded/1", {"ARTIFACTCACHE": "off"})
        with ground.daemon(server.uri) as daemon:
            on = {"ARTIFACTCACHE": "", "ARTIFACTCACHE_SOCKET_DIR": str(daemon.socket_dir)}
            first, again = _loads(server, "models:/loaded/1", on), _loads(server, "models:/loaded/1", on)
    for what, ours, theirs in (("first", first[0], off[0]), ("again", again[0], off[0])):
        yield Figure(
            f"pyfunc load_model, the process's first, {'cold' if what == 'first' else 'warm'}",
            milliseconds(ours),
            f"plugin off {milliseconds(theirs)}",
            f"{theirs / ours:.2f} × faster",
            "",
        )
    warm, plain = statistics.median(again[1:]), statistics.median(off[1:])
    yield Figure(
        "pyfunc load_model, a later one, warm",
        milliseconds(warm),
        f"plugin off {milliseconds(plain)}",
        f"{plain / warm:.2f} × faster",
        "",
    )


def dead_server(ground: Ground) -> Iterator[Figure]:
    """100 calls while the tracking server takes questions and answers none."""
    with one_server(ground.folder / "dead", proxied=True, workers=1) as server:
        run_id = server.run({"model/weights": b"weights"})
        server.add_version("dead", run_id, "model")
        server.client.set_registered_model_alias("dead", "champion", "1")
        other = server.run({"x": b"x"})
        proxy = CountingProxy(server.uri)
        with contextlib.ExitStack() as stack:
            stack.callback(proxy.disconnect)
            daemon = stack.enter_context(ground.daemon(proxy.uri, unreachable_after=10.0, stale_after=2.0))
            client = stack.enter_context(artifactcache.Client(str(daemon.socket_dir)))

            def held() -> None:
                client.fetch("models:/dead@champion").release()

            def missing() -> None:
                with contextlib.suppress(artifactcache.OriginUnavailable):
                    client.fetch(f"runs:/{other}")

            held()
            up = [seconds(held) for _ in range(CALLS)]
            with proxy.hanging():
                first = seconds(held)
                down = [seconds(held) for _ in range(CALLS)]
                lost = [seconds(missing) for _ in range(CALLS)]
            again = [_until_unavailable(client, proxy, other)]
    yield _calls("a held alias, server hanging, median", statistics.median(down), "up", statistics.median(up), "1 ×")
    yield Figure("a held alias, the first after it hangs", milliseconds(first), "", "", "")
    yield Figure(
        f"{CALLS} calls for what is not held", milliseconds(sum(lost)), "MLflow 247 s for one", "", "quick after one"
    )
    yield Figure("the first such call", milliseconds(again[0]), "", "", "10 s")


def _until_unavailable(client: artifactcache.Client, proxy: CountingProxy, run_id: str) -> float:
    """How long the very first call takes that meets a server that hangs, and holds nothing."""

    def is_back() -> bool:
        with client.fetch("models:/dead@champion") as fetched:
            return not fetched.stale

    def ask() -> None:
        with contextlib.suppress(artifactcache.OriginUnavailable):
            client.fetch(f"runs:/{run_id}")

    until(is_back, "the daemon to see that the server is back")
    with proxy.hanging():
        return seconds(ask)


def _calls(what: str, ours: float, against: str, theirs: float, goal: str) -> Figure:
    return Figure(what, milliseconds(ours), f"{against} {milliseconds(theirs)}", f"{ours / theirs:.2f} ×", goal)


def _small(folder: Path) -> None:
    for number in range(SMALL_FILES):
        (folder / f"folder{number % 20:02}").mkdir(exist_ok=True)
        (folder / f"folder{number % 20:02}" / f"file{number:06}").write_bytes(os.urandom(SMALL_BYTES))


def _big(folder: Path) -> None:
    with (folder / "big.bin").open("wb") as file:
        for _ in range(BIG_BYTES >> 20):
            file.write(os.urandom(1 << 20))


def _against_mlflow(
    ground: Ground, server: MlflowServer, name: str, what: str, plant: Callable[[Path], None], goal: str
) -> Iterator[Figure]:
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    run_id = server.run({})
    folder = server.folder(run_id) / "data"
    folder.mkdir(parents=True)
    plant(folder)
    uri, ours, theirs = f"runs:/{run_id}/data", ground.folder / "ours", ground.folder / "theirs"
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    rounds: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        with ground.daemon(server.uri) as daemon, artifactcache.Client(str(daemon.socket_dir)) as client:
            client.ping()
            mine = seconds(lambda client=client: client.fetch(uri, ours, mode="hardlink"))  # type: ignore[misc]
        shutil.rmtree(ours)
        its = seconds(lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(theirs)))
        shutil.rmtree(theirs)
        rounds.append((mine, its, _limit(server, run_id, names) if server.proxied else 0.0))
    shutil.rmtree(folder)
    mine, its, limit = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b, _ in rounds)
    yield Figure(
        f"cold fetch of {what}, {name}",
        milliseconds(mine),
        f"MLflow {milliseconds(its)}" + (f"; a bare client {milliseconds(limit)}" if limit else ""),
        f"{ratio:.2f} × faster" + (f", {limit / mine:.0%} of the limit" if limit else ""),
        f"{goal} faster" if goal else "",
    )


def _limit(server: MlflowServer, run_id: str, names: list[str]) -> float:
    """What the server gives to who does nothing with it: the quicker of one kept connection and four."""
    prefix = f"/api/2.0/mlflow-artifacts/artifacts/{server.folder(run_id).relative_to(server.artifacts)}/data/"
    return min(seconds(lambda at_once=at_once: _bare(server, prefix, names, at_once)) for at_once in (1, 4))  # type: ignore[misc]


def _bare(server: MlflowServer, prefix: str, names: list[str], at_once: int) -> None:
    def some(first: int) -> None:
        connection = http.client.HTTPConnection(server.uri.partition("//")[2])
        for name in names[first::at_once]:
            connection.request("GET", prefix + name)
            answer = connection.getresponse()
            assert answer.status == 200
            if len(names) > 1:
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            while answer.read(1 << 20):
                pass
        connection.close()

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(some, range(at_once)))


def _loads(server: MlflowServer, uri: str, env: dict[str, str]) -> list[float]:
    """How long each load takes, in a process of its own."""
    ran = subprocess.run(
        (sys.executable, "-c", _LOAD, server.uri, uri, str(LOADS)),
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"} | env,
        stdout=subprocess.PIPE,
        check=True,
    )
    took: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return took
