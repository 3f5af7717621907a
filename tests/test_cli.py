"""The command `artifactcache`: what scripts get from it, and its exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

ODD: trees.Files = {
    "a b": b"1",
    "back\\slash": b"2",
    "new\nline": b"3",
    "-dash": b"4",
    "caf\udce9": b"5",
    "d/empty": b"",
}


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(SMALL)}"


def succeed(alice: Caller, *arguments: str | Path) -> Any:
    """Run a command with --json; its one document."""
    done = alice.command(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_fetch(alice: Caller, uri: str) -> None:
    """Without a destination it prints a view's path and nothing else; with one it places the tree there."""
    done = alice.command("fetch", uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert trees.read(Path(done.stdout.removesuffix("\n"))) == SMALL
    done = alice.command("fetch", uri, "relative/dst")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == alice.cwd / "relative" / "dst"
    assert trees.read(alice.cwd / "relative" / "dst") == SMALL


def test_fetch_as_json(alice: Caller, uri: str) -> None:
    """One document with every field of `Fetched`."""
    found = succeed(alice, "fetch", uri, alice.cwd / "dst", "--mode", "copy")
    assert found["path"] == str(alice.cwd / "dst")
    assert (found["mode"], found["file_count"], found["size_bytes"]) == ("copy", trees.count(SMALL), trees.size(SMALL))
    assert {"uri", "version", "digest", "hit", "origin_bytes", "stale", "writable"} <= found.keys()


def test_fetch_options(alice: Caller, uri: str) -> None:
    """The options are those of the library."""
    run_id = uri.removeprefix("runs:/")
    succeed(alice, "fetch", "--run-id", run_id, "--artifact-path", "data", alice.cwd / "data")
    assert trees.read(alice.cwd / "data") == trees.below(SMALL, "data")
    succeed(alice, "fetch", uri, alice.cwd / "part", "--include", "data/**", "--exclude", "**/*.bin")
    assert list(trees.read(alice.cwd / "part")) == ["data/deep/er/one.txt"]
    succeed(alice, "fetch", uri, alice.cwd / "part", "--exists", "replace")
    assert trees.read(alice.cwd / "part") == SMALL


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("fetch", f"runs:/{'0' * 32}"), "NotFound"),
        (("fetch", "nonsense"), "InvalidRequest"),
        (("warm", f"runs:/{'0' * 32}"), "NotFound"),
        (("inspect", f"runs:/{'0' * 32}"), "NotFound"),
        (("verify", f"runs:/{'0' * 32}"), "NotFound"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_errors(alice: Caller, arguments: tuple[str, ...], error: str) -> None:
    """The status is not 0; the error's class is in the message, and in the document with --json."""
    done = alice.command(*arguments)
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    done = alice.command(*arguments, "--json")
    assert done.returncode not in (0, None)
    assert json.loads(done.stdout)["error"] == error


@pytest.mark.parametrize(
    "command", ["fetch", "warm", "lock", "ls", "inspect", "verify", "stats", "quota", "whoami", "ping"]
)
def test_no_daemon(alice: Caller, room: Path, command: str) -> None:
    """Without a daemon every command fails and says so."""
    wanted = ["runs:/" + "0" * 32] if command in ("fetch", "warm", "lock", "inspect") else []
    done = alice.command(command, *wanted, "--json", env={"ARTIFACTCACHE_SOCKET_DIR": str(room)})
    assert done.returncode not in (0, None)
    assert json.loads(done.stdout)["error"] == "DaemonUnavailable"


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("fetch",), ("fetch", "runs:/x", "dst", "--mode", "teleport"), ("ping", "extra")]
)
def test_a_wrong_command_line(alice: Caller, arguments: tuple[str, ...]) -> None:
    """It ends with a status that is not 0 and a line that says what is wrong."""
    done = alice.command(*arguments)
    assert done.returncode not in (0, None)
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_without_standard_error(alice: Caller, room: Path) -> None:
    """Where it is closed an error goes nowhere, and least of all to standard output, which a script reads."""
    command = 'exec "$0" -m artifactcache --socket-dir "$1" fetch runs:/x 2>&-'
    process = alice.popen(("sh", "-c", command, str(alice.interpreter.python), str(room)))
    out, _ = process.communicate()
    assert (process.returncode, out) == (1, b"")


def test_destination_exists(alice: Caller, uri: str) -> None:
    """A destination that is there already is left alone."""
    (alice.cwd / "dst").mkdir()
    done = alice.command("fetch", uri, "dst", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "DestinationExists"
    assert os.listdir(alice.cwd / "dst") == []


def test_warm_then_hit(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """`warm` makes several artifacts present; fetching them afterwards is a hit."""
    contents = [trees.unique(), trees.unique()]
    uris = [f"runs:/{mlflow_proxied.run(files)}" for files in contents]
    warmed = succeed(alice, "warm", *uris)
    assert [each["origin_bytes"] for each in warmed] == [trees.size(files) for files in contents]
    assert all(succeed(alice, "fetch", uri)["hit"] for uri in uris)
    assert alice.command("warm", *uris).returncode == 0


def test_ls(alice: Caller, uri: str) -> None:
    """Every artifact that is held is listed, sorted."""
    version = succeed(alice, "fetch", uri)["version"]
    held = succeed(alice, "ls")
    versions = [each["version"] for each in held]
    assert version in versions
    assert versions == sorted(versions)
    assert version in alice.command("ls").stdout


def test_inspect(alice: Caller, uri: str) -> None:
    """The files of an artifact with their sizes."""
    digest = succeed(alice, "fetch", uri)["digest"]
    found = succeed(alice, "inspect", uri)
    assert found["artifact"]["digest"] == digest
    assert {file["path"]: file["size_bytes"] for file in found["files"]} == {k: len(v) for k, v in SMALL.items()}
    assert "MLmodel" in alice.command("inspect", uri).stdout


def b3sum_check(folder: Path, lines: str) -> int:
    """The exit status of b3sum."""
    command = ("b3sum", "--check", "--quiet")
    return subprocess.run(command, cwd=folder, input=lines, text=True, capture_output=True, check=False).returncode


@pytest.mark.skipif(shutil.which("b3sum") is None, reason="b3sum is not installed")
def test_inspect_for_b3sum(alice: Caller, mlflow_file: MlflowServer, uri: str) -> None:
    """`b3sum --check` accepts what `inspect --format b3sum` prints, in the tree that was fetched, and finds a change.

    Names with spaces, backslashes and newlines are among them; one that is not UTF-8 b3sum itself cannot check.
    """
    odd = mlflow_file.artifact_uri(mlflow_file.run(ODD))
    for number, each in enumerate((uri, odd)):
        dst = alice.cwd / str(number)
        alice.fetch(each, dst, mode="copy")
        lines = alice.command("inspect", each, "--format", "b3sum").stdout
        assert b3sum_check(dst, lines) == 0
        with next(path for path in dst.rglob("*") if path.is_file() and path.stat().st_size).open("ab") as file:
            file.write(b"changed")
        assert b3sum_check(dst, lines) != 0


def test_verify(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, proxy: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """Status 0 where all bytes are right, 1 where not, with the digests of what is wrong until it was fetched again."""
    daemon = start_daemon(proxy.uri)
    alice = caller_of(daemon, room)
    wanted = f"runs:/{mlflow_proxied.run({'a': os.urandom(1000)})}"
    alice.fetch(wanted)
    found = succeed(alice, "verify", wanted)
    assert (found["blobs_checked"], found["bytes_checked"], found["corrupted"]) == (1, 1000, [])
    digest = succeed(alice, "inspect", wanted)["files"][0]["digest"]
    if daemon.user is None:
        daemon.blob(digest).chmod(0o644)
    with proxy.down():  # whoever is first to find it
        daemon.blob(digest).write_bytes(os.urandom(1000))
        done = alice.command("verify", wanted, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["corrupted"] == [digest]
    assert len(alice.fetch(wanted).path.joinpath("a").read_bytes()) == 1000
    assert alice.as_operator().command("verify").returncode == 0


def test_stats_whoami_ping(alice: Caller, daemon: Daemon, uri: str) -> None:
    """What they say is true."""
    alice.fetch(uri)
    stats = succeed(alice, "stats")
    blobs = [path for path in (daemon.root / "blobs").rglob("*") if path.is_file()]
    assert stats["blob_count"] == len(blobs)
    assert stats["blob_bytes"] == sum(path.stat().st_size for path in blobs)
    assert stats["store_root"] == str(daemon.root)
    assert stats["fetch_count"] >= stats["hit_count"] >= 1
    assert succeed(alice, "whoami")["uid"] == alice.uid
    assert succeed(alice, "ping")["pid"] == daemon.pid
    for command in ("stats", "whoami", "ping"):
        assert alice.command(command).returncode == 0


def test_check_config(alice: Caller, daemon: Daemon, room: Path) -> None:
    """`cacheserver check-config` accepts a good file, and says what is wrong with a bad one."""
    main = "import sys; from cacheserver.cli import main; sys.exit(main())"

    def check(path: Path) -> tuple[int, str]:
        command = (str(alice.interpreter.python), "-c", main, "check-config", str(path))
        process = alice.popen(command, stderr=subprocess.STDOUT)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out.decode()

    assert check(daemon.folder / "config.toml")[0] == 0
    for text, word in (
        ('[store]\nroof = "/x"\n', "roof"),
        ('[store]\ncapacity = "many"\n', "capacity"),
        ("[nonsense]\n", "nonsense"),
        ("not toml", ""),
        ('[access]\ncheck = "perhaps"\n', "check"),
        ("[origin]\nunreachable_after = -1\n", "unreachable_after"),
    ):
        (room / "bad.toml").write_text(text)
        status, said = check(room / "bad.toml")
        assert status != 0, text
        assert word in said
        assert "Traceback" not in said
    assert check(room / "missing.toml")[0] != 0
