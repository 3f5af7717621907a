"""Pages whose examples are run: what a reader would type, one after the other, and what the page says comes of it.

A block in ```console has commands after `$ ` (a user's) or `# ` (an administrator's), continued after `> `, and below
each what it prints; `…` stands for anything, on a line of its own for any lines. A block in ```python is a program, one
in ```toml a configuration. A comment above a block says what else it is:

    not run: WHY            told to the reader, and not done here
    on a host               done by tests/test_host_install.py
    file: NAME              written down under this name
    terminal NAME, until: COMMAND   goes on in another terminal, and is ready when the command succeeds
    stop: NAME              Ctrl-C in that terminal, before the block
    do: WORDS               something that a test does before the block, by these words
    status: NUMBER          how the block's last command ends, where that is not 0
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cacheserver.config import parse
from tests.rig.process import stop_group
from tests.rig.until import until

SECONDS_MAX = 120.0
ANY = "…"


@dataclass(frozen=True)
class Block:
    """One block of a page, and the comments above it."""

    kind: str
    lines: tuple[str, ...]
    line: int
    notes: Mapping[str, str]

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command, and the lines that it is said to print."""
        typed: list[str] = []
        told: list[str] = []
        for each in self.lines:
            if each.startswith(("$ ", "# ")) and not (typed and typed[-1].endswith("\\")):
                if typed:
                    yield "\n".join(typed), told
                typed, told = [each[2:]], []
            elif each.startswith("> ") and typed[-1].endswith("\\"):
                typed.append(each[2:])
            else:
                told.append(each)
        yield "\n".join(typed), told


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a page that a reader would do something with."""
    notes: dict[str, str] = {}
    kind, lines, begin = "", list[str](), 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if kind:
            if line == "```":
                if kind in ("console", "python", "toml"):
                    yield Block(kind, tuple(lines), begin, notes)
                kind, notes = "", {}
            else:
                lines.append(line)
        elif line.startswith("```"):
            kind, lines, begin = line[3:] or "text", [], number
        elif found := re.fullmatch(r"<!-- (on a host|[\w ]+(?=[:,]))[:,]? ?(.*) -->", line):
            notes[found[1]] = found[2]


@dataclass
class Reader:
    """Somebody who does what a page says, in a folder of their own.

    `here` has what stands on the page, and what it is here: a port, the ID of a run. `hands` do what notes of `do` say.
    `is_host` is for the blocks that are done on a host, and no others.
    """

    folder: Path
    env: dict[str, str]
    here: dict[str, str] = field(default_factory=dict)
    hands: dict[str, Callable[[], None]] = field(default_factory=dict)
    start: Callable[..., subprocess.Popen[bytes]] | None = None
    terminals: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    is_host: bool = False
    done: int = 0

    def follow(self, page: Path) -> None:
        """Do all of it; `done` is how much that was."""
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            if "do" in block.notes:
                self.hands[block.notes["do"]]()
            if "stop" in block.notes:
                self._stop(block.notes["stop"])
            if "not run" in block.notes:
                assert block.notes["not run"], f"{where}: not run, and no word why"
                continue
            if self.is_host != ("on a host" in block.notes) and "file" not in block.notes:
                continue
            self._do(block, where)
            self.done += 1

    def close(self) -> None:
        """End whatever goes on in other terminals."""
        for name in list(self.terminals):
            self._stop(name)

    def _do(self, block: Block, where: str) -> None:
        text = self._meant("\n".join(block.lines)) + "\n"
        if "file" in block.notes:
            (self.folder / block.notes["file"]).write_text(text)
        if block.kind == "toml":
            parse(text, where)
        elif block.kind == "python" and "file" not in block.notes:
            status, out = self.run("python -", text)
            assert status == 0, f"{where}: {out}"
        elif block.kind == "console":
            terminal = next((note for note in block.notes if note.startswith("terminal ")), None)
            if terminal:
                self._begin(terminal.removeprefix("terminal "), block, block.notes[terminal].removeprefix("until: "))
                return
            commands = list(block.commands())
            for number, (command, told) in enumerate(commands, 1):
                status, out = self.run(self._meant(command))
                wanted = int(block.notes.get("status", 0)) if number == len(commands) else 0
                assert status == wanted, f"{where}: {command!r} ended with {status}\n{out}"
                expected = self._meant("\n".join(told))
                assert matches(expected, out), f"{where}: {command!r} printed\n{out}\nand not\n{expected}"

    def run(self, command: str, told: str = "") -> tuple[int, str]:
        """One command in the reader's shell; what it changes there (a variable, the folder) is there for the next."""
        state = self.folder / ".shell"
        script = f'[ ! -e {state} ] || . {state}\n{command}\nstatus=$?\nexport -p >{state}\nexit "$status"'
        process = self._popen(script, subprocess.STDOUT)
        out, _ = process.communicate(told.encode(), timeout=SECONDS_MAX)
        return process.returncode, out.decode()

    def _popen(self, script: str, stderr: int) -> subprocess.Popen[bytes]:
        command = ("bash", "-c", script)
        if self.start is not None:
            return self.start(command, env=self.env, stderr=stderr)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, cwd=self.folder, env=self.env, start_new_session=True
        )

    def _begin(self, name: str, block: Block, ready: str) -> None:
        ((command, _),) = block.commands()
        log = self.folder / f".{name}.log"
        self.terminals[name] = self._popen(
            f". {self.folder}/.shell 2>/dev/null; exec {self._meant(command)} >{log} 2>&1", -1
        )
        until(lambda: self.run(self._meant(ready))[0] == 0, lambda: f"{name}: {log.read_text()}", SECONDS_MAX)

    def _stop(self, name: str) -> None:
        process = self.terminals.pop(name)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        os.kill(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        finally:
            stop_group(process)

    def _meant(self, text: str) -> str:
        for shown, meant in self.here.items():
            text = text.replace(shown, meant)
        return text


def matches(told: str, printed: str) -> bool:
    """Whether a page is right about what is printed."""
    pattern = "".join(
        r"(?:.*\n)*" if line == ANY else re.escape(line).replace(re.escape(ANY), ".*") + r"\n"
        for line in told.splitlines()
    )
    return re.fullmatch(pattern, printed) is not None


def path_with(folder: Path, commands: Mapping[str, str]) -> str:
    """A folder with these commands in it, as the first of the path."""
    folder.mkdir()
    for name, command in commands.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"
