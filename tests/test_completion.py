"""`--completion` in real shells, and `--help`, which needs no manual."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from artifactcache import cli as client
from artifactcache import usage
from artifactcache.shells import SCRIPTS
from cacheserver import cli as daemon_cli
from tests.rig.caller import Caller
from tests.rig.mlflow_server import MlflowServer
from tests.rig.terminal import shell

PROGRAMS: dict[str, ModuleType] = {"artifactcache": client, "cacheserver": daemon_cli}
EXAMPLES = {"artifactcache": usage.EXAMPLES, "cacheserver": daemon_cli.EXAMPLES}
# Neither a person's own settings nor the system's.
SHELLS = {
    "bash": ("bash", "--noprofile", "--norc", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "-i"),
}
LOADED = {
    "bash": 'eval "$({program} --completion bash)"',
    "zsh": "autoload -U compinit && compinit -D -u && source <({program} --completion zsh)",
    "fish": "{program} --completion fish | source",
}


def _needs(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (below,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(below.choices)


def _deeper(parser: argparse.ArgumentParser, *names: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """What has commands, the program first, and every command; each with the words that lead to it."""
    yield names, parser
    if any(isinstance(each, argparse._SubParsersAction) for each in parser._actions):
        for name, below in _commands(parser).items():
            yield from _deeper(below, *names, name)


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


@pytest.fixture
def programs(alice: Caller, room: Path) -> Iterator[Path]:
    """Both commands on the path; what a call of the first is given, other than for `ls`, is written down."""
    folder = room / "bin"
    folder.mkdir()
    typed = alice.cwd / "typed"
    for name in PROGRAMS:
        run = f'exec {alice.interpreter.python} -m {name} "$@"'
        asked = f'case " $* " in *" ls "*|*" --completion "*) {run};; esac\n'
        noted = f'printf "%s\\\\n" "$*" >{typed}.new; mv {typed}.new {typed}\n'
        (folder / name).write_text(f"#!/bin/sh\n{asked}{noted}")
        (folder / name).chmod(0o755)
    alice.env |= {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(alice.cwd)}
    yield typed


@pytest.mark.parametrize("name", SHELLS)
def test_keys_at_a_terminal(name: str, alice: Caller, programs: Path, mlflow_proxied: MlflowServer) -> None:
    """Commands, options, their values, files, folders, and artifacts that are held, by one press of the key each."""
    _needs(name)
    run = mlflow_proxied.run({"a": b"held"})
    alice.fetch(f"runs:/{run}")
    (alice.cwd / "my-artifacts.lock").touch()
    (alice.cwd / "folder-of-models").mkdir()
    wanted = {
        "artifactcache fet\t--mo\thardl\t--writ\t": "fetch --mode hardlink --writable",
        f"artifactcache explain runs:/{run[:20]}\t": f"explain runs:/{run}",
        "artifactcache sync --lock\tmy-a\tfolder-\t": "sync --locked my-artifacts.lock folder-of-models",
        "artifactcache --socket-d\tfolder-\t whoa\t": "--socket-dir folder-of-models whoami",
        "cacheserver check-c\tmy-a\t": "check-config my-artifacts.lock",
        "cacheserver sha\tswe\t--dr\t--conf\tmy-a\t": "shared sweep --dry-run --config my-artifacts.lock",
        "cacheserver simul\t--gener\tmixed --pl\tmy-art\t": "simulate --generate mixed --plot my-artifacts.lock",
    }
    with shell(SHELLS[name], alice.cwd, alice.env) as terminal:
        for program in PROGRAMS:
            terminal.type(LOADED[name].format(program=program) + "\n")
        for keys, told in wanted.items():
            terminal.type(keys + "\n")
            typed = [word.rstrip("/") for word in terminal.wait_for_file(programs).split()]  # zsh drops the slash again
            assert typed == told.split(), terminal.shown
            programs.unlink()


@pytest.mark.parametrize("name", SHELLS)
def test_the_daemon_that_is_named_is_asked(
    name: str, alice: Caller, programs: Path, mlflow_proxied: MlflowServer
) -> None:
    """What is held is that of the `--socket-dir` before the command, however it is written; and that is never run."""
    _needs(name)
    run = mlflow_proxied.run({"a": b"named"})
    alice.fetch(f"runs:/{run}")
    sockets = Path(alice.env["ARTIFACTCACHE_SOCKET_DIR"])
    (alice.cwd / "sockets").symlink_to(sockets)
    elsewhere = {"ARTIFACTCACHE_SOCKET_DIR": str(alice.cwd), "SOCKETS": str(sockets), "ABOVE": str(sockets.parent)}
    folders = [str(sockets), "sockets", "~/sockets", "$SOCKETS", f"$ABOVE/{sockets.name}"]
    options = [f"--socket-dir {each}" for each in folders]
    if name != "zsh":  # which offers nothing behind an option that is written so
        options += [f"--socket-dir={each}" for each in folders]
    with shell(SHELLS[name], alice.cwd, alice.env | elsewhere) as terminal:
        terminal.type(LOADED[name].format(program="artifactcache") + "\n")
        for option in options:
            terminal.type(f"artifactcache {option} explain runs:/{run[:20]}\t\n")
            assert terminal.wait_for_file(programs).split()[-1] == f"runs:/{run}", (option, terminal.shown)
            programs.unlink()
        terminal.type(f"artifactcache --socket-dir '$(touch pwned)' explain runs:/{run[:20]}\t\n")
        assert terminal.wait_for_file(programs).split()[-1] == f"runs:/{run[:20]}", terminal.shown
    assert not (alice.cwd / "pwned").exists()


def _bash(alice: Caller, program: str, line: str) -> set[str]:
    script = f"""
        eval "$({program} --completion bash)"
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _{program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return _lines(alice, "bash", "--noprofile", "--norc", "-c", script)


def _fish(alice: Caller, program: str, line: str) -> set[str]:
    script = f"{program} --completion fish | source; complete -C {shlex.quote(line)}"
    return {each.split("\t")[0] for each in _lines(alice, "fish", "--no-config", "-c", script)}


def _lines(alice: Caller, *command: str) -> set[str]:
    done = subprocess.run(command, cwd=alice.cwd, env=alice.env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return set(filter(None, done.stdout.splitlines()))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "ask"), [("bash", _bash), ("fish", _fish)])
def test_nothing_is_missing(
    name: str, ask: Callable[[Caller, str, str], set[str]], program: str, alice: Caller, programs: Path
) -> None:
    """Every command is offered, and every option of each, where it stands; nothing that is not there."""
    _needs(name)
    for names, parser in _deeper(PROGRAMS[program]._parser()):
        line = " ".join((program, *names, ""))
        offered = ask(alice, program, f"{line}--")
        assert offered == {each for each in _options(parser) if each.startswith("--")}, line
        if any(isinstance(each, argparse._SubParsersAction) for each in parser._actions):
            assert ask(alice, program, line) == set(_commands(parser)), line


def test_values_are_offered(alice: Caller, programs: Path) -> None:
    """After an option, after its equals sign, and where a word stands by its place, whatever options are before it."""
    (alice.cwd / "a-file").touch()
    modes = {"auto", "view", "reflink", "hardlink", "copy"}
    assert _bash(alice, "artifactcache", "artifactcache fetch --mode ") == modes
    assert _bash(alice, "artifactcache", "artifactcache fetch --mode=") == modes
    assert _bash(alice, "artifactcache", "artifactcache fetch --mode copy runs:/x a-") == {"a-file"}
    assert _bash(alice, "artifactcache", "artifactcache --socket-dir /tmp pi") == {"pin", "ping"}
    assert _bash(alice, "artifactcache", "artifactcache pin --for ") == set()
    assert _bash(alice, "artifactcache", "artifactcache fetch --artifact-path a-") == set()


@pytest.mark.parametrize(("name", "ask"), [("bash", _bash), ("fish", _fish)])
def test_a_name_is_never_code(
    name: str,
    ask: Callable[[Caller, str, str], set[str]],
    alice: Caller,
    programs: Path,
    mlflow_proxied: MlflowServer,
) -> None:
    """What other people of the host have called their artifacts is offered where it is plain, and never run."""
    _needs(name)
    run = mlflow_proxied.run(
        {"plain/a": b"1", "$(touch pwned)/a": b"2", "`touch pwned`/a": b"3", "a b;touch pwned/a": b"4"}
    )
    for path in ("plain", "$(touch pwned)", "`touch pwned`", "a b;touch pwned"):
        alice.fetch(run_id=run, artifact_path=path)
    offered = ask(alice, "artifactcache", f"artifactcache inspect runs:/{run}")
    assert {each.split("/", 1)[-1] for each in offered} == {f"{run}/plain"}
    assert not (alice.cwd / "pwned").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_has_an_example_that_can_be_typed(program: str) -> None:
    """Each is read by the parser; those of the program itself and those that the shell expands too."""
    parser = PROGRAMS[program]._parser()
    assert set(EXAMPLES[program]) == set(_commands(parser))
    for command, lines in EXAMPLES[program].items():
        assert lines
        for line in lines:
            inner = found[1] if (found := re.search(r"\$\((.*)\)", line)) else line
            first, second, *rest = shlex.split(inner)
            assert (first, second) == (program, command), line
            parser.parse_args([second, *rest])


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_manual(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the program: environment, exit status, examples. Of a command: each word and option, examples."""
    parser = PROGRAMS[program]._parser()
    told = " ".join(parser.format_help().split())
    assert "Exit status: 0 success" in told and re.search(r"[A-Z]+_[A-Z_]+ ", told) and "Examples:" in told
    for name, command in list(_deeper(parser))[1:]:
        text = command.format_help()
        assert re.search(r"^Examples?:$", text, re.M), name
        for action in command._actions:
            assert action.help, f"{name}: {action.dest}"
            shown = " ".join(str(action.help % {**vars(action), "prog": program}).split())
            assert shown in " ".join(text.split()), f"{name}: {action.dest}"
        if any(action.metavar == "SECONDS" for action in command._actions):
            assert "--timeout SECONDS" in text
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program].main(["--completion", "csh"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(shell in told for shell in SCRIPTS)


def test_completion_asks_nobody(alice: Caller, programs: Path) -> None:
    """It is there without a daemon, and is one script for each shell."""
    env = alice.env | {"ARTIFACTCACHE_SOCKET_DIR": str(alice.cwd)}
    for program in PROGRAMS:
        for name in SCRIPTS:
            command = (program, "--completion", name)
            done = subprocess.run(command, env=env, cwd=alice.cwd, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "") and program in done.stdout
