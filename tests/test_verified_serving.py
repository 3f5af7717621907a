"""Nothing wrong is ever served: blobs that were changed behind the daemon's back are found out first."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from artifactcache import errors
from cacheserver.upkeep import ROUND_SECONDS
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.slow import slow_but

SIZE = 100_000


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("tampering with another user's files needs root")


class Held:
    """An artifact that is held, and the blob of its file `a`."""

    def __init__(self, alice: Caller, daemon: Daemon, server: MlflowServer) -> None:
        self.files = {"a": os.urandom(SIZE), "b": os.urandom(100)}
        self.run_id = server.run(self.files)
        self.uri = f"runs:/{self.run_id}"
        self.digest = alice.fetch(self.uri, alice.cwd / "first", mode="copy").digest
        shutil.rmtree(alice.cwd / "first")
        self.blob = daemon.blob(blake3(self.files["a"]).hexdigest())
        assert self.blob.stat().st_nlink == 1  # no view and nobody else has the inode


@pytest.fixture
def held(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer) -> Held:
    """One artifact per test."""
    return Held(alice, daemon, mlflow_proxied)


def _shorten(blob: Path) -> None:
    os.truncate(blob, SIZE - 1)


def _lengthen(blob: Path) -> None:
    with blob.open("ab") as file:
        file.write(b"x")


def _empty(blob: Path) -> None:
    os.truncate(blob, 0)


def _flip(blob: Path) -> None:
    with blob.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def _replace_inode(blob: Path) -> None:
    status = blob.stat()
    blob.unlink()
    blob.write_bytes(os.urandom(SIZE))
    os.chown(blob, status.st_uid, status.st_gid)
    blob.chmod(0o444)


def _delete(blob: Path) -> None:
    blob.unlink()


def _make_folder(blob: Path) -> None:
    blob.unlink()
    blob.mkdir()


def _make_symlink(blob: Path) -> None:
    blob.unlink()
    blob.symlink_to("/etc/passwd")


TAMPERINGS = [_shorten, _lengthen, _empty, _flip, _replace_inode, _delete, _make_folder, _make_symlink]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__[1:])
@pytest.mark.parametrize("mode", ["view", "hardlink", "copy"])
def test_a_changed_blob(
    alice: Caller, daemon: Daemon, held: Held, origin: CountingProxy, tamper: Callable[[Path], None], mode: str
) -> None:
    """The caller gets the right bytes, fetched again; what was wrong is in quarantine, and only it was fetched."""
    before, quarantined = origin.bytes, len(daemon.quarantined())
    tamper(held.blob)
    handed = alice.fetch(held.uri, None if mode == "view" else alice.cwd / "dst", mode=mode)
    assert trees.read(handed.path) == held.files
    assert handed.digest == held.digest
    assert origin.bytes - before == SIZE, "by this call, or by the daemon itself, whichever was faster"
    assert handed.origin_bytes == (0 if handed.hit else SIZE)
    if tamper in (_shorten, _lengthen, _empty, _flip, _replace_inode):
        assert len(daemon.quarantined()) == quarantined + 1
    again = alice.fetch(held.uri)
    assert (again.hit, trees.read(again.path)) == (True, held.files)


def test_a_folder_at_a_blobs_name_is_found_in_quarantine(alice: Caller, daemon: Daemon, held: Held) -> None:
    """A folder of another user can get another name and no other parent: quarantine/ leads there, and counts it."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            result = client.stats().quarantine_count
    """
    before, there = alice.run(code), set(os.listdir(daemon.root / "quarantine"))
    _make_folder(held.blob)
    (held.blob / "inside").write_bytes(b"whose is it?")
    assert trees.read(alice.fetch(held.uri, alice.cwd / "dst", mode="copy").path) == held.files
    assert alice.run(code) == before + 1
    (name,) = set(os.listdir(daemon.root / "quarantine")) - there
    assert (daemon.root / "quarantine" / name / "inside").read_bytes() == b"whose is it?"


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__[1:])
def test_a_changed_blob_behind_a_view(alice: Caller, held: Held, tamper: Callable[[Path], None]) -> None:
    """A view has the blob's inode under a name of its own: whichever of both changes, every mode gives right bytes."""
    assert trees.read(alice.fetch(held.uri).path) == held.files
    tamper(held.blob)
    assert trees.read(alice.fetch(held.uri).path) == held.files
    for mode in ("hardlink", "copy"):
        assert trees.read(alice.fetch(held.uri, alice.cwd / mode, mode=mode).path) == held.files


def test_a_changed_view(alice: Caller, held: Held) -> None:
    """A file of a view that was replaced, or is gone, is not handed over as it is."""
    for tamper in (_replace_inode, _delete):
        view = alice.fetch(held.uri).path
        tamper(view / "a")
        assert trees.read(alice.fetch(held.uri).path) == held.files
        assert trees.read(alice.fetch(held.uri, alice.cwd / tamper.__name__).path) == held.files


@pytest.mark.parametrize(
    "tamper",
    slow_but(TAMPERINGS, lambda tamper: tamper in (_shorten, _flip, _delete, _make_symlink)),
    ids=lambda tamper: tamper.__name__[1:],
)
def test_a_changed_blob_and_no_origin(
    start_daemon: StartDaemon,
    mlflow_proxied: MlflowServer,
    room: Path,
    caller_of: CallerOf,
    tamper: Callable[[Path], None],
) -> None:
    """When right bytes cannot be had, the caller is told so; wrong ones are not handed over in any mode."""
    proxy = CountingProxy(mlflow_proxied.uri)
    daemon = start_daemon(proxy.uri, unreachable_after=10.0)
    alice = caller_of(daemon, room)
    held = Held(alice, daemon, mlflow_proxied)
    with proxy.down():
        tamper(held.blob)
        for mode in ("hardlink", "copy", "view"):
            with pytest.raises((errors.Corrupted, errors.OriginUnavailable)):
                alice.fetch(held.uri, None if mode == "view" else alice.cwd / "dst", mode=mode)
    assert os.listdir(alice.cwd) == []
    assert trees.read(alice.fetch(held.uri).path) == held.files
    proxy.disconnect()


def test_a_touched_blob(alice: Caller, daemon: Daemon, held: Held, origin: CountingProxy) -> None:
    """A blob with another mtime and the same bytes is hashed, found right, and served without the origin."""
    before, quarantined = origin.bytes, daemon.quarantined()
    os.utime(held.blob, (1, 1))
    handed = alice.fetch(held.uri, alice.cwd / "dst")
    assert trees.read(handed.path) == held.files
    assert (handed.hit, origin.bytes, daemon.quarantined()) == (True, before, quarantined)


def test_a_changed_blob_across_a_restart(alice: Caller, daemon: Daemon, held: Held) -> None:
    """What was changed while the daemon was away is found as well."""
    daemon.stop()
    _flip(held.blob)
    daemon.start()
    assert trees.read(alice.fetch(held.uri, alice.cwd / "dst").path) == held.files


def test_verify_finds_what_nothing_else_shows(alice: Caller, daemon: Daemon, held: Held, origin: CountingProxy) -> None:
    """A bit that flipped with size and mtime as they were is found by `verify`, and then fetched again."""
    before, status = origin.bytes, held.blob.stat()
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            found = client.verify()
        result = [list(found.corrupted), list(found.affected), found.blobs_checked]
    """
    with held.blob.open("r+b", buffering=0) as file:  # not closed before it is found: that would be noticed
        file.write(bytes([held.files["a"][0] ^ 1]))
        os.utime(held.blob, ns=(status.st_atime_ns, status.st_mtime_ns))
        corrupted, affected, checked = alice.as_operator().run(code)
    assert corrupted == [held.blob.parent.name + held.blob.name]
    assert affected
    assert checked >= 2
    handed = alice.fetch(held.uri, alice.cwd / "dst")
    assert trees.read(handed.path) == held.files
    assert origin.bytes - before == SIZE, "by this call, or by the daemon itself, whichever was faster"
    assert alice.as_operator().run(code)[0] == []


def test_verify_of_one_artifact(alice: Caller, daemon: Daemon, held: Held, mlflow_proxied: MlflowServer) -> None:
    """It hashes that artifact's blobs and no others."""
    other = Held(alice, daemon, mlflow_proxied)
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            found = client.verify(uri)
        result = [list(found.corrupted), found.blobs_checked, found.bytes_checked]
    """
    assert alice.run(code, uri=other.uri) == [[], 2, SIZE + 100]


def test_a_changed_manifest(alice: Caller, daemon: Daemon, held: Held) -> None:
    """A manifest that is not what its name says is not handed out, though the daemon has read it when it was right:
    right bytes by their names, or Corrupted, and then right bytes."""
    manifest = daemon.root / "manifests" / held.digest[:2] / held.digest[2:]
    time.sleep(3 * ROUND_SECONDS)  # the watch has looked at what the fetch has made
    with manifest.open("r+b", buffering=0) as file:  # until it is closed, no watch hears of it
        changed = file.read().replace(b" b\n", b" c\n")  # in order, as a client expects it
        file.seek(0)
        file.write(changed)
        try:
            handed = alice.fetch(held.uri, alice.cwd / "dst", mode="copy")
        except errors.Corrupted:
            assert os.listdir(alice.cwd) == []
            handed = alice.fetch(held.uri, alice.cwd / "dst", mode="copy")
    assert trees.read(handed.path) == held.files
