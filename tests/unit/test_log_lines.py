"""The daemon's log: what others have named cannot be taken for what the daemon says."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import OriginUnavailable
from cacheserver import logs
from cacheserver.logs import OneLine

EVIL = "models:/é\n<0>all is well\x1b[2J\r\u2028"


def test_a_name_begins_no_line_of_its_own() -> None:
    """Nor does it reach a terminal; letters of any script stay what they are."""
    error = OriginUnavailable("models:/é\n2026-11-26 INFO cacheserver: all is well\x1b[2J\r\u2028: no answer")
    record = logging.LogRecord("cacheserver", logging.WARNING, "", 0, "not known: %s", (error,), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line.splitlines() == [line] and "\x1b" not in line
    assert line.startswith("WARNING not known: models:/é\\n2026-11-26 INFO") and line.endswith("\\r\\u2028: no answer")


def test_a_traceback_follows_as_it_is() -> None:
    """It is for whoever mends the defect."""
    try:
        raise ValueError("a defect")
    except ValueError:
        record = logging.LogRecord("cacheserver", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    first, *following = OneLine("%(message)s").format(record).splitlines()
    assert first == "failed" and following[0].startswith("Traceback") and following[-1] == "ValueError: a defect"


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def _record(message: str, *arguments: object, level: int = logging.INFO, error: Any = None) -> logging.LogRecord:
    return logging.LogRecord("cacheserver.x", level, "", 0, message, arguments, error)


def _defect() -> Any:
    try:
        raise ValueError("a defect\nof two lines")
    except ValueError:
        return sys.exc_info()


def test_json_is_one_object_a_line() -> None:
    """With time, level, logger, what happened, and what of it has a name as what it is; a traceback is a text in it."""
    form = logs._formatter("json", io.StringIO(), {})
    line = form.format(_record("evicted tree=%s held_as=%a freed=%d reason=%r", "abc", EVIL, 7, "old"))
    assert line.isascii() and line.isprintable()
    told = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    fixed = {"level": "info", "logger": "cacheserver.x", "event": "evicted"}
    assert told == fixed | {"tree": "abc", "held_as": EVIL, "freed": 7, "reason": "old"}
    line = form.format(_record("%s failed", EVIL, level=logging.ERROR, error=_defect()))
    told = json.loads(line)
    assert line.isprintable() and told["event"] == f"{EVIL} failed" and told["level"] == "error"
    assert "ValueError: a defect" in told["exception"]


@pytest.mark.parametrize(
    ("message", "arguments", "event", "named"),
    [
        ("stopping", (), "stopping", {}),
        ("%d of %s", (1, "x"), "1 of x", {}),
        (
            "%s did: blobs=%d bytes=%s s=%.1f",
            ("it", 1, "2 B", 0.55),
            "it did",
            {"blobs": 1, "bytes": "2 B", "s": 0.55},
        ),
        ("at 100%% of n=%d", (5,), "at 100% of", {"n": 5}),
        ("n=%d and %s", (5, "more"), "n=5 and more", {"n": 5}),
        ("n=%s", (None,), "", {"n": None}),
    ],
)
def test_what_has_a_name_is_a_field(
    message: str, arguments: tuple[object, ...], event: str, named: dict[str, object]
) -> None:
    """What stands before the first of them is what happened."""
    assert logs.fields(message, arguments, message % arguments) == (event, named)


@pytest.mark.parametrize("form", ["auto", "console"])
def test_a_terminal_gets_lines_for_people(form: str) -> None:
    """With colours, and with nothing in them that somebody else has put there."""
    text = logs._formatter(form, Terminal(), {}).format(_record("%s: evicted held_as=%a freed=%d", EVIL, EVIL, 7))
    assert "\x1b[" in text and "\x1b[2J" not in text and "\n" not in text and "\r" not in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "evicted" in plain and "freed=7" in plain
    assert "\x1b" not in logs._formatter("console", io.StringIO(), {}).format(_record("x"))


def test_a_journal_gets_priorities(tmp_path: Path) -> None:
    """On each line, also of a traceback, and only where standard error is what the journal reads."""
    with open(tmp_path / "stream", "w") as stream:
        seen = os.fstat(stream.fileno())
        form = logs._formatter("auto", stream, {"JOURNAL_STREAM": f"{seen.st_dev}:{seen.st_ino}"})
        elsewhere = logs._formatter("auto", stream, {"JOURNAL_STREAM": f"{seen.st_dev}:{seen.st_ino + 1}"})
    line = form.format(_record("not known: %s", EVIL, level=logging.WARNING))
    assert line == "<4>WARNING cacheserver.x: not known: models:/é\\n<0>all is well\\x1b[2J\\r\\u2028"
    lines = form.format(_record("failed", level=logging.ERROR, error=_defect())).split("\n")
    assert len(lines) > 3 and all(one.startswith("<3>") for one in lines)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO cacheserver\.x: x$", elsewhere.format(_record("x")))
