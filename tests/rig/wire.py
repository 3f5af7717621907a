"""The protocol by hand: what a client that does not keep the rules would send.

Of artifactcache only the generated messages are used, so that a defect of the client cannot hide one of the daemon.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from artifactcache.v1 import cache_pb2 as pb
from artifactcache.v1 import cache_pb2_grpc as pb_grpc

PACKET_BYTES_MAX = 64 << 10
FDS_MAX = 253  # the kernel's own limit for one packet
REPLY_SECONDS_MAX = 30.0


class Handoff:
    """One connection to handoff.sock."""

    def __init__(self, socket_dir: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Before there is a timeout: with one it would not wait where the queue is full.
        self.socket.connect(str(Path(socket_dir) / "handoff.sock"))
        self.socket.settimeout(REPLY_SECONDS_MAX)

    def send_bytes(self, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send one packet, whatever is in it."""
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([packet], beside)

    def receive(self) -> tuple[pb.HandoffReply, list[int]]:
        """The next reply and the descriptors beside it. Raises EOFError where the daemon hung up."""
        packet, beside, _, _ = self.socket.recvmsg(PACKET_BYTES_MAX, socket.CMSG_SPACE(FDS_MAX * 4))
        fds = array.array("i")
        for _, _, data in beside:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if not packet:
            raise EOFError("the daemon hung up")
        return pb.HandoffReply.FromString(packet), list(fds)

    def ask(self, *, fds: tuple[int, ...] = (), **request: Any) -> tuple[pb.HandoffReply, list[int]]:
        """Send one request, such as `hello=pb.Hello()`, and wait for its reply."""
        self.send_bytes(pb.HandoffRequest(**request).SerializeToString(), fds)
        return self.receive()

    def hello(self, token: str = "") -> str:
        """Open a session, or join one; returns its token."""
        reply, _ = self.ask(hello=pb.Hello(token=token))
        assert reply.WhichOneof("reply") == "welcome", reply
        return reply.welcome.token

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Handoff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def stub(socket_dir: Path | str, *options: tuple[str, int]) -> Iterator[pb_grpc.CacheStub]:
    """The gRPC service behind cache.sock; with options of a channel, over a connection of its own."""
    with grpc.insecure_channel(f"unix:{Path(socket_dir) / 'cache.sock'}", options) as channel:
        yield pb_grpc.CacheStub(channel)  # type: ignore[no-untyped-call]


def bearer(token: str) -> list[tuple[str, str]]:
    """The metadata of every call."""
    return [("authorization", f"Bearer {token}")]


def error_name(error: grpc.RpcError) -> str | None:
    """The error class that the daemon named in the trailing metadata of a call that failed."""
    assert isinstance(error, grpc.Call)
    return dict(error.trailing_metadata() or ()).get("artifactcache-error")


def leased(cache: pb_grpc.CacheStub, token: str, uri: str, *, view: bool = False) -> pb.FetchResult:
    """Fetch by hand: the last event of the call."""
    request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri), view=view)
    *_, last = cache.Fetch(request, metadata=bearer(token))
    assert last.WhichOneof("event") == "result", last
    result: pb.FetchResult = last.result
    return result


def manifest_lines(handoff: Handoff, lease: int) -> list[bytes]:
    """The lines of a leased tree's manifest."""
    reply, (fd,) = handoff.ask(manifest=pb.ManifestRequest(lease=lease))
    assert reply.WhichOneof("reply") == "manifest", reply
    with os.fdopen(fd, "rb") as file:
        return file.read().splitlines()


def ping(socket_dir: Path) -> bool:
    """Whether a daemon answers on both sockets, be it with a refusal."""
    try:
        with stub(socket_dir) as cache, Handoff(socket_dir) as handoff:
            cache.Ping(pb.PingRequest(), timeout=5)
            return handoff.ask(hello=pb.Hello())[0].WhichOneof("reply") is not None
    except (grpc.RpcError, OSError, EOFError):
        return False
