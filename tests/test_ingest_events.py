"""Folders that are ingested: events that are lost, watches that cannot be had, folders that come, go or are closed; and
who may read what was ingested."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import identity
from tests.rig.gauges import taken
from tests.rig.ingest import Logged, Shown, section
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import held
from tests.rig.users import User
from tests.test_ingest import Asks, asks, logged, shown, until_held

__all__ = ["asks", "logged", "shown"]  # fixtures

QUEUED_MAX = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
_TAKE_ALL = """
import ctypes, sys
libc, count = ctypes.CDLL(None), 0
while libc.inotify_init1(0) >= 0:
    count += 1
print(count, flush=True)
sys.stdin.read()
"""


def test_events_that_are_lost_hide_nothing(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """The kernel keeps so many for who does not read them, and no more: the daemon stands still meanwhile."""
    first = logged.run({"a": b"1"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    until_held(asks(daemon), daemon, f"runs:/{first}")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        noise = logged.root / logged.name
        for number in range(QUEUED_MAX // 2 + 100):
            (noise / f"x{number}").mkdir()
            (noise / f"x{number}").rmdir()
        late = logged.run({"b": b"2"})
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    until_held(asks(daemon), daemon, f"runs:/{late}")
    assert "events of the folders that are ingested were lost" in daemon.read_log()
    until_held(asks(daemon), daemon, f"runs:/{logged.run({'c': b'3'})}")


@contextlib.contextmanager
def without_inotify(interpreter: Interpreter, user: User | None) -> Iterator[None]:
    """All that a user may have of it is taken."""
    with subprocess.Popen(
        (str(interpreter.python), "-c", _TAKE_ALL),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        **identity(user),
    ) as process:
        assert process.stdout is not None and int(process.stdout.readline()) > 0
        yield
        process.kill()


def test_without_watches_it_looks(
    start_daemon: StartDaemon,
    logged: Logged,
    asks: Asks,
    all_users: dict[str, User],
    shown: Shown,
    interpreter: Interpreter,
) -> None:
    """Where the daemon's user has no watch left, that is told once, and what comes is found every so often; where it
    has some again, they are used."""
    daemon = start_daemon(logged.server.uri, more=shown.section)
    path = daemon.folder / "config.toml"
    before = path.read_text()
    with without_inotify(interpreter, all_users.get("daemon")):
        path.write_text(before + section(logged.root, every=1.0))
        os.kill(daemon.pid, signal.SIGHUP)
        until_held(asks(daemon), daemon, f"runs:/{logged.run({'a': b'1'})}")
        until_held(asks(daemon), daemon, f"runs:/{logged.run({'b': b'1'})}")
        assert shown.value("ingest_watched_folders") == 0
        assert daemon.read_log().count("can be watched") == 1
    until(lambda: shown.value("ingest_watched_folders") > 0, daemon.read_log)


def test_a_folder_that_comes_and_goes(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """Not there yet, made, removed, another one in its place, and behind a symlink: none of it stops the daemon."""
    link = logged.root.parent / "link"
    daemon = start_daemon(logged.server.uri, more=section(link))
    caller = asks(daemon)
    until(lambda: "cannot be looked at for what to ingest" in daemon.read_log(), daemon.read_log)
    first = logged.run({"a": b"1"})
    link.symlink_to(logged.root)
    until_held(caller, daemon, f"runs:/{first}")
    second = logged.run({"b": b"2"})
    until_held(caller, daemon, f"runs:/{second}")
    aside = logged.root.parent / "aside"
    logged.root.rename(aside)
    logged.root.mkdir()
    other = Logged(logged.server, logged.root)
    until_held(caller, daemon, f"runs:/{other.run({'c': b'3'})}")
    link.unlink()
    until(lambda: daemon.read_log().count("cannot be looked at for what to ingest") == 2, daemon.read_log)
    third = other.run({"d": b"4"})
    link.symlink_to(logged.root)
    until_held(caller, daemon, f"runs:/{third}")


def test_what_the_daemon_may_not_list(
    start_daemon: StartDaemon, logged: Logged, asks: Asks, all_users: dict[str, User]
) -> None:
    """One experiment that is closed to it is told of, once, and keeps the others from nothing."""
    if not all_users:
        pytest.skip("needs users")
    closed = Logged(logged.server, logged.root)
    hidden = closed.run({"a": b"1"})
    (closed.root / closed.name).chmod(0o700)
    daemon = start_daemon(logged.server.uri, more=section(logged.root, every=1.0))
    for _ in range(3):
        until_held(asks(daemon), daemon, f"runs:/{logged.run({'b': os.urandom(9)})}")
    assert daemon.read_log().count("cannot be looked at for what to ingest") == 1, daemon.read_log()
    assert f"runs:/{hidden}" not in held(asks(daemon))
    (closed.root / closed.name).chmod(0o755)
    until_held(asks(daemon), daemon, f"runs:/{hidden}")


def test_ingested_is_not_granted(
    start_daemon: StartDaemon, logged: Logged, caller_of: CallerOf, room: Path, all_users: dict[str, User], asks: Asks
) -> None:
    """Who may read what is decided at the fetch: another user's run is held, and is not given."""
    if not all_users:
        pytest.skip("needs users")
    run = logged.run({"a": b"1"}, tags={"team": "vision"})
    name = all_users["alice"].name
    grant = f'[[grant]]\nto = ["{name}"]\ntag = {{ team = "vision" }}\n'
    daemon = start_daemon(logged.server.uri, check="rules", more=section(logged.root) + grant)
    until_held(asks(daemon), daemon, f"runs:/{run}")
    alice, bob = caller_of(daemon, room), caller_of(daemon, room, "bob")
    found = alice.fetch(f"runs:/{run}")
    assert (found.hit, found.origin_bytes) == (True, 0)
    for uri in (f"runs:/{run}", f"runs:/{run}/a", (logged.folder(run)).as_uri()):
        with pytest.raises(errors.PermissionDenied):
            bob.fetch(uri)
    assert f"runs:/{run}" not in held(bob)


def test_it_opens_no_folder_to_the_daemon(
    start_daemon: StartDaemon, logged: Logged, asks: Asks, all_users: dict[str, User], caller_of: CallerOf, room: Path
) -> None:
    """A daemon for all users reads what not all can only where `local_roots` says so: to name it here is not enough."""
    if not all_users:
        pytest.skip("needs users")
    private, public = logged.run({"a": b"1"}), logged.run({"b": b"2"})
    file = logged.folder(private) / "a"
    file.chmod(0o640)
    os.chown(file, 0, all_users["daemon"].gid)
    strict = start_daemon(logged.server.uri, more=section(logged.root))
    until_held(asks(strict), strict, f"runs:/{public}")
    until(lambda: "local_roots" in strict.read_log(), strict.read_log)
    assert f"runs:/{private}" not in held(asks(strict)) and strict.read_log().count("is not ingested now") == 1
    lenient = start_daemon(logged.server.uri, more=section(logged.root), local_roots=(str(logged.root),))
    until_held(asks(lenient), lenient, f"runs:/{private}")
    assert caller_of(lenient, room).fetch(f"runs:/{private}").origin_bytes == 0


def test_a_stop_does_not_wait_for_it(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """In the middle of a burst; the next daemon brings the rest."""
    runs = [logged.run({"a": os.urandom(100)}) for _ in range(40)]
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    until(lambda: "ingested uri=" in daemon.read_log(), daemon.read_log)
    daemon.restart()
    until_held(asks(daemon), daemon, *(f"runs:/{run}" for run in runs))
    assert daemon.staging() == []


@pytest.mark.slow
def test_a_hundred_thousand_files(start_daemon: StartDaemon, mlflow_file: MlflowServer, shown: Shown) -> None:
    """Of a thousand runs, there before the daemon: all are brought, in no more memory than a thousand fetches of them
    take, and the looks that follow bring nothing again."""
    logged = Logged(mlflow_file, mlflow_file.artifacts.parent / "hundred-thousand")
    for _ in range(1000):
        logged.run({f"d{number % 4}/{number}": os.urandom(200) for number in range(100)})
    daemon = start_daemon(mlflow_file.uri, more=section(logged.root, every=5.0) + shown.section)
    began, before, most = time.monotonic(), taken(daemon.pid).rss_bytes, 0

    def are_brought() -> bool:
        nonlocal most
        most = max(most, taken(daemon.pid).rss_bytes)
        return shown.value("ingested_artifacts_total", result="brought") == 1000

    until(are_brought, lambda: f"{shown.all()}\n{daemon.read_log()[-3000:]}", 1800)
    until(lambda: shown.value("ingest_waiting") == 0, shown.all, 60)
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s, resident {before >> 20} MiB before, {most >> 20} MiB at most\n{shown.all()}")
    assert shown.value("store_blobs") == 100_000 and most - before < 120 << 20
    assert shown.value("ingested_artifacts_total", result="there") == 0
