"""What the documentation says is done, and what it says comes of it comes: every example of it is run."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import cli as client_cli
from cacheserver import cli as daemon_cli
from cacheserver.config import parse
from tests.conftest import CallerOf, StartDaemon
from tests.rig import pages
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.pages import Reader
from tests.rig.process import free_port
from tools.locked import TOP

DOCS = TOP / "docs"
RUN = "0123456789abcdef0123456789abcdef"  # as the pages have it
FILES = {"data/train.csv": b"1,2\n", "data/notes.txt": b"notes"}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "LANG": "C.UTF-8"}
# Pages of which the first example is run, or none: each command line there is read by the parser.
READ = ("README.md", "client/README.md", "docs/distributions/cacheserver.md")
QUICK = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # so that MLflow's server starts twice as fast


@pytest.fixture(scope="session")
def resnet(mlflow_proxied: MlflowServer) -> str:
    """A model called resnet, whose first version is the champion, and a run with data; returns the run's ID."""
    mlflow_proxied.log_model("resnet")
    mlflow_proxied.client.set_registered_model_alias("resnet", "champion", "1")
    return mlflow_proxied.run(FILES)


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """The daemon of a page."""
    return start_daemon(proxy.uri, unreachable_after=30.0, stale_after=30.0, grace=0.0)


def _reader(caller: Caller, room: Path, proxy: CountingProxy, run: str) -> Reader:
    python = caller.interpreter.python
    commands = {"python": str(python), **{name: f"{python} -m {name}" for name in ("artifactcache", "cacheserver")}}
    caller.env |= {"PATH": pages.path_with(room / "bin", commands), "HOME": str(caller.cwd), **QUIET}
    caller.env["MLFLOW_TRACKING_URI"] = proxy.uri
    return Reader(caller.cwd, {}, here={RUN: run}, start=caller.popen)


@pytest.mark.slow
def test_the_tutorial(room: Path) -> None:
    """From nothing: its own server, its own daemon, its own model, with this environment's commands alone."""
    bin_folder = Path(sys.executable).parent
    run_time = room / "run"
    run_time.mkdir(mode=0o700)
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(room), "XDG_RUNTIME_DIR": str(run_time)}
    env |= QUIET | QUICK
    reader = Reader(
        room, env, here={"127.0.0.1:5000": f"127.0.0.1:{(port := free_port())}", "--port 5000": f"--port {port}"}
    )
    with contextlib.closing(reader):
        reader.follow(DOCS / "tutorial.md")
    assert reader.done >= 14
    assert (room / ".cache" / "cacheserver" / "index.db").exists()


def test_how_to_in_a_training_job(
    daemon: Daemon, caller_of: CallerOf, room: Path, proxy: CountingProxy, resnet: str
) -> None:
    """As an ordinary user of a host with a daemon for all; MLflow's own calls are served from the cache too."""
    reader = _reader(caller_of(daemon, room), room, proxy, resnet)
    reader.follow(DOCS / "how-to" / "training-job.md")
    assert reader.done >= 8


def test_how_to_on_a_ci_runner(
    daemon: Daemon, caller_of: CallerOf, room: Path, proxy: CountingProxy, resnet: str
) -> None:
    """With the tracking server going down in its middle."""
    with contextlib.ExitStack() as stack:
        down = stack.enter_context(contextlib.ExitStack())
        reader = _reader(caller_of(daemon, room), room, proxy, resnet)
        reader.hands = {
            "the tracking server goes down": lambda: down.enter_context(proxy.down()),
            "the tracking server is back": down.close,
        }
        reader.follow(DOCS / "how-to" / "ci-runner.md")
    assert reader.done >= 7


def test_how_to_on_a_host(daemon: Daemon, caller_of: CallerOf, room: Path, proxy: CountingProxy, resnet: str) -> None:
    """What an operator asks, of a daemon that users have fetched from; installing is tried next door."""
    caller_of(daemon, room).fetch("models:/resnet@champion")
    reader = _reader(caller_of(daemon, room, "root"), room, proxy, resnet)
    reader.hands = {words: lambda: None for words in ("the configuration is written", "somebody fetches")}
    reader.follow(DOCS / "how-to" / "administrator.md")
    assert reader.done >= 6


@pytest.mark.parametrize("name", ["README.md", "client/README.md"])
def test_the_first_example(
    name: str, daemon: Daemon, caller_of: CallerOf, room: Path, proxy: CountingProxy, resnet: str
) -> None:
    """What a newcomer sees first works as it stands there; and each configuration there can be used."""
    reader = _reader(caller_of(daemon, room), room, proxy, resnet)
    page = list(pages.blocks(TOP / name))
    first = "\n".join(next(block for block in page if block.kind == "python").lines)
    code = f"RUN = {resnet!r}\n{first}\nprint(model.path.is_dir(), (data.path / 'train.csv').is_file())\n"
    assert reader.run("python -", code) == (0, "True True\n")
    for block in page:
        if block.kind == "toml":
            parse("\n".join(block.lines), name)


@pytest.mark.parametrize("name", READ)
def test_commands_that_are_named_exist(name: str) -> None:
    """Each command line of ours in a block can be read by the parser."""
    parsers = {"artifactcache": client_cli._parser(), "cacheserver": daemon_cli._parser()}
    lines = re.findall(r"^(?: {4}|\$ )((?:artifactcache|cacheserver) .*)$", (TOP / name).read_text(), re.M)
    for line in lines:
        program, *words = shlex.split(re.split(r"\s{2,}#|\s&&|\s\|", line)[0])
        if words != ["--help"]:
            parsers[program].parse_args(words)
    assert lines


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    """A command that fails, another text, a block that is left out without a reason, a configuration that cannot be."""
    env = {"PATH": os.environ["PATH"]}
    wrong = {
        "```console\n$ false\n```\n": "ended with 1",
        "```console\n$ echo one\ntwo\n```\n": "printed",
        "```console\n$ echo one\n```\n": "printed",
        "<!-- not run: -->\n```console\n$ echo\n```\n": "no word why",
        "```python\nraise SystemExit('no')\n```\n": "no",
        "```toml\n[store]\ncolour = 1\n```\n": "colour",
    }
    for number, (text, words) in enumerate(wrong.items()):
        page = tmp_path / f"{number}.md"
        page.write_text(text)
        with pytest.raises(Exception, match=words):
            Reader(tmp_path, env).follow(page)
    page.write_text("```console\n$ export A=1\n$ echo $A; echo x; echo y\n1\n…\n$ printf 'abc\\n'\na…c\n```\n")
    Reader(tmp_path, env).follow(page)


def test_every_page_with_examples_is_run() -> None:
    """Each page that has something to do on it is followed above, whole."""
    calls = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Call)]
    followed = {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "reader.follow"}
    written = [path for top in (DOCS, TOP / "client", TOP / "examples") for path in top.rglob("*.md")]
    found = {page.relative_to(TOP) for page in (*written, *TOP.glob("*.md")) if any(pages.blocks(page))}
    as_code = {" / ".join(["DOCS", *(f"'{part}'" for part in page.parts[1:])]) for page in found - set(map(Path, READ))}
    assert as_code == followed and len(followed) == 4


@pytest.fixture(autouse=True)
def _served_by_the_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers have not switched it off, as the tests themselves have."""
    monkeypatch.delenv("ARTIFACTCACHE", raising=False)
    yield
