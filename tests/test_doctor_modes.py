"""The doctor's table of modes against what fetches then do: on each filesystem, across mounts, for each user."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import mounts, trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.doctor import Told, doctor
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and several users need root")

FILES: trees.Files = {"large.bin": os.urandom(100_000), "data/small.txt": b"a few bytes"}
RULES = '[[grant]]\nto = ["*"]\nuri = "*"\n[[grant]]\nto = ["*"]\nexperiment = "*"\n'
UNSHARED = ("unshare", "--mount", "--propagation", "private")

FETCHES = """
import artifactcache
result = {}
for name, options in fetches.items():
    try:
        fetched = artifactcache.fetch(uri, None if name == "view" else os.path.join(cwd, name), **options)
        with open(os.path.join(fetched, "large.bin"), "rb") as file:
            assert len(file.read()) == 100_000
        result[name] = fetched.mode
    except artifactcache.CacheError as error:
        result[name] = type(error).__name__
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "view": {"mode": "view"},
    "reflink": {"mode": "reflink"},
    "hardlink": {"mode": "hardlink"},
    "copy": {"mode": "copy"},
    "auto": {},
    "writable": {"writable": True},
}


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(FILES)}"


DaemonOn = Callable[[Filesystem, str], Daemon]


@pytest.fixture(scope="module")
def daemon_on(module_start: StartDaemon, mlflow_proxied: MlflowServer, all_users: dict[str, Any]) -> DaemonOn:
    """The daemon whose store is on a filesystem, below a folder that a test may close; one for each configuration."""
    there: dict[tuple[str, str], Daemon] = {}
    configurations: dict[str, dict[str, Any]] = {
        "open": {},
        "guarded": {"check": "rules", "more": RULES},
        "no views": {"more": "views = false\n"},
        "links for root": {"more": "hardlink_for_root = true\n"},
    }

    def daemon_on(filesystem: Filesystem, configuration: str) -> Daemon:
        name = (filesystem.kind.name, configuration)
        if name not in there:
            above = filesystem.root / f"doctor-{configuration.replace(' ', '-')}"
            above.mkdir()
            os.chown(above, all_users["daemon"].uid, -1)
            there[name] = module_start(mlflow_proxied.uri, root=above / "store", **configurations[configuration])
        return there[name]

    return daemon_on


def fetched(caller: Caller, uri: str, cwd: Path, wrap: tuple[str, ...]) -> dict[str, str]:
    """What a fetch in each mode gives: the mode, or the error's class."""
    found: dict[str, str] = caller.run(FETCHES, uri=uri, cwd=str(cwd), fetches=OPTIONS, wrap=wrap)
    return found


def assert_agrees(told: Told, found: dict[str, str]) -> None:
    """The doctor has said of each mode what the fetch did, and what `auto` takes."""
    for mode, works in told.works.items():
        assert works == (found[mode] == mode), (mode, told.document["modes"], found)
        told.why(mode)
    for option, name in (("auto", "auto"), ("writable", "auto_writable")):
        said = told.document["modes"][name]
        assert said == (found[option] if found[option] in told.works else None), (option, told.document["modes"], found)


# -- places: each gives a folder, and what the caller is wrapped in ---------------------------------------------------

Place = Iterator[tuple[Path, tuple[str, ...]]]


@contextlib.contextmanager
def same(home: Path, daemon: Daemon, room: Path) -> Place:
    """A folder beside the store."""
    yield home, ()


@contextlib.contextmanager
def elsewhere(home: Path, daemon: Daemon, room: Path) -> Place:
    """A folder on another filesystem."""
    folder = room / "elsewhere"
    folder.mkdir()
    shutil.copystat(home, folder)
    os.chown(folder, home.stat().st_uid, -1)
    yield folder, ()


@contextlib.contextmanager
def bound(home: Path, daemon: Daemon, room: Path) -> Place:
    """The same filesystem, by a bind mount."""
    target = room / "bound"
    target.mkdir()
    subprocess.run(("mount", "--bind", home, target), check=True)
    try:
        yield target, ()
    finally:
        subprocess.run(("umount", target), check=True)


@contextlib.contextmanager
def namespace(home: Path, daemon: Daemon, room: Path) -> Place:
    """The same folder, in another mount namespace."""
    yield home, UNSHARED


@contextlib.contextmanager
def container(home: Path, daemon: Daemon, room: Path) -> Place:
    """In another mount namespace, in which something else is in the store's place."""
    yield home, (*UNSHARED, "sh", "-c", f'mount -t tmpfs none "{daemon.root.parent}" && exec "$@"', "sh")


@contextlib.contextmanager
def closed(home: Path, daemon: Daemon, room: Path) -> Place:
    """Where the folder that the store is in lets nobody pass but the daemon's user."""
    daemon.root.parent.chmod(0o700)
    try:
        yield home, ()
    finally:
        daemon.root.parent.chmod(0o755)


@contextlib.contextmanager
def not_writable(home: Path, daemon: Daemon, room: Path) -> Place:
    """Where alice may not write, and root may."""
    folder = home.parent / "of-root"
    folder.mkdir()
    try:
        yield folder, ()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def read_only(home: Path, daemon: Daemon, room: Path) -> Place:
    """Where nobody may write."""
    target = room / "read-only"
    target.mkdir()
    subprocess.run(("mount", "--bind", "-o", "ro", home, target), check=True)
    try:
        yield target, ()
    finally:
        subprocess.run(("umount", target), check=True)


@contextlib.contextmanager
def full(home: Path, daemon: Daemon, room: Path) -> Place:
    """A filesystem without a byte left."""
    target = room / "full"
    target.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=64k,mode=0777", "full", target), check=True)
    try:
        with contextlib.suppress(OSError), (target / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield target, ()
    finally:
        subprocess.run(("umount", target), check=True)


PLACES = (same, elsewhere, bound, namespace, container)
OF_NO_FILESYSTEM = (closed, not_writable, read_only, full)  # what these meet is the same on each
CASES = [(name, place) for name in mounts.BY_NAME for place in PLACES] + [("ext4", place) for place in OF_NO_FILESYSTEM]


@pytest.fixture
def homes() -> Iterator[Callable[[Filesystem], Path]]:
    """A folder on a filesystem, below which callers have theirs."""
    made: list[Path] = []

    def home(filesystem: Filesystem) -> Path:
        made.append(filesystem.root / "homes")
        made[-1].mkdir()
        return made[-1]

    yield home
    for folder in made:
        shutil.rmtree(folder)


@pytest.mark.parametrize("role", ["alice", "root"])
@pytest.mark.parametrize(("name", "place"), CASES, ids=[f"{name}-{place.__name__}" for name, place in CASES])
def test_the_table_says_what_fetches_do(
    mounted: Callable[[str], Filesystem],
    homes: Callable[[Filesystem], Path],
    daemon_on: DaemonOn,
    caller_of: CallerOf,
    room: Path,
    uri: str,
    name: str,
    place: Callable[..., contextlib.AbstractContextManager[tuple[Path, tuple[str, ...]]]],
    role: str,
) -> None:
    """Of each mode it says beforehand whether a fetch with it works, of `auto` what it will be; and it leaves nothing,
    neither at the destination nor in the store."""
    filesystem = mounted(name)
    daemon = daemon_on(filesystem, "open")
    caller = caller_of(daemon, homes(filesystem), role)
    with place(caller.cwd, daemon, room) as (folder, wrap):
        before = sorted(os.listdir(folder))
        told = doctor(caller, folder, wrap=wrap)
        assert sorted(os.listdir(folder)) == before, "the doctor has left something"
        assert daemon.staging() == []
        assert_agrees(told, fetched(caller, uri, folder, wrap))


@pytest.mark.parametrize("role", ["alice", "root"])
@pytest.mark.parametrize("configuration", ["guarded", "no views"])
def test_the_table_says_what_fetches_do_where_views_are_guarded(
    filesystem: Filesystem,
    homes: Callable[[Filesystem], Path],
    daemon_on: DaemonOn,
    caller_of: CallerOf,
    uri: str,
    configuration: str,
    role: str,
) -> None:
    """The same where a view lets in only those to whom it was given, and where none is given out."""
    daemon = daemon_on(filesystem, configuration)
    caller = caller_of(daemon, homes(filesystem), role)
    told = doctor(caller, caller.cwd)
    assert told.works["view"] == (configuration == "guarded")
    assert daemon.staging() == []
    assert_agrees(told, fetched(caller, uri, caller.cwd, ()))


def test_links_for_root(
    mounted: Callable[[str], Filesystem],
    homes: Callable[[Filesystem], Path],
    daemon_on: DaemonOn,
    caller_of: CallerOf,
    uri: str,
) -> None:
    """Where the host gives root hard links, `auto` is said to take one; and that root could write through it."""
    filesystem = mounted("ext4")
    daemon = daemon_on(filesystem, "links for root")
    root = caller_of(daemon, homes(filesystem), "root")
    told = doctor(root)
    assert_agrees(told, fetched(root, uri, root.cwd, ()))
    assert told.document["modes"]["auto"] == "hardlink" and "write into the store" in told.text("destination")


class Inside(Caller):
    """A caller in a user namespace of their own, in which they are root."""

    def popen(self, command: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
        """Start any command as this caller."""
        return super().popen(("unshare", "--user", "--map-root-user", *command), **options)


def test_a_user_namespace(
    mounted: Callable[[str], Filesystem],
    homes: Callable[[Filesystem], Path],
    daemon_on: DaemonOn,
    caller_of: CallerOf,
    uri: str,
) -> None:
    """Who is root there is the same user to the daemon, which is noted; the table holds for what they do there."""
    filesystem = mounted("ext4")
    alice = caller_of(daemon_on(filesystem, "open"), homes(filesystem))
    if alice.popen(("unshare", "--user", "true")).wait():
        pytest.skip("this kernel gives users no namespaces")
    inside = Inside(alice.interpreter, alice.user, Path(alice.env["ARTIFACTCACHE_SOCKET_DIR"]), alice.cwd)
    told = doctor(inside)
    assert f"you are uid 0 here, and uid {alice.uid} to the daemon" in told.text("identity")
    assert_agrees(told, fetched(inside, uri, inside.cwd, ()))


def test_a_subvolume(mounted: Callable[[str], Filesystem], daemon_on: DaemonOn, caller_of: CallerOf, uri: str) -> None:
    """A subvolume of btrfs is on the same mount, and no hard link leads there: it is found out, and said."""
    filesystem = mounted("btrfs")
    daemon = daemon_on(filesystem, "open")
    volume = filesystem.root / "volume"
    subprocess.run(("btrfs", "--quiet", "subvolume", "create", volume), check=True)
    try:
        caller = caller_of(daemon, volume)
        told = doctor(caller)
        assert_agrees(told, fetched(caller, uri, caller.cwd, ()))
        assert (told.works["reflink"], told.works["hardlink"]) == (True, False)
        assert "subvolume" in told.why("hardlink")
    finally:
        subprocess.run(("btrfs", "--quiet", "subvolume", "delete", volume), check=True)


def test_another_project(
    mounted: Callable[[str], Filesystem], daemon_on: DaemonOn, caller_of: CallerOf, uri: str
) -> None:
    """Neither does one lead into a folder of another project, as quotas of XFS have them: the mount is the same."""
    filesystem = mounted("xfs")
    daemon = daemon_on(filesystem, "open")
    folder = filesystem.root / "project"
    folder.mkdir()
    subprocess.run(("xfs_io", "-c", "chproj 42", "-c", "chattr +P", folder), check=True)
    caller = caller_of(daemon, folder)
    told = doctor(caller)
    assert_agrees(told, fetched(caller, uri, caller.cwd, ()))
    assert not told.works["hardlink"] and "another project" in told.why("hardlink")
    shutil.rmtree(folder)


def test_the_link_limit(
    mounted: Callable[[str], Filesystem], daemon_on: DaemonOn, caller_of: CallerOf, base: Path
) -> None:
    """Where the probe has all the links that ext4 takes, it gets another inode, as a blob does."""
    filesystem = mounted("ext4")
    daemon = daemon_on(filesystem, "open")
    names = filesystem.root / "names"
    names.mkdir()
    caller = caller_of(daemon, names)
    assert doctor(caller).works["hardlink"]
    before = (daemon.root / "probe").stat().st_ino
    for folder in range(65):
        (names / str(folder)).mkdir()
        with contextlib.suppress(OSError):  # EMLINK
            for number in range(1000):
                os.link(daemon.root / "probe", names / str(folder) / str(number))
    told = doctor(caller)
    assert told.works["hardlink"] and (daemon.root / "probe").stat().st_ino != before
    shutil.rmtree(names)


def test_why(mounted: Callable[[str], Filesystem], daemon_on: DaemonOn, caller_of: CallerOf, room: Path) -> None:
    """Each reason names what the kernel said, where both sides lie, and what to do: another mount of the same
    filesystem is told from another filesystem, and a mount namespace is named as one."""
    filesystem = mounted("ext4")
    daemon = daemon_on(filesystem, "open")
    homes = filesystem.root / "homes-of-why"
    homes.mkdir()
    alice = caller_of(daemon, homes)
    assert "EOPNOTSUPP: ext4 has no reflinks" in doctor(alice).why("reflink")
    with elsewhere(alice.cwd, daemon, room) as (folder, _):
        why = doctor(alice, folder).why("hardlink")
        assert "EXDEV: the store is on another filesystem (ext4) than this" in why and "[store] root" in why
    with bound(alice.cwd, daemon, room) as (folder, _):
        why = doctor(alice, folder).why("hardlink")
        assert "EXDEV: the same filesystem (ext4), but reached through another mount" in why
        assert "namespace than this process" not in why
    with namespace(alice.cwd, daemon, room) as (folder, wrap):
        why = doctor(alice, folder, wrap=wrap).why("hardlink")
        assert "another mount namespace than this process" in why and "PrivateTmp=" in why
    with container(alice.cwd, daemon, room) as (folder, wrap):
        why = doctor(alice, folder, wrap=wrap).why("view")
        assert f"ENOENT: {daemon.root}/views is not there for this process" in why
        assert "mount the store at the same path" in why
    with closed(alice.cwd, daemon, room) as (folder, _):
        why = doctor(alice, folder).why("view")
        assert f"EACCES: {daemon.root.parent}, on the way to the store, is closed to you" in why
        assert f"chmod o+x {daemon.root.parent}" in why
    told = doctor(alice, homes)
    assert "EACCES" in told.why("copy") and told.levels("destination") == ["problem"]
    shutil.rmtree(homes)
