"""Pins, sweeps and explanations, as the client checks them, asks for them and reads the answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from artifactcache import Client, errors
from artifactcache.calls import PIN_ATTEMPTS_MAX
from artifactcache.results import Evicted, Kept, Swept
from artifactcache.v1 import cache_pb2 as pb
from tests.unit.scripted import ALIAS, DIGESTS, HELD, MIB, ONE, SWEEP, TWO, Script, scripted


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """What every client of the test calls."""
    return scripted(monkeypatch)


@pytest.mark.parametrize(
    "seconds",
    [0, -1, math.nan, math.inf, -math.inf, True, "7d", 1e300, 10**5000, -(10**5000), [1]],
    ids=lambda value: type(value).__name__,
)
def test_how_long_cannot_be(script: Script, seconds: Any) -> None:
    """InvalidRequest before anything is asked; "no end" is None and nothing else."""
    with Client() as client, pytest.raises(errors.InvalidRequest, match="until it is unpinned"):
        client.pin(ONE, for_seconds=seconds)
    assert script.asked == []


@pytest.mark.parametrize(
    "count", [0, -1, 1.5, math.inf, True, "1GiB", 2**63, 10**5000, -(10**5000)], ids=lambda value: type(value).__name__
)
def test_how_much_cannot_be(script: Script, count: Any) -> None:
    """InvalidRequest before anything is asked."""
    with Client() as client, pytest.raises(errors.InvalidRequest, match="free_bytes"):
        client.sweep(free_bytes=count)
    assert script.asked == []


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.pin(),
        lambda client: client.pin(ONE, run_id="r"),
        lambda client: client.pin(ONE, progress=1),
        lambda client: client.pin(ONE, timeout=0),
        lambda client: client.unpin(),
        lambda client: client.unpin(ONE, artifact_path="p"),
        lambda client: client.explain(),
        lambda client: client.explain(ONE, include="/x"),
        lambda client: client.sweep(dry_run=1),
        lambda client: client.sweep(timeout=-1),
    ],
)
def test_arguments_that_are_wrong(script: Script, call: Callable[[Client], object]) -> None:
    """InvalidRequest before anything is asked."""
    with Client() as client, pytest.raises(errors.InvalidRequest):
        call(client)
    assert script.asked == []


def test_pin(script: Script) -> None:
    """It is made present and leased until it is pinned; the daemon is told the URI that was given, and the parts."""
    with Client() as client:
        pinned = client.pin(ALIAS, include="a/**", exclude="*.tmp", for_seconds=60)
    assert (pinned.uri, pinned.version, pinned.digest, pinned.owner) == (ALIAS, ONE, DIGESTS[ONE], "ada")
    assert pinned.until is None
    assert script.methods() == ["Fetch", "Pin"]
    wanted = pb.ArtifactSelection(uri=ALIAS, include=["a/**"], exclude=["*.tmp"])
    assert script.asked[1][1] == pb.PinRequest(artifact=wanted, seconds=60)
    assert script.leases == []


def test_pin_without_end(script: Script) -> None:
    """Is 0 seconds on the wire, where the end is infinity; one with an end keeps it."""
    script.until = 1234.5
    with Client() as client:
        assert client.pin(run_id="r", artifact_path="p").until == 1234.5
    assert script.asked[1][1].seconds == 0
    assert script.asked[1][1].artifact == pb.ArtifactSelection(run_id="r", artifact_path="p")


@pytest.mark.parametrize("first", [TWO, "models:/resnet/3"], ids=["to what is held", "to what is not held"])
def test_an_alias_that_moves_while_it_is_pinned(script: Script, first: str) -> None:
    """What it stands for now is made present, and pinned."""
    script.fetched, script.pinned = iter([ONE, TWO]), iter([first, TWO])
    with Client() as client:
        assert client.pin(ALIAS).version == TWO
    assert script.methods() == ["Fetch", "Pin"] * 2
    assert script.leases == []


def test_an_alias_that_never_stands_still(script: Script) -> None:
    """After some attempts the caller is told to pin a version."""
    script.pinned = iter([TWO] * 10)
    with Client() as client, pytest.raises(errors.InvalidRequest, match=f"pin a version, such as {TWO}.*unpin {ALIAS}"):
        client.pin(ALIAS)
    assert script.methods() == ["Fetch", "Pin"] * PIN_ATTEMPTS_MAX
    assert script.leases == []


def test_what_is_not_there_to_be_pinned(script: Script) -> None:
    """The daemon's own words come through, and no lease stays."""
    script.pinned = iter(["models:/resnet/3"] * 10)
    with Client() as client, pytest.raises(errors.NotFound, match="not held"):
        client.pin(ALIAS)
    assert script.leases == []


def test_until_when_it_is_pinned(script: Script) -> None:
    """None, a time, or infinity."""
    script.listed = [pb.HeldArtifact(pinned_until=until) for until in (0, 1234.5, math.inf)]
    with Client() as client:
        assert [held.pinned_until for held in client.list()] == [None, 1234.5, math.inf]


def test_sweep(script: Script) -> None:
    """What has gone, and what had to stay."""
    with Client() as client:
        swept = client.sweep()
    assert swept == Swept(
        dry_run=False,
        evicted=(
            Evicted(DIGESTS[ONE], (ONE,), 3 * MIB, 2 * MIB, "old"),
            Evicted(DIGESTS[TWO], (), MIB, 0, "linked elsewhere"),
        ),
        tree_count=2,
        freed_bytes=2 * MIB,
        wanted_bytes=MIB,
        kept=(Kept("leased", 1), Kept("pinned", 3)),
        seconds=0.25,
    )
    assert script.asked[-1] == ("Sweep", pb.SweepRequest())


@pytest.mark.parametrize(
    ("options", "is_repeated"), [({}, True), ({"free_bytes": 1, "dry_run": True}, True), ({"free_bytes": 1}, False)]
)
def test_a_sweep_that_is_broken_off(script: Script, options: dict[str, Any], is_repeated: bool) -> None:
    """Is made again, unless twice as much could go as was asked for."""
    script.is_broken_off = True
    with Client() as client:
        if is_repeated:
            assert client.sweep(**options).tree_count == 2
        else:
            with pytest.raises(errors.DaemonUnavailable, match="broken off"):
                client.sweep(**options)
    assert script.methods().count("Sweep") == 1 + is_repeated


@pytest.mark.parametrize("answers", [[], SWEEP[:1]], ids=["nothing", "no result"])
def test_a_sweep_without_a_result(script: Script, answers: list[Any]) -> None:
    """Is a defect of the daemon, and told as one."""
    script.swept = answers
    with Client() as client, pytest.raises(errors.CacheError, match="without a result"):
        client.sweep()


def test_explain(script: Script) -> None:
    """Place 0 is no place."""
    with Client() as client:
        found = client.explain(ONE)
        assert (found.artifact.version, found.is_kept, found.place, found.queue_length) == (ONE, False, 3, 20)
        assert (found.freed_bytes, found.refetch_seconds) == (MIB, 1.5)
        script.explained = pb.ExplainReply(artifact=HELD, is_kept=True, reasons=["It is pinned."], queue_length=20)
        found = client.explain(ONE)
    assert (found.is_kept, found.reasons, found.place) == (True, ("It is pinned.",), None)
