"""The command `artifactcache` and signals: it ends at once and in silence, and takes what it had begun with it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import tomllib

from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.interpreter import CHECKOUT
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import unique
from tests.rig.until import until

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FILES_COUNT = 3000  # enough for a test to find the command at work on them


@pytest.fixture(scope="module")
def uri(mlflow_file: MlflowServer) -> str:
    """An artifact that takes some time to place."""
    return mlflow_file.artifact_uri(mlflow_file.run({f"{number % 9}/{number}": b"x" for number in range(FILES_COUNT)}))


def start(alice: Caller, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the command."""
    command = (str(alice.interpreter.python), "-m", "artifactcache", *arguments)
    return alice.popen(command, env=env, stderr=subprocess.PIPE)


def stopped_at_work(alice: Caller, uri: str) -> subprocess.Popen[bytes]:
    """A command that has made some of the tree, and stands still."""
    process = start(alice, "fetch", uri, "dst", "--mode", "copy")
    while not list(alice.cwd.glob(".artifactcache-*/tree/*/*")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert not (alice.cwd / "dst").exists(), "it was done before it could be stopped: the tree is too small"
    return process


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_while_it_places_a_tree(alice: Caller, uri: str, number: signal.Signals) -> None:
    """Nothing is left, neither the destination nor the folder beside it in which the tree was made."""
    alice.fetch(uri)
    process = stopped_at_work(alice, uri)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 128 + number
    assert os.listdir(alice.cwd) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_second_one_while_it_cleans_up(alice: Caller, uri: str, number: signal.Signals) -> None:
    """`timeout`, and a shell whose terminal is gone, send their signal twice: the clean-up is not broken off."""
    alice.fetch(uri)
    process = stopped_at_work(alice, uri)
    staged = next(alice.cwd.glob(".artifactcache-*"))
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    while (staged / "tree").exists() and process.poll() is None:  # again and again, all through the clean-up
        process.send_signal(number)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 128 + number
    assert os.listdir(alice.cwd) == []


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_while_it_waits_for_a_download(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer, number: signal.Signals
) -> None:
    """It does not wait for the origin's bytes any longer."""
    cold = f"runs:/{mlflow_proxied.run(unique())}"
    with origin.holding():
        process = start(alice, "fetch", cold, "dst")
        origin.wait_for_download()
        process.send_signal(number)
        assert process.communicate() == (b"", b"")
    assert process.returncode == 128 + number
    assert os.listdir(alice.cwd) == []


def test_a_signal_that_is_ignored(alice: Caller, uri: str) -> None:
    """`nohup artifactcache …` goes on when its terminal is gone."""
    command = 'trap "" HUP; exec "$0" -m artifactcache fetch "$1" dst --mode copy'
    process = alice.popen(("sh", "-c", command, str(alice.interpreter.python), uri), stderr=subprocess.PIPE)
    while not list(alice.cwd.glob(".artifactcache-*")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode().strip() == str(alice.cwd / "dst")


def entry_point() -> str:
    """What the installed script `artifactcache` runs."""
    scripts = tomllib.loads((CHECKOUT / "client" / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["artifactcache"].split(":")
    return f"import sys; from {module} import {function}; sys.exit({function}())"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize("module", ["argparse", "json", "dataclasses", "grpc"])
def test_while_it_is_being_imported(alice: Caller, room: Path, module: str, how: str, number: signal.Signals) -> None:
    """Whatever it is importing when the signal comes, no traceback is seen. Here that module is where it comes."""
    (room / f"{module}.py").write_text(
        f"import os\nos.kill(os.getpid(), {number:d})\nraise AssertionError('too far')\n"
    )
    run = ("-c", entry_point()) if how == "script" else ("-m", "artifactcache")
    path = os.pathsep.join((str(room), alice.env["PYTHONPATH"]))
    process = alice.popen(
        (str(alice.interpreter.python), *run, "ping"), env={"PYTHONPATH": path}, stderr=subprocess.PIPE
    )
    assert process.communicate() == (b"", b"")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_one_that_gets_lost(alice: Caller, room: Path, number: signal.Signals) -> None:
    """What the first one raises is lost where it comes in a __del__ or a callback; later ones are still heard."""
    (room / "argparse.py").write_text(
        "import os, signal\n"
        "class Doomed:\n"
        "    def __del__(self):\n"
        f"        os.kill(os.getpid(), {number:d})\n"
        "Doomed()\n"
        "print('still here', flush=True)\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    path = os.pathsep.join((str(room), alice.env["PYTHONPATH"]))
    process = alice.popen(
        (str(alice.interpreter.python), "-m", "artifactcache", "ping"),
        env={"PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"still here\n"

        def ended() -> bool:
            process.send_signal(number)
            return process.poll() is not None

        until(ended, "the command to end")
        assert process.returncode == -number
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_while_the_library_cleans_up(alice: Caller, uri: str) -> None:
    """One that comes while another failure is being cleaned up after comes when that is done."""
    code = f"""
        import artifactcache, signal, sys
        came = []
        def interrupt(event, args):
            first = not came and event == "open" and args[0] == b"{FILES_COUNT // 2}"
            if first or (came == ["open"] and event == "os.remove"):
                came.append(event)
                signal.raise_signal(signal.SIGINT)
        sys.addaudithook(interrupt)
        try:
            artifactcache.fetch(uri, "dst", mode="copy")
        except KeyboardInterrupt:
            result = [came, os.listdir(".")]
    """
    assert alice.run(code, uri=uri) == [["open", "os.remove"], []]
