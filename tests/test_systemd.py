"""The units: under a real systemd, and as systemd itself judges them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import systemd, trees
from tests.rig.caller import Caller
from tests.rig.daemon import config_text
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.systemd import UNIT, UNITS, Systemd
from tests.rig.until import until
from tests.rig.users import User

EXPOSURE_MAX = 33  # tenths, of 100: `systemd-analyze security`; what is left would need a mount or user namespace
SOCKETS = Path("/run/cacheserver")

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def manager(
    room: Path, interpreter: Interpreter, all_users: dict[str, User], mlflow_proxied: MlflowServer
) -> Iterator[Systemd]:
    """A manager that has started the unit, whose watchdog is impatient."""
    if reason := systemd.reason_not_to():
        pytest.skip(reason)
    text = config_text(Path("/var/lib/cacheserver"), mlflow_proxied.uri)
    with systemd.managing(room, interpreter, all_users["daemon"], text, "WatchdogSec=3\nRestartSec=100ms\n") as found:
        found.ctl("start", UNIT)  # which waits until it is ready
        yield found


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"XDG_RUNTIME_DIR": "/run"}
    command = ("systemd-analyze", *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@needs_analyze
@pytest.mark.parametrize("unit", [UNIT, f"user/{UNIT}"])
def test_systemd_has_nothing_to_say_of_a_unit(unit: str) -> None:
    """No directive that it does not know, no value that it ignores."""
    done = _analyze(*(["--user"] if unit.startswith("user/") else []), "verify", UNITS / unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_the_unit_is_hardened() -> None:
    """As far as can be without a mount namespace, which would take hard links from every job."""
    done = _analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNITS / UNIT)
    assert done.returncode == 0, done.stdout


def test_the_unit_serves(
    manager: Systemd, interpreter: Interpreter, all_users: dict[str, User], mlflow_proxied: MlflowServer, room: Path
) -> None:
    """All users, hard links included; with no capability, in the mount namespace of everybody else, and it says of
    itself what it does."""
    assert manager.show("ActiveState") == "active" and manager.show("StatusText").startswith("serving http://")
    pid = manager.main_pid()
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert os.stat(f"/proc/{pid}/ns/mnt").st_ino == manager.namespace("mnt")
    assert os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino

    home = "/var/lib/alice"
    make = ("install", "-d", "-o", str(all_users["alice"].uid), home)
    subprocess.run((*manager.wrap, *make), check=True, timeout=60)
    alice = Caller(interpreter, all_users["alice"], SOCKETS, room)
    code = """
        import artifactcache
        from tests.rig.trees import read
        made = artifactcache.fetch(uri, f"{home}/dst", mode="hardlink")
        view = artifactcache.fetch(uri)
        result = [made.mode, len(read(made.path)), len(read(view.path)), list(artifactcache.Client().whoami().roles)]
    """
    uri = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    done = alice.run(code, wrap=manager.wrap, uri=uri, home=home)
    assert done == ["hardlink", len(trees.SMALL), len(trees.SMALL), []]


def test_the_unit_is_reloaded(manager: Systemd) -> None:
    """`systemctl reload` has the configuration read anew, and the process stays."""
    before = manager.main_pid()
    path = manager.log.with_name("config.toml")
    path.write_text(path.read_text().replace('capacity = "100GiB"', 'capacity = "99GiB"'))
    manager.ctl("reload", UNIT)
    until(lambda: "read anew: [store] capacity" in manager.read_log(), manager.read_log)
    until(lambda: manager.show("ActiveState") == "active", manager.read_log)
    assert manager.main_pid() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_daemon_that_does_not_live_is_started_again(manager: Systemd, number: signal.Signals) -> None:
    """Whether it has ended or does not turn any more, for which there is the watchdog."""
    before = manager.main_pid()
    os.kill(before, number)
    until(lambda: int(manager.show("NRestarts")) == 1 and manager.show("ActiveState") == "active", manager.read_log, 90)
    assert manager.main_pid() != before


def test_the_unit_is_stopped(manager: Systemd) -> None:
    """Without an error, and soon."""
    manager.ctl("stop", UNIT)
    assert (manager.show("Result"), manager.show("ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in manager.read_log()
