"""One connection to handoff.sock: packets of protobuf with descriptors beside them.

Every descriptor that is received here is either returned to the caller or closed, also when a packet is malformed.
The protocol is in DESIGN.md, its messages in cache.proto.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import weakref
from collections.abc import Mapping, Sequence

from artifactcache.deadline import Deadline
from artifactcache.errors import (
    BY_NAME,
    CacheError,
    DaemonUnavailable,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
)
from artifactcache.paths import HANDOFF_SOCKET
from artifactcache.v1 import cache_pb2 as pb

PACKET_BYTES_MAX = 64 * 1024
DESCRIPTORS_MAX = 128  # of one packet (BlobsReply.count); the kernel's own limit is 253
SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), without its NUL
DESCRIPTORS_RESERVE = 16  # left free beside those: for the files being made, for grpc, for other threads
CONNECT_SECONDS_MAX = 10.0  # a daemon whose queue is full for longer is not there
# What of the host's daemon leads on to one of the user's own. Anything else is an answer, or the lack of one, that says
# the host's daemon is there: who passed over that would serve a job from another store without a word.
PASSED_OVER = (DaemonUnavailable, PermissionDenied)

# Every open connection, so that a forked child can close its copies: the daemon takes an open connection for
# a living client.
open_connections: weakref.WeakSet[Handoff] = weakref.WeakSet()


class Handoff:
    """A connection to handoff.sock, as a context manager that closes it."""

    def __init__(self, socket_dir: str, deadline: Deadline) -> None:
        """Connect. Raises DaemonUnavailable where nobody listens."""
        self._path = os.path.join(socket_dir, HANDOFF_SOCKET)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        open_connections.add(self)
        try:
            self._connect(deadline.remaining())
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, seconds: float | None) -> None:
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidRequest(
                f"{self._path}: longer than the {SOCKET_PATH_BYTES_MAX} bytes a socket's path may have; "
                "choose a shorter socket_dir or ARTIFACTCACHE_SOCKET_DIR"
            )
        # Not settimeout(): a non-blocking connect does not wait where the daemon's queue is full, it fails.
        limit = CONNECT_SECONDS_MAX if seconds is None else min(seconds, CONNECT_SECONDS_MAX)
        whole = int(limit)
        timeval = struct.pack("ll", whole, max(1, int((limit - whole) * 1e6)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            hint = "start it with `cacheserver serve`, or set ARTIFACTCACHE_SOCKET_DIR to where its sockets are"
            kind = PermissionDenied if error.errno == errno.EACCES else DaemonUnavailable
            raise kind(f"no daemon answers at {self._path} ({error.strerror}): {hint}") from None

    def join(self, token: str, deadline: Deadline) -> None:
        """Join a session."""
        self._hello(pb.Hello(token=token), deadline)

    def open(self, deadline: Deadline) -> tuple[pb.Welcome, list[int]]:
        """Open a session whose calls are proved; beside the answer the page's descriptor, which the caller closes.

        None is there where the daemon knows nothing of proofs.
        """
        return self._hello(pb.Hello(proves_calls=True), deadline)

    def greet(self, deadline: Deadline) -> None:
        """Open a session whose calls are not proved, only to see whether the daemon lets this process in."""
        self._hello(pb.Hello(), deadline)

    def _hello(self, hello: pb.Hello, deadline: Deadline) -> tuple[pb.Welcome, list[int]]:
        reply, descriptors = self._ask(pb.HandoffRequest(hello=hello), "welcome", (), deadline, expected=None)
        return reply.welcome, descriptors

    def present(self, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Give the session the caller's credentials for the tracking server."""
        self._ask(pb.HandoffRequest(present=pb.Present(headers=headers)), "presented", (), deadline)

    def manifest(self, lease: int, deadline: Deadline) -> int:
        """Return a read-only descriptor of the leased tree's manifest; the caller closes it."""
        request = pb.HandoffRequest(manifest=pb.ManifestRequest(lease=lease))
        _, descriptors = self._ask(request, "manifest", (), deadline, expected=1)
        return descriptors[0]

    def link(self, lease: int, folder: int, deadline: Deadline) -> int:
        """Have the leased tree's blobs linked below the descriptor `folder`; return how many were."""
        request = pb.HandoffRequest(link=pb.LinkRequest(lease=lease))
        reply, _ = self._ask(request, "link", (folder,), deadline)
        return reply.link.file_count

    def blobs(self, lease: int, first: int, limit: int, deadline: Deadline) -> list[int]:
        """Return read-only descriptors of at most `limit` blobs from the `first`-th on; the caller closes them."""
        request = pb.HandoffRequest(blobs=pb.BlobsRequest(lease=lease, first=first, limit=limit))
        return self._ask(request, "blobs", (), deadline, expected=None)[1]

    def probe(self, folder: int | None, deadline: Deadline) -> tuple[pb.ProbeReply, int]:
        """Have the daemon try what it does with blobs; return what it says, and a descriptor that the caller closes."""
        give = () if folder is None else (folder,)
        reply, descriptors = self._ask(pb.HandoffRequest(probe=pb.ProbeRequest()), "probe", give, deadline, expected=1)
        return reply.probe, descriptors[0]

    def _ask(
        self,
        request: pb.HandoffRequest,
        wanted: str,
        give: Sequence[int],
        deadline: Deadline,
        expected: int | None = 0,
    ) -> tuple[pb.HandoffReply, list[int]]:
        """Send one packet, receive one; `expected` descriptors beside it, None for the packet's own count."""
        self._socket.settimeout(deadline.remaining())
        packet = request.SerializeToString()
        try:
            if give:
                socket.send_fds(self._socket, [packet], give)
            else:
                self._socket.send(packet)
            data, descriptors, flags, _ = socket.recv_fds(
                self._socket, PACKET_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            raise deadline.exceeded() from None
        except OSError as error:
            raise DaemonUnavailable(f"the daemon at {self._path} went away: {error.strerror}") from None
        finally:
            self._socket.settimeout(None)  # with a timeout, recv() would wait in spite of MSG_DONTWAIT
        try:
            reply = self._decode(data, flags, wanted)
            told = reply.blobs.count if wanted == "blobs" else int(reply.welcome.wants_proofs)
            count = told if expected is None else expected
            if len(descriptors) != count or (wanted == "blobs" and not count):
                raise CacheError(f"the daemon sent {len(descriptors)} descriptors instead of {count}")
        except BaseException:
            close_all(descriptors)
            raise
        return reply, descriptors

    def _decode(self, data: bytes, flags: int, wanted: str) -> pb.HandoffReply:
        from google.protobuf.message import DecodeError

        if flags & socket.MSG_CTRUNC:  # unix(7): what does not fit under the limit is dropped
            raise QuotaExceeded("this process has too few free file descriptors: raise its limit (`ulimit -n`)")
        if not data:
            raise DaemonUnavailable(f"the daemon at {self._path} closed the connection")
        try:
            reply = pb.HandoffReply.FromString(data)
        except DecodeError:
            raise CacheError("the daemon sent a packet that is not a HandoffReply") from None
        kind = reply.WhichOneof("reply")
        if kind == "failure":
            raise BY_NAME.get(reply.failure.error, CacheError)(reply.failure.message)
        if kind != wanted:
            raise CacheError(f"the daemon answered with {kind} instead of {wanted}")
        return reply

    def peer_uid(self) -> int:
        """Return the user ID of the daemon, as the kernel attests it."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])

    def hung_up(self) -> bool:
        """Tell whether the daemon has closed this connection, without waiting."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close this process's copy; in a forked child the parent's stays open."""
        self._socket.close()

    def __enter__(self) -> Handoff:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def descriptors_to_take(spare: int) -> int:
    """Return how many descriptors this process can take from one packet, and have `spare` and a reserve left.

    At least 1: whether there is room for that, the kernel says.
    """
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit == resource.RLIM_INFINITY:
        return DESCRIPTORS_MAX
    try:
        open_count = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc, or not even a descriptor for this: slow is better than not at all
        return 1
    return max(1, min(DESCRIPTORS_MAX, soft_limit - open_count - DESCRIPTORS_RESERVE - spare))


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def _after_fork_in_child() -> None:
    for connection in list(open_connections):
        connection.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
