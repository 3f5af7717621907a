"""What a shell completes: read off an argument parser, so that no option is ever missing from it.

Law of this file: pure; the scripts themselves are in `shells`. Kinds of words are told by how the parser names them in
its usage (`DIR`, `FILE`, `URI`, …), for that is what a person goes by, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artifactcache import shells

# Of words that are not one of a few: what stands in usage, and what is offered.
KINDS = {"URI": "held", "DIR": "folder", "DST": "file", "FILE": "file", "PATH": "file"}
# These are called a path, and are not one of this host.
NOT_HERE = {"artifact_path"}


@dataclass(frozen=True)
class Word:
    """A value: of an option, or where it stands by its place."""

    name: str
    help: str
    choices: tuple[str, ...]
    kind: str
    """`held` (artifacts), `folder`, `file`, or nothing where only its user can know."""
    is_many: bool


@dataclass(frozen=True)
class Option:
    """An option, and its value where it takes one."""

    names: tuple[str, ...]
    help: str
    value: Word | None
    is_many: bool


@dataclass(frozen=True)
class Command:
    """A command, or the program itself, whose commands are below it."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[Word, ...]
    commands: tuple[Command, ...]


def command(parser: argparse.ArgumentParser, name: str, words: str = "") -> Command:
    """Read a parser."""
    options, places, below = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = [command(each, one, told.get(one, "")) for one, each in action.choices.items()]
        elif action.option_strings:
            takes = action.nargs != 0
            is_many = action.nargs == "+" or type(action).__name__ in ("_AppendAction", "_ExtendAction")
            names = tuple(action.option_strings)
            options.append(Option(names, _help(action), _word(action) if takes else None, is_many))
        else:
            places.append(_word(action))
    return Command(name, _sentence(words), tuple(options), tuple(places), tuple(below))


def _word(action: argparse.Action) -> Word:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    kind = "" if action.dest in NOT_HERE else KINDS.get(name, "")
    return Word(name, _help(action), tuple(map(str, action.choices or ())), kind, action.nargs in ("*", "+"))


def _help(action: argparse.Action) -> str:
    values = {**vars(action), "prog": ""}
    return _sentence((action.help or "") % values)


def _sentence(text: str) -> str:
    """The first sentence of a help text, for a list has no room for more."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")


class Print(argparse.Action):
    """`--completion SHELL` prints what that shell reads, and ends the program as `--version` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
        """For `add_argument`: its choices are the shells."""
        super().__init__(
            option_strings,
            dest,
            choices=tuple(shells.SCRIPTS),
            metavar="SHELL",
            default=argparse.SUPPRESS,
            help="print the completion script for a shell, and exit: " + ", ".join(shells.SCRIPTS),
        )

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Print it."""
        print(shells.SCRIPTS[values](command(parser, parser.prog)), end="")
        parser.exit()
