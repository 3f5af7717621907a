"""A stranger can read the store with `b3sum` and `sqlite3`, as DESIGN.md says."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer

FILES: trees.Files = {
    "MLmodel": b"model",
    "data/again": b"the same",
    "data/once": b"the same",
    "data/new\nline": b"odd",
    "data/back\\slash": b"odd too",
    "empty": b"",
    "folder/": b"",
    "zz/ü": b"umlaut",
}
MANIFEST_LINE = re.compile(rb"([0-9a-f]{64}) (\d+) (.+)|- 0 (.+)/")


@pytest.fixture
def digest(alice: Caller, mlflow_file: MlflowServer) -> str:
    """The digest of a tree with everything in it that a manifest has a rule for."""
    return alice.fetch(mlflow_file.artifact_uri(mlflow_file.run(FILES))).digest


def b3sum(path: Path) -> str:
    return subprocess.check_output(("b3sum", "--no-names", path), text=True).strip()


@pytest.mark.skipif(shutil.which("b3sum") is None, reason="b3sum is not installed")
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@pytest.mark.usefixtures("digest")
def test_files_are_named_by_their_content(daemon: Daemon, kind: str) -> None:
    """`b3sum` of every blob and every manifest prints its name, and their modes are 0444."""
    paths = [path for path in (daemon.root / kind).rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        assert b3sum(path) == path.parent.name + path.name
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_manifest_is_text(daemon: Daemon, digest: str) -> None:
    """One sorted line per file, empty folders marked, three escapes and no more."""
    text = (daemon.root / "manifests" / digest[:2] / digest[2:]).read_bytes()
    assert text.endswith(b"\n")
    escapes = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    found: trees.Files = {}
    for line in text.splitlines():
        match = MANIFEST_LINE.fullmatch(line)
        assert match, line
        raw = match[3] if match[3] is not None else match[4] + b"/"
        name = os.fsdecode(re.sub(rb"\\.", lambda escape: escapes[escape[0]], raw))
        found[name] = daemon.blob(match[1].decode()).read_bytes() if match[1] and match[2] != b"0" else b""
        assert match[1] is None or len(found[name]) == int(match[2])
    assert found == FILES
    assert [os.fsencode(name) for name in found] == sorted(map(os.fsencode, found))


@pytest.mark.usefixtures("digest")
def test_equal_bytes_are_held_once(daemon: Daemon) -> None:
    """Two files with the same bytes are one blob."""
    contents = [path.read_bytes() for path in (daemon.root / "blobs").rglob("*") if path.is_file()]
    assert contents.count(b"the same") == 1


def test_a_digest_depends_on_the_tree_alone(
    alice: Caller, mlflow_file: MlflowServer, mlflow_proxied: MlflowServer
) -> None:
    """The same files from another run and another origin are the same tree; one byte or one name more is another."""
    files = {"a": b"a", "b/c": b"c"}
    digests = {alice.fetch(f"runs:/{mlflow_proxied.run(files)}").digest for _ in range(2)}
    digests.add(alice.fetch(mlflow_file.artifact_uri(mlflow_file.run(files))).digest)
    assert len(digests) == 1
    for other in ({"a": b"a", "b/c": b"d"}, {"a": b"a", "b/d": b"c"}, {"a": b"a", "b/c": b"c", "d": b""}):
        assert alice.fetch(f"runs:/{mlflow_proxied.run(other)}").digest not in digests


@pytest.mark.usefixtures("digest")
def test_the_index_is_an_sqlite_database(daemon: Daemon) -> None:
    """It opens read-only beside the daemon, is whole, and is in WAL mode."""
    with sqlite3.connect(f"file:{daemon.root / 'index.db'}?mode=ro", uri=True) as index:
        assert index.execute("pragma integrity_check").fetchone() == ("ok",)
        assert index.execute("pragma journal_mode").fetchone() == ("wal",)
        assert index.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0] >= 3


def test_one_daemon_per_store(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Path, caller_of: CallerOf
) -> None:
    """A second daemon on a store refuses to start and says why; the first one does not notice."""
    first = start_daemon(mlflow_proxied.uri)
    with pytest.raises(AssertionError, match=r"the daemon ended with status [1-9]"):
        start_daemon(mlflow_proxied.uri, root=first.root)
    assert first.is_alive()
    assert alice_fetches(first, room, caller_of, mlflow_proxied)


def alice_fetches(daemon: Daemon, room: Path, caller_of: CallerOf, server: MlflowServer) -> bool:
    return trees.read(caller_of(daemon, room).fetch(f"runs:/{server.run({'a': b'a'})}").path) == {"a": b"a"}


def test_what_a_crash_left_is_cleared(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Path, caller_of: CallerOf
) -> None:
    """Staging is emptied at the start, whatever lies there; files without rows do not hurt."""
    daemon = start_daemon(mlflow_proxied.uri)
    assert alice_fetches(daemon, room, caller_of, mlflow_proxied)
    daemon.kill()
    staging = daemon.root / "staging"
    trees.plant(staging / "half" / "made", {"a": b"a", "b/c": b"c"})
    (staging / "file").write_bytes(b"x")
    for path in (staging / "half", *(staging / "half").rglob("*"), staging / "file"):
        if daemon.user is not None:
            os.chown(path, daemon.user.uid, daemon.user.gid)
    orphan = daemon.blob("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"nobody knows me")
    daemon.start()
    assert daemon.staging() == []
    assert alice_fetches(daemon, room, caller_of, mlflow_proxied)


def test_a_removed_view_is_made_again(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """A view is only a shape of what is held: without it, or with a part of it gone, the next fetch has it whole."""
    files = {"a": b"a", "b/c": b"c"}
    uri = f"runs:/{mlflow_proxied.run(files)}"
    view = alice.fetch(uri)
    daemon.stop()
    shutil.rmtree(view.path)
    daemon.start()
    again = alice.fetch(uri)
    assert trees.read(again.path) == files
