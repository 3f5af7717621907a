"""A real daemon: `cacheserver serve` in a process of its own, as its own user, with no capabilities."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.caller import identity
from tests.rig.interpreter import Interpreter
from tests.rig.process import stop_group
from tests.rig.until import until
from tests.rig.users import User
from tests.rig.wire import ping

if TYPE_CHECKING:
    from tests.rig.spawner import Forked, Helper

_MAIN = "import sys; from cacheserver.cli import main; sys.exit(main())"
START_SECONDS_MAX = 60.0


@dataclasses.dataclass
class Daemon:
    """One store and the daemon that serves it; it can be stopped and started again.

    `wrap` is a command that root runs and that then runs the daemon, such as `nsenter --mount=…`. `helper` forks it
    where that makes no difference: where it has no environment of its own that is read by what is imported.
    """

    interpreter: Interpreter
    user: User | None
    folder: Path
    root: Path
    config: str
    is_system: bool
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    open_files_max: int | None = None
    wrap: tuple[str, ...] = ()
    helper: Helper | None = None
    process: subprocess.Popen[bytes] | Forked | None = None
    log_read_chars: int = 0

    @property
    def socket_dir(self) -> Path:
        """Where cache.sock and handoff.sock are."""
        return self.folder / "sockets"

    @property
    def log(self) -> Path:
        """What the daemon wrote to standard output and standard error, over all its starts."""
        return self.folder / "daemon.log"

    @property
    def pid(self) -> int:
        """The daemon's process ID."""
        assert self.process is not None
        return self.process.pid

    def prepare(self) -> None:
        """Make the folders, which belong to the daemon's user, and the configuration."""
        self.root.mkdir(exist_ok=True)
        self.socket_dir.mkdir()
        (self.folder / "config.toml").write_text(self.config)
        if self.user is not None:
            for folder in (self.root, self.socket_dir):
                os.chown(folder, self.user.uid, self.user.gid)

    def start(self) -> None:
        """Start it, and wait until it answers on both sockets."""
        self.launch()
        until(self._answers, lambda: f"the daemon to answer\n{self.read_log()}", START_SECONDS_MAX)

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        if self.helper is not None and not (self.env or self.wrap or self.open_files_max):
            self.process = self.helper.fork("serve", self)
            return
        command: tuple[str, ...] = (
            str(self.interpreter.python),
            "-c",
            _MAIN,
            "serve",
            "--config",
            str(self.folder / "config.toml"),
        )
        who = identity(self.user)
        if self.wrap and self.user is not None:
            ids = (f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--clear-groups")
            command, who = (*self.wrap, "setpriv", *ids, "--", *command), {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment(),
                start_new_session=True,
                preexec_fn=None if self.open_files_max is None else self._limit_open_files,
                **who,
            )

    def environment(self) -> dict[str, str]:
        """What it has in its environment."""
        env = self.interpreter.env | {"ARTIFACTCACHE_SOCKET_DIR": str(self.socket_dir)}
        if self.is_system:  # what systemd sets for a unit with StateDirectory= and RuntimeDirectory=
            env |= {"STATE_DIRECTORY": str(self.root), "RUNTIME_DIRECTORY": str(self.socket_dir)}
        return env | self.env

    def _limit_open_files(self) -> None:
        assert self.open_files_max is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files_max, self.open_files_max))

    def stop(self) -> None:
        """SIGTERM; it has to end with status 0 and to have logged no traceback."""
        if self.process is None:
            return
        process, self.process = self.process, None
        status = stop_group(process, seconds=30.0)  # a disk that is busy with other tests makes it wait
        assert status == 0, f"the daemon ended with status {status}\n{self.read_log()}"
        self.assert_no_traceback()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def restart(self) -> None:
        """Stop it and start it again on the same store."""
        self.stop()
        self.start()

    def is_alive(self) -> bool:
        """Whether its process runs and answers."""
        return self.process is not None and self.process.poll() is None and ping(self.socket_dir)

    def assert_no_traceback(self) -> None:
        """Nothing that was logged since the last time is a defect of the daemon."""
        log = self.read_log()
        since, self.log_read_chars = log[self.log_read_chars :], len(log)
        assert "Traceback" not in since, since

    def read_log(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def staging(self) -> list[str]:
        """What lies in the store's staging folder: nothing, once no download is under way."""
        return [str(path.relative_to(self.root)) for path in (self.root / "staging").rglob("*")]

    def staged_sizes(self) -> list[int]:
        """How many bytes each file in the staging folder has."""
        return [path.stat().st_size for path in (self.root / "staging").rglob("*") if path.is_file()]

    def blob(self, digest: str) -> Path:
        """Where a blob lies in the store."""
        return self.root / "blobs" / digest[:2] / digest[2:]

    def quarantined(self) -> list[Path]:
        """What lies in quarantine."""
        return [path for path in (self.root / "quarantine").rglob("*") if path.is_file()]

    def _answers(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        assert status is None, f"the daemon ended with status {status}\n{self.read_log()}"
        return ping(self.socket_dir)


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Prepare and start a daemon, and stop it at the end whatever happens."""
    daemon.prepare()
    try:
        daemon.start()
        yield daemon
    except BaseException:
        with contextlib.suppress(AssertionError):
            daemon.stop()
        raise
    daemon.stop()


def config_text(
    root: Path,
    tracking_uri: str,
    *,
    capacity: str = "100GiB",
    min_free: str = "1MiB",
    unreachable_after: float = 4.0,
    relist_after: float = 3600.0,
    alias_ttl: float = 0.0,
    stale_after: float = 4.0,
    check: str = "none",
    local_roots: tuple[str, ...] = (),
    grace: float = 60.0,
    policy: str = "gdsf",
    trace: str = "",
    high: str = "95%",
    low: str = "90%",
    more: str = "",
) -> str:
    """A configuration with the keys that are fixed; `more` is TOML that follows."""
    return (
        f'[store]\nroot = "{root}"\ncapacity = "{capacity}"\nmin_free = "{min_free}"\n'
        f'[origin]\ntracking_uri = "{tracking_uri}"\nunreachable_after = {unreachable_after}\n'
        f"relist_after = {relist_after}\nalias_ttl = {alias_ttl}\nstale_after = {stale_after}\n"
        f"local_roots = {json.dumps(local_roots)}\n"
        f'[eviction]\npolicy = "{policy}"\ngrace = {grace}\ntrace = "{trace}"\n'
        f'high = "{high}"\nlow = "{low}"\n'
        f'[access]\ncheck = "{check}"\n{more}'
    )
