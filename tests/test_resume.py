"""Downloads that are broken off by the daemon's end: they go on where they ended, or begin anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.lying import Reply
from tests.rig.lying_s3 import Objects, lying_s3, object_of
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.until import until

SIZE = 48 << 20
STALLED_AT = 32 << 20
SLACK = 8 << 20  # on its way through sockets and buffers when the daemon ends
FILES: trees.Files = {"weights": os.urandom(SIZE), "small": b"small"}


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """A daemon that is patient."""
    return start_daemon(proxy.uri, unreachable_after=20.0)


@pytest.fixture
def alice(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Its caller."""
    return caller_of(daemon, room)


def noted(staging: Path) -> int:
    """How many bytes of a file that is being written are noted."""
    try:
        return max((json.loads(p.read_text())["size"] for p in staging.glob("*.from")), default=0)
    except ValueError:  # it is being written
        return 0


def broken_off(alice: Caller, daemon: Daemon, proxy: CountingProxy, uri: str, end: Callable[[Daemon], None]) -> None:
    """Has a download ended in its middle, and the daemon started again."""
    with proxy.stalling(STALLED_AT), alice.start("import artifactcache\nartifactcache.fetch(uri)", uri=uri):
        staging = daemon.root / "staging"
        most = STALLED_AT - SLACK + len(FILES["small"])
        until(lambda: noted(staging) > most, "most of the bytes")
        end(daemon)
    daemon.start()


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.stop], ids=lambda end: end.__name__)
def test_the_rest_is_downloaded(
    alice: Caller, daemon: Daemon, proxy: CountingProxy, mlflow_proxied: MlflowServer, end: Callable[[Daemon], None]
) -> None:
    """And no more than that: the bytes that were there are hashed with it, and are right."""
    uri = f"runs:/{mlflow_proxied.run(FILES)}"
    broken_off(alice, daemon, proxy, uri, end)
    before = proxy.bytes
    handed = alice.fetch(uri, "dst")
    assert trees.read(handed.path) == FILES
    assert handed.origin_bytes < SIZE - STALLED_AT + SLACK and proxy.bytes - before < SIZE - STALLED_AT + SLACK
    assert daemon.staging() == []


def test_a_file_that_was_rewritten_meanwhile(
    alice: Caller, daemon: Daemon, proxy: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """Its beginning is of no use: all of the new one is downloaded."""
    run_id = mlflow_proxied.run(FILES)
    broken_off(alice, daemon, proxy, f"runs:/{run_id}", Daemon.kill)
    after = {"weights": os.urandom(SIZE), "small": b"small"}
    trees.plant(mlflow_proxied.folder(run_id), after)
    handed = alice.fetch(f"runs:/{run_id}", "dst")
    assert trees.read(handed.path) == after and handed.origin_bytes >= SIZE
    assert daemon.staging() == []


def _another_boot(path: Path, note: Path) -> None:
    note.write_text(json.dumps(json.loads(note.read_text()) | {"boot": "another"}))


def _no_note(path: Path, note: Path) -> None:
    note.unlink()


def _half_a_note(path: Path, note: Path) -> None:
    note.write_text(note.read_text()[:-5])


def _a_second_name(path: Path, note: Path) -> None:
    os.link(path, path.parent.parent / "kept")


def _flipped(path: Path, note: Path) -> None:
    with path.open("r+b") as file:
        file.seek(12345)
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(12345)
        file.write(flipped)


def _no_hash(path: Path, note: Path) -> None:
    told = json.loads(note.read_text())
    note.write_text(json.dumps({name: told[name] for name in ("boot", "key", "etag")}))


def _longer(path: Path, note: Path) -> None:
    os.truncate(path, SIZE + 1)


@pytest.mark.parametrize(
    "meddle",
    [_another_boot, _no_note, _half_a_note, _a_second_name, _flipped, _no_hash, _longer],
    ids=lambda meddle: meddle.__name__.strip("_"),
)
def test_a_beginning_that_cannot_be_trusted(
    alice: Caller,
    daemon: Daemon,
    proxy: CountingProxy,
    mlflow_proxied: MlflowServer,
    meddle: Callable[[Path, Path], None],
) -> None:
    """After a crash of the host, half a note, or whatever else: the file is downloaded anew, and right."""
    uri = f"runs:/{mlflow_proxied.run(FILES)}"

    def end(daemon: Daemon) -> None:
        daemon.kill()
        (note,) = (daemon.root / "staging").glob("*.from")
        meddle(note.with_suffix(""), note)

    broken_off(alice, daemon, proxy, uri, end)
    handed = alice.fetch(uri, "dst")
    assert trees.read(handed.path) == FILES and handed.origin_bytes >= SIZE
    assert daemon.staging() == []


def test_what_is_on_the_disk_already_needs_no_room(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    small_disk: Filesystem,
    room: Path,
    proxy: CountingProxy,
    mlflow_proxied: MlflowServer,
) -> None:
    """On a disk that has room for the file once, and for its rest only when its beginning is there."""
    uri = f"runs:/{mlflow_proxied.run(FILES)}"
    daemon = start_daemon(proxy.uri, unreachable_after=20.0, root=small_disk.root / "store", min_free="0")
    alice = caller_of(daemon, room)
    broken_off(alice, daemon, proxy, uri, Daemon.kill)
    assert shutil.disk_usage(small_disk.root).free < SIZE
    handed = alice.fetch(uri)
    assert trees.read(handed.path) == FILES and handed.origin_bytes < SIZE - STALLED_AT + SLACK


def test_an_object_of_an_s3_store(start_daemon: StartDaemon, caller_of: CallerOf, room: Path) -> None:
    """It comes in parts, and goes on with the part after those that were written."""
    weights, flowing, asked = FILES["weights"], threading.Event(), list[int]()

    def answer(reply: Reply) -> None:
        begin = int(re.sub(r"bytes=(\d*)-.*|", r"\1", reply.header("range")) or 0)
        asked.append(begin)
        if begin >= STALLED_AT:
            flowing.wait(60)
        object_of(weights)(reply)

    with lying_s3() as liar:
        uri = f"{liar.bucket(Objects({'run/weights': SIZE}, lambda key: answer))}/run"
        daemon = start_daemon("http://127.0.0.1:9", unreachable_after=20.0, env=liar.env)
        alice = caller_of(daemon, room)
        with alice.start("import artifactcache\nartifactcache.fetch(uri)", uri=uri):
            staging = daemon.root / "staging"
            until(lambda: noted(staging) >= STALLED_AT, "the parts that come")
            daemon.kill()
        asked.clear()
        flowing.set()
        daemon.start()
        handed = alice.fetch(uri, "dst")
        assert trees.read(handed.path) == {"weights": weights}
        assert handed.origin_bytes == SIZE - STALLED_AT and min(asked) == STALLED_AT
        assert daemon.staging() == []
