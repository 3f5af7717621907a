"""HTTP/2 by hand (RFC 9113): calls that gRPC's own client would not make, over one connection to cache.sock."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from types import TracebackType

from artifactcache.v1 import cache_pb2 as pb

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_SERVICE = pb.DESCRIPTOR.services_by_name["Cache"].full_name
ANSWER_SECONDS_MAX = 60.0


class Calls:
    """One connection, whose answers nobody takes: there is room for no byte of them."""

    def __init__(self, socket_dir: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_SECONDS_MAX)
        self.socket.connect(str(Path(socket_dir) / "cache.sock"))
        self.socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)))
        self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        self._last = -1

    def call(self, method: str, token: str = "", message: bytes | None = None) -> None:
        """Begin a call; without a message it has a head only, and goes on."""
        self._last += 2
        told = [(":method", "POST"), (":scheme", "http"), (":path", f"/{_SERVICE}/{method}"), (":authority", "x")]
        told += [("te", "trailers"), ("content-type", "application/grpc")]
        told += [("authorization", f"Bearer {token}")] if token else []
        sent = _frame(_HEADERS, _END_HEADERS, self._last, b"".join(_literal(*one) for one in told))
        if message is not None:
            sent += _frame(_DATA, _END_STREAM, self._last, b"\0" + len(message).to_bytes(4, "big") + message)
        self.socket.sendall(sent)

    def wait_for_the_last(self) -> None:
        """Wait until the call that was made last has ended: those before it have all come then."""
        while True:
            length, kind, _, stream = struct.unpack(">IBBI", b"\0" + self._read(9))
            self._read(length)
            if stream == self._last and kind in (_HEADERS, _RST_STREAM):
                return

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            assert more, "the daemon hung up"
            found += more
        return found

    def __enter__(self) -> Calls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that no table knows (RFC 7541, 6.2.2)."""
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
