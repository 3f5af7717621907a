"""How `artifactcache doctor` shows what it has found: a table of modes, a table of findings, and a last line.

Law of this file: what comes from elsewhere tells a terminal nothing but its letters; colours are for terminals only,
and no line is wider than the terminal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from artifactcache import output, render
from artifactcache.client import Client
from artifactcache.commands import EXIT_ERROR
from artifactcache.findings import NOTE, OK, PROBLEM, Filesystem, Modes, Report

WIDTH_ELSEWHERE = 100  # of a file or a pipe
TEXT_WIDTH_MIN = 24
GAP = 2
_COLOURS = {OK: "32", "yes": "32", NOTE: "33", PROBLEM: "31", "no": "31"}  # of ECMA-48: green, yellow, red

Row = tuple[str, str, Sequence[str]]


def doctor(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Examine everything, and show what was found."""
    from artifactcache.doctor import examine

    report = examine(arguments.socket_dir, arguments.dst, arguments.uri, arguments.timeout)
    if arguments.json:
        print(render.document(report))
    else:
        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size((WIDTH_ELSEWHERE, 24)).columns if is_terminal else WIDTH_ELSEWHERE
        text = "\n".join(lines(report, width, is_coloured(os.environ, is_terminal))) + "\n"
        output.write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    return 0 if report.healthy else EXIT_ERROR


def is_coloured(environ: Mapping[str, str], is_terminal: bool) -> bool:
    """Tell whether colours are wanted (https://no-color.org)."""
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def lines(report: Report, width: int, is_in_colour: bool) -> list[str]:
    """Show a report."""
    shown: list[str] = []
    if report.modes is not None:
        shown += [*_modes(report.modes, width, is_in_colour), ""]
    rows: list[Row] = [
        (render.printable(each.check), render.printable(each.level), _texts(each.what, each.todo))
        for each in report.findings
    ]
    shown += _table(("CHECK", "LEVEL", "WHAT"), rows, width, is_in_colour)
    counts = [sum(each.level == level for each in report.findings) for level in (PROBLEM, NOTE)]
    problems, notes = (render.count(number, noun) for number, noun in zip(counts, (PROBLEM, NOTE), strict=True))
    return [*shown, "", f"{problems}, {notes}."]


def _modes(modes: Modes, width: int, is_in_colour: bool) -> list[str]:
    heads = [f"destination {_at(modes.destination)}", f"store {_at(modes.store)}"]
    rows: list[Row] = [(each.mode, "yes" if each.works else "no", _texts(each.why, each.todo)) for each in modes.modes]
    auto, writable = modes.auto or "nothing", modes.auto_writable or "nothing"
    last = f"auto takes {auto}; with writable=True, and for MLflow's own calls, {writable}"
    return [
        *(line for head in heads for line in _wrapped(head, width)),
        *_table(("MODE", "WORKS", "WHY NOT"), rows, width, is_in_colour),
        *_wrapped(last, width),
    ]


def _at(where: Filesystem) -> str:
    kind = render.printable(where.kind)
    return f"{render.printable(where.path)} ({kind or 'a filesystem of which nothing is told'})"


def _texts(what: str, todo: str) -> list[str]:
    return [render.printable(what), *([f"-> {render.printable(todo)}"] if todo else [])]


def _table(heads: tuple[str, str, str], rows: Sequence[Row], width: int, is_in_colour: bool) -> list[str]:
    """Three columns, of which the last is wrapped; on a narrow terminal it stands below the others."""
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in (0, 1)]
    first, second = widths[0] + GAP, widths[1] + GAP
    indent = first + second if width - first - second >= TEXT_WIDTH_MIN else GAP
    shown = [f"{heads[0]:<{first}}{heads[1]:<{second}}{heads[2]}".rstrip()[: max(width, first + second)]]
    for one, other, texts in rows:
        cells = f"{one:<{first}}{_painted(other, is_in_colour)}{' ' * (second - len(other))}"
        wrapped = [line for text in texts if text for line in _wrapped(text, max(width - indent, TEXT_WIDTH_MIN - GAP))]
        if indent == GAP or not wrapped:
            shown.append(cells.rstrip())
        else:
            shown.append(cells + wrapped.pop(0))
        shown += [" " * indent + line for line in wrapped]
    return shown


def _wrapped(text: str, width: int) -> list[str]:
    is_todo = text.startswith("-> ")
    return textwrap.wrap(text, width, subsequent_indent="   " if is_todo else "", break_on_hyphens=False) or [""]


def _painted(word: str, is_in_colour: bool) -> str:
    return f"\x1b[{_COLOURS[word]}m{word}\x1b[0m" if is_in_colour and word in _COLOURS else word
