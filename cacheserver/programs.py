"""What a process runs, and in which container or job: what /proc says of it, for the audit log.

Law of this file: a hint, no evidence. A process may call itself whatever it likes; what the kernel attests is its user.
Arguments hold passwords: of a command line only the program is taken, and of an interpreter's the script.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

READ_BYTES_MAX = 4096
WORD_LENGTH_MAX = 256

# Interpreters, by their names without a version, and their options that take no value, as letters. What follows any
# other option may be its value, or code.
_INTERPRETERS = {
    "python": "bBdEIiOPqRsSuvx",
    "pypy": "bBdEiOsSuvx",
    "sh": "abefhikmnuvxCE",
    "bash": "abefhiklmnprtuvxBCEHPT",
    "dash": "abefilmnuvxCEIV",
    "zsh": "efilnuvx",
    "perl": "wWtTsuU",
    "ruby": "wWs",
    "node": "",
    "julia": "",
    "Rscript": "",
}
_MODULE = ("python", "pypy")  # `-m NAME`

_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")  # docker, containerd, podman, CRI-O, kubepods
_JOB = re.compile(r"/(job_[0-9]{1,20})(?=/|$)")  # Slurm
_UNIT = re.compile(r"/([\w.:@\\-]{1,255}\.(?:service|scope))(?=/|$)", re.A)


class Program(NamedTuple):
    """What a process runs: the program, and the script of an interpreter; and the container, job or unit it is in.

    Each is None where that is not known: the process has gone, or /proc shows only a user's own (hidepid).
    """

    command: str | None
    container: str | None


UNKNOWN = Program(None, None)


def program(pid: int) -> Program:
    """What the process of this number runs now."""
    return Program(command(_read(pid, "cmdline")), container(_read(pid, "cgroup").decode("ascii", "replace")))


def command(arguments: bytes) -> str | None:
    """The program and its script, by /proc/PID/cmdline; None where that is empty."""
    first, *rest = [argument.decode("utf-8", "backslashreplace") for argument in arguments.split(b"\0")]
    # A process that has renamed itself may have put a whole command line there.
    words = first.split(maxsplit=1)
    if not words:
        return None
    return " ".join(word[:WORD_LENGTH_MAX] for word in (words[0], *_script(words[0], rest)))


def _script(path: str, arguments: list[str]) -> list[str]:
    name = path.rpartition("/")[2].lstrip("-")
    interpreter = re.sub(r"[0-9.]*$", "", name)
    if interpreter not in _INTERPRETERS:
        return []
    plain = re.compile(f"-[{_INTERPRETERS[interpreter]}]+") if _INTERPRETERS[interpreter] else None
    for place, argument in enumerate(arguments):
        if argument == "-m" and interpreter in _MODULE:
            return ["-m", *(module for module in arguments[place + 1 : place + 2] if "=" not in module)]
        if not argument.startswith("-"):
            return [argument] if argument and "=" not in argument else []
        if plain is None or not plain.fullmatch(argument):
            return []
    return []


def container(cgroups: str) -> str | None:
    """The ID of a container, the Slurm job, or else the systemd unit, by /proc/PID/cgroup; None where it names none."""
    paths = [line.split(":", 2)[2] for line in cgroups.splitlines() if line.count(":") >= 2]
    for named in (_CONTAINER, _JOB, _UNIT):
        for path in paths:
            if found := named.findall(path):
                return str(found[-1])  # the innermost
    return None


def _read(pid: int, name: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, READ_BYTES_MAX)
    except OSError:  # it has ended in between
        return b""
    finally:
        os.close(fd)
