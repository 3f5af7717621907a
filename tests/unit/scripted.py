"""A daemon that answers what it is told to, at the place of the client's session, and notes what it was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from artifactcache import Client, errors
from artifactcache.calls import Calls
from artifactcache.deadline import Deadline
from artifactcache.v1 import cache_pb2 as pb

MIB = 2**20
ALIAS = "models:/resnet@champion"
ONE, TWO = "models:/resnet/1", "models:/resnet/2"
DIGESTS = {ONE: "1a" * 32, TWO: "2b" * 32}
SWEEP = [
    pb.SweepEvent(
        evicted=pb.Evicted(digest=DIGESTS[ONE], versions=[ONE], size_bytes=3 * MIB, freed_bytes=2 * MIB, reason="old")
    ),
    pb.SweepEvent(evicted=pb.Evicted(digest=DIGESTS[TWO], size_bytes=MIB, reason="linked elsewhere")),
    pb.SweepEvent(
        result=pb.SweepResult(
            tree_count=2,
            freed_bytes=2 * MIB,
            wanted_bytes=MIB,
            kept=[pb.Kept(reason="leased", tree_count=1), pb.Kept(reason="pinned", tree_count=3)],
            seconds=0.25,
        )
    ),
]
HELD = pb.HeldArtifact(version=ONE, digest=DIGESTS[ONE], file_count=1, size_bytes=3 * MIB)


class Script:
    """A session whose daemon answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.leases: list[str] = []
        self.fetched: Iterator[str] = iter([ONE] * 10)
        self.pinned: Iterator[str] = iter([ONE] * 10)
        self.until = math.inf
        self.swept: list[Any] = list(SWEEP)
        self.listed: list[Any] = [HELD]
        self.explained = pb.ExplainReply(artifact=HELD, place=3, queue_length=20, freed_bytes=MIB, refetch_seconds=1.5)
        self.is_broken_off = False

    def call(self, operation: Callable[[Any], Any], deadline: Deadline) -> Any:
        """As `Session.call`, which makes a call again that was broken off."""
        if self.is_broken_off:
            self.is_broken_off = operation.__name__ != "sweep"
            operation(self)
        return operation(self)

    def close(self) -> None:
        """Nothing is open."""

    def release(self, lease: int) -> None:
        """Note the end of the one lease."""
        self.leases.pop()

    def unary(self, method: str, message: Any, deadline: Deadline) -> Any:
        """Answer."""
        self.asked.append((method, message))
        if method == "Ping":
            return pb.PingReply(version="1", pid=1)
        if method == "Explain":
            return self.explained
        if method == "Unpin":
            return pb.UnpinReply(versions=[ONE, TWO])
        assert method == "Pin"
        assert self.leases, "it could go before it is pinned"
        version = next(self.pinned)
        if version not in DIGESTS:
            raise errors.NotFound(f"{version}: not held")
        return pb.PinReply(version=version, digest=DIGESTS[version], until=self.until, owner="ada")

    def stream(self, method: str, message: Any, deadline: Deadline, watch: object = None) -> list[Any]:
        """Answer with several."""
        self.asked.append((method, message))
        if method == "Fetch":
            version = next(self.fetched)
            self.leases.append(version)
            return [pb.FetchEvent(result=pb.FetchResult(version=version, digest=DIGESTS[version], lease=1))]
        return self.swept if method == "Sweep" else self.listed

    def methods(self) -> list[str]:
        """What it was asked for."""
        return [method for method, _ in self.asked]


def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put a script below every client of a test."""
    script = Script()
    calls = Calls(None)
    monkeypatch.setattr(calls, "session", script)
    monkeypatch.setattr(Client, "_calls", lambda self: calls)
    return script
