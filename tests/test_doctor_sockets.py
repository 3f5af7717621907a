"""The doctor where no daemon answers: it finds out why, says what to do, and nothing of it ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, running
from tests.rig.doctor import Told, doctor
from tests.rig.interpreter import Interpreter
from tests.rig.spawner import Helper

NOWHERE = {"ARTIFACTCACHE_SOCKET_DIR": ""}


def looking(caller: Caller, folder: Path, **more: str) -> dict[str, str]:
    """The environment of somebody whose own daemon's sockets would be below a folder."""
    return NOWHERE | {"XDG_RUNTIME_DIR": str(folder)} | more


def listening(path: Path) -> socket.socket:
    """A socket that takes connections, and whose owner says nothing."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    path.chmod(0o777)
    listener.listen(5)
    return listener


def sockets(told: Told) -> str:
    """What is said of the sockets, where that is a problem; then there is no table, and other checks are made."""
    assert (told.status, told.document["modes"]) == (1, None)
    assert "problem" in told.levels("sockets") and told.levels("client") and told.levels("limits")
    return told.text("sockets")


def test_no_daemon(alice: Caller, room: Path) -> None:
    """Where nothing is, it says where was looked, and how to start one."""
    said = sockets(doctor(alice, env=looking(alice, room)))
    assert "there is no folder /run/cacheserver" in said and f"there is no folder {room}/cacheserver" in said
    assert "systemctl start cacheserver" in said and "cacheserver serve" in said
    said = sockets(doctor(alice, env={"ARTIFACTCACHE_SOCKET_DIR": str(room / "none")}))
    assert f"of ARTIFACTCACHE_SOCKET_DIR: there is no folder {room}/none" in said


class Own(Daemon):
    """A daemon of a user's own, with its sockets where that user's clients look for them."""

    @property
    def socket_dir(self) -> Path:
        """Below the user's run-time folder."""
        return self.folder / "cacheserver"


def test_ones_own_daemon(
    daemon: Daemon,
    all_users: dict[str, Any],
    interpreter: Interpreter,
    helper: Helper,
    caller_of: CallerOf,
    room: Path,
) -> None:
    """It is found without being named; where the environment names a folder without a daemon, it is told that one
    answers elsewhere. Another user's own daemon serves nobody else, and says so."""
    user = all_users.get("alice")
    text = daemon.config.replace(str(daemon.root), str(room / "store"))
    own = Own(interpreter, user, room, room / "store", text, is_system=False)
    with running(own):
        alice = caller_of(own, room)
        told = doctor(alice, env=looking(alice, room))
        assert told.levels("sockets") == ["ok"] and told.works["view"]
        assert f"the daemon of your own answers in {own.socket_dir}" in told.text("sockets")
        told = doctor(alice, env={"ARTIFACTCACHE_SOCKET_DIR": str(room / "none"), "XDG_RUNTIME_DIR": str(room)})
        assert told.levels("sockets") == ["problem", "note"]
        assert f"elsewhere the daemon of your own answers in {own.socket_dir}" in told.text("sockets")
        if user is not None:
            for path in (own.socket_dir, *own.socket_dir.iterdir()):
                path.chmod(0o777)
            said = sockets(doctor(caller_of(own, room, "bob")))
            assert "This daemon serves only the user who started it" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts and several users need root")
def test_what_ends_the_search(
    start_daemon: StartDaemon,
    all_users: dict[str, Any],
    interpreter: Interpreter,
    helper: Helper,
    origin: CountingProxy,
    caller_of: CallerOf,
    room: Path,
) -> None:
    """A daemon of one's own helps nobody where the host's is stopped, or has half its sockets: a fetch stays with that,
    and so does the doctor. Where the host's denies somebody, both go on to one's own."""
    host = start_daemon(origin.uri)
    own = Own(interpreter, all_users["alice"], room, room / "store", host.config, is_system=False)
    own.config = own.config.replace(str(host.root), str(room / "store"))
    (half := room / "half").mkdir()
    (half / "handoff.sock").symlink_to(host.socket_dir / "handoff.sock")
    with running(own):
        alice = caller_of(own, room)
        os.kill(host.pid, signal.SIGSTOP)
        try:
            said = sockets(doctor(alice, env=looking(alice, room), wrap=as_the_hosts(host.socket_dir)))
        finally:
            os.kill(host.pid, signal.SIGCONT)
        assert "the daemon of this host: /run/cacheserver/handoff.sock takes connections, and says nothing" in said
        assert "of your own" not in said
        said = sockets(doctor(alice, env=looking(alice, room), wrap=as_the_hosts(half)))
        assert "there is no /run/cacheserver/cache.sock" in said and "of your own" not in said
        host.stop()
        host = start_daemon(origin.uri, more=f'deny = ["{all_users["alice"].name}"]\n')
        told = doctor(alice, env=looking(alice, room), wrap=as_the_hosts(host.socket_dir))
        assert (told.status, told.levels("sockets")) == (0, ["note", "ok"])


def as_the_hosts(folder: Path) -> tuple[str, ...]:
    """What has a command see a folder where the host's daemon has its sockets."""
    there = f'mount -t tmpfs none /run && ln -s {folder} /run/cacheserver && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", there, "sh")


@pytest.mark.skipif(os.geteuid() != 0, reason="several users need root")
def test_stale_sockets(start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Path) -> None:
    """Sockets that a killed daemon has left are told from a daemon that hangs."""
    daemon = start_daemon(origin.uri)
    alice = caller_of(daemon, room)
    daemon.kill()
    assert "is stale: nobody listens there" in sockets(doctor(alice))
    named = room / "Connection refused"
    named.mkdir()
    with contextlib.ExitStack() as ends:
        for name in ("handoff.sock", "cache.sock"):
            stream = ends.enter_context(socket.socket(socket.AF_UNIX))  # of another kind than is connected to
            stream.bind(str(named / name))
            (named / name).chmod(0o777)
            stream.listen()
        assert "Protocol wrong type" in sockets(doctor(alice, env={"ARTIFACTCACHE_SOCKET_DIR": str(named)}))
    daemon.start()
    assert doctor(alice).levels("sockets") == ["ok"]


def test_a_daemon_that_is_stopped(
    start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> None:
    """One that takes connections and says nothing is named as such; the command ends all the same."""
    daemon = start_daemon(origin.uri)
    alice = caller_of(daemon, room)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        assert "takes connections, and says nothing within 5 s" in sockets(doctor(alice))
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_what_is_in_the_sockets_place(alice: Caller, room: Path) -> None:
    """A file for a folder, a file for a socket, no sockets in a folder, and a folder that may not be passed."""
    folder = room / "place"
    env = {"ARTIFACTCACHE_SOCKET_DIR": str(folder)}
    folder.write_text("")
    assert "is no folder" in sockets(doctor(alice, env=env))
    folder.unlink()
    folder.mkdir()
    assert f"there is no {folder}/handoff.sock" in sockets(doctor(alice, env=env))
    (folder / "handoff.sock").write_text("")
    assert "is no socket" in sockets(doctor(alice, env=env))
    (folder / "handoff.sock").unlink()
    with listening(folder / "handoff.sock"):
        assert f"there is no {folder}/cache.sock" in sockets(doctor(alice, env=env))
    if alice.user is not None:
        folder.chmod(0o700)
        assert "Permission denied" in sockets(doctor(alice, env=env))


@pytest.mark.skipif(os.geteuid() != 0, reason="several users need root")
def test_another_users_private_folder(daemon: Daemon, alice: Caller, bob: Caller, room: Path) -> None:
    """What another user has made where one's own sockets would be is not trusted, and not connected to."""
    own = room / "cacheserver"
    own.mkdir()
    os.chown(own, bob.uid, -1)
    said = sockets(doctor(alice, env=looking(alice, room)))
    assert f"{own} belongs to uid {bob.uid}, not to you" in said
    own.chmod(0o700)
    assert f"{own} belongs to uid {bob.uid}, not to you" in sockets(doctor(alice, env=looking(alice, room)))


@pytest.mark.skipif(os.geteuid() != 0, reason="several users need root")
def test_a_socket_that_may_not_be_connected_to(
    start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> None:
    """EACCES is said of the socket, with what lets somebody pass."""
    daemon = start_daemon(origin.uri)
    (daemon.socket_dir / "handoff.sock").chmod(0o600)
    said = sockets(doctor(caller_of(daemon, room)))
    assert "handoff.sock may not be connected to (EACCES)" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="several users need root")
def test_somebody_who_is_denied(
    start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, all_users: dict[str, Any], room: Path
) -> None:
    """The daemon's own words, and whose they are."""
    daemon = start_daemon(origin.uri, more=f'deny = ["{all_users["alice"].name}"]\n')
    said = sockets(doctor(caller_of(daemon, room)))
    assert "PermissionDenied: [access] deny in the daemon's configuration names you" in said


def test_a_daemon_with_half_its_sockets(alice: Caller, daemon: Daemon, room: Path) -> None:
    """Where handoff.sock answers and cache.sock does not, that is a finding too."""
    place = room / "half"
    place.mkdir()
    (place / "handoff.sock").symlink_to(daemon.socket_dir / "handoff.sock")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(place / "cache.sock"))
    (place / "cache.sock").chmod(0o777)
    told = doctor(alice, env={"ARTIFACTCACHE_SOCKET_DIR": str(place)})
    assert told.status == 1 and told.levels("sockets") == ["ok"]
    assert "DaemonUnavailable: the daemon does not answer" in told.text("daemon")
