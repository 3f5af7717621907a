"""Daemons by the thousand: a helper, of the daemon's user, that has imported everything once and forks each of them.

A start costs a second of imports otherwise. The helper has no thread of its own when it forks, and what it has forked
is killed by the kernel when the helper ends, however that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tests.rig.caller import identity
from tests.rig.daemon import Daemon
from tests.rig.interpreter import Interpreter
from tests.rig.process import stop_group
from tests.rig.until import until
from tests.rig.users import User

_PR_SET_PDEATHSIG = 1


class Helper:
    """The helper of one user, as the tests' process sees it."""

    def __init__(self, interpreter: Interpreter, user: User | None) -> None:
        # Nothing of grpc has begun when it forks.
        self._process = subprocess.Popen(
            (str(interpreter.python), "-m", "tests.rig.spawner"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=interpreter.env | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
            start_new_session=True,
            **identity(user),
        )
        self._lock = threading.Lock()

    def fork(self, verb: str, daemon: Daemon) -> Forked:
        """Run a command of `cacheserver` with a daemon's configuration, and its environment."""
        daemon.log.touch()
        if daemon.user is not None:
            os.chown(daemon.log, daemon.user.uid, daemon.user.gid)
        config, index = daemon.folder / "config.toml", daemon.root / "index.db"
        env = daemon.environment() | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        return Forked(self, self._ask(verb=verb, config=str(config), log=str(daemon.log), index=str(index), env=env))

    def reap(self, pid: int) -> int:
        """The status of what it has forked, which has ended or is about to."""
        status: int = self._ask(wait=pid)
        return status

    def close(self) -> None:
        """End the helper, and with it all that it has started."""
        stop_group(self._process, seconds=1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, f"the helper ended with status {self._process.wait()}"
        return json.loads(answer)


class Forked:
    """A process that the helper has forked, as `subprocess.Popen` has it."""

    def __init__(self, helper: Helper, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._helper = helper
        self._fd = os.pidfd_open(pid)  # it stays a zombie until the helper takes it

    def poll(self) -> int | None:
        """Its status where it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("a daemon", timeout or 0)
            self.returncode = self._helper.reap(self.pid)
            os.close(self._fd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal where it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Spawner:
    """A helper for one daemon that is killed again and again; its folders are made, and it does not run."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._helper = Helper(daemon.interpreter, daemon.user)
        self._forked: Forked | None = None
        self.close = self._helper.close

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._forked is not None
        return self._forked.pid

    @property
    def has_daemon(self) -> bool:
        """Whether one has been started, of which nobody has taken the end."""
        return self._forked is not None

    def launch(self) -> None:
        """Start the daemon, and wait for nothing."""
        self._forked = self._helper.fork("serve", self.daemon)

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until the daemon answers, which has been started."""
        until(self._listens, lambda: f"the daemon to answer\n{self.daemon.read_log()[-4000:]}", 60.0)

    def kill(self) -> None:
        """SIGKILL to the daemon, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Its status, once it has ended."""
        assert self._forked is not None
        forked, self._forked = self._forked, None
        return forked.wait()

    def run(self, verb: str) -> tuple[int, str]:
        """Run another command of `cacheserver` with the daemon's configuration; its status and what it said."""
        before = len(self.daemon.read_log())
        status = self._helper.fork(verb, self.daemon).wait()
        return status, self.daemon.read_log()[before:]

    @contextlib.contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Checkpoint the index again and again in this block, from another process."""
        forked = self._helper.fork("checkpoint", self.daemon)
        try:
            yield
        finally:
            forked.kill()
            forked.wait()

    def _listens(self) -> bool:
        path = self.daemon.socket_dir / "cache.sock"
        assert self._forked is not None
        assert self._forked.poll() is None, f"the daemon ended\n{self.daemon.read_log()[-4000:]}"
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(str(path))
            return mode == (0o666 if self.daemon.is_system else 0o600)
        except OSError:
            return False


# -- inside the helper ------------------------------------------------------------------------------------------------


def main() -> None:
    """Does as it is told, until nobody is there to tell it."""
    from cacheserver import (
        cli,
        daemon,  # noqa: F401 - what takes so long
        lean,  # noqa: F401 - as the command does
    )

    answers = os.fdopen(os.dup(1), "w")
    parent = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            found = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            found = os.fork()
            if not found:
                status = 1
                try:
                    _become(parent, order["log"], order["env"])
                    if order["verb"] == "checkpoint":
                        _checkpoint(order["index"])
                    status = cli.main([order["verb"], "--config", order["config"]])
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _become(parent: int, log: str, env: dict[str, str]) -> None:
    """Be a process of one's own that does not outlive the helper."""
    os.environ.clear()
    os.environ.update(env)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _checkpoint(index: str) -> None:
    import sqlite3

    while True:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(index)) as db:
            while True:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    main()
