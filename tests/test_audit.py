"""The audit log of a real daemon: who has attempted to read what, for operators."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL
from tests.rig.until import until
from tests.rig.users import User
from tests.rig.wire import Handoff, leased, stub

CLIENTS = 5
NAMES = ("user", "uid", "pid", "verb", "artifact", "version", "hit", "given", "decision")


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(SMALL)}"


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root, or the daemon's own user where the tests are not root's."""
    return caller_of(daemon, room, "root")


def audit(caller: Caller, *options: str) -> list[dict[str, Any]]:
    """What the command shows."""
    done = caller.command("audit", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def written(daemon: Daemon) -> list[dict[str, Any]]:
    """All lines of all files in the store's folder, the oldest first."""
    paths = sorted(
        daemon.root.glob("audit.jsonl*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0
    )
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def several(count: int, ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is told, once it is as many lines as this at least."""
    found = list[dict[str, Any]]()

    def are_there() -> bool:
        found[:] = ask()
        return len(found) >= count

    until(are_there, lambda: f"{count} lines, not {len(found)}")
    return found


def logged(caller: Caller, *options: str) -> dict[str, Any]:
    """The one line that these options leave, once it has been written."""
    (found,) = until(lambda: audit(caller, *options), f"a line of {options}")
    return found


def test_who_has_read_what(alice: Caller, bob: Caller, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """Each user with the process that the kernel attested, the program, and what was given."""
    uri = f"runs:/{mlflow_proxied.run(trees.unique())}"
    code = """
        import artifactcache
        artifactcache.fetch(uri, "dst", mode="copy")
        result = os.getpid()
    """
    pids = {caller.uid: caller.run(code, uri=uri) for caller in (alice, bob)}
    found = several(2, lambda: audit(operator, "--artifact", uri))
    told = [{name: each[name] for name in NAMES} for each in found]
    same = {"verb": "Fetch", "artifact": uri, "version": uri, "given": "lease", "decision": "granted"}
    assert alice.user is not None and bob.user is not None
    assert told == [
        same | {"user": alice.user.name, "uid": alice.uid, "pid": pids[alice.uid], "hit": False},
        same | {"user": bob.user.name, "uid": bob.uid, "pid": pids[bob.uid], "hit": True},
    ]
    assert {each["command"] for each in found} == {f"{alice.interpreter.python} -m tests.rig.job"}
    assert audit(operator, "--artifact", uri, "--user", bob.user.name) == found[1:]
    assert audit(operator, "--artifact", uri, "--user", str(alice.uid), "--since", "1h") == found[:1]
    assert audit(operator, "--artifact", uri, "--refused") == []


def test_only_operators_read_it(alice: Caller, bob: Caller, operator: Caller, daemon: Daemon, uri: str) -> None:
    """Neither by the command nor in the file, which is the daemon's own."""
    done = alice.command("audit", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "PermissionDenied")
    alice.fetch(uri)
    path = daemon.root / "audit.jsonl"
    until(path.exists, "the file")
    found = path.stat()
    assert daemon.user is not None
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, daemon.user.uid)
    code = "try: open(path); result = 'opened'\nexcept PermissionError: result = 'refused'"
    assert alice.run(code, path=str(path)) == "refused"


def test_what_is_refused(alice: Caller, bob: Caller, operator: Caller, uri: str) -> None:
    """Is in the log, and counted; what is not there is no refusal."""
    with pytest.raises(errors.PermissionDenied):
        alice.run("import artifactcache\nartifactcache.Client().pin(uri)", uri=uri)
    refused = logged(operator, "--refused", "--artifact", uri)
    assert (refused["verb"], refused["uid"]) == ("Pin", alice.uid)
    assert refused["reason"].startswith("PermissionDenied: Only operators may pin")
    count = operator.run("import artifactcache\nresult = artifactcache.Client().stats().refused_count")
    assert count == len(audit(operator, "--refused"))
    nowhere = f"runs:/{'0' * 32}"
    with pytest.raises(errors.NotFound):
        alice.fetch(nowhere)
    assert logged(operator, "--artifact", nowhere)["decision"] == "failed"
    assert "refused count" in operator.command("stats").stdout


def test_who_is_not_served(
    interpreter: Interpreter, all_users: dict[str, User], room: Path, mlflow_proxied: MlflowServer, caller_of: CallerOf
) -> None:
    """A daemon of alice's own: bob gets no session, and that is in her log; her log is hers to read."""
    if not all_users:
        pytest.skip("needs several users")
    place = room / "own"
    place.mkdir()
    text = config_text(place / "store", mlflow_proxied.uri, more='users = "self"\n')
    alice, bob = all_users["alice"], all_users["bob"]
    with running(Daemon(interpreter, alice, place, place / "store", text, is_system=False)) as daemon:
        os.chmod(daemon.socket_dir, 0o755)
        os.chmod(daemon.socket_dir / "handoff.sock", 0o666)
        with pytest.raises(errors.PermissionDenied):
            caller_of(daemon, room, "bob").run("import artifactcache\nartifactcache.Client().stats()")
        told = logged(caller_of(daemon, room, "alice"), "--refused", "--user", bob.name)
        assert (told["verb"], told["uid"], told["user"]) == ("Hello", bob.uid, bob.name)
        assert told["command"].endswith("-m tests.rig.job")


def test_a_name_that_is_a_program(alice: Caller, operator: Caller) -> None:
    """Line ends and escape codes in what was asked for make no line, and reach no terminal; passwords are not there."""
    mark = os.urandom(8).hex()
    evil = f"s3://me:s3cret{mark}@bucket/\x1b[2J\n{{}}\n\u202e{mark}"
    with pytest.raises(errors.InvalidRequest):
        alice.fetch(evil)
    told = logged(operator, "--artifact", f"*{mark}")
    assert told["artifact"] == f"s3://bucket/\x1b[2J\n{{}}\n\u202e{mark}"
    assert "s3cret" not in json.dumps(told)
    text = operator.command("audit", "--artifact", f"*{mark}").stdout
    assert text.count("\n") == 1 and text.strip("\n").isprintable() and mark in text


@pytest.mark.parametrize("fetches", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_fetches(
    fetches: int, start_daemon: StartDaemon, origin: CountingProxy, uri: str, room: Path, caller_of: CallerOf
) -> None:
    """Of several clients at once, while files are renamed and somebody follows: each has its line, and one only."""
    daemon = start_daemon(origin.uri, more='[audit]\nmax_bytes = "64KiB"\nfiles = 100\nwarn_downloads = 1\n')
    operator, alice = caller_of(daemon, room, "root"), caller_of(daemon, room, "alice")
    alice.fetch(uri)
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            for _ in range(count):
                client.fetch(uri).release()
        result = os.getpid()
    """
    with following(operator) as follower:
        jobs = [alice.start(code, uri=uri, count=fetches // CLIENTS) for _ in range(CLIENTS)]
        pids = {job.result() for job in jobs}
        followed = [next_line(follower) for _ in range(fetches + 1)]
        end(follower)
    found = several(fetches + 1, lambda: written(daemon))
    assert len(found) == fetches + 1
    counted = {pid: sum(each["pid"] == pid for each in found) for pid in pids}
    assert counted == dict.fromkeys(pids, fetches // CLIENTS)
    assert followed == found == audit(operator)
    assert len(list(daemon.root.glob("audit.jsonl*"))) > 10
    assert daemon.read_log().count("1 downloads were made by uid") == 1


class following:
    """`artifactcache audit --follow --json`, which does not outlive the block."""

    def __init__(self, caller: Caller, *options: str) -> None:
        command = (str(caller.interpreter.python), "-m", "artifactcache", "audit", "--follow", "--json", *options)
        self.process = caller.popen(command)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def next_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line that somebody who follows prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended with status {process.wait()}"
    found: dict[str, Any] = json.loads(line)
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, which is no failure."""
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert (process.stdout.read(), process.wait()) == (b"", 0)


def test_following(daemon: Daemon, alice: Caller, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """What comes is shown when it comes, also after logrotate has renamed the file."""
    uri = f"runs:/{mlflow_proxied.run(SMALL)}"
    with following(operator, "--artifact", uri) as follower:
        alice.fetch(uri)
        assert next_line(follower)["hit"] is False
        os.rename(daemon.root / "audit.jsonl", daemon.root / "audit.jsonl-20261126")
        alice.fetch(uri)
        assert next_line(follower)["hit"] is True
        end(follower)
    assert (daemon.root / "audit.jsonl").exists()


def test_a_follower_that_does_not_read(daemon: Daemon, alice: Caller, operator: Caller, uri: str) -> None:
    """Keeps nobody waiting, and its call ends when it goes."""
    code = """
        import artifactcache
        records = artifactcache.Client().audit(follow=True)
        next(records)
        say("there")
        hear()
    """
    alice.fetch(uri)
    with operator.start(code) as follower:
        follower.hear()
        for _ in range(3):
            assert alice.fetch(uri).hit
        follower.kill()
    until(
        lambda: operator.run("import artifactcache\nresult = artifactcache.Client().stats().session_count") == 1,
        "its session to end",
    )


def test_the_library_gives_dictionaries(alice: Caller, operator: Caller, uri: str) -> None:
    """As they are in the file; who has enough closes it, and the client can be used for other calls meanwhile."""
    alice.fetch(uri)
    logged_count = len(until(lambda: audit(operator, "--artifact", uri), "a line"))
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            found = list(client.audit(artifact=uri))
            records = client.audit(follow=True)
            first = next(records)
            client.ping()
            second = client.audit()
            assert next(second) == first
            records.close()
            result = [len(found), found[-1]["artifact"]]
    """
    assert operator.run(code, uri=uri) == [logged_count, uri]


def test_a_fork_beside_a_follower(alice: Caller, operator: Caller, uri: str) -> None:
    """Breaks it off with an error that says so; the child does not touch the parent's calls."""
    alice.fetch(uri)
    code = """
        import artifactcache
        client = artifactcache.Client()
        records = client.audit(follow=True)
        next(records)
        child = os.fork()
        if not child:
            records.close()
            os._exit(0 if client.ping().pid else 1)
        status = os.waitpid(child, 0)[1]
        try:
            for _ in records:
                pass
        except artifactcache.DaemonUnavailable as error:
            result = [status, str(error), client.ping().pid]
    """
    status, error, pid = operator.run(code)
    assert status == 0 and "forked" in error and pid


def test_a_daemon_that_is_killed(
    start_daemon: StartDaemon, origin: CountingProxy, uri: str, room: Path, caller_of: CallerOf
) -> None:
    """Leaves whole lines, but perhaps the last; the next one goes on after it."""
    daemon = start_daemon(origin.uri)
    alice = caller_of(daemon, room, "alice")
    alice.fetch(uri)
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            say("begun")
            while True:
                client.fetch(uri).release()
    """
    path = daemon.root / "audit.jsonl"
    with alice.start(code, uri=uri) as job:
        job.hear()
        until(lambda: path.read_bytes().count(b"\n") > 100, "a hundred lines")
        daemon.kill()
    *whole, last = path.read_bytes().split(b"\n")
    assert len(whole) > 100 and all(json.loads(line)["uid"] == alice.uid for line in whole)
    daemon.start()
    alice.fetch(uri)
    until(lambda: path.read_bytes().count(b"\n") > len(whole) + bool(last), "one more line")
    assert json.loads(path.read_bytes().splitlines()[-1])["uid"] == alice.uid


def test_where_systemd_says(
    start_daemon: StartDaemon,
    origin: CountingProxy,
    uri: str,
    room: Path,
    all_users: dict[str, User],
    caller_of: CallerOf,
) -> None:
    """In the first folder of LogsDirectory=, and not in the store."""
    logs = room / "logs"
    logs.mkdir()
    if all_users:
        os.chown(logs, all_users["daemon"].uid, all_users["daemon"].gid)
    daemon = start_daemon(origin.uri, env={"LOGS_DIRECTORY": f"{logs}:/nowhere"})
    caller_of(daemon, room, "alice").fetch(uri)
    until((logs / "audit.jsonl").exists, "the file")
    assert not (daemon.root / "audit.jsonl").exists()


def test_a_log_that_cannot_be_written(
    start_daemon: StartDaemon, origin: CountingProxy, uri: str, room: Path, caller_of: CallerOf
) -> None:
    """Stops no fetch. When it can be, how many are missing stands there."""
    nowhere = room / "none" / "audit.jsonl"
    daemon = start_daemon(origin.uri, more=f'[audit]\nfile = "{nowhere}"\n')
    alice = caller_of(daemon, room, "alice")
    for _ in range(2):
        alice.fetch(uri)
    until(lambda: "attempts are missing there" in daemon.read_log(), "it to be told")
    nowhere.parent.mkdir()
    if daemon.user is not None:
        os.chown(nowhere.parent, daemon.user.uid, daemon.user.gid)
    alice.fetch(uri)
    until(lambda: nowhere.exists() and nowhere.read_bytes().count(b"\n") == 2, "two lines")
    lost, told = (json.loads(line) for line in nowhere.read_bytes().splitlines())
    assert (lost["lost"], told["hit"]) == (2, True)
    assert daemon.read_log().count("attempts are missing there") == 1


def test_a_token_that_is_none(daemon: Daemon, operator: Caller, uri: str) -> None:
    """Whoever calls without a session is refused, and that is written down as somebody's whom nobody knows."""
    with stub(daemon.socket_dir) as cache, Handoff(daemon.socket_dir) as handoff:
        leased(cache, handoff.hello(), uri)
        before = len(audit(operator, "--refused"))
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            leased(cache, "no token", uri)
    found = several(before + 1, lambda: audit(operator, "--refused"))
    assert (found[-1]["uid"], found[-1]["artifact"]) == (None, uri)
