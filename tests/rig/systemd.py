"""A real systemd, as the first process of namespaces of the tests' own, with nothing to manage but our unit.

It has a /run, a /var/lib and a /var/log of its own, and shares the network and all other files with the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.rig.interpreter import Interpreter
from tests.rig.until import until
from tests.rig.users import User

UNITS = Path(__file__).resolve().parents[2] / "systemd"
UNIT = "cacheserver.service"
PROGRAM = "/lib/systemd/systemd"
SECONDS_MAX = 60.0
# What the unit is ordered by on a host, and has no part in what is tried here.
_TARGETS = ("sysinit", "basic", "shutdown", "network-online", "nss-user-lookup", "multi-user", "tests")
_BEGIN = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/lib /var/log; do mount -t tmpfs -o mode=0755 tests "$folder"; done
cp -r "$1" /run/units
export SYSTEMD_UNIT_PATH=/run/units container=tests
exec "$2" --system --unit=tests.target --log-target=null --show-status=no
"""
# The same, of a machine that may be changed: its folders are shown through others that take what is written.
_BEGIN_HOST = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/lib /var/log /opt /srv; do mount -t tmpfs -o mode=0755 tests "$folder"; done
for folder in /etc /usr/local; do
    mkdir -p "/run/written$folder" "/run/work$folder"
    mount -t overlay -o "lowerdir=$folder,upperdir=/run/written$folder,workdir=/run/work$folder" tests "$folder"
done
mount -t tmpfs -o mode=0755 tests /etc/systemd/system
cp -r "$1" /run/units
export SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units container=tests
exec "$2" --system --unit=tests.target --log-target=null --show-status=no
"""


def reason_not_to() -> str | None:
    """Why it cannot be had here, or None where it can."""
    if os.geteuid() != 0:
        return "namespaces and systemd need root"
    missing = [tool for tool in ("unshare", "nsenter", "systemctl") if shutil.which(tool) is None]
    if missing or not os.path.exists(PROGRAM):
        return f"{', '.join(missing) or PROGRAM} is not installed"
    return None


@dataclasses.dataclass(frozen=True)
class Systemd:
    """The manager. `pid` is its process, as the host sees it; `log` is what the unit's daemon writes."""

    pid: int
    log: Path

    @property
    def wrap(self) -> tuple[str, ...]:
        """A command before one that is to run where the manager runs."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--pid", "--")

    def ctl(self, *arguments: str) -> str:
        """`systemctl`, which has to go well."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.read_log()}"
        return done.stdout.strip()

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`systemctl`, whatever it says."""
        command = (*self.wrap, "systemctl", *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.ctl("show", "--value", f"--property={name}", UNIT)

    def main_pid(self) -> int:
        """The daemon's process, as the host sees it."""
        inside = self.show("MainPID")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                status = (process / "status").read_text()
                ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
                if ids[-1] == inside and os.stat(process / "ns/pid").st_ino == self.namespace("pid"):
                    return int(process.name)
        raise AssertionError(f"{UNIT} has no process {inside}\n{self.read_log()}")

    def namespace(self, kind: str) -> int:
        """Which namespace the manager is in."""
        return os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino

    def read_log(self) -> str:
        """What the daemon wrote."""
        return self.log.read_text() if self.log.exists() else ""


@contextlib.contextmanager
def managing(folder: Path, interpreter: Interpreter, user: User, config: str, more: str = "") -> Iterator[Systemd]:
    """A manager that has our unit, with a drop-in that says where Python is and who the unit's user is here.

    Args:
        config: the daemon's configuration.
        more: of the drop-in, below [Service].
    """
    units, log = folder / "units", folder / "daemon.log"
    (units / f"{UNIT}.d").mkdir(parents=True)
    shutil.copy(UNITS / UNIT, units)
    for target in _TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (folder / "config.toml").write_text(config)
    main = "import sys; from cacheserver.cli import main; sys.exit(main())"
    environment = "\n".join(f'Environment="{name}={value}"' for name, value in interpreter.env.items())
    (units / f"{UNIT}.d" / "tests.conf").write_text(
        f"[Service]\nUser={user.name}\nGroup={user.name}\n{environment}\n"
        f'ExecStart=\nExecStart={interpreter.python} -c "{main}" serve --config {folder}/config.toml\n'
        f"StandardOutput=append:{log}\nStandardError=append:{log}\n{more}"
    )
    with _first_process(_BEGIN, str(units)) as pid:
        yield _managed(pid, log)


@contextlib.contextmanager
def host(folder: Path) -> Iterator[Systemd]:
    """A manager of a host on which nothing of ours is installed yet, and where anything may be.

    What is written to /etc, /opt, /srv, /usr/local, /var/lib and /var/log is gone with it.
    """
    (folder / "units").mkdir()
    for target in _TARGETS:
        (folder / "units" / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    with _first_process(_BEGIN_HOST, str(folder / "units")) as pid:
        yield _managed(pid, Path("/nonexistent"))


@contextlib.contextmanager
def _first_process(script: str, units: str) -> Iterator[int]:
    # Its processes end with the first of them, whatever becomes of the tests (--kill-child).
    command = ("unshare", "--pid", "--mount", "--cgroup", "--fork", "--kill-child", "sh", "-c", script, "sh")
    with subprocess.Popen((*command, units, PROGRAM), start_new_session=True) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            yield int(until(lambda: children.read_text().split(), "the first process to begin")[0])
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _managed(pid: int, log: Path) -> Systemd:
    found = Systemd(pid, log)
    until(lambda: found.attempt("is-active", "tests.target").stdout.strip() == "active", "systemd", SECONDS_MAX)
    return found
