"""Callers of the cache: each call runs in a process of its own, as its own user, with no capabilities."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import textwrap
from pathlib import Path
from types import TracebackType
from typing import Any

from artifactcache import errors
from tests.rig.interpreter import Interpreter
from tests.rig.process import stop_group
from tests.rig.users import User

_FETCH = """
import artifactcache
fetched = artifactcache.fetch(uri, dst, **options)
result = {"path": os.fspath(fetched)} | {name: getattr(fetched, name) for name in fields}
"""
_FIELDS = (
    "uri",
    "version",
    "digest",
    "mode",
    "file_count",
    "size_bytes",
    "hit",
    "origin_bytes",
    "stale",
    "writable",
    "transport",
    "shared_bytes",
)


class JobFailed(Exception):
    """A snippet failed with something that is not one of artifactcache's errors."""


@dataclasses.dataclass(frozen=True)
class Handed:
    """What `fetch` gave to a caller: the fields of `Fetched`."""

    path: Path
    uri: str
    version: str
    digest: str
    mode: str
    file_count: int
    size_bytes: int
    hit: bool
    origin_bytes: int
    stale: bool
    writable: bool
    transport: str
    shared_bytes: int


class Job:
    """A snippet that runs in a caller's process."""

    def __init__(self, process: subprocess.Popen[bytes], code: str, args: dict[str, Any]) -> None:
        self.process = process
        self.say({"code": code, "args": args})

    @property
    def pid(self) -> int:
        """The caller's process ID."""
        return self.process.pid

    def say(self, value: Any) -> None:
        """Give the snippet's `hear()` something to return."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """What the snippet passed to `say(…)`."""
        answer = self._read()
        assert "said" in answer, f"the snippet ended: {answer}"
        return answer["said"]

    def result(self) -> Any:
        """What the snippet left in `result`; its own error where that is one of artifactcache's, else JobFailed."""
        answer = self._read()
        stop_group(self.process)
        if "error" not in answer:
            return answer["result"]
        if answer["error"] in errors.BY_NAME:
            raise errors.BY_NAME[answer["error"]](answer["message"])
        raise JobFailed(answer["traceback"])

    def kill(self) -> None:
        """SIGKILL: the caller has no chance to say goodbye."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_group(self.process, seconds=0.1)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise JobFailed(f"the process ended without an answer, status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Caller:
    """One user, or the user who runs the tests where `user` is None, who calls the daemon of one socket folder."""

    def __init__(self, interpreter: Interpreter, user: User | None, socket_dir: Path, cwd: Path) -> None:
        self.interpreter = interpreter
        self.user = user
        self.env = interpreter.env | {"ARTIFACTCACHE_SOCKET_DIR": str(socket_dir)}
        self.cwd = cwd

    @property
    def uid(self) -> int:
        """Who the kernel says that this caller is."""
        return os.geteuid() if self.user is None else self.user.uid

    def as_operator(self) -> Caller:
        """The same daemon's caller who may everything: the tests' own user is root, or the daemon's own."""
        return Caller(self.interpreter, None, Path(self.env["ARTIFACTCACHE_SOCKET_DIR"]), self.cwd)

    def start(
        self,
        code: str,
        *,
        umask: int = 0o022,
        env: dict[str, str] | None = None,
        wrap: tuple[str, ...] = (),
        **args: Any,
    ) -> Job:
        """Start a snippet of Python, with `args` as its variables.

        `wrap` is a command that root runs and that then runs Python as this caller, such as `unshare --mount`.
        """
        process = self.popen((str(self.interpreter.python), "-m", "tests.rig.job"), umask=umask, env=env, wrap=wrap)
        return Job(process, "import os\n" + textwrap.dedent(code), args)

    def run(self, code: str, **options: Any) -> Any:
        """Run a snippet to its end and return its `result`."""
        with self.start(code, **options) as job:
            return job.result()

    def fetch(
        self,
        uri: str | None = None,
        dst: str | Path | None = None,
        *,
        umask: int = 0o022,
        env: dict[str, str] | None = None,
        wrap: tuple[str, ...] = (),
        **options: Any,
    ) -> Handed:
        """`artifactcache.fetch` in a process of this caller."""
        target = None if dst is None else str(dst)
        values = self.run(_FETCH, umask=umask, env=env, wrap=wrap, uri=uri, dst=target, options=options, fields=_FIELDS)
        return Handed(**values | {"path": Path(values["path"])})

    def command(self, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command `artifactcache` to its end."""
        command = (str(self.interpreter.python), "-m", "artifactcache", *map(str, arguments))
        process = self.popen(command, env=env, stderr=subprocess.PIPE)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())

    def popen(
        self,
        command: tuple[str, ...],
        *,
        umask: int = 0o022,
        env: dict[str, str] | None = None,
        stderr: int | None = None,
        wrap: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Start any command as this caller."""
        who = identity(self.user)
        if wrap and self.user is not None:
            ids = (f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--clear-groups")
            command, who = (*wrap, "setpriv", *ids, "--", *command), {}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=self.cwd,
            env=self.env | (env or {}),
            umask=umask,
            start_new_session=True,
            **who,
        )


def identity(user: User | None) -> dict[str, Any]:
    """What makes subprocess.Popen start a process as this user, with no group but their own."""
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
