"""The client's end of the audit log: what is asked, what is shown, and what can not reach a terminal."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from artifactcache import Client, cli, errors
from artifactcache.auditing import shown
from artifactcache.deadline import Deadline
from artifactcache.v1 import cache_pb2 as pb
from tests.unit.scripted import Script, scripted

RECORD: dict[str, Any] = {
    "time": "2026-11-26T15:44:00.000Z",
    "user": "alice",
    "uid": 1000,
    "groups": ["alice"],
    "pid": 7,
    "command": "python train.py",
    "container": "ab" * 32,
    "verb": "Fetch",
    "artifact": "models:/resnet/3",
    "version": "models:/resnet/3",
    "tree": "cd" * 32,
    "bytes": 2048,
    "hit": False,
    "origin_bytes": 1024,
    "transport": "http",
    "given": "view",
    "decision": "granted",
    "reason": "check = none",
    "seconds": 0.5,
}


class Auditor(Script):
    """A daemon with some lines, and what happens after them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = [RECORD]
        self.after: Callable[[], None] = lambda: None

    def each(self, method: str, message: Any, deadline: Deadline) -> Iterator[Any]:
        """As `Connection.each`."""
        self.asked.append((method, message))
        yield pb.AuditEvent()
        for record in self.records:
            yield pb.AuditEvent(lines=[json.dumps(record).encode()])
        self.after()


@pytest.fixture
def auditor(monkeypatch: pytest.MonkeyPatch) -> Auditor:
    """What every client of the test asks."""
    auditor = Auditor()
    monkeypatch.setattr("tests.unit.scripted.Script", lambda: auditor)
    assert scripted(monkeypatch) is auditor
    return auditor


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Runs the command; its status and what it printed."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", printed)
    status = cli.main(list(arguments))
    printed.seek(0)
    return status, printed.read()


def test_what_is_asked(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option is a field; a duration is a time before now."""
    assert run(monkeypatch, "audit")[0] == 0
    assert auditor.asked[-1] == ("Audit", pb.AuditRequest())
    before = time.time() - 3600
    run(monkeypatch, "audit", "--user", "alice", "--artifact", "models:/*", "--refused", "--since", "1h", "--follow")
    request = auditor.asked[-1][1]
    assert before <= request.since <= time.time() - 3600
    request.since = 0
    expected = pb.AuditRequest(user="alice", artifact="models:/*", refused_only=True, follow=True)
    assert request == expected


def test_a_line_for_people(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """When, what came of it, what, who, with what, and why."""
    assert run(monkeypatch, "audit") == (
        0,
        "2026-11-26T15:44:00.000Z  granted  Fetch  models:/resnet/3  alice  python train.py (pid 7 in abababababab)"
        "  check = none, 2.0 KiB of which 1.0 KiB downloaded\n",
    )
    assert shown(RECORD | {"hit": True}).endswith("check = none, 2.0 KiB held")
    unknown = {"user": None, "uid": None, "pid": None, "command": None, "container": None, "artifact": "", "hit": None}
    refused = {"decision": "refused", "reason": "Unauthenticated: no", "verb": "Hello"}
    assert shown(RECORD | unknown | refused) == (
        "2026-11-26T15:44:00.000Z  refused  Hello  -  somebody without a session  unknown program (pid None)"
        "  Unauthenticated: no"
    )
    lost = {"time": "2026-11-26T15:44:00.000Z", "lost": 3, "reason": "3 attempts are missing here: full"}
    assert shown(lost) == "2026-11-26T15:44:00.000Z  3 attempts are missing here: full"


def test_nothing_of_a_name_reaches_the_terminal(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither escape codes nor line ends nor what turns text around, in whatever field, with --json or without."""
    evil = "x\n2026 granted\x1b[2J\x07\x7f\x9b1m\u202e\u2028y"
    auditor.records = [RECORD | dict.fromkeys(("user", "command", "container", "artifact", "reason", "time"), evil)]
    auditor.records.append({"time": evil, "lost": 1, "reason": evil})
    status, text = run(monkeypatch, "audit")
    assert status == 0 and text.count("\n") == 2 and text.replace("\n", "").isprintable()
    status, text = run(monkeypatch, "audit", "--json")
    assert status == 0 and text.count("\n") == 2 and text.replace("\n", "").isprintable() and text.isascii()
    assert [json.loads(line) for line in text.splitlines()] == auditor.records


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def test_who_follows_ends_it_quietly(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With status 0, and with all that had come; who does not follow has been interrupted."""
    auditor.after = interrupt
    status, text = run(monkeypatch, "audit", "--follow", "--json")
    assert (status, json.loads(text)) == (0, RECORD)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "audit")


@pytest.mark.parametrize(
    "arguments",
    [
        {"user": ""},
        {"user": 1000},
        {"artifact": b"x"},
        {"since": "1h"},
        {"since": float("nan")},
        {"since": -1},
        {"since": 10**400},
        {"since": True},
        {"refused": 1},
        {"follow": None},
        {"timeout": 0},
    ],
    ids=str,
)
def test_wrong_arguments(auditor: Auditor, arguments: dict[str, Any]) -> None:
    """Are refused by the call, not when the first line is read."""
    with pytest.raises(errors.InvalidRequest):
        Client().audit(**arguments)
    assert auditor.asked == []
