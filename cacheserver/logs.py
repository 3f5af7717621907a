"""The daemon's log: how a line looks, for whom, and from which level on there is one.

Law of this file: what is logged is said once, in words (`"evicted tree=%s freed=%d"`), and looks as readers need it.
A name that somebody has given to a model, say, begins no line of its own and tells a terminal nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

from cacheserver.attempts import moment
from cacheserver.settings import LogConfig

_DAEMON = logging.getLogger("cacheserver")
_PLACE = re.compile(r"%[#0\- +]*\d*(?:\.\d+)?[a-zA-Z%]")
_FIELD = re.compile(r"(\w+)=$")
_NAMED = re.compile(rf"(?:\w+={_PLACE.pattern}\s*)+")
# Of syslog(3), as sd-daemon(3) reads them at the beginning of a line.
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class OneLine(logging.Formatter):
    """Messages on one line each. A defect's traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with what cannot be printed as escapes."""
        return printable(super().formatMessage(record))


class ForJournal(OneLine):
    """Lines for a journal that reads them from standard error, which has their time, and gets their priority. Each line
    of a traceback, too: it is an entry of its own there. The journal's native protocol was not taken for this: what the
    journal cannot take at once would be lost, while standard error waits. The audit log, which has a file, goes there.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        priority = _PRIORITIES.get(record.levelno, _PRIORITIES[logging.INFO])
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def begin(told: LogConfig, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Writes the log of this process there from now on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(told.format, stream, environ))
    logging.basicConfig(handlers=[handler])
    become(told)


def become(told: LogConfig) -> None:
    """Tells from another level on from now on."""
    level = logging.getLevelNamesMapping()[told.level.upper()]
    _DAEMON.setLevel(level)
    logging.getLogger().setLevel(max(level, logging.INFO))  # what others debug has credentials in it: headers, say


def printable(text: str) -> str:
    """A text with what cannot be printed as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def fields(template: object, arguments: object, message: str) -> tuple[str, dict[str, Any]]:
    """What happened, and with what: `"evicted tree=%s freed=%d"` is "evicted", a tree and a number.

    Args:
        message: the whole of it, which is what happened where nothing of it has a name, or not all at its end.
    """
    if not isinstance(template, str) or not isinstance(arguments, tuple):
        return message, {}
    found: dict[str, Any] = {}
    event, rest, number = message, iter(arguments), 0
    for place in _PLACE.finditer(template):
        if place[0] == "%%":
            continue
        value, name = next(rest, None), _FIELD.search(template, 0, place.start())
        if name and not found and _NAMED.fullmatch(template, name.start()):
            event = (template[: name.start()] % arguments[:number]).rstrip(" :")
        if name:
            found[name[1]] = value if isinstance(value, int | float | None) else str(value)
        number += 1
    return event, found


def _formatter(form: str, stream: TextIO, environ: Mapping[str, str]) -> logging.Formatter:
    is_terminal = stream.isatty()
    if form == "json":
        return _structured(as_json=True, colors=False)
    if form == "console" or is_terminal:
        return _structured(as_json=False, colors=is_terminal)
    if _is_journal(stream, environ):
        return ForJournal("%(levelname)s %(name)s: %(message)s")
    return OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s")


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written there goes to systemd's journal: sd-daemon(3), systemd.exec(5). The variable alone does
    not tell: standard error may have been sent elsewhere since."""
    try:
        seen = os.fstat(stream.fileno())
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"


def _structured(*, as_json: bool, colors: bool) -> logging.Formatter:
    import structlog  # 75 ms: only where it is needed

    def taken_apart(logger: Any, method: str, told: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record: logging.LogRecord = told["_record"]
        event, named = fields(record.msg, told.pop("positional_args", ()), told["event"])
        if not as_json:
            event = printable(event)
            named = {key: printable(value) if isinstance(value, str) else value for key, value in named.items()}
        fixed = {"time": moment(record.created), "level": method, "logger": record.name, "event": event}
        left = {key: told[key] for key in ("exc_info", "stack_info") if key in told}
        return {**fixed, **{key: value for key, value in named.items() if key not in fixed}, **left}

    console = structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    end: list[Any] = [console]
    if as_json:
        end = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=json.dumps)]
    return structlog.stdlib.ProcessorFormatter(processors=[taken_apart, *end], pass_foreign_args=True)
