"""Nonsense for handoff.sock: packets with descriptors beside them, in conversations that overlap and break off."""

from __future__ import annotations

import array
import os
import random
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from artifactcache.v1 import cache_pb2 as pb
from tests.fuzz import nonsense
from tests.rig.wire import Handoff, leased, stub

CONVERSATIONS_MAX = 8  # at a time
REPLY_SECONDS_MAX = 60.0  # a packet is answered, or hung up on: silence is an error
SIZES = (0, 1, 2, 4095, 4096, 65_535, 65_536, 65_537, 100_000, 200_000)
COUNTS = (1, 1, 1, 1, 1, 2, 3, 16, 64, 253)  # of descriptors beside a packet; 253 is the kernel's limit


class Packets:
    """Who sends them: one user with one proper session, whose token and lease are among what is sent."""

    def __init__(self, socket_dir: str, uri: str, stack: ExitStack) -> None:
        self._socket_dir = socket_dir
        self._own = stack.enter_context(Handoff(socket_dir))
        token = self._own.hello()
        with stub(socket_dir) as cache:
            lease = leased(cache, token, uri).lease
        self._hello = pb.HandoffRequest(hello=pb.Hello(token=token)).SerializeToString()
        requests = (
            pb.HandoffRequest(hello=pb.Hello()),
            pb.HandoffRequest(hello=pb.Hello(proves_calls=True)),
            pb.HandoffRequest(hello=pb.Hello(token="x" * 43)),
            pb.HandoffRequest(present=pb.Present(headers={"Authorization": "Bearer x", "X-Tenant": "y"})),
            pb.HandoffRequest(manifest=pb.ManifestRequest(lease=lease)),
            pb.HandoffRequest(link=pb.LinkRequest(lease=lease)),
            pb.HandoffRequest(blobs=pb.BlobsRequest(lease=lease, first=1, limit=2)),
            pb.HandoffRequest(blobs=pb.BlobsRequest(lease=lease)),
            pb.HandoffRequest(probe=pb.ProbeRequest()),
        )
        self._valid = [self._hello, *(request.SerializeToString() for request in requests)]
        self._known = [token.encode(), uri.encode(), nonsense.varint(lease)]
        self._descriptors = list(_descriptors(stack))

    def send(self, dice: random.Random, count: int) -> Counter[str]:
        """Sends so many packets; returns what became of them. Raises TimeoutError where one is met with silence."""
        self._outcome = Counter[str]()
        talks: list[socket.socket] = []
        try:
            for _ in range(count):
                if not talks or (len(talks) < CONVERSATIONS_MAX and dice.random() < 0.25):
                    talks.append(self._begin(dice))
                talk = dice.choice(talks)
                if not self._one(dice, talk):
                    talks.remove(talk)
                    talk.close()
        finally:
            for talk in talks:
                talk.close()
        return self._outcome

    def _begin(self, dice: random.Random) -> socket.socket:
        talk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        talk.settimeout(REPLY_SECONDS_MAX)
        talk.connect(os.path.join(self._socket_dir, "handoff.sock"))
        if dice.random() < 0.8:
            talk.send(dice.choice((self._hello, *self._valid[1:3])))
            if dice.random() < 0.95:
                self._receive(talk)
        return talk

    def _one(self, dice: random.Random, talk: socket.socket) -> bool:
        """One packet, and perhaps its answer. Returns whether the conversation goes on."""
        packet = nonsense.message(dice, self._valid, self._known)
        if dice.random() < 0.05:
            packet = (packet + b"\0" * 200_000)[: dice.choice(SIZES)]
        beside = []
        if dice.random() < 0.3:
            fds = [dice.choice((*self._descriptors, talk.fileno())) for _ in range(dice.choice(COUNTS))]
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            talk.sendmsg([packet], beside)
            sort = dice.random()
            if sort < 0.05:
                self._outcome["not read"] += 1
                return True
            if sort < 0.10:
                with suppress(OSError):
                    talk.shutdown(dice.choice((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))
                self._outcome["shut down"] += 1
                return dice.random() < 0.5
            if sort < 0.15:
                self._outcome["hung up on the daemon"] += 1
                return False
            return self._receive(talk)
        except TimeoutError:
            raise
        except OSError as error:
            self._outcome[f"errno {error.errno}"] += 1
            return False

    def _receive(self, talk: socket.socket) -> bool:
        packet, fds, _, _ = socket.recv_fds(talk, 65_536, 253)
        for fd in fds:
            os.close(fd)
        reply = pb.HandoffReply.FromString(packet)
        self._outcome[reply.failure.error or reply.WhichOneof("reply") or "the daemon hung up"] += 1
        return bool(packet)


def _descriptors(stack: ExitStack) -> Iterator[int]:
    """One of each kind, below the working directory; a folder as the contract says is among them."""

    def keep(fd: int) -> int:
        stack.callback(os.close, fd)
        return fd

    os.makedirs("tree/sub/deep", exist_ok=True)
    for folder in ("tree", "tree/sub", "tree/sub/deep"):
        os.chmod(folder, 0o777)
    for path, flags in (
        *(("tree", os.O_RDONLY), ("tree", os.O_PATH), ("tree/sub", os.O_RDONLY), (".", os.O_RDONLY), ("/", os.O_PATH)),
        *(("/tmp", os.O_RDONLY), ("/proc", os.O_RDONLY), ("/proc/self/fd", os.O_RDONLY), ("/dev", os.O_RDONLY)),
        *(("/dev/null", os.O_RDWR), ("/dev/zero", os.O_RDONLY), ("/proc/self/maps", os.O_RDONLY)),
        *(("file", os.O_RDWR | os.O_CREAT), (".", os.O_TMPFILE | os.O_RDWR)),
    ):
        yield keep(os.open(path, flags, 0o600))
    yield from map(keep, os.pipe())
    yield keep(os.memfd_create("fuzz"))
    yield keep(os.eventfd(0))
    yield stack.enter_context(select.epoll()).fileno()
    yield from map(keep, os.openpty())
    for sort in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        for end in socket.socketpair(socket.AF_UNIX, sort):
            yield stack.enter_context(end).fileno()
    yield stack.enter_context(socket.socket()).fileno()


@contextmanager
def packets(socket_dir: str, uri: str) -> Iterator[Packets]:
    """Somebody who sends them."""
    with ExitStack() as stack:
        yield Packets(socket_dir, uri, stack)
