"""Guarded views and real users: a path, once known, gives nothing to whom it was not given."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactcache.errors import ModeUnavailable
from cacheserver import doors
from cacheserver.doors import Doors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import mounts, trees
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.plugin import MlflowUser
from tests.rig.trees import SMALL
from tests.rig.users import User
from tests.unit.house import FEW, Shelf, overwrite

EVERYBODY = '[[grant]]\nname = "all"\nto = ["*"]\n'
PATHS = ("", "/d1", "/d1/1", "/zero")  # of a view of FEW

# Tries everything that would show something of a path or of what is below it. Prints what has worked.
TRY = """
import os, sys
room, *paths = sys.argv[1:]
def tried(name, call):
    try: call()
    except OSError: return
    print(name, flush=True)
for n, path in enumerate(paths):
    tried("read " + path, lambda: os.close(os.open(path, os.O_RDONLY)))
    tried("write " + path, lambda: os.close(os.open(path, os.O_RDWR)))
    tried("list " + path, lambda: os.listdir(path))
    tried("enter " + path, lambda: os.chdir(path))
    tried("link " + path, lambda: os.link(path, f"{room}/link-{os.getpid()}-{n}"))
    tried("rename " + path, lambda: os.rename(path, f"{room}/moved-{os.getpid()}-{n}"))
    tried("remove " + path, lambda: os.unlink(path))
    tried("chmod " + path, lambda: os.chmod(path, 0o777))
"""
# Reads a file again and again until it hears a line; prints how often it could, and how often it could not.
WATCH = """
import select, sys
found, refused = 0, 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with open(sys.argv[1], "rb") as file: found += file.read() == b"file 1"
    except OSError: refused += 1
print(found, refused, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Person:
    """A user of the host, who tries by hand what can be done."""

    user: User
    interpreter: Interpreter

    @property
    def uid(self) -> int:
        """The user's ID."""
        return self.user.uid

    def attempt(self, room: Path, *paths: str | Path, gid: int | None = None) -> list[str]:
        """What this user can do with some paths, in a group of another's where a `gid` is given."""
        tries = room / "tries"
        tries.mkdir(exist_ok=True)
        tries.chmod(0o777)
        process = self.start(TRY, tries, *paths, gid=gid)
        out = process.communicate()[0]
        assert process.returncode == 0
        return out.splitlines()

    def can_read(self, room: Path, view: str | Path) -> bool:
        """Whether all of a view of FEW can be read; some of it only is an error."""
        found = {one for one in self.attempt(room, *all_of(view)) if one.startswith("read ")}
        assert found in (set(), {f"read {path}" for path in all_of(view)}), found
        return bool(found)

    def start(self, code: str, *arguments: str | Path, gid: int | None = None) -> subprocess.Popen[str]:
        """Start Python code as this user."""
        return subprocess.Popen(
            (str(self.interpreter.python), "-c", code, *map(str, arguments)),
            user=self.user.uid,
            group=self.user.gid if gid is None else gid,
            extra_groups=[],
            cwd="/",
            env=self.interpreter.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def people(all_users: dict[str, User], interpreter: Interpreter) -> dict[str, Person]:
    """Alice and bob, and the daemons' user, where they can be made."""
    if not all_users:
        pytest.skip("needs root")
    return {role: Person(user, interpreter) for role, user in all_users.items()}


def all_of(view: str | Path) -> list[str]:
    """A view of FEW, a folder of it, and files."""
    return [f"{view}{path}" for path in PATHS]


Open = Callable[[Doors], Shelf]


@pytest.fixture
def opened(filesystem: Filesystem, people: dict[str, Person]) -> Iterator[Open]:
    """Opens the test's store on each filesystem, as another daemon where it was open before."""
    root, shelves = filesystem.root / f"doors-{os.urandom(4).hex()}", list[Shelf]()

    def opened(kind: Doors) -> Shelf:
        for shelf in shelves:
            shelf.close()
        shelves[:] = [Shelf(root, shared=True, doors=kind)]
        return shelves[0]

    yield opened
    for shelf in shelves:
        shelf.close()


def test_a_view_is_for_those_to_whom_it_was_given(
    opened: Open, people: dict[str, Person], filesystem: Filesystem
) -> None:
    """Nobody else can do anything with its path, whatever their group; a daemon that starts again leaves it so."""
    shelf, room, alice, bob = opened(Doors.GUARDED), filesystem.root, people["alice"], people["bob"]
    held = shelf.put(FEW)
    view = shelf.store.view(held.tree, alice.uid)
    for _ in range(2):
        assert alice.can_read(room, view)
        done = {one.split()[0] for one in alice.attempt(room, *all_of(view))}
        assert {"read", "list", "enter"} <= done <= {"read", "list", "enter", "link"}  # link: a setting of the kernel
        for gid in (bob.user.gid, alice.user.gid, os.getegid()):  # the last is that of the daemon here
            assert bob.attempt(room, *all_of(view), gid=gid) == []
        shelf = opened(Doors.GUARDED)
    assert shelf.store.view_is_sound(held.tree) and shelf.store.view(held.tree, bob.uid) == view
    assert alice.can_read(room, view) and bob.can_read(room, view)
    assert not people["daemon"].can_read(room, view)  # any third one


def test_doors_are_what_the_daemon_is_told(opened: Open, people: dict[str, Person], filesystem: Filesystem) -> None:
    """Views that were open are closed by turning access on, guarded ones by giving out none, and opened again."""
    shelf, room, alice, bob = opened(Doors.OPEN), filesystem.root, people["alice"], people["bob"]
    held = shelf.put(FEW)
    view = shelf.store.view(held.tree, alice.uid)
    assert alice.can_read(room, view) and bob.can_read(room, view)
    shelf = opened(Doors.GUARDED)
    assert not alice.can_read(room, view) and not bob.can_read(room, view)
    assert shelf.store.view_is_sound(held.tree)  # it is not built again for that
    assert alice.can_read(room, shelf.store.view(held.tree, alice.uid)) and not bob.can_read(room, view)
    shelf = opened(Doors.SHUT)
    with pytest.raises(ModeUnavailable, match="give a dst"):
        shelf.store.view(held.tree, alice.uid)
    assert not alice.can_read(room, view)
    shelf = opened(Doors.GUARDED)
    assert not alice.can_read(room, view)  # what was taken back stays so
    shelf.store.view(held.tree, alice.uid)
    shelf = opened(Doors.OPEN)
    assert alice.can_read(room, view) and bob.can_read(room, view)
    # Nothing of an ACL stays that would shut out the group of the store's owner.
    assert f"read {view}/d1/1" in bob.attempt(room, f"{view}/d1/1", gid=os.getegid())


def test_a_view_that_is_built_again_lets_in_the_same_users(
    opened: Open, people: dict[str, Person], filesystem: Filesystem
) -> None:
    """At every moment alice, who uses the old one, reads it by its path, and bob does not, nor when it is evicted."""
    shelf = opened(Doors.GUARDED)
    held = shelf.put(FEW)
    view = shelf.store.view(held.tree, people["alice"].uid)
    watchers = [_watcher(people[name], f"{view}/d1/1") for name in ("alice", "bob")]
    for _ in range(30):
        shelf.index.record_view(held.tree, exists=False)
        shelf.store.view(held.tree, people["daemon"].uid)
    (by_alice, refused), (by_bob, _) = (_counts(watcher) for watcher in watchers)
    assert by_alice > 0 and refused == 0 and by_bob == 0
    shelf = opened(Doors.GUARDED)  # which remembers nothing
    shelf.index.record_view(held.tree, exists=False)
    shelf.store.view(held.tree, people["daemon"].uid)
    assert people["alice"].can_read(filesystem.root, view) and not people["bob"].can_read(filesystem.root, view)
    watcher = _watcher(people["bob"], f"{view}/d1/1")
    for _ in range(10):
        assert shelf.store.departures.evict([held.tree], now=1e9, young_since=1e9).trees
        held = shelf.put(FEW)
        shelf.store.view(held.tree, people["daemon"].uid)
    assert _counts(watcher)[0] == 0
    assert not people["alice"].can_read(filesystem.root, view)  # she was given the one that has gone
    assert people["daemon"].can_read(filesystem.root, view)


def _watcher(person: Person, path: str) -> subprocess.Popen[str]:
    watcher = person.start(WATCH, path)
    assert watcher.stdout is not None and watcher.stdout.readline() == "begun\n"
    return watcher


def _counts(watcher: subprocess.Popen[str]) -> tuple[int, int]:
    found, refused = watcher.communicate("stop\n")[0].split()
    return int(found), int(refused)


def test_a_filesystem_takes_so_many_users(opened: Open, people: dict[str, Person], filesystem: Filesystem) -> None:
    """One more is told what to do instead, and those before go on."""
    shelf, alice, bob = opened(Doors.GUARDED), people["alice"], people["bob"]
    held = shelf.put(FEW)
    view = shelf.store.view(held.tree, alice.uid)
    few, many = 1, 20_000
    while many - few > 1:
        try:
            doors.let_in_only(view, {alice.uid, *range(10**6, 10**6 + (few + many) // 2)})
            few = (few + many) // 2
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.E2BIG)
            many = (few + many) // 2
    assert few > 400
    shelf = opened(Doors.GUARDED)
    with pytest.raises(ModeUnavailable, match=r"as many users as the store's filesystem takes.*give a dst"):
        for stranger in range(2 * 10**6, 2 * 10**6 + 1000):  # btrfs sometimes takes some more than a moment ago
            shelf.store.view(held.tree, stranger)
    assert not bob.can_read(filesystem.root, view)
    assert alice.can_read(filesystem.root, shelf.store.view(held.tree, alice.uid))


def test_a_filesystem_without_acls(room: Path, people: dict[str, Person]) -> None:
    """Nobody gets a view there, and everybody is told what to do instead; with open doors all is as ever."""
    root = room / "ramfs"
    root.mkdir()
    subprocess.run(("mount", "-t", "ramfs", "none", str(root)), check=True)
    try:
        root.chmod(0o755)
        shelf = Shelf(root / "store", shared=True, doors=Doors.GUARDED)
        held = shelf.put(FEW)
        for _ in range(2):
            with pytest.raises(ModeUnavailable, match=r"has no ACLs.*give a dst"):
                shelf.store.view(held.tree, people["alice"].uid)
        assert not people["alice"].can_read(room, root / "store" / "views" / held.tree)
        shelf.close()
        shelf = Shelf(root / "store", shared=True)
        assert people["alice"].can_read(room, shelf.store.view(held.tree, people["alice"].uid))
        shelf.close()
    finally:
        mounts.unmount_below(root)


def test_nothing_else_of_a_store_can_be_reached(
    people: dict[str, Person], room: Path, start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """By every path that there is in it, by a view that is being built, and by the daemon's own open files."""
    daemon = start_daemon(mlflow_proxied.uri, check="rules", more=EVERYBODY)
    alice, bob = caller_of(daemon, room, "alice"), caller_of(daemon, room, "bob")
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    view = alice.fetch(uri).path
    in_the_making = daemon.root / "staging" / "99"
    trees.plant(in_the_making, SMALL)
    (daemon.root / "quarantine" / "bad").write_bytes(b"1")
    for one in (in_the_making, *in_the_making.rglob("*"), daemon.root / "quarantine" / "bad"):
        one.chmod(0o755 if one.is_dir() else 0o444)
        assert daemon.user is not None
        os.chown(one, daemon.user.uid, daemon.user.gid)
    paths = [daemon.root, *daemon.root.rglob("*")]
    process = Path("/proc", str(daemon.pid))
    inside = [process / name for name in ("fd", "cwd", "root", "map_files", "environ", "mem", *_fds(process))]
    assert len(inside) > 20 and {path.name for path in paths} >= {"index.db", "blobs", "leases", "doors"}
    # Into the store's folder and views/ everybody may go, to the view they were given; neither can be listed.
    assert set(people["bob"].attempt(room, *paths, *inside)) == {f"enter {daemon.root}", f"enter {daemon.root}/views"}
    read = {one for one in people["alice"].attempt(room, *paths, *inside) if one.startswith("read ")}
    assert read == {f"read {path}" for path in (view, *view.rglob("*"))}
    assert bob.fetch(uri).path == view
    assert {one for one in people["bob"].attempt(room, *paths) if one.startswith("read ")} == read
    in_the_making.rename(room / "away")
    (daemon.root / "quarantine" / "bad").unlink()


def _fds(process: Path) -> list[str]:
    return [f"fd/{name}" for name in os.listdir(process / "fd")]


def _again(daemon: Daemon, more: str) -> None:
    daemon.stop()
    uri = daemon.config.partition('tracking_uri = "')[2].partition('"')[0]
    (daemon.folder / "config.toml").write_text(config_text(daemon.root, uri, check="rules", more=more))
    daemon.start()


def test_a_daemon_that_starts_again(
    people: dict[str, Person], room: Path, start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """Turned on, it has closed what was open before anybody can ask; after that its users keep what they have."""
    daemon = start_daemon(mlflow_proxied.uri)
    alice, uri = caller_of(daemon, room, "alice"), f"runs:/{mlflow_proxied.run(SMALL)}"
    view = alice.fetch(uri).path
    inside = f"read {view}/MLmodel"
    assert inside in people["bob"].attempt(room, view / "MLmodel")
    _again(daemon, EVERYBODY)
    assert inside not in people["bob"].attempt(room, view / "MLmodel")
    assert inside not in people["alice"].attempt(room, view / "MLmodel")
    assert trees.read(alice.fetch(uri).path) == SMALL
    daemon.kill()
    daemon.start()
    assert inside in people["alice"].attempt(room, view / "MLmodel")
    assert inside not in people["bob"].attempt(room, view / "MLmodel")
    assert trees.read(caller_of(daemon, room, "root").fetch(uri).path) == SMALL


def test_no_views_at_all(
    people: dict[str, Person],
    room: Path,
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    origin: CountingProxy,
    mlflow_proxied: MlflowServer,
    distribution: Path,
) -> None:
    """Who asks for a view is told to give a dst, before anything is downloaded; with a dst, and by MLflow's own calls,
    all is as ever."""
    daemon = start_daemon(origin.uri, check="rules", more=EVERYBODY)
    files = trees.unique() | {"part/MLmodel": b"flavors: {}\n"}
    alice, uri = caller_of(daemon, room, "alice"), f"runs:/{mlflow_proxied.run(files)}"
    view = alice.fetch(uri).path
    _again(daemon, "views = false\n" + EVERYBODY)
    assert people["alice"].attempt(room, view, view / "top") == []
    before, other = origin.bytes, f"runs:/{mlflow_proxied.run(trees.unique())}"
    for mode in ("auto", "view"):
        with pytest.raises(ModeUnavailable, match="no views: give a dst"):
            alice.fetch(other, mode=mode)
    assert origin.bytes == before
    for mode in ("auto", "hardlink", "copy"):
        assert trees.read(alice.fetch(uri, alice.cwd / mode, mode=mode).path) == files
    command = alice.command("fetch", uri)
    assert command.returncode != 0 and "give a dst" in command.stderr
    code = "result = mlflow.artifacts.download_artifacts(uri, dst_path=dst)\n"
    user, before = MlflowUser(alice, distribution, origin.uri), origin.bytes
    assert trees.read(Path(user.run(code, uri=f"{uri}/part", dst="mlflow"))) == {
        name.removeprefix("part/"): content for name, content in files.items() if name.startswith("part/")
    }
    assert user.run("result = mlflow.artifacts.load_text(uri)", uri=f"{uri}/part/MLmodel") == "flavors: {}\n"
    assert origin.bytes == before


def test_a_damaged_view_is_built_again_for_all(
    people: dict[str, Person], room: Path, start_daemon: StartDaemon, caller_of: CallerOf, mlflow_proxied: MlflowServer
) -> None:
    """What one user's fetch has built anew is the others' too, who had the old one; nobody else's."""
    daemon = start_daemon(mlflow_proxied.uri, check="rules", more=EVERYBODY)
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    view = caller_of(daemon, room, "alice").fetch(uri).path
    overwrite(view / "MLmodel")
    assert caller_of(daemon, room, "root").fetch(uri).path == view
    assert (view / "MLmodel").read_bytes() == SMALL["MLmodel"]
    assert f"read {view}/MLmodel" in people["alice"].attempt(room, view / "MLmodel")
    assert people["bob"].attempt(room, view, view / "MLmodel") == []
