"""The cases: each takes the bench's ground and gives its figures."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import artifactcache
from tests.bench.figures import Figure, in_turn, milliseconds, seconds
from tests.rig import mounts
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer

LINK_ROUNDS = 9
VIEW_ROUNDS = 300
DOWNLOAD_ROUNDS = 3
BIG_FILE_BYTES = 5 << 30
CLIENTS = 16
SHARED_BYTES = 64 << 20


class Ground:
    """A folder, and daemons in it."""

    def __init__(self, folder: Path, interpreter: Interpreter) -> None:
        self.folder = folder
        self.interpreter = interpreter
        self._count = 0

    @contextlib.contextmanager
    def daemon(
        self,
        tracking_uri: str,
        root: Path | None = None,
        env: dict[str, str] | None = None,
        *,
        unreachable_after: float = 30.0,
        stale_after: float = 4.0,
        check: str = "none",
        more: str = "",
    ) -> Iterator[Daemon]:
        """A running daemon of this user, with an empty store."""
        self._count += 1
        folder = self.folder / f"d{self._count}"
        folder.mkdir()
        root = root or folder / "store"
        config = config_text(
            root, tracking_uri, unreachable_after=unreachable_after, stale_after=stale_after, check=check, more=more
        )
        daemon = Daemon(self.interpreter, None, folder, root, config, is_system=False, env=env or {})
        with running(daemon):
            yield daemon

    def tree(self, parent: Path, file_count: int, file_bytes: int) -> Path:
        """Files of random bytes in 20 folders."""
        top = parent / f"tree{file_count}"
        for i in range(20):
            (top / f"folder{i:02}").mkdir(parents=True)
        for i in range(file_count):
            (top / f"folder{i % 20:02}" / f"file{i:06}").write_bytes(os.urandom(file_bytes))
        return top


@contextlib.contextmanager
def one_server(folder: Path, *, proxied: bool, workers: int = 1) -> Iterator[MlflowServer]:
    """A real MLflow server of a case's own."""
    server = MlflowServer(folder, proxied=proxied, workers=workers)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def hard_links(ground: Ground) -> Iterator[Figure]:
    """A warm fetch by hard link of 10,000 files of 4 KiB in 20 folders, against `cp -al` of the same tree."""
    for kind in (k for k in mounts.KINDS if k.mkfs):
        if why := mounts.reason_not_to_mount(kind):
            yield Figure(f"hard links of 10,000 files, {kind.name}", f"not measured: {why}", "", "", "0.8 ×")
            continue
        mounted = mounts.mount(kind, ground.folder / f"{kind.name}.img", ground.folder / kind.name)
        uri = ground.tree(mounted.root, 10_000, 4096).as_uri()
        ours, theirs, origin = mounted.root / "ours", mounted.root / "theirs", mounted.root / "origin"
        with (
            ground.daemon("http://127.0.0.1:9", mounted.root / "store") as daemon,
            artifactcache.Client(str(daemon.socket_dir)) as client,
        ):
            client.fetch(uri, origin, mode="hardlink")

            def clear(folders: tuple[Path, Path] = (ours, theirs)) -> None:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
                os.sync()

            def fetch(client: artifactcache.Client = client, uri: str = uri, to: Path = ours) -> None:
                client.fetch(uri, to, mode="hardlink")

            def copy(source: Path = origin, to: Path = theirs) -> None:
                subprocess.run(("cp", "-al", source, to), check=True)

            a, b, ratio = in_turn(fetch, copy, LINK_ROUNDS, clear)
        yield Figure(
            f"hard links of 10,000 files, {kind.name}",
            milliseconds(a),
            f"`cp -al` {milliseconds(b)}",
            f"{ratio:.2f} ×",
            "0.8 ×",
        )
        mounts.unmount_below(mounted.root)


def views(ground: Ground) -> Iterator[Figure]:
    """A warm view, against an empty call on the same channel."""
    for file_count in (10, 10_000, 100_000):
        uri = ground.tree(ground.folder / f"views{file_count}", file_count, 64).as_uri()
        with ground.daemon("http://127.0.0.1:9") as daemon, artifactcache.Client(str(daemon.socket_dir)) as client:
            for _ in range(3):
                client.fetch(uri).release()

            def view(client: artifactcache.Client = client, uri: str = uri) -> None:
                client.fetch(uri)

            a, b, ratio = in_turn(view, client.ping, VIEW_ROUNDS)
        shutil.rmtree(ground.folder / f"views{file_count}")
        yield Figure(
            f"view of {file_count:,} files", milliseconds(a), f"empty call {milliseconds(b)}", f"{ratio:.2f} ×", "2 ×"
        )


def warm(ground: Ground) -> Iterator[Figure]:
    """2,000 files of 4 KiB: a warm fetch against MLflow's own download, in turn."""
    import mlflow

    for name, proxied in (("HTTP, 1 worker", True), ("file://", False)):
        with one_server(ground.folder / f"warm{proxied}", proxied=proxied) as server:
            mlflow.set_tracking_uri(server.uri)
            run_id = server.run({})
            ground.tree(server.folder(run_id), 2000, 4096)
            uri = f"runs:/{run_id}/tree2000"
            ours, theirs = ground.folder / "ours", ground.folder / "theirs"

            def clear(folders: tuple[Path, Path] = (ours, theirs)) -> None:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)

            def download(uri: str = uri, to: Path = theirs) -> None:
                mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(to))

            with ground.daemon(server.uri) as daemon, artifactcache.Client(str(daemon.socket_dir)) as client:

                def fetch(client: artifactcache.Client = client, uri: str = uri, to: Path = ours) -> None:
                    client.fetch(uri, to, mode="hardlink")

                client.warm(uri)
                a, b, ratio = in_turn(fetch, download, DOWNLOAD_ROUNDS, clear)
        yield Figure(
            f"warm fetch of 2,000 files, {name}",
            milliseconds(a),
            f"MLflow {milliseconds(b)}",
            f"{1 / ratio:.0f} × faster",
            "150 × faster" if proxied else "",
        )


def _one_client(socket_dir: str, uri: str, to: str, start: threading.Event, taken: object) -> None:
    start.wait()
    with artifactcache.Client(socket_dir) as client:
        taken.put(client.fetch(uri, to, mode="hardlink").origin_bytes)  # type: ignore[attr-defined]


def herd(ground: Ground) -> Iterator[Figure]:
    """16 processes ask for one cold artifact at once; a proxy counts what the origin sends."""
    with one_server(ground.folder / "herd-server", proxied=True) as server:
        yield from _herd(ground, server)


def _herd(ground: Ground, server: MlflowServer) -> Iterator[Figure]:
    run_id = server.run({"data/a.bin": os.urandom(SHARED_BYTES // 2), "data/b.bin": os.urandom(SHARED_BYTES // 2)})
    context = multiprocessing.get_context("spawn")
    start, taken = context.Event(), context.Queue()
    proxy = CountingProxy(server.uri)
    with contextlib.ExitStack() as stack, ground.daemon(proxy.uri) as daemon:
        stack.callback(proxy.disconnect)
        people = [
            context.Process(
                target=_one_client,
                args=(str(daemon.socket_dir), f"runs:/{run_id}/data", str(ground.folder / f"herd{i}"), start, taken),
            )
            for i in range(CLIENTS)
        ]
        for person in people:
            person.start()
        start.set()
        claimed = sum(taken.get(timeout=120) for _ in people)
        for person in people:
            person.join()
        assert claimed == proxy.bytes, "the clients' origin_bytes are what the origin sent"
        yield Figure(
            f"{CLIENTS} clients, one cold artifact of 64 MiB",
            f"{proxy.bytes:,} bytes",
            f"its size {SHARED_BYTES:,}",
            f"{proxy.bytes / SHARED_BYTES:.2f} ×",
            "1.00 ×",
        )


def memory(ground: Ground) -> Iterator[Figure]:
    """The daemon's resident memory, idle and at its highest while it fetches 5 GiB over HTTP."""
    with one_server(ground.folder / "memory-server", proxied=True) as server:
        yield from _memory(ground, server)


def _memory(ground: Ground, server: MlflowServer) -> Iterator[Figure]:
    run_id = server.run({})
    big = server.folder(run_id) / "big.bin"
    big.parent.mkdir(parents=True, exist_ok=True)
    with big.open("wb") as file:
        file.truncate(BIG_FILE_BYTES)
    with ground.daemon(server.uri) as daemon, artifactcache.Client(str(daemon.socket_dir)) as client:
        client.ping()
        idle = _resident(daemon.pid, "VmRSS")
        took = seconds(lambda: client.fetch(f"runs:/{run_id}/big.bin", timeout=1200))
        peak = _resident(daemon.pid, "VmHWM")
    big.unlink()
    yield Figure("daemon's memory, idle", f"{idle} MB", "", "", "120 MB")
    yield Figure("daemon's memory, 5 GiB fetch over HTTP", f"{peak} MB", f"in {took:.0f} s", "", "200 MB")


def _resident(pid: int, field: str) -> int:
    """A field of /proc/PID/status, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 // 10**6
    raise ValueError(field)
