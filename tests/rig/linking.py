"""A session that holds a lease, and asks for links by hand."""

from __future__ import annotations

from artifactcache.v1 import cache_pb2 as pb
from tests.rig import trees
from tests.rig.daemon import Daemon
from tests.rig.wire import Handoff, leased, stub

FILES: trees.Files = {"a": b"file a", "sub/b": b"file b", "sub/deep/c": b"file c", "empty": b""}


class Session:
    """A session that holds a lease of `FILES`."""

    def __init__(self, daemon: Daemon, uri: str) -> None:
        self.daemon = daemon
        self.uri = uri
        self.handoff = Handoff(daemon.socket_dir)
        self.token = self.handoff.hello()
        with stub(daemon.socket_dir) as cache:
            self.lease = leased(cache, self.token, uri).lease

    def join(self) -> Handoff:
        """A connection of its own for one hand-over."""
        joined = Handoff(self.daemon.socket_dir)
        joined.hello(self.token)
        return joined

    def link(self, fd: int, lease: int | None = None) -> pb.HandoffReply:
        """Ask for links into the folder behind `fd`."""
        with self.join() as joined:
            request = pb.LinkRequest(lease=self.lease if lease is None else lease)
            return joined.ask(link=request, fds=(fd,))[0]
