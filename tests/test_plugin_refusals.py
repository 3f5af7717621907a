"""The plugin with a daemon that refuses, or is broken: MLflow's own way serves, soon enough, and one line says so."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.nonsense import kinds, talking
from tests.rig.plugin import LISTEN, MlflowUser
from tests.rig.slow import slow_but
from tests.rig.users import User
from tests.rig.wire import Handoff

SECONDS_MAX = 60.0  # a few of waiting, and much of a busy machine

# Twice with a destination and once without: what was brought, what was said, and how long all of it took.
THRICE = (
    LISTEN
    + """
import time
began = time.monotonic()
paths = [mlflow.artifacts.download_artifacts(uri, dst_path=dst) for dst in ("one", "two", None)]
seconds = time.monotonic() - began
beside = [name for dst in ("one", "two") for name in os.listdir(dst)]
brought = [{n: open(os.path.join(p, n), "rb").read().hex() for n in os.listdir(p)} for p in paths]
result = [brought, said, seconds, beside]
"""
)


@pytest.fixture
def files() -> trees.Files:
    """Bytes that no other test has."""
    return trees.unique()


@pytest.fixture
def uri(mlflow_proxied: MlflowServer, files: trees.Files) -> str:
    """A folder of them."""
    return f"runs:/{mlflow_proxied.run(files)}/part"


def _assert_mlflow_served(found: Any, files: trees.Files, reason: str) -> None:
    brought, said, seconds, beside = found
    expected = {name: content.hex() for name, content in trees.below(files, "part").items()}
    assert brought == [expected] * 3
    assert len(said) == 1, said
    assert f": {reason}: " in said[0] and "ARTIFACTCACHE=off" in said[0] and "Traceback" not in said[0]
    assert seconds < SECONDS_MAX
    assert beside == ["part", "part"]


@pytest.mark.parametrize("role", ["bob", "root"])
def test_a_user_it_does_not_serve(
    interpreter: Interpreter,
    all_users: dict[str, User],
    room: Path,
    mlflow_proxied: MlflowServer,
    caller_of: CallerOf,
    distribution: Path,
    uri: str,
    files: trees.Files,
    role: str,
) -> None:
    """Alice's own daemon: bob may not even connect, and root, who may, is refused."""
    if not all_users:
        pytest.skip("needs root")
    folder = room / "own"
    folder.mkdir()
    text = config_text(folder / "store", mlflow_proxied.uri)
    with running(Daemon(interpreter, all_users["alice"], folder, folder / "store", text, is_system=False)) as daemon:
        user = MlflowUser(caller_of(daemon, room, role), distribution, mlflow_proxied.uri)
        _assert_mlflow_served(user.run(THRICE, uri=uri), files, "PermissionDenied")


def test_a_quota_that_is_used_up(
    daemon: Daemon,
    all_users: dict[str, User],
    room: Path,
    caller_of: CallerOf,
    mlflow_user: MlflowUser,
    uri: str,
    files: Any,
) -> None:
    """A user with as many sessions as one may have; once some have ended, the same process is served."""
    role = "root" if all_users else "alice"
    user = MlflowUser(caller_of(daemon, room, role), mlflow_user.distribution, mlflow_user.tracking_uri)
    served = "\nsay(result)\nhear()\nmlflow.artifacts.download_artifacts(uri, dst_path='three')\n"
    served += "import artifactcache\nresult = [said, [held.version for held in artifactcache.Client().list()]]"
    with contextlib.ExitStack() as stack:
        sessions = stack.enter_context(contextlib.ExitStack())
        while True:
            session = sessions.enter_context(Handoff(daemon.socket_dir))
            reply = session.ask(hello={"token": ""})[0]
            if reply.WhichOneof("reply") == "failure":
                break
        assert reply.failure.error == "QuotaExceeded"
        job = stack.enter_context(user.start(THRICE + served, uri=uri))
        _assert_mlflow_served(job.hear(), files, "QuotaExceeded")
        sessions.close()
        job.say("go on")
        said, held = job.result()
    assert len(said) == 1
    assert uri in held


def test_no_room(
    start_daemon: StartDaemon,
    mlflow_proxied: MlflowServer,
    room: Path,
    caller_of: CallerOf,
    distribution: Path,
    uri: str,
    files: trees.Files,
) -> None:
    """A store that is smaller than the artifact."""
    daemon = start_daemon(mlflow_proxied.uri, capacity="4KiB")
    user = MlflowUser(caller_of(daemon, room), distribution, mlflow_proxied.uri)
    _assert_mlflow_served(user.run(THRICE, uri=uri), files, "NoSpace")


REASONS = {
    "nonsense": "CacheError",
    "hangs up": "DaemonUnavailable",
    "mute": "DaemonUnavailable",
    "another answer": "CacheError",
    "an unknown failure": "CacheError",
    "nonsense to calls": "DaemonUnavailable",
    "hangs up on calls": "DaemonUnavailable",
    "mute to calls": "DaemonUnavailable",
    "nonsense for whoami": "CacheError",
    "nonsense for a result": "CacheError",
    "no result": "CacheError",
    "no method but one": "DaemonUnavailable",
    "nonsense for a manifest": "CacheError",
    "a manifest without a descriptor": "CacheError",
    "a descriptor of something else": "Corrupted",
}


@pytest.mark.parametrize("kind", slow_but(REASONS, lambda kind: not kind.startswith(("no ", "an", "hangs"))))
def test_somebody_who_talks_nonsense(
    mlflow_user: MlflowUser, room: Path, uri: str, files: trees.Files, kind: str
) -> None:
    """Whoever sits at the sockets, and whatever they say or do not say."""
    with talking(room / "s", kinds(mlflow_user.tracking_uri)[kind]) as folder:
        found = mlflow_user.run(THRICE, env={"ARTIFACTCACHE_SOCKET_DIR": str(folder)}, uri=uri)
    _assert_mlflow_served(found, files, REASONS[kind])


@pytest.mark.parametrize(
    "what",
    slow_but(
        ["nothing", "no folder", "nobody", "files", "one of two", "a long name"],
        lambda what: what in ("nothing", "nobody"),
    ),
)
def test_nobody_at_the_sockets(mlflow_user: MlflowUser, room: Path, uri: str, files: trees.Files, what: str) -> None:
    """A folder of sockets that is empty, missing, or left behind; and one whose name is too long for a socket."""
    folder = room / ("s" * 120 if what == "a long name" else "s")
    if what != "no folder":
        folder.mkdir()
    for name in ("handoff.sock", "cache.sock"):
        if what == "files":
            (folder / name).write_text("a file")
            os.chmod(folder / name, 0o666)
        if what in ("nobody", "one of two"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
                left.bind(str(folder / name))
            os.chmod(folder / name, 0o666)
    with contextlib.ExitStack() as stack:
        if what == "one of two":
            living = kinds(mlflow_user.tracking_uri)["nonsense to calls"]
            folder = stack.enter_context(talking(folder / "t", living))
            (folder / "cache.sock").unlink()
        found = mlflow_user.run(THRICE, env={"ARTIFACTCACHE_SOCKET_DIR": str(folder)}, uri=uri)
    _assert_mlflow_served(found, files, "DaemonUnavailable")


def test_a_daemon_that_comes_back(mlflow_user: MlflowUser, daemon: Daemon, origin: CountingProxy, uri: str) -> None:
    """A process that was told once that nobody answers is served again as soon as somebody does."""
    code = LISTEN + (
        "mlflow.artifacts.download_artifacts(uri, dst_path='one')\nsay(said)\nhear()\n"
        "mlflow.artifacts.download_artifacts(uri, dst_path='two')\nresult = said"
    )
    mlflow_user.run("mlflow.artifacts.download_artifacts(uri)", uri=uri)
    daemon.kill()
    try:
        with mlflow_user.start(code, uri=uri) as job:
            assert len(job.hear()) == 1
            daemon.start()
            before = origin.bytes
            job.say("go on")
            assert len(job.result()) == 1
    finally:
        if daemon.process is None:
            daemon.start()
    assert origin.bytes == before


def test_one_line_for_each_reason(mlflow_user: MlflowUser, room: Path, uri: str) -> None:
    """Two things that are wrong are two lines, however often they come."""
    code = LISTEN + (
        "for folder in folders * 3:\n"
        "    os.environ['ARTIFACTCACHE_SOCKET_DIR'] = folder\n"
        "    mlflow.artifacts.download_artifacts(uri)\n"
        "result = said"
    )
    with talking(room / "s", kinds(mlflow_user.tracking_uri)["nonsense"]) as folder:
        said = mlflow_user.run(code, folders=[str(folder), str(room)], uri=uri)
    assert sorted(line.split(": ")[1] for line in said) == ["CacheError", "DaemonUnavailable"]
