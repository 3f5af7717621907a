"""Attempts in systemd's journal: the native protocol, at a socket of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheserver import journald
from cacheserver.journald import Journal, datagram
from tests.unit.house import PATIENCE_SECONDS

RECORD: dict[str, Any] = {
    "time": "2026-11-26T15:44:00.000Z",
    "user": "alice",
    "uid": 1000,
    "groups": ["alice", "mlops"],
    "container": None,
    "verb": "Fetch",
    "artifact": "models:/resnet/3",
    "hit": True,
    "decision": "refused",
    "reason": "PermissionDenied: no",
}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    """The journal's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fsencode(tmp_path / "socket"))
        receiver.settimeout(PATIENCE_SECONDS)
        yield receiver


def fields(packet: bytes) -> dict[str, str]:
    """A datagram as the journal reads it."""
    found = {}
    while packet:
        head, _, packet = packet.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            length = int.from_bytes(packet[:8], "little")
            value, packet = packet[8 : 8 + length], packet[9 + length :]
        found[name.decode()] = value.decode()
    return found


def test_a_record_arrives(receiver: socket.socket) -> None:
    """A sentence, and each field under a name of its own; what is not known is left out."""
    journal = Journal(receiver.getsockname())
    journal.send(RECORD)
    assert fields(receiver.recv(65536)) == {
        "MESSAGE": "Fetch of models:/resnet/3 by alice: refused, PermissionDenied: no",
        "PRIORITY": "5",
        "SYSLOG_IDENTIFIER": "cacheserver",
        "ARTIFACTCACHE_TIME": "2026-11-26T15:44:00.000Z",
        "ARTIFACTCACHE_USER": "alice",
        "ARTIFACTCACHE_UID": "1000",
        "ARTIFACTCACHE_GROUPS": "alice,mlops",
        "ARTIFACTCACHE_VERB": "Fetch",
        "ARTIFACTCACHE_ARTIFACT": "models:/resnet/3",
        "ARTIFACTCACHE_HIT": "yes",
        "ARTIFACTCACHE_DECISION": "refused",
        "ARTIFACTCACHE_REASON": "PermissionDenied: no",
    }


def test_a_name_cannot_make_fields() -> None:
    """With line ends in it, it is one value all the same; and no escape code is in the sentence."""
    evil = "x\nARTIFACTCACHE_USER=root\nMESSAGE=\x1b[2J\x00"
    found = fields(datagram(RECORD | {"artifact": evil}))
    assert (found["ARTIFACTCACHE_ARTIFACT"], found["ARTIFACTCACHE_USER"]) == (evil, "alice")
    assert found["MESSAGE"].startswith("Fetch of x\\nARTIFACTCACHE_USER=root\\nMESSAGE=\\x1b[2J\\x00 by alice")


def test_lost_lines(receiver: socket.socket) -> None:
    """They stand out."""
    found = fields(datagram({"time": "", "lost": 3, "reason": "3 attempts are missing here: full"}))
    assert (found["MESSAGE"], found["PRIORITY"]) == ("3 attempts are missing here: full", "4")


def test_a_journal_that_does_not_read(receiver: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it; it is told once, and when it reads again it gets the next ones."""
    journal = Journal(receiver.getsockname())
    for _ in range(10_000):
        journal.send(RECORD)
    assert len(caplog.messages) == 1 and "journal" in caplog.messages[0]
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        while receiver.recv(65536):
            pass
    journal.send(RECORD)
    assert fields(receiver.recv(65536))["ARTIFACTCACHE_USER"] == "alice"


def test_a_journal_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is told once, and nothing more."""
    journal = Journal(str(tmp_path / "none"))
    journal.send(RECORD)
    journal.send(RECORD)
    assert len(caplog.messages) == 1


def test_only_under_systemd() -> None:
    """What a unit's environment has, and a shell's has not."""
    assert not journald.is_wanted({"HOME": "/root", "NOTIFY_SOCKET": ""})
    assert all(journald.is_wanted({name: "1"}) for name in ("JOURNAL_STREAM", "NOTIFY_SOCKET", "INVOCATION_ID"))
