"""`artifactcache top` in a real terminal: it draws, follows the window, comes back, and leaves all as it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller, identity
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import stop_group
from tests.rig.upkeep import call, new_artifact, succeed

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, caller: Caller, *arguments: str, columns: int = 100, rows: int = 40) -> None:
        self.fd, inner = pty.openpty()
        self.text = ""
        self.was = termios.tcgetattr(inner)
        self.resize(columns, rows)
        self._inner = inner
        self.process = subprocess.Popen(
            (str(caller.interpreter.python), "-m", "artifactcache", "top", *arguments),
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=caller.cwd,
            env=caller.env | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(inner, termios.TIOCSCTTY, 0),
            **identity(caller.user),
        )

    def resize(self, columns: int, rows: int) -> None:
        """The window is so large now."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self.fd, keys)

    def wait_for(self, words: str, seconds: float = 30.0) -> str:
        """Read until these words were drawn; the whole text of the last look at least, without control sequences."""
        end = time.monotonic() + seconds
        while words not in self.plain():
            assert time.monotonic() < end, f"{words!r} was not drawn: {self.plain()[-3000:]}"
            self._read(0.2)
        return self.plain()

    def forget(self) -> None:
        """What was drawn until now does not count."""
        self._read(0)
        self.text = ""

    def plain(self) -> str:
        """What was drawn, without control sequences."""
        return CONTROL.sub("", self.text)

    def end(self) -> int:
        """Wait for its end; the exit status."""
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        self._read(0)
        return self.process.wait(1)

    def is_as_it_was(self) -> bool:
        """Whether the terminal is in the state in which it was found: keys, cursor and screen."""
        back = self.text.rfind("\x1b[?25h\x1b[?1049l")
        return termios.tcgetattr(self._inner)[3] == self.was[3] and back >= 0 and "\x1b[?1049h" not in self.text[back:]

    def close(self) -> None:
        """Take it away."""
        stop_group(self.process, 1)
        for one in (self.fd, self._inner):
            os.close(one)

    def _read(self, seconds: float) -> None:
        while select.select([self.fd], [], [], seconds)[0]:
            try:
                piece = os.read(self.fd, 65536)
            except OSError:
                return
            self.text += piece.decode(errors="replace")
            seconds = 0


@contextlib.contextmanager
def terminal(caller: Caller, *arguments: str, columns: int = 100, rows: int = 40) -> Iterator[Terminal]:
    """One, as long as this lasts."""
    made = Terminal(caller, *arguments, columns=columns, rows=rows)
    try:
        yield made
    finally:
        made.close()


def test_it_is_live_until_q(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """What is fetched meanwhile appears; afterwards the terminal is as it was."""
    with terminal(alice, "--interval", "0.2") as top:
        top.wait_for("cacheserver")
        uri = new_artifact(mlflow_proxied)
        call(alice, "warm", uri)
        shown = top.wait_for(uri)
        assert "\x1b[?1049h" in top.text and "held" in shown and "(reader)" in shown
        top.press(b"x")
        top.forget()
        top.wait_for("cacheserver")  # another key ends nothing
        top.press(b"q")
        assert top.end() == 0 and top.is_as_it_was()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(alice: Caller, number: signal.Signals, status: int) -> None:
    """Also Ctrl-C, which the terminal makes one of; no traceback, and the terminal as it was."""
    with terminal(alice) as top:
        top.wait_for("held")
        if number == signal.SIGINT:
            top.press(b"\x03")
        else:
            os.kill(top.process.pid, number)
        assert top.end() == status
        assert top.is_as_it_was() and "Traceback" not in top.text and "Error" not in top.text


def test_it_follows_the_windows_size(alice: Caller) -> None:
    """Narrower and lower, at once, though the next look is far away; no line is wider than the window."""
    with terminal(alice, "--interval", "600") as top:
        top.wait_for("held")
        for columns, rows in ((38, 8), (24, 30), (150, 50)):
            top.forget()
            top.resize(columns, rows)
            shown = top.wait_for("cacheserver")
            top._read(0.5)
            lines = [line.rstrip("\r") for line in top.plain().split("\n")]
            assert max(map(len, lines)) <= columns and len(lines) <= rows, shown
        top.press(b"q")
        assert top.end() == 0


def test_it_waits_for_a_daemon_that_is_away(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """And goes on by itself when it was started again."""
    daemon = start_daemon(mlflow_proxied.uri)
    with terminal(caller_of(daemon, room), "--interval", "0.2") as top:
        top.wait_for("held")
        daemon.stop()
        top.wait_for("The daemon is away")
        top.forget()
        daemon.start()
        top.wait_for("held")
        top.press(b"q")
        assert top.end() == 0 and top.is_as_it_was()


def test_where_it_is_no_terminal_it_is_told_once(daemon: Daemon, alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """As plain text, or as a document; with --once on a terminal as well."""
    call(alice, "warm", uri := new_artifact(mlflow_proxied))
    done = alice.command("top")
    assert done.returncode == 0 and "\x1b" not in done.stdout and done.stderr == ""
    assert "store  [" in done.stdout and "held (" in done.stdout
    told = succeed(alice, "top")
    assert uri in json.dumps(told["groups"]) and told["stats"]["artifact_count"] >= 1
    with terminal(alice, "--once") as top:
        assert top.end() == 0 and "held (" in top.plain() and "\x1b[?1049h" not in top.text


def test_it_says_that_there_is_no_daemon(interpreter: object, daemon: Daemon, alice: Caller, room: Path) -> None:
    """Once, with status 1, where it is asked once."""
    done = alice.command("top", "--once", env={"ARTIFACTCACHE_SOCKET_DIR": str(room / "nowhere")})
    assert done.returncode == 1 and done.stderr.startswith("artifactcache: DaemonUnavailable:")
