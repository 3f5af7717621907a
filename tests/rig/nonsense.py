"""Daemons that are none: sockets in the right place, and behind them somebody who talks nonsense or says nothing."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from artifactcache.v1 import cache_pb2 as pb

Answer = Callable[[bytes], bytes | None]  # b"" hangs up, None says nothing
NONSENSE = b"\xff\xfe\xfd nonsense\r\n\r\n"
DIGEST = "0" * 64
_WELCOME = pb.HandoffReply(welcome=pb.Welcome(token="token")).SerializeToString()


def _welcome_then(answer: Answer) -> Answer:
    """Say hello as a daemon does, and then something else."""

    def answers(packet: bytes) -> bytes | None:
        is_hello = pb.HandoffRequest.FromString(packet).WhichOneof("request") == "hello"
        return _WELCOME if is_hello else answer(packet)

    return answers


def _reply(**reply: Any) -> Answer:
    return lambda _: pb.HandoffReply(**reply).SerializeToString()


def _welcome(_: bytes) -> bytes:
    return _WELCOME


@dataclasses.dataclass(frozen=True)
class Nonsense:
    """What such a daemon answers: to packets, to what comes over the stream, or to calls by their name."""

    packet: Answer = _welcome
    stream: Answer = lambda _: NONSENSE
    calls: dict[str, bytes] | None = None
    """With these there is a server of gRPC at the stream's socket; all but WhoAmI are streams."""


def _calls(tracking_uri: str, fetch: bytes) -> dict[str, bytes]:
    return {"WhoAmI": pb.WhoAmIReply(tracking_uri=tracking_uri).SerializeToString(), "Fetch": fetch, "Inspect": fetch}


def kinds(tracking_uri: str) -> dict[str, Nonsense]:
    """All of them; those whose name begins with "mute" cost as long as one waits."""
    result = pb.FetchResult(version="runs:/x", digest=DIGEST, file_count=3, size_bytes=10, lease=1)
    event = pb.FetchEvent(result=result).SerializeToString()
    return {
        "nonsense": Nonsense(packet=lambda _: NONSENSE),
        "hangs up": Nonsense(packet=lambda _: b""),
        "mute": Nonsense(packet=lambda _: None),
        "another answer": Nonsense(packet=_reply(link=pb.LinkReply(file_count=1))),
        "an unknown failure": Nonsense(packet=_reply(failure=pb.Failure(error="Moon", message="it is full"))),
        "nonsense to calls": Nonsense(),
        "hangs up on calls": Nonsense(stream=lambda _: b""),
        "mute to calls": Nonsense(stream=lambda _: None),
        "nonsense for whoami": Nonsense(calls={"WhoAmI": NONSENSE}),
        "nonsense for a result": Nonsense(calls=_calls(tracking_uri, NONSENSE)),
        "no result": Nonsense(calls=_calls(tracking_uri, b"")),
        "no method but one": Nonsense(calls={"WhoAmI": _calls(tracking_uri, b"")["WhoAmI"]}),
        "nonsense for a manifest": Nonsense(_welcome_then(lambda _: NONSENSE), calls=_calls(tracking_uri, event)),
        "a manifest without a descriptor": Nonsense(
            _welcome_then(_reply(manifest=pb.ManifestReply())), calls=_calls(tracking_uri, event)
        ),
        "a descriptor of something else": Nonsense(
            _welcome_then(lambda _: b"+" + _reply(manifest=pb.ManifestReply())(b"")),  # type: ignore[operator]
            calls=_calls(tracking_uri, event),
        ),
    }


@contextlib.contextmanager
def talking(folder: Path, kind: Nonsense) -> Iterator[Path]:
    """Somebody who talks like that at the sockets of a folder. An answer that begins with "+" has a descriptor."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        _listen(stack, folder / "handoff.sock", socket.SOCK_SEQPACKET, kind.packet)
        if kind.calls is None:
            _listen(stack, folder / "cache.sock", socket.SOCK_STREAM, kind.stream)
        else:
            _serve(stack, folder / "cache.sock", kind.calls)
        for name in ("handoff.sock", "cache.sock"):
            os.chmod(folder / name, 0o666)
        yield folder


def _listen(stack: contextlib.ExitStack, path: Path, sort: int, answer: Answer) -> None:
    listener = socket.socket(socket.AF_UNIX, sort)
    listener.bind(str(path))
    listener.listen(100)
    open_now: list[socket.socket] = []

    def close() -> None:
        for one in (listener, *open_now):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    stack.callback(close)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                open_now.append(client)
                threading.Thread(target=_talk, args=(client, answer), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _talk(client: socket.socket, answer: Answer) -> None:
    with contextlib.suppress(OSError):
        while packet := client.recv(1 << 16):
            said = answer(packet)
            if said == b"":
                client.close()
                return
            if said is not None and said.startswith(b"+"):
                other = os.open("/dev/null", os.O_RDONLY)
                client.sendmsg([said[1:]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [other]))])
                os.close(other)
            elif said is not None:
                client.send(said)


def _answer(name: str, request: bytes, said: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Hold nothing, and have no view of anything: what is asked for as a view, an MLmodel, is not there."""
    if said not in (b"", NONSENSE) and (name == "Inspect" or pb.FetchRequest.FromString(request).view):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    yield said


def _serve(stack: contextlib.ExitStack, path: Path, calls: dict[str, bytes]) -> None:
    def handler(name: str, said: bytes) -> grpc.RpcMethodHandler[Any, Any]:
        if name == "WhoAmI":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: said)
        return grpc.unary_stream_rpc_method_handler(lambda request, context: _answer(name, request, said, context))

    server = grpc.server(ThreadPoolExecutor(4))
    methods = {name: handler(name, said) for name, said in calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("artifactcache.v1.Cache", methods),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    stack.callback(lambda: server.stop(0).wait())
