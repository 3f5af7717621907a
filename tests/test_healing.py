"""What went wrong in the store while nobody asked is put right before somebody does."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from blake3 import blake3

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import call

FILES = {"a": os.urandom(100_000), "b/c": os.urandom(3_000), "empty": b""}
OFTEN = '[scrub]\nevery = 1\nrate = "1GiB"\n'


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("tampering with another user's files needs root")


def _blob(daemon: Daemon, name: str) -> Path:
    return daemon.blob(blake3(FILES[name]).hexdigest())


def _is_right(daemon: Daemon, name: str) -> bool:
    blob = _blob(daemon, name)
    return blob.exists() and blob.read_bytes() == FILES[name]


def test_bit_rot(start_daemon: StartDaemon, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path) -> None:
    """A bit flips, and neither size nor time shows it: the scrub finds it, and the origin's bytes take its place. What
    it has looked at, and found, `stats` says."""
    daemon = start_daemon(mlflow_proxied.uri, more=OFTEN)
    alice = caller_of(daemon, room)
    uri = f"runs:/{mlflow_proxied.run(FILES)}"
    alice.fetch(uri, alice.cwd / "first", mode="copy")
    blob, before = _blob(daemon, "a"), _blob(daemon, "a").stat()
    with blob.open("r+b") as file:
        file.seek(70_000)
        file.write(bytes([FILES["a"][70_000] ^ 4]))
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    until(lambda: len(daemon.quarantined()) == 1 and _is_right(daemon, "a"), daemon.read_log)
    until(lambda: call(alice, "stats")["damaged_count"] == 0, daemon.read_log)
    stats = call(alice, "stats")
    assert stats["scrub_ended_at"] > 0 and stats["quarantine_count"] == 1
    shutil.rmtree(alice.cwd / "first")
    again = alice.fetch(uri, alice.cwd / "again", mode="copy")
    assert again.hit and trees.read(again.path) == FILES


@pytest.mark.parametrize("what", ["blob", "manifest"])
def test_meddling(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path, what: str
) -> None:
    """Root removes a file of the store: that is told in the log, and the file is back, though no scrub was due."""
    daemon = start_daemon(mlflow_proxied.uri)
    alice = caller_of(daemon, room)
    uri = f"runs:/{mlflow_proxied.run(FILES)}"
    first = alice.fetch(uri)
    path = _blob(daemon, "b/c") if what == "blob" else daemon.root / "manifests" / first.digest[:2] / first.digest[2:]
    content = path.read_bytes()
    path.unlink()
    until(lambda: path.exists() and path.read_bytes() == content, daemon.read_log)
    assert "by somebody else than the daemon" in daemon.read_log()
    assert trees.read(alice.fetch(uri, alice.cwd / "again").path) == FILES


@pytest.mark.parametrize("how", ["garbage", "gone", "the log too"])
def test_an_index_that_is_lost(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path, how: str
) -> None:
    """The daemon makes it anew when it starts: everything is a hit as before, and a pin is a pin."""
    proxy = CountingProxy(mlflow_proxied.uri)
    daemon = start_daemon(proxy.uri)
    alice, operator = caller_of(daemon, room), caller_of(daemon, room, "root")
    uris = [f"runs:/{mlflow_proxied.run(FILES | {'n': bytes([n])})}" for n in range(3)]
    digests = [alice.fetch(uri).digest for uri in uris]
    call(operator, "pin", uris[0])
    before = call(operator, "list")
    daemon.kill()
    for name in {"garbage": ["index.db"], "gone": ["index.db"], "the log too": ["index.db", "index.db-wal"]}[how]:
        (daemon.root / name).write_bytes(b"\x00 nothing that SQLite knows" * 3000)
        if how == "gone":
            (daemon.root / name).unlink()
    daemon.start()
    with proxy.down():
        for uri, digest in zip(uris, digests, strict=True):
            handed = alice.fetch(uri, alice.cwd / digest)
            assert (handed.hit, handed.digest) == (True, digest)
    after = call(operator, "list")
    told = ("version", "digest", "file_count", "size_bytes", "fetched_at", "pinned_until")
    assert [[one[key] for key in told] for one in after] == [[one[key] for key in told] for one in before]
    proxy.disconnect()


@pytest.mark.parametrize("is_down", [False, True], ids=["origin up", "origin down"])
def test_an_index_that_is_damaged_while_it_serves(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path, is_down: bool
) -> None:
    """A page that nothing reads at the start: whoever meets it is told to try again, and within moments that works; the
    daemon never stops. What is held is never looked for at the origin meanwhile."""
    proxy = CountingProxy(mlflow_proxied.uri)
    daemon = start_daemon(proxy.uri)
    alice = caller_of(daemon, room)
    uris = [f"runs:/{mlflow_proxied.run(FILES | {'n': bytes([n])})}" for n in range(3)]
    digests = [alice.fetch(uri, alice.cwd / f"{n}").digest for n, uri in enumerate(uris)]
    daemon.stop()
    index = daemon.root / "index.db"
    with contextlib.closing(sqlite3.connect(index)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'artifacts'").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    with index.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xa5" * page_bytes)
    daemon.start()
    pid = daemon.pid
    met: list[str] = []

    def all_is_well() -> bool:
        try:
            found = [alice.fetch(uri, alice.cwd / "again", exists="replace") for uri in uris]
        except errors.CacheError as error:
            met.append(str(error))
            return False
        return [one.digest for one in found] == digests and all(one.hit for one in found)

    with proxy.down() if is_down else contextlib.nullcontext():
        until(all_is_well, daemon.read_log)
    proxy.disconnect()
    assert all("is damaged" in words and "try again in a moment" in words for words in met), met
    assert trees.read(alice.cwd / "again") == FILES | {"n": bytes([2])} and daemon.pid == pid
