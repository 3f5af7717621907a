"""What is shared and what is not, in each mode on each filesystem: as inodes and extents tell it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller, Handed
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem

FILES: trees.Files = {
    "large.bin": os.urandom(300_000),
    "data/again.bin": b"the same bytes twice",
    "data/more/once.bin": b"the same bytes twice",
    "empty.txt": b"",
}


@pytest.fixture(scope="module")
def run_id(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return mlflow_proxied.run(FILES)


@pytest.fixture
def place(filesystem: Filesystem) -> Iterator[Path]:
    """An empty folder on the filesystem."""
    folder = filesystem.root / "place"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon_on(module_start: StartDaemon, mlflow_proxied: MlflowServer) -> Callable[[Filesystem], Daemon]:
    """The daemon whose store is on a filesystem; one for all tests, because starting one takes seconds."""
    there: dict[str, Daemon] = {}

    def daemon_on(filesystem: Filesystem) -> Daemon:
        name = filesystem.kind.name
        if name not in there:
            there[name] = module_start(mlflow_proxied.uri, root=filesystem.root / "store-of-modes")
        return there[name]

    return daemon_on


class Here:
    """The daemon and its callers, all on one filesystem."""

    def __init__(self, filesystem: Filesystem, place: Path, daemon: Daemon, caller_of: CallerOf) -> None:
        self.filesystem = filesystem
        self.daemon = daemon
        self.alice = caller_of(daemon, place, "alice")
        self.root = caller_of(daemon, place, "root")
        self.place = place

    def inodes(self) -> set[int]:
        """The inodes of all blobs."""
        return {path.stat().st_ino for path in (self.daemon.root / "blobs").rglob("*") if path.is_file()}

    def shares_inodes(self, handed: Handed) -> bool:
        """Whether the files handed over are the blobs themselves; all or none of them are."""
        blobs = self.inodes()
        shared = {path.stat().st_ino in blobs for path in files_of(handed)}
        assert len(shared) == 1, "some are and some are not"
        return shared.pop()


@pytest.fixture
def here(filesystem: Filesystem, place: Path, daemon_on: Callable[[Filesystem], Daemon], caller_of: CallerOf) -> Here:
    """Everything on one filesystem."""
    return Here(filesystem, place, daemon_on(filesystem), caller_of)


def files_of(handed: Handed) -> list[Path]:
    """The files that are not empty."""
    return [path for path in handed.path.rglob("*") if path.is_file() and path.stat().st_size]


def shares_extents(path: Path) -> bool:
    """Whether FIEMAP says that every extent of the file is shared with another file."""
    os.sync()
    out = subprocess.check_output(("filefrag", "-v", path), text=True)
    extents = [line for line in out.splitlines() if re.match(r"\s*\d+:", line)]
    assert extents, out
    return all("shared" in line for line in extents)


def test_every_mode_on_every_filesystem(here: Here, run_id: str) -> None:
    """Each mode gives the right bytes, shares what it says that it shares, or says why it cannot be had."""
    uri = f"runs:/{run_id}"
    alice, uid = here.alice, here.alice.uid

    linked = alice.fetch(uri, alice.cwd / "linked", mode="hardlink")
    assert (linked.mode, linked.writable, trees.read(linked.path)) == ("hardlink", False, FILES)
    assert here.shares_inodes(linked)
    again = alice.fetch(uri, alice.cwd / "again", mode="hardlink")
    assert (again.path / "large.bin").stat().st_nlink == (linked.path / "large.bin").stat().st_nlink >= 3

    copied = alice.fetch(uri, alice.cwd / "copied", mode="copy")
    assert (copied.mode, trees.read(copied.path)) == ("copy", FILES)
    assert not here.shares_inodes(copied)
    assert {path.stat().st_uid for path in copied.path.rglob("*")} == {uid}

    if here.filesystem.kind.reflinks:
        cloned = alice.fetch(uri, alice.cwd / "cloned", mode="reflink")
        assert (cloned.mode, trees.read(cloned.path)) == ("reflink", FILES)
        assert not here.shares_inodes(cloned)
        assert shares_extents(cloned.path / "large.bin")
        assert {path.stat().st_uid for path in cloned.path.rglob("*")} == {uid}
    else:
        with pytest.raises(errors.ModeUnavailable):
            alice.fetch(uri, alice.cwd / "cloned", mode="reflink")
    assert "cloned" not in os.listdir(alice.cwd) or here.filesystem.kind.reflinks

    view = alice.fetch(uri, mode="view")
    assert (view.mode, trees.read(view.path)) == ("view", FILES)
    assert here.shares_inodes(view)
    assert not [name for name in os.listdir(alice.cwd) if name.startswith(".")], "something half-made was left"


def test_auto(here: Here, run_id: str) -> None:
    """`auto` clones where clones can be had; else it links for whom file modes stop, and copies for root."""
    kinds = {True: ("reflink", "reflink"), False: ("hardlink", "copy")}[here.filesystem.kind.reflinks]
    by_alice = here.alice.fetch(f"runs:/{run_id}", here.alice.cwd / "auto")
    by_root = here.root.fetch(f"runs:/{run_id}", here.root.cwd / "auto")
    assert (by_alice.mode, by_root.mode) == kinds
    assert here.shares_inodes(by_alice) == (by_alice.mode == "hardlink")
    assert not here.shares_inodes(by_root)
    assert trees.read(by_alice.path) == trees.read(by_root.path) == FILES
    assert here.root.fetch(f"runs:/{run_id}", here.root.cwd / "by-name", mode="hardlink").mode == "hardlink"


def test_writable_is_never_a_hard_link(here: Here, run_id: str) -> None:
    """What a caller may write is theirs alone: writing it changes no blob; links by name are refused."""
    alice = here.alice
    before = {path: path.read_bytes() for path in (here.daemon.root / "blobs").rglob("*") if path.is_file()}
    own = alice.fetch(f"runs:/{run_id}", alice.cwd / "own", writable=True)
    assert own.writable
    assert own.mode == ("reflink" if here.filesystem.kind.reflinks else "copy")
    alice.run("open(path, 'r+b').write(b'changed')", path=str(own.path / "large.bin"))
    alice.run("open(path, 'wb').write(b'more')", path=str(own.path / "data" / "new"))
    assert (own.path / "large.bin").read_bytes().startswith(b"changed")
    for path, content in before.items():
        assert path.read_bytes() == content
    with pytest.raises((errors.ModeUnavailable, errors.InvalidRequest)):
        alice.fetch(f"runs:/{run_id}", alice.cwd / "linked", mode="hardlink", writable=True)
    assert not (alice.cwd / "linked").exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("mode", ["hardlink", "copy", "auto"])
def test_owners_and_modes(here: Here, run_id: str, umask: int, mode: str) -> None:
    """Folders are the caller's and obey the umask; so do files that are the caller's; links stay read-only."""
    alice = here.alice
    handed = alice.fetch(f"runs:/{run_id}", alice.cwd / "parent" / "dst", mode=mode, umask=umask)
    for path in (handed.path.parent, handed.path, *handed.path.rglob("*")):
        status = path.stat()
        if path.is_dir():
            assert stat.S_IMODE(status.st_mode) == 0o777 & ~umask, path
            assert status.st_uid == alice.uid
        elif handed.mode == "hardlink" and status.st_size:
            assert stat.S_IMODE(status.st_mode) == 0o444, path
        else:
            assert stat.S_IMODE(status.st_mode) & 0o444 == 0o444 & ~umask, path
            assert status.st_uid == alice.uid
            assert not stat.S_IMODE(status.st_mode) & umask, path


def test_links_cannot_be_written_through(here: Here, run_id: str) -> None:
    """Alice can read and remove the names that she was given, but neither write nor chmod the shared bytes."""
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    alice = here.alice
    linked = alice.fetch(f"runs:/{run_id}", alice.cwd / "linked", mode="hardlink")
    code = """
        result = []
        for attempt in ("open(path, 'r+b')", "os.truncate(path, 0)", "os.chmod(path, 0o666)", "os.utime(path)",
                        "os.chown(path, os.getuid(), -1)"):
            try:
                eval(attempt)
                result.append(attempt)
            except PermissionError:
                pass
    """
    assert alice.run(code, path=str(linked.path / "large.bin")) == []
    alice.run("import shutil; shutil.rmtree(path)", path=str(linked.path))
    assert not linked.path.exists()


def test_another_filesystem(here: Here, run_id: str, room: Path, caller_of: CallerOf) -> None:
    """At a destination on another filesystem `auto` copies; links and clones by name are refused, and leave nothing."""
    away = caller_of(here.daemon, room, "alice")
    copied = away.fetch(f"runs:/{run_id}", away.cwd / "auto")
    assert (copied.mode, trees.read(copied.path)) == ("copy", FILES)
    for mode in ("hardlink", "reflink"):
        with pytest.raises(errors.ModeUnavailable):
            away.fetch(f"runs:/{run_id}", away.cwd / mode, mode=mode)
    assert os.listdir(away.cwd) == ["auto"]


def test_another_mount_namespace(here: Here, run_id: str) -> None:
    """A caller in a container sees the same filesystem through another mount: `auto` works there, links are refused."""
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    alice = here.alice
    inside: Caller = alice
    wrap = ("unshare", "--mount", "--propagation", "private")
    handed = inside.fetch(f"runs:/{run_id}", alice.cwd / "auto", wrap=wrap)
    assert handed.mode == ("reflink" if here.filesystem.kind.reflinks else "copy")
    assert trees.read(handed.path) == FILES
    with pytest.raises(errors.ModeUnavailable):
        inside.fetch(f"runs:/{run_id}", alice.cwd / "linked", wrap=wrap, mode="hardlink")
    assert os.listdir(alice.cwd) == ["auto"]


def test_a_bind_mount(here: Here, run_id: str) -> None:
    """The destination lies on the same filesystem, but below another mount of it: `auto` still works."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    alice = here.alice
    (alice.cwd / "real").mkdir()
    os.chown(alice.cwd / "real", alice.uid, -1)
    (alice.cwd / "bound").mkdir()
    subprocess.run(("mount", "--bind", alice.cwd / "real", alice.cwd / "bound"), check=True)
    try:
        handed = alice.fetch(f"runs:/{run_id}", alice.cwd / "bound" / "dst")
        assert handed.mode == ("reflink" if here.filesystem.kind.reflinks else "copy")
        assert trees.read(alice.cwd / "real" / "dst") == FILES
        with pytest.raises(errors.ModeUnavailable):
            alice.fetch(f"runs:/{run_id}", alice.cwd / "bound" / "linked", mode="hardlink")
        assert os.listdir(alice.cwd / "real") == ["dst"]
    finally:
        subprocess.run(("umount", alice.cwd / "bound"), check=True)


def test_an_artifact_of_one_file(here: Here, run_id: str) -> None:
    """One file is placed in every mode as itself."""
    alice = here.alice
    modes = ["hardlink", "copy", *(["reflink"] if here.filesystem.kind.reflinks else [])]
    for mode in modes:
        handed = alice.fetch(f"runs:/{run_id}/large.bin", alice.cwd / mode, mode=mode)
        assert (handed.path, handed.mode) == (alice.cwd / mode, mode)
        assert handed.path.read_bytes() == FILES["large.bin"]
        assert (handed.path.stat().st_ino in here.inodes()) == (mode == "hardlink")
    assert sorted(os.listdir(alice.cwd)) == sorted(modes)
