"""How the doctor's report is shown, whatever is in it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from artifactcache import diagnosis, render
from artifactcache.findings import NOTE, OK, PROBLEM, Filesystem, Finding, Mode, Modes, Report

EVIL = "a\x1b[2Jb\nc\udcff"
FOUND = (
    Finding("disk", OK, "room"),
    Finding("clock", NOTE, "words " * 30, "do " * 40),
    Finding("sockets", PROBLEM, EVIL, f"/a/path/without/any/blank/in/it/that/is/longer/than/many/terminals/are {EVIL}"),
)
MODES = Modes(
    Filesystem("/dst", "ext4"),
    Filesystem("/store", ""),
    (
        Mode("view", True),
        Mode("reflink", False, "EXDEV: " + "apart " * 20, "move " * 20),
        Mode("hardlink", False, "no", "do"),
    ),
    None,
    "copy",
    writes_through=False,
)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("modes", [None, MODES])
def test_no_line_is_wider_than_the_terminal(width: int, modes: Modes | None) -> None:
    """Whatever is said; a narrow one has the text below its row."""
    lines = diagnosis.lines(Report(False, modes, FOUND), width, False)
    wide = [line for line in lines if len(line) > max(width, diagnosis.TEXT_WIDTH_MIN)]
    assert wide == [], wide
    assert "".join(lines).replace(" ", "").count("do") >= 40, "something was left out"


def test_nothing_of_others_reaches_a_terminal() -> None:
    """Names and messages are shown with their control characters escaped, and no traceback comes of any."""
    found = (*FOUND, Finding(f"\x1b[2J{EVIL}", EVIL, "of a daemon that is not ours"))
    modes = dataclasses.replace(MODES, store=Filesystem("/store", EVIL))
    text = "\n".join(diagnosis.lines(Report(False, modes, found), 80, True))
    assert "\x1b[2J" not in text and "\\x1b[2Jb" in text and "\udcff" not in text
    json.loads(render.document(Report(False, MODES, FOUND)))


def test_colours() -> None:
    """They are around levels and nothing else, and change no column."""
    plain = diagnosis.lines(Report(False, MODES, FOUND), 80, False)
    painted = diagnosis.lines(Report(False, MODES, FOUND), 80, True)
    assert any("\x1b[31mproblem\x1b[0m" in line for line in painted)
    for code in ("31", "32", "33", "0"):
        painted = [line.replace(f"\x1b[{code}m", "") for line in painted]
    assert painted == plain


@pytest.mark.parametrize(
    ("environ", "is_terminal", "wanted"),
    [
        ({}, True, True),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "0"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({}, False, False),
    ],
)
def test_when_colours_are_wanted(environ: dict[str, str], is_terminal: bool, wanted: bool) -> None:
    """On a terminal that has them, unless NO_COLOR says anything."""
    assert diagnosis.is_coloured(environ, is_terminal) == wanted


def test_the_last_line_counts() -> None:
    """Problems and notes; one of each is one."""
    assert diagnosis.lines(Report(False, None, FOUND), 80, False)[-1] == "1 problem, 1 note."
    assert diagnosis.lines(Report(True, None, ()), 80, False)[-1] == "0 problems, 0 notes."
