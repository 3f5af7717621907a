"""A full disk is a clear error for one caller, and costs nobody what was held before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from cacheserver import fsck
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.trees import SMALL
from tests.unit.house import Shelf

LARGE_BYTES = 200 << 20


@pytest.fixture(params=["one file", "many files"])
def large(request: pytest.FixtureRequest, mlflow_proxied: MlflowServer) -> str:
    """An artifact that is larger than the disk; removed afterwards."""
    run_id = mlflow_proxied.run({"MLmodel": b"x"})
    folder = mlflow_proxied.folder(run_id)
    pieces = 1 if request.param == "one file" else 20
    for number in range(pieces):
        with (folder / f"{number}.bin").open("wb") as file:
            file.write(os.urandom(1000))
            file.truncate(LARGE_BYTES // pieces)
    return f"runs:/{run_id}"


@pytest.mark.parametrize("min_free", ["1MiB", "5%"])
def test_the_stores_disk_is_full(
    small_disk: Filesystem,
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
    room: Path,
    large: str,
    min_free: str,
) -> None:
    """An artifact of 200 MiB for a store on 64 MiB is NoSpace; staging is empty, what was held is served, and new
    artifacts that fit are fetched."""
    daemon = start_daemon(mlflow_proxied.uri, root=small_disk.root / "store", min_free=min_free)
    alice = caller_of(daemon, room)
    held = alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}")
    for dst in (None, alice.cwd / "dst"):
        with pytest.raises(errors.NoSpace):
            alice.fetch(large, dst)
    assert daemon.staging() == []
    assert os.listdir(alice.cwd) == []
    again = alice.fetch(held.uri)
    assert (again.hit, trees.read(again.path)) == (True, SMALL)
    files = trees.unique()
    assert trees.read(alice.fetch(f"runs:/{mlflow_proxied.run(files)}").path) == files
    assert shutil.disk_usage(small_disk.root).free > 20 << 20
    daemon.restart()
    assert alice.fetch(held.uri).hit


def test_somebody_else_fills_the_disk(
    small_disk: Filesystem, start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer, room: Path
) -> None:
    """With not a byte left on the disk, what is held is still served; a miss is NoSpace; with room again it works."""
    daemon = start_daemon(mlflow_proxied.uri, root=small_disk.root / "store", min_free="0")
    alice = caller_of(daemon, room)
    held = alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}")
    cold = f"runs:/{mlflow_proxied.run({'a': os.urandom(5 << 20)})}"
    filler = small_disk.root / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    assert alice.fetch(held.uri).hit
    assert trees.read(alice.fetch(held.uri, alice.cwd / "held").path) == SMALL
    with pytest.raises(errors.NoSpace):
        alice.fetch(cold, alice.cwd / "dst")
    assert daemon.staging() == []
    assert daemon.is_alive()
    filler.unlink()
    assert alice.fetch(cold, alice.cwd / "dst").size_bytes == 5 << 20
    assert alice.fetch(held.uri).hit


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_the_destinations_disk_is_full(
    small_disk: Filesystem,
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
    room: Path,
    mode: str,
) -> None:
    """A copy that does not fit is NoSpace and leaves nothing."""
    alice = caller_of(start_daemon(mlflow_proxied.uri), small_disk.root)
    uri = f"runs:/{mlflow_proxied.run({'a': os.urandom(40 << 20), 'b': os.urandom(40 << 20)})}"
    with pytest.raises(errors.NoSpace):
        alice.fetch(uri, alice.cwd / "dst", mode=mode)
    assert os.listdir(alice.cwd) == []
    assert shutil.disk_usage(small_disk.root).free > 30 << 20


def test_the_capacity_is_kept(
    start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer, room: Path
) -> None:
    """An artifact beyond `[store] capacity` is NoSpace, before its bytes are on the disk."""
    daemon = start_daemon(mlflow_proxied.uri, capacity="10MiB")
    alice = caller_of(daemon, room)
    uri = f"runs:/{mlflow_proxied.run({'a': os.urandom(11 << 20)})}"
    with pytest.raises(errors.NoSpace):
        alice.fetch(uri)
    assert daemon.staging() == []
    assert alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}").size_bytes == trees.size(SMALL)


# -- the store's disk is full, in process -----------------------------------------------------------------------------

BLOCK_BYTES = 4096


@pytest.fixture
def tight(small_disk: Filesystem) -> Iterator[Shelf]:
    """A store on a small disk of its own."""
    shelf = Shelf(small_disk.root / "store")
    yield shelf
    shelf.close()


def fill(disk: Filesystem, leave_blocks: int) -> Path:
    """Takes all but a few blocks of a disk. Returns the file that has them."""
    filler = disk.root / "filler"
    with filler.open("wb", buffering=0) as file:
        for piece in (1 << 20, BLOCK_BYTES):
            try:
                while True:
                    file.write(bytes(piece))
                    os.fsync(file.fileno())
            except OSError as error:
                assert error.errno == errno.ENOSPC
        file.truncate(file.seek(0, os.SEEK_END) - leave_blocks * BLOCK_BYTES)
        os.fsync(file.fileno())
    return filler


def test_a_store_that_is_opened_on_a_full_disk_is_not_to_be_thrown_away(small_disk: Filesystem) -> None:
    """NoSpace that says what to do, and not to move the index away; with room again all is held that was."""
    shelf = Shelf(small_disk.root / "store")
    held = shelf.put({"x": b"1"})
    shelf.close()
    filler = fill(small_disk, leave_blocks=0)
    for _ in range(2):
        with pytest.raises(errors.NoSpace, match=r"disk is full.+Free some space") as refused:
            fsck.check(str(shelf.root))  # opens it like the daemon, and lets it go
        assert "move it away" not in str(refused.value) and "index.db" in str(refused.value)
    filler.unlink()
    shelf = Shelf(small_disk.root / "store")
    assert shelf.content(held) == {"x": b"1"} and shelf.index.held(held.uri, "") == held
    shelf.close()


@pytest.mark.parametrize(
    ("folders", "names_in_each"), [(100, 1), (1, 1000)], ids=["while it begins", "while it is linked"]
)
def test_a_view_that_does_not_fit_is_no_view(
    tight: Shelf, small_disk: Filesystem, folders: int, names_in_each: int
) -> None:
    """The disk fills while a view's folders are made, or while its files are linked: NoSpace in words of the store's
    own disk, nothing in staging, and the view is built when there is room."""
    files = {f"{n}/{'long' * 40}{m}": b"x" for n in range(folders) for m in range(names_in_each)}
    held = tight.put(files)
    filler = fill(small_disk, leave_blocks=10)
    with pytest.raises(errors.NoSpace, match="The store's disk is full: a view could not be built") as refused:
        tight.store.view(held.tree)
    assert "destination" not in str(refused.value)
    assert tight.staging() == [] and not tight.index.has_view(held.tree)
    assert os.listdir(tight.root / "views") == []
    filler.unlink()
    assert trees.read(Path(tight.store.view(held.tree))) == files
