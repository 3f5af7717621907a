"""Nonsense for cache.sock: what is no HTTP/2, frames that are no request, and requests that are no message."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc

from artifactcache.v1 import cache_pb2 as pb
from tests.fuzz import nonsense
from tests.rig.wire import Handoff, error_name

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES_MAX = 12
CALL_SECONDS = (0.001, 0.02, 1.0, 5.0)  # how long a call may take
READ_SECONDS_MAX = 0.002  # what comes back over a raw connection is of no interest, only that it may come
SERVICE = "artifactcache.v1.Cache"
METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["Cache"].methods)
_TYPES = range(11)  # of frames; 10 is none (RFC 9113, 6)
DATA, HEADERS, SETTINGS = 0, 1, 4


class Calls:
    """Who makes them: one user with two proper sessions, one that proves its calls and one that does not."""

    def __init__(self, socket_dir: str, uri: str, stack: ExitStack) -> None:
        self._path = os.path.join(socket_dir, "cache.sock")
        self._channel = stack.enter_context(grpc.insecure_channel(f"unix:{self._path}"))
        plain, proving = (stack.enter_context(Handoff(socket_dir)) for _ in range(2))
        self._token = plain.hello()
        reply, fds = proving.ask(hello=pb.Hello(proves_calls=True))
        for fd in fds:
            os.close(fd)
        self._tokens = [self._token, reply.welcome.token]
        wanted = pb.ArtifactSelection(uri=uri, include=["a*"], exclude=["b"])
        of_run = pb.ArtifactSelection(run_id=uri.removeprefix("runs:/"), artifact_path="sub")
        self._valid = [
            request.SerializeToString()
            for request in (
                pb.FetchRequest(artifact=wanted),
                pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri), view=True),
                pb.FetchRequest(artifact=of_run, view=True),
                pb.ReleaseRequest(lease=1),
                pb.InspectRequest(artifact=wanted),
                pb.VerifyRequest(artifact=of_run),
                pb.PinRequest(artifact=wanted, seconds=5.0),
                pb.SweepRequest(free_bytes=1, dry_run=True),
                pb.AuditRequest(user="x", artifact=uri, refused_only=True, since=1.0, follow=True),
                pb.UsageRequest(everybody=True),
            )
        ]
        self._known = [uri.encode(), *(token.encode() for token in self._tokens)]

    def send(self, dice: random.Random, count: int) -> Counter[str]:
        """Makes so many calls, or connections with no call; returns what became of them."""
        outcome = Counter[str]()
        for _ in range(count):
            outcome[self._connection(dice) if dice.random() < 0.3 else self._call(dice)] += 1
        return outcome

    # -- calls of gRPC ------------------------------------------------------------------------------------------------

    def _call(self, dice: random.Random) -> str:
        method = dice.choice(METHODS) if dice.random() < 0.97 else dice.choice(("", "Fetch2", "ping", "é", "a" * 3000))
        request = nonsense.message(dice, self._valid, self._known)
        if dice.random() < 0.002:
            request += b"\0" * dice.choice((1 << 20, (1 << 20) - len(request), 5 << 20))
        ask = self._channel.unary_stream(
            f"/{SERVICE}/{method}" if dice.random() < 0.99 else f"/{method}/{SERVICE}",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        seconds = dice.choice(CALL_SECONDS)
        hasty = dice.random() < 0.03
        try:
            call: Any = ask(request, metadata=self._metadata(dice), timeout=seconds)
            if hasty:
                call.cancel()
            for _ in call:
                if dice.random() < 0.02:
                    call.cancel()
        except grpc.RpcError as error:
            return error_name(error) or error.code().name
        except (TypeError, ValueError):  # grpc's own client does not send this
            return "not sent"
        return "served"

    def _metadata(self, dice: random.Random) -> tuple[tuple[str, str | bytes], ...]:
        told: list[tuple[str, str | bytes]] = []
        token = self._token if dice.random() < 0.85 else dice.choice((*self._tokens, "", "x" * 43, "~" * 5000))
        if dice.random() < 0.95:
            told.append(("authorization", dice.choice(("Bearer ",) * 20 + ("", "Basic ", "Bearer  ")) + token))
        if dice.random() < 0.1:
            slot, proof = dice.choice((0, 7, 255, 256, -1, 10**30)), dice.choice((bytes(16), dice.randbytes(16), b""))
            told.append(("artifactcache-proof", dice.choice((f"{slot}:{proof.hex()}", f"{slot}", ":", "x" * 4000))))
        for _ in range(dice.choices((0, 1, 3, 40), (90, 5, 4, 1))[0]):
            name = dice.choice(("x", "authorization", "grpc-timeout", "te", "a" * 200, "artifactcache-error", "x-bin"))
            value = nonsense.text(dice, self._known)[:2000]
            told.append((name, value if name.endswith("-bin") else value.decode("ascii", "replace")))
        return tuple(told)

    # -- raw connections ----------------------------------------------------------------------------------------------

    def _connection(self, dice: random.Random) -> str:
        sort = dice.choice(
            ("noise", "preface and noise", "frames", "frames", "frames", "a request, mutated", "silence")
        )
        if sort == "noise":
            sent = dice.randbytes(dice.choice((1, 9, 24, 1000, 70_000)))
        elif sort == "preface and noise":
            sent = PREFACE[: dice.randint(0, len(PREFACE))] + dice.randbytes(dice.randint(0, 3000))
        elif sort == "frames":
            sent = PREFACE + _frame(SETTINGS, 0, 0, b"") * dice.randint(0, 1)
            sent += b"".join(self._frame(dice) for _ in range(dice.randint(1, FRAMES_MAX)))
        elif sort == "silence":
            sent = b""
        else:
            request = PREFACE + _frame(SETTINGS, 0, 0, b"") + self._request(dice, 1) + self._request(dice, 3)
            sent = PREFACE[:3] + nonsense.mutated(dice, request[3:])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw, suppress(OSError):
            raw.settimeout(5)
            raw.connect(self._path)
            for part in _parts(dice, sent):
                raw.sendall(part)
            if dice.random() < 0.3:
                raw.settimeout(READ_SECONDS_MAX)
                raw.recv(1 << 16)
        return sort

    def _frame(self, dice: random.Random) -> bytes:
        stream = dice.choice((0, 1, 1, 3, 5, 2, 2**31 - 1, 2**32 - 1))
        if dice.random() < 0.3:
            return self._request(dice, stream)
        payload = dice.randbytes(dice.choice((0, 1, 4, 5, 6, 8, 8, 100, 16_384, 16_385)))
        if dice.random() < 0.2:
            payload = nonsense.mutated(dice, _headers(self._told(dice)))
        length = len(payload) if dice.random() < 0.95 else dice.choice((0, 1, 2**24 - 1))
        return _frame(dice.choice(_TYPES), dice.randrange(256), stream, payload, length)

    def _request(self, dice: random.Random, stream: int) -> bytes:
        message = nonsense.message(dice, self._valid, self._known)
        length = len(message) if dice.random() < 0.9 else dice.choice((0, 1, 2**31, 2**32 - 1))
        data = struct.pack("!BI", dice.choice((0, 0, 0, 1, 255)), length) + message
        headers = _frame(HEADERS, dice.choice((4, 4, 4, 0, 5)), stream, _headers(self._told(dice)))
        return headers + _frame(DATA, dice.choice((1, 1, 0)), stream, data)

    def _told(self, dice: random.Random) -> list[tuple[bytes, bytes]]:
        told = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", f"/{SERVICE}/{dice.choice(METHODS)}".encode()),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"authorization", b"Bearer " + self._token.encode()),
        ]
        if dice.random() < 0.3:
            told[dice.randrange(len(told))] = (nonsense.text(dice, ())[:100], nonsense.text(dice, self._known)[:5000])
        return told


def _headers(told: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Headers without compression or index (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in told)


def _string(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    return b"\x7f" + nonsense.varint(len(value) - 127) + value


def _frame(sort: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    told = len(payload) if length is None else length
    return struct.pack("!I", told)[1:] + struct.pack("!BBI", sort, flags, stream) + payload


def _parts(dice: random.Random, sent: bytes) -> Iterator[bytes]:
    """What is sent, in one piece or several; sometimes not to its end."""
    if dice.random() < 0.1:
        sent = sent[: dice.randint(0, len(sent))]
    while sent:
        length = len(sent) if dice.random() < 0.7 else dice.randint(1, len(sent))
        yield sent[:length]
        sent = sent[length:]


@contextmanager
def calls(socket_dir: str, uri: str) -> Iterator[Calls]:
    """Somebody who makes them."""
    with ExitStack() as stack:
        yield Calls(socket_dir, uri, stack)
