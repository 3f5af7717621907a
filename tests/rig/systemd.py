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
    # Its processes end with the first of them, whatever becomes of the tests (--kill-child).
    command = ("unshare", "--pid", "--mount", "--cgroup", "--fork", "--kill-child", "sh", "-c", _BEGIN, "sh")
    with subprocess.Popen((*command, str(units), PROGRAM), start_new_session=True) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pid = int(until(lambda: children.read_text().split(), "the first process to begin")[0])
            found = Systemd(pid, log)
            until(lambda: found.attempt("is-active", "tests.target").stdout.strip() == "active", "systemd", SECONDS_MAX)
            yield found
        finally:
            os.killpg(process.pid, signal.SIGKILL)
