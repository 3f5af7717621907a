"""The command `artifactcache doctor`, as somebody runs it, and what it says as a program reads it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.rig.caller import Caller


@dataclasses.dataclass(frozen=True)
class Told:
    """A report, and the command's exit status."""

    status: int
    document: dict[str, Any]

    @property
    def works(self) -> dict[str, bool]:
        """Each mode, and whether it works."""
        return {each["mode"]: each["works"] for each in self.document["modes"]["modes"]}

    def why(self, mode: str) -> str:
        """Why a mode does not work, and what to do, in one text."""
        (found,) = [each for each in self.document["modes"]["modes"] if each["mode"] == mode]
        assert bool(found["why"]) == bool(found["todo"]) == (not found["works"]), found
        return f"{found['why']} -> {found['todo']}"

    def of(self, check: str) -> list[dict[str, str]]:
        """The findings of one check."""
        return [each for each in self.document["findings"] if each["check"] == check]

    def levels(self, check: str) -> list[str]:
        """Their levels."""
        return [each["level"] for each in self.of(check)]

    def text(self, check: str) -> str:
        """All that is said of one check."""
        return "\n".join(f"{each['level']}: {each['what']} -> {each['todo']}" for each in self.of(check))


def doctor(
    caller: Caller, *arguments: str | Path, env: dict[str, str] | None = None, wrap: tuple[str, ...] = ()
) -> Told:
    """Run it with `--json`; it says nothing on standard error, and its status is what it has found."""
    said = run(caller, "--json", *arguments, env=env, wrap=wrap)
    assert said.stderr == "", said.stderr
    document = json.loads(said.stdout)
    assert said.returncode == (0 if document["healthy"] else 1), document
    problems = [each for each in document["findings"] if each["level"] == "problem"]
    assert document["healthy"] == (not problems)
    assert all(each["todo"] for each in problems), "a problem without a way out"
    return Told(said.returncode, document)


def run(
    caller: Caller, *arguments: str | Path, env: dict[str, str] | None = None, wrap: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run it as a person does."""
    command = (str(caller.interpreter.python), "-m", "artifactcache", "doctor", *map(str, arguments))
    process = caller.popen(command, env=env, wrap=wrap, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())
