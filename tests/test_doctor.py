"""The doctor: what it says of a daemon that is well, how it shows that, and of what is in the way on this host."""

from __future__ import annotations

import contextlib
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from artifactcache import __version__
from tests.conftest import CallerOf, StartDaemon
from tests.rig import mounts
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.doctor import doctor, run
from tests.rig.interpreter import Interpreter
from tests.rig.mounts import Filesystem
from tests.rig.plugin import MlflowUser
from tests.rig.spawner import Helper


def test_all_is_well(alice: Caller, origin: CountingProxy, uri: str) -> None:
    """Status 0, a table of modes, and a finding for each check; nothing is brought, and nothing stays."""
    told = doctor(alice, "--uri", uri, env={"MLFLOW_TRACKING_URI": origin.uri})
    assert told.status == 0
    checks = ("sockets", "client", "daemon", "identity", "access", "tracking server", "clock", "disk", "limits")
    for check in checks:
        assert set(told.levels(check)) == {"ok"}, told.text(check)
    assert str(alice.env["ARTIFACTCACHE_SOCKET_DIR"]) in told.text("sockets")
    assert f"cacheserver {__version__} serves" in told.text("daemon") and "mlflow-skinny" in told.text("daemon")
    assert f"uid {alice.uid}: reader" in told.text("identity")
    assert "is not held" in told.text("artifact")
    assert os.listdir(alice.cwd) == []
    alice.fetch(uri)
    assert "is held: 4 files" in doctor(alice, "--uri", uri).text("artifact")


def test_for_people(alice: Caller) -> None:
    """Without --json two tables and a last line; the todo of a row stands below it, with an arrow. The working
    directory is the destination, or where that is not the caller's the folder for temporary files."""
    said = run(alice)
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    assert lines[0] == f"destination {alice.cwd} ({said.stdout.split('(')[1].split(')')[0]})"
    assert lines[2].split() == ["MODE", "WORKS", "WHY", "NOT"]
    assert [line.split()[0] for line in lines if line[:1].isalpha()][3:7] == ["view", "reflink", "hardlink", "copy"]
    assert any(line.startswith("CHECK ") for line in lines) and "   -> " in said.stdout
    assert "\x1b" not in said.stdout and max(map(len, lines)) <= 100
    assert lines[-1].endswith(("note.", "notes."))
    with alice_in(alice, Path("/")) as elsewhere:
        assert doctor(elsewhere).document["modes"]["destination"]["path"] in ("/tmp", str(elsewhere.env.get("TMPDIR")))


@contextlib.contextmanager
def alice_in(alice: Caller, folder: Path) -> Iterator[Caller]:
    """Alice, with another working directory."""
    yield Caller(alice.interpreter, alice.user, Path(alice.env["ARTIFACTCACHE_SOCKET_DIR"]), folder)


@pytest.mark.parametrize("columns", [60, 40, 132])
@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal(alice: Caller, columns: int, no_colour: str) -> None:
    """No line is wider than the terminal; levels are coloured there, unless NO_COLOR is set."""
    shown = on_a_terminal(alice, columns, {"NO_COLOR": no_colour, "TERM": "xterm", "COLUMNS": ""})
    assert ("\x1b[3" in shown) == (not no_colour)
    plain = [line for line in strip(shown).splitlines() if line.strip()]
    assert max(map(len, plain)) <= columns, max(plain, key=len)
    assert any("hardlink" in line for line in plain)


def strip(text: str) -> str:
    """A text without its colours."""
    for code in ("31", "32", "33", "0"):
        text = text.replace(f"\x1b[{code}m", "")
    return text


def on_a_terminal(caller: Caller, columns: int, env: dict[str, str]) -> str:
    """What the command writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    who = {} if caller.user is None else {"user": caller.user.uid, "group": caller.user.gid, "extra_groups": []}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        (str(caller.interpreter.python), "-m", "artifactcache", "doctor"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=caller.cwd,
        env=caller.env | env,
        start_new_session=True,
        **who,  # type: ignore[call-overload]
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    process.wait()
    return said.decode().replace("\r\n", "\n")


# -- versions ---------------------------------------------------------------------------------------------------------


class Older(Daemon):
    """A daemon without what the doctor asks for."""

    def launch(self) -> None:
        """Start it as `tests/rig/older.py` has it."""
        command = (
            *(str(self.interpreter.python), "-m", "tests.rig.older"),
            *("serve", "--config", str(self.folder / "config.toml")),
        )
        user = {} if self.user is None else {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment(),
                start_new_session=True,
                **user,  # type: ignore[call-overload]
            )


def test_an_older_daemon(
    daemon: Daemon,
    all_users: dict[str, Any],
    interpreter: Interpreter,
    helper: Helper,
    caller_of: CallerOf,
    room: Path,
) -> None:
    """One that has neither the call nor the probe is named as older, which is no problem; the rest is examined."""
    place = room / "older"
    place.mkdir()
    older = Older(
        interpreter,
        all_users.get("daemon"),
        place,
        place / "store",
        daemon.config.replace(str(daemon.root), str(place / "store")),
        is_system=bool(all_users),
    )
    older.prepare()
    older.start()
    try:
        told = doctor(caller_of(older, room))
        assert told.status == 0 and told.document["modes"] is None
        assert told.levels("daemon") == ["note"] and "older than this client" in told.text("daemon")
        assert told.levels("client") == ["ok"] and told.levels("mlflow")
    finally:
        older.stop()


# -- MLflow -----------------------------------------------------------------------------------------------------------


def test_the_plugin(mlflow_user: MlflowUser, origin: CountingProxy) -> None:
    """Whether MLflow's own calls are served: the plugin seen, on, and with the daemon's tracking server."""
    alice = mlflow_user.caller
    assert "is served by the plugin, for 16 schemes" in doctor(alice, env=mlflow_user.env()).text("mlflow")
    told = doctor(alice, env=mlflow_user.env(ARTIFACTCACHE="off"))
    assert told.status == 0 and "ARTIFACTCACHE=off switches the plugin off" in told.text("mlflow")
    told = doctor(alice, env=mlflow_user.env(MLFLOW_TRACKING_URI=""))
    assert told.status == 0 and f"export MLFLOW_TRACKING_URI={origin.uri}" in told.text("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        told = doctor(alice, env=mlflow_user.env(**{name: "http://u:pa55@elsewhere.example"}))
        assert told.status == 1 and f"{name} is http://elsewhere.example" in told.text("mlflow")
        assert "pa55" not in str(told.document)


# -- disk and limits --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_full(
    start_daemon: StartDaemon, small_disk: Filesystem, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> None:
    """Where less is free than has to stay free, that is a problem."""
    daemon = start_daemon(origin.uri, root=small_disk.root / "store", min_free="32MiB")
    alice = caller_of(daemon, room)
    assert set(doctor(alice).levels("disk")) == {"ok"}
    (small_disk.root / "filler").write_bytes(bytes(30 << 20))
    told = doctor(alice)
    assert told.levels("disk")[0] == "problem" and "too little is free" in told.text("disk")
    (small_disk.root / "filler").unlink()


def test_a_filesystem_that_turned_read_only(
    start_daemon: StartDaemon, small_disk: Filesystem, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> None:
    """As ext4 does by itself where it meets an error, and does not tell who asks how it is mounted."""
    daemon = start_daemon(origin.uri, root=small_disk.root / "store")
    alice = caller_of(daemon, room)
    assert set(doctor(alice).levels("disk")) == {"ok"}
    mounts.turn_read_only(small_disk)
    told = doctor(alice)
    assert told.levels("disk")[0] == "problem" and "is read-only" in told.text("disk")
    assert f"{daemon.root}" in told.text("disk") and "dmesg" in told.text("disk")


def test_few_open_files(alice: Caller) -> None:
    """A process that may have next to no files open is told so, and a daemon too."""
    told = doctor(alice, wrap=("prlimit", "--nofile=60:1000")) if alice.user else doctor(alice)
    if alice.user:
        assert "this process may have only 60 files open" in told.text("limits") and "up to 1,000" in told.text(
            "limits"
        )


def test_a_daemon_that_may_open_few_files(
    start_daemon: StartDaemon, origin: CountingProxy, caller_of: CallerOf, room: Path
) -> None:
    """It is a note, with where to raise it."""
    told = doctor(caller_of(start_daemon(origin.uri, open_files_max=512), room))
    assert "the daemon may have only 512 files open" in told.text("limits") and "LimitNOFILE=" in told.text("limits")
