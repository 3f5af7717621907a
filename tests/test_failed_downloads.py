"""An origin that fails in the middle, and a real daemon whose store is full of what came before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.lying import Answer, Reply
from tests.rig.lying_s3 import LyingS3, Objects, lying_s3, object_of, refuses
from tests.rig.upkeep import ALL_BYTES, call, held
from tests.unit.house import PATIENCE_SECONDS

MIB = 1 << 20
TRACKING = "http://127.0.0.1:9"


@pytest.fixture
def liar() -> Iterator[LyingS3]:
    """The endpoint."""
    with lying_s3() as server:
        yield server


class Failing:
    """A folder of which `weights` comes, `asked` for so many times by now, and another file only when it `works`."""

    def __init__(self, liar: LyingS3, size: int) -> None:
        self.weights, self.asked, self.works = os.urandom(size), 0, False
        self._came = threading.Event()
        bucket = liar.bucket(Objects({"run/last": 1, "run/weights": size}, self._answer))
        self.uri = f"{bucket}/run"

    def _answer(self, key: str) -> Answer:
        if key == "run/weights":
            return self._weights
        if self.works:
            return object_of(b"!")
        assert self._came.wait(PATIENCE_SECONDS)
        return refuses(403, "AccessDenied", "Access Denied")

    def _weights(self, reply: Reply) -> None:
        self.asked += 1
        object_of(self.weights)(reply)
        self._came.set()


@pytest.fixture
def daemon(start_daemon: StartDaemon, liar: LyingS3) -> Daemon:
    """A daemon with room for 10 MiB, whose failures are over at once."""
    return start_daemon(TRACKING, unreachable_after=2.0, capacity="10MiB", grace=0.0, env=liar.env)


@pytest.fixture
def alice(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Its caller."""
    return caller_of(daemon, room)


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Who may sweep."""
    return caller_of(daemon, room, "root")


def fail(alice: Caller, failing: Failing) -> None:
    """Fetches it in vain."""
    with pytest.raises(errors.CacheError):
        alice.fetch(failing.uri)


def test_what_a_failing_origin_left_does_not_close_the_store(alice: Caller, daemon: Daemon, liar: LyingS3) -> None:
    """The next download has the room, before a tree goes for it; the log says what went."""
    kept, failing, other = os.urandom(2 * MIB), Failing(liar, 7 * MIB), os.urandom(5 * MIB)
    tree = f"{liar.bucket(Objects({'run/w': len(kept)}, lambda key: object_of(kept)))}/run"
    uri = f"{liar.bucket(Objects({'run/w': len(other)}, lambda key: object_of(other)))}/run"
    alice.fetch(tree)
    fail(alice, failing)
    assert call(alice, "stats")["blob_bytes"] == 9 * MIB
    assert trees.read(alice.fetch(uri).path) == {"w": other}
    assert call(alice, "stats")["blob_bytes"] == 7 * MIB and set(held(alice)) == {tree, uri}
    assert "leftovers of failed downloads went: finished_files=1 beginnings=0" in daemon.read_log()


def test_the_next_attempt_goes_on(alice: Caller, operator: Caller, liar: LyingS3) -> None:
    """Where nobody has needed the room meanwhile; an operator's sweep says what would go, and takes it."""
    failing = Failing(liar, 7 * MIB)
    fail(alice, failing)
    asked = failing.asked
    plan = call(operator, "sweep", free_bytes=1, dry_run=True)
    assert (plan["tree_count"], plan["freed_bytes"]) == (0, 7 * MIB)
    failing.works = True
    assert trees.read(alice.fetch(failing.uri).path) == {"weights": failing.weights, "last": b"!"}
    assert failing.asked == asked


def test_an_operators_sweep_takes_them(alice: Caller, operator: Caller, liar: LyingS3) -> None:
    """And nothing of them is left."""
    fail(alice, Failing(liar, 7 * MIB))
    done = operator.command("sweep", "--free", str(ALL_BYTES))
    assert "7.0 MiB of that was left by downloads that failed" in done.stdout
    assert call(alice, "stats")["blob_bytes"] == 0
