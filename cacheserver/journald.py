"""Attempts for systemd's journal, by its native protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/

Law of this file: nothing waits for the journal. What it does not take at once, it does not get; the file has it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_UNDER_SYSTEMD = ("JOURNAL_STREAM", "NOTIFY_SOCKET", "INVOCATION_ID")
# Fields of the journal's own, and severities of syslog(3): what was refused stands out.
_IDENTIFIER = "cacheserver"
_WARNING, _NOTICE, _INFO = 4, 5, 6
_PRIORITIES = {"granted": _INFO, "refused": _NOTICE, "failed": _INFO}

_log = logging.getLogger(__name__)


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether this process runs under systemd."""
    return any(environ.get(name) for name in _UNDER_SYSTEMD)


class Journal:
    """Sends records as datagrams.

    Args:
        path: of the journal's socket.
    """

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._has_failed = False

    def send(self, record: Mapping[str, Any]) -> None:
        """Sends a record, if the journal takes it."""
        try:
            self._socket.sendto(datagram(record), socket.MSG_DONTWAIT, self._path)
            self._has_failed = False
        except OSError as error:  # it is full, or being started again
            if not self._has_failed:
                _log.warning("the journal does not take attempts, they are in the audit log only: %s", error.strerror)
            self._has_failed = True

    def close(self) -> None:
        """Lets the socket go."""
        self._socket.close()


def datagram(record: Mapping[str, Any]) -> bytes:
    """A record in the journal's native protocol: a sentence, and each of its fields as ARTIFACTCACHE_…=."""
    fields = {
        "MESSAGE": message(record),
        "PRIORITY": str(_PRIORITIES.get(record.get("decision", ""), _WARNING)),
        "SYSLOG_IDENTIFIER": _IDENTIFIER,
    }
    fields |= {f"ARTIFACTCACHE_{name.upper()}": _text(value) for name, value in record.items() if value is not None}
    return b"".join(_field(name.encode("ascii"), text.encode("utf-8", "replace")) for name, text in fields.items())


def message(record: Mapping[str, Any]) -> str:
    """A record as a person reads it, on one line."""
    if "lost" in record:
        return str(record["reason"])
    user = record["user"] if record["uid"] is not None else "somebody without a session"
    words = f"{record['verb']} of {record['artifact']} by {user}: {record['decision']}, {record['reason']}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value:
        return name + b"=" + value + b"\n"
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
