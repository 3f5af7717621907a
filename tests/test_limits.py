"""Sizes at which things break elsewhere: 65,000 links, 100,000 files, 5 GiB."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem

EXT4_LINKS_MAX = 65_000


def test_the_link_limit_of_ext4(
    mounted: Callable[[str], Filesystem], start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """One blob is linked up to the 65,000 that ext4 allows: the next fetches still get hard links, from a fresh inode,
    and what was handed out before keeps its own."""
    root = mounted("ext4").root
    daemon = start_daemon(mlflow_proxied.uri, root=root / "store-of-links")
    place = root / "links"
    place.mkdir()
    alice = caller_of(daemon, place)
    files = {"a": os.urandom(5000), "b": b"not at its limit"}
    uri = f"runs:/{mlflow_proxied.run(files)}"
    first = alice.fetch(uri, alice.cwd / "first", mode="hardlink")
    blob = first.path / "a"
    (place / "many").mkdir()
    for number in range(EXT4_LINKS_MAX - 2 - blob.stat().st_nlink):
        os.link(blob, place / "many" / str(number))
    assert blob.stat().st_nlink == EXT4_LINKS_MAX - 2
    later = [alice.fetch(uri, alice.cwd / str(number), mode="hardlink") for number in range(5)]
    assert {handed.mode for handed in later} == {"hardlink"}
    assert all(trees.read(handed.path) == files for handed in later)
    assert all(handed.hit for handed in later)
    inodes = {(handed.path / "a").stat().st_ino for handed in later}
    assert len(inodes) == 2
    assert blob.stat().st_ino in inodes
    assert len({(handed.path / "b").stat().st_ino for handed in later}) == 1
    assert trees.read(alice.fetch(uri).path) == files
    daemon.restart()
    assert trees.read(alice.fetch(uri, alice.cwd / "after", mode="hardlink").path) == files
    daemon.stop()
    shutil.rmtree(place)
    shutil.rmtree(daemon.root)


@pytest.mark.slow
def test_100_000_files(
    mounted: Callable[[str], Filesystem], start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer
) -> None:
    """A tree of 100,000 files is fetched, seen as a view and linked: whole, and right in a sample.

    66,000 of them are equal, which is more than ext4 lets one inode have names: one blob needs several inodes then.
    """
    daemon = start_daemon(mlflow_file.uri, root=mounted("ext4").root / "store-of-100000", unreachable_after=60.0)
    place = mounted("ext4").root / "place-of-100000"
    place.mkdir()
    alice = caller_of(daemon, place)
    files = {
        f"{number % 100:02}/{number:06}": b"equal" if number < EXT4_LINKS_MAX + 1000 else b"%d" % (number % 500)
        for number in range(100_000)
    }
    run_id = mlflow_file.run(files)
    uri = f"runs:/{run_id}"
    view = alice.fetch(uri)
    assert (view.file_count, view.size_bytes) == (len(files), trees.size(files))
    linked = alice.fetch(uri, alice.cwd / "linked", mode="hardlink")
    for handed in (view, linked):
        names = {f"{part.name}/{entry.name}" for part in os.scandir(handed.path) for entry in os.scandir(part.path)}
        assert names == files.keys()
        for name in list(files)[::997]:
            assert (handed.path / name).read_bytes() == files[name]
    shutil.rmtree(mlflow_file.folder(run_id))
    daemon.stop()
    shutil.rmtree(place)
    shutil.rmtree(daemon.root)


@pytest.fixture
def own(mlflow_file: MlflowServer, start_daemon: StartDaemon, caller_of: CallerOf, room: Path) -> Iterator[Caller]:
    """A caller of a daemon that lives as long as the test, in front of the server with a file:// root."""
    yield caller_of(start_daemon(mlflow_file.uri), room)


@pytest.mark.slow
def test_a_file_of_5_gib(own: Caller, mlflow_file: MlflowServer) -> None:
    """A file beyond 4 GiB is held whole, and linked; nobody has to hold it in memory."""
    size = 5 << 30
    run_id = mlflow_file.run({"small": b"small"})
    path = mlflow_file.folder(run_id) / "large.bin"
    with path.open("wb") as file:
        for offset in (0, (1 << 32) - 5, size - 10):  # around 32 bits, where sizes break
            file.seek(offset)
            file.write(b"0123456789")
    try:
        handed = own.fetch(f"runs:/{run_id}", own.cwd / "dst", mode="hardlink")
        assert handed.size_bytes == size + 5
        with (handed.path / "large.bin").open("rb") as file:
            for offset in (0, (1 << 32) - 5, size - 10):
                file.seek(offset)
                assert file.read(10) == b"0123456789"
            assert file.read() == b""
        assert (handed.path / "large.bin").stat().st_size == size
    finally:
        path.unlink()


def test_deep_and_wide(own: Caller, mlflow_file: MlflowServer) -> None:
    """90 folders inside each other, 1,900 bytes of path, and one folder with 3,000 names: as at the origin."""
    deep = "/".join(["d" * 20] * 90)
    files = {f"{deep}/leaf": b"leaf"} | {f"wide/{number}": b"" for number in range(3000)}
    uri = f"runs:/{mlflow_file.run(files)}"
    for mode in ("hardlink", "copy"):
        assert trees.read(own.fetch(uri, own.cwd / mode, mode=mode).path) == files
    assert trees.read(own.fetch(uri).path) == files


def test_few_descriptors(own: Caller, mlflow_file: MlflowServer) -> None:
    """A process that may have no more than 64 open copies more files than that, and 30 folders below each other."""
    files = {f"wide/{number}": b"%d" % number for number in range(300)} | {"d/" * 30 + str(n): b"x" for n in range(40)}
    code = """
        import artifactcache, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        result = artifactcache.fetch(uri, "dst", mode="copy").file_count
    """
    assert own.run(code, uri=f"runs:/{mlflow_file.run(files)}") == len(files)
    assert trees.read(own.cwd / "dst") == files
