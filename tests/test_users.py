"""Who is served, and what one user can do to another: nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors, paths
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL
from tests.rig.users import User


def test_the_daemon_has_no_capabilities(daemon: Daemon) -> None:
    """The daemon of these tests is what its unit makes of it: its own user, with nothing more."""
    if daemon.user is None:
        pytest.skip("needs root")
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    fields = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert fields["Uid"] == [str(daemon.user.uid)] * 4
    assert {fields[f"Cap{name}"][0] for name in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}


def test_nobody_else_keeps_it_from_starting(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, caller_of: CallerOf, room: Path
) -> None:
    """Whoever can open a folder for reading can lock it, and waits for that while the daemon has it: it starts all the
    same."""
    daemon = start_daemon(mlflow_proxied.uri)
    code = """
        import fcntl, threading
        def lock(path):
            try:
                fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
            except PermissionError:
                pass
        threads = [threading.Thread(target=lock, args=[path], daemon=True) for path in paths]
        for each in threads:
            each.start()
        say("waits")
        hear()
        for each in threads:
            each.join()
        say("has them")
        hear()
    """
    with caller_of(daemon, room, "bob").start(code, paths=[str(daemon.socket_dir), str(daemon.root)]) as job:
        assert job.hear() == "waits"
        daemon.stop()
        job.say("")
        assert job.hear() == "has them"
        daemon.start()


def test_whoami(alice: Caller) -> None:
    """The kernel says who calls."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            who = client.whoami()
        result = [who.uid, who.pid, list(who.gids), os.getpid()]
    """
    uid, pid, gids, own_pid = alice.run(code)
    assert (uid, pid) == (alice.uid, own_pid)
    assert gids[0] == (os.getegid() if alice.user is None else alice.user.gid)


def test_two_users_share_one_copy(
    alice: Caller, bob: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """What alice fetched is a hit for bob; both have the same inodes, and neither can touch the other's names."""
    files = trees.unique()
    uri = f"runs:/{mlflow_proxied.run(files)}"
    before = origin.bytes
    by_alice = alice.fetch(uri, alice.cwd / "dst", mode="hardlink")
    by_bob = bob.fetch(uri, bob.cwd / "dst", mode="hardlink")
    assert (by_bob.hit, origin.bytes - before) == (True, trees.size(files))
    assert (by_alice.path / "top").stat().st_ino == (by_bob.path / "top").stat().st_ino
    bob.run("import shutil; shutil.rmtree(path)", path=str(by_bob.path))
    assert trees.read(by_alice.path) == files
    code = "try: os.unlink(path); result = 'removed'\nexcept PermissionError: result = 'refused'"
    assert bob.run(code, path=str(by_alice.path / "top")) == "refused"


def test_a_user_cannot_reach_anothers_folder_through_the_daemon(
    alice: Caller, bob: Caller, mlflow_proxied: MlflowServer
) -> None:
    """The daemon is no way around the modes of a destination: bob cannot place anything in alice's folder."""
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    for mode in ("auto", "hardlink", "copy"):
        with pytest.raises(errors.PermissionDenied):
            bob.fetch(uri, alice.cwd / mode, mode=mode)
    assert os.listdir(alice.cwd) == []


def test_a_private_parent(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """Below a folder of mode 0700, which the daemon cannot traverse, every mode works."""
    os.chmod(alice.cwd, 0o700)
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    for mode in ("hardlink", "copy"):
        handed = alice.fetch(uri, alice.cwd / mode, mode=mode)
        assert (handed.mode, trees.read(handed.path)) == (mode, SMALL)


def test_the_store_is_closed_to_users(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer) -> None:
    """Nobody but the daemon can write anything in the store, nor find blobs by listing them."""
    if os.geteuid() != 0:
        pytest.skip("needs several users")
    alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}")
    code = """
        written = []
        for where, folders, names in os.walk(root):
            for name in folders + [""]:
                try:
                    open(os.path.join(where, name, "planted"), "w")
                    written.append(os.path.join(where, name))
                except OSError:
                    pass
            for name in names:
                try:
                    open(os.path.join(where, name), "r+")
                    written.append(os.path.join(where, name))
                except OSError:
                    pass
        result = written
    """
    assert alice.run(code, root=str(daemon.root)) == []


@contextlib.contextmanager
def own_daemon(interpreter: Interpreter, user: User | None, folder: Path, uri: str) -> Iterator[Daemon]:
    """A daemon that alice runs for herself."""
    folder.mkdir()
    root = folder / "store"
    with running(Daemon(interpreter, user, folder, root, config_text(root, uri), is_system=False)) as daemon:
        yield daemon


def test_a_daemon_of_ones_own(
    interpreter: Interpreter, all_users: dict[str, User], room: Path, mlflow_proxied: MlflowServer, caller_of: CallerOf
) -> None:
    """A daemon that alice runs for herself serves her in every way, and nobody else: not bob, and not even root."""
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    with own_daemon(interpreter, all_users.get("alice"), room / "own", mlflow_proxied.uri) as daemon:
        alice = caller_of(daemon, room, "alice")
        assert trees.read(alice.fetch(uri).path) == SMALL
        for mode in ("hardlink", "copy"):
            assert trees.read(alice.fetch(uri, alice.cwd / mode, mode=mode).path) == SMALL
        writable = alice.fetch(uri, alice.cwd / "writable", writable=True)
        assert writable.mode != "hardlink"
        if all_users:
            for role in ("bob", "root"):
                with pytest.raises((errors.PermissionDenied, errors.Unauthenticated, errors.DaemonUnavailable)):
                    caller_of(daemon, room, role).fetch(uri)


def test_auto_of_a_daemon_of_ones_own(
    interpreter: Interpreter, all_users: dict[str, User], room: Path, mlflow_proxied: MlflowServer, caller_of: CallerOf
) -> None:
    """Alice owns her own daemon's blobs, so that modes do not stop her from writing through a link: `auto` gives none,
    or she cannot open what it gave for writing."""
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    with own_daemon(interpreter, all_users.get("alice"), room / "own", mlflow_proxied.uri) as daemon:
        alice = caller_of(daemon, room, "alice")
        handed = alice.fetch(uri, alice.cwd / "dst")
        blobs = {path.stat().st_ino for path in (daemon.root / "blobs").rglob("*")}
        assert handed.mode == "hardlink" or (handed.path / "MLmodel").stat().st_ino not in blobs


_LISTENER = """
import socket
os.makedirs(folder, exist_ok=True)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(os.path.join(folder, "handoff.sock"))
listener.listen()
say("listening")
hear()
listener.setblocking(False)
try:
    listener.accept()
    result = "called"
except BlockingIOError:
    result = "left alone"
"""


@pytest.mark.parametrize("trap", ["a folder of bob's", "a symlink"])
def test_a_socket_folder_that_is_not_the_callers(
    alice: Caller, room: Path, trap: str, all_users: dict[str, User]
) -> None:
    """A folder in /tmp of the name of the caller's own, but somebody else's: whoever listens there is not called.

    The socket is alice's own, for a socket can be moved: only the folder tells.
    """
    environ = {"ARTIFACTCACHE_SOCKET_DIR": "", "XDG_RUNTIME_DIR": "", "TMPDIR": str(room)}
    folder = Path(paths.user_socket_dir(environ, alice.uid))
    if folder.parent != room:
        pytest.skip("this user has a run-time folder, in which nobody else makes one")
    if os.path.exists(paths.SYSTEM_SOCKET_DIR):
        pytest.skip("a daemon for all users of this host would be called first")
    if trap == "a symlink":
        folder.symlink_to(alice.cwd / "sockets")
    elif all_users:
        folder.mkdir()
        folder.chmod(0o777)
        os.chown(folder, all_users["bob"].uid, all_users["bob"].gid)
    else:
        pytest.skip("needs several users")
    elsewhere = alice.cwd / "sockets" if trap == "a symlink" else folder
    with alice.start(_LISTENER, folder=str(elsewhere)) as listener:
        listener.hear()
        with pytest.raises(errors.DaemonUnavailable, match="not a folder of your own"):
            alice.fetch("runs:/" + "0" * 32, env=environ, timeout=2)
        listener.say("what came?")
        assert listener.result() == "left alone"
