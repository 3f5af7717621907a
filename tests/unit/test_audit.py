"""The audit log: what is written down of attempts, what is lost, what is warned of, and who is shown what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError, InvalidRequest, NotFound, PermissionDenied, QuotaExceeded, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import audit
from cacheserver.audit import AuditLog
from cacheserver.sessions import Peer
from cacheserver.settings import AuditConfig
from cacheserver.space import Amount
from tests.rig.until import until

ALICE, BOB = Peer(70001, 70001, 1), Peer(70002, 70002, 2, (70002, 70003))
ASKED = pb.ArtifactSelection(uri="models:/resnet@champion")


class Log:
    """A log in a folder of the test's own, whose time the test makes."""

    def __init__(self, folder: Path, **told: Any) -> None:
        self.path = folder / "audit.jsonl"
        self.now = 1_800_000_000.0
        self.log = AuditLog(str(self.path), AuditConfig(**told), None, lambda: self.now, lambda: self.now)

    def attempt(
        self,
        peer: Peer | None = ALICE,
        error: Exception | None = None,
        *,
        later: Callable[[Callable[[], None]], bool] = lambda call: False,
        hit: bool = True,
        asked: pb.ArtifactSelection = ASKED,
    ) -> None:
        """A fetch that is granted, or that ends with an error."""
        with self.log.attempt("Fetch", asked, later) as attempt:
            attempt.because = "check = none"
            attempt.peer = peer
            if error:
                raise error
            attempt.fetched(
                pb.FetchResult(version="models:/resnet/3", digest="d", size_bytes=5, hit=hit), "hit", view=True
            )

    def refuse(self, peer: Peer | None = ALICE) -> None:
        """One that is refused."""
        with pytest.raises(PermissionDenied):
            self.attempt(peer, PermissionDenied("No."))

    def lines(self, count: int) -> list[dict[str, Any]]:
        """What is in the file, once it has so many lines."""
        until(lambda: self.path.is_file() and self.path.read_bytes().count(b"\n") >= count, f"{count} lines")
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def shown(self, **request: Any) -> list[dict[str, Any]]:
        """What an operator is shown."""
        events = list(self.log.events(pb.AuditRequest(**request), lambda: True))
        assert events[0] == pb.AuditEvent()
        return [json.loads(line) for event in events for line in event.lines]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """One that writes."""
    log = Log(tmp_path)
    log.log.start()
    yield log
    log.log.stop()


@pytest.mark.parametrize(
    ("error", "decision", "reason"),
    [
        (PermissionDenied("Not you."), "refused", "PermissionDenied: Not you."),
        (Unauthenticated("Who?"), "refused", "Unauthenticated: Who?"),
        (QuotaExceeded("Enough."), "failed", "QuotaExceeded: Enough."),
        (NotFound("s3://ada:s3cret@host/x\nis not there"), "failed", "NotFound: s3://host/x is not there"),
        (InvalidRequest("'models:/resnet@' is none"), "failed", "InvalidRequest"),
        (ValueError("s3cret"), "failed", "CacheError: ValueError in the daemon; its log says more"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors(log: Log, error: Exception, decision: str, reason: str) -> None:
    """Refused is about rights; everything else has failed. Each with its class and its words, without secrets."""
    with pytest.raises(type(error)):
        log.attempt(error=error)
    told = log.lines(1)[0]
    assert (told["decision"], told["reason"], told["artifact"]) == (decision, reason, ASKED.uri)


def test_who_has_gone_got_nothing(log: Log) -> None:
    """A call that is broken off before its result is written down too."""
    with log.log.attempt("Fetch", ASKED, lambda call: False):
        pass
    told = log.lines(1)[0]
    assert (told["decision"], told["reason"]) == ("failed", "the caller has gone")


def test_a_hit_is_written_down_when_its_call_is_over(log: Log) -> None:
    """Not before its caller has the answer; where that cannot be waited for, at once. What is refused always is."""
    waiting: list[Callable[[], None]] = []

    def later(call: Callable[[], None]) -> bool:
        waiting.append(call)
        return True

    log.attempt(later=later)
    log.attempt(BOB)
    assert [told["uid"] for told in log.lines(1)] == [BOB.uid]
    with pytest.raises(PermissionDenied):
        log.attempt(error=PermissionDenied("No."), later=later)
    log.lines(2)
    waiting[0]()
    assert len(waiting) == 1
    assert [told["uid"] for told in log.lines(3)] == [BOB.uid, ALICE.uid, ALICE.uid]
    assert log.lines(3)[0]["groups"] == ["70002", "70003"], "the host has no names for them"


def test_a_file_that_cannot_be_written_stops_nobody(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """That is told once; when it can be again, a line says how many are missing before the next one."""
    log.path.mkdir()
    for _ in range(3):
        log.attempt()
    until(lambda: log.log._lost == 3, "three attempts to be tried")
    assert [m for m in caplog.messages if "cannot be written" in m] == [
        f"{log.path} cannot be written, attempts are missing there: Is a directory"
    ]
    log.path.rmdir()
    log.attempt(BOB)
    lost, told = log.lines(2)
    assert (lost["lost"], lost["reason"]) == (3, "3 attempts are missing here: Is a directory")
    assert (told["uid"], log.log._lost) == (BOB.uid, 0)
    assert [m for m in caplog.messages if "written again" in m]


def test_what_was_lost_at_the_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a daemon that stops."""
    log = Log(tmp_path)
    log.path.mkdir()
    log.attempt()
    log.log.start()
    log.log.stop()
    assert f"{log.path} lacks the last 1 attempts: Is a directory" in caplog.messages


def test_a_queue_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes an attempt does not wait for a disk that hangs: from there on lines are lost, and counted."""
    monkeypatch.setattr(audit, "QUEUE_MAX", 2)
    log = Log(tmp_path)
    for _ in range(5):
        log.attempt()
    log.log.start()
    lost, *told = log.lines(3)
    assert (lost["lost"], len(told)) == (3, 2)
    log.log.stop()


def test_a_stop_writes_what_is_waiting(tmp_path: Path) -> None:
    """All of it."""
    log = Log(tmp_path)
    for _ in range(1000):
        log.attempt()
    log.log.start()
    log.log.stop()
    assert len(log.lines(1000)) == 1000


def test_refusals_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each user and ten minutes, from the configured number on; failures are none."""
    log = Log(tmp_path, warn_refusals=3)
    for _ in range(5):
        log.refuse()
    log.refuse(BOB)
    with pytest.raises(NotFound):
        log.attempt(BOB, NotFound("x"))
    log.log.hello(BOB, PermissionDenied("no"))
    assert log.log.refused_count() == 7
    assert caplog.messages == [
        "3 attempts of uid 70001 were refused within 10 minutes; `artifactcache audit` shows them"
    ]
    for _ in range(3):
        log.refuse(None)
    assert "3 attempts of somebody without a session were refused" in caplog.messages[1]
    log.now += 600
    for _ in range(3):
        log.refuse()
    assert len(caplog.messages) == 3


def test_downloads_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hits are none, however many."""
    log = Log(tmp_path, warn_downloads=3)
    for _ in range(10):
        log.attempt()
    log.attempt(hit=False)
    log.attempt(hit=False)
    assert caplog.messages == [] and log.log.refused_count() == 0
    log.attempt(hit=False)
    assert caplog.messages == ["3 downloads were made by uid 70001 within 10 minutes; `artifactcache audit` shows them"]


def test_who_gets_no_session(log: Log) -> None:
    """Is written down where it was refused, with the process; a full house is no refusal."""
    me = Peer(os.geteuid(), os.getegid(), os.getpid())
    log.log.hello(me, QuotaExceeded("too many"))
    log.log.hello(me, PermissionDenied("not you"))
    (told,) = log.lines(1)
    assert (told["verb"], told["artifact"], told["decision"]) == ("Hello", "", "refused")
    assert told["pid"] == os.getpid() and told["command"]


def test_what_an_operator_asks_for(log: Log) -> None:
    """By user, artifact, decision and time, all of which have to hold; nothing that is no line of ours."""
    log.attempt()
    log.refuse(BOB)
    log.lines(2)
    log.now += 100
    log.attempt(BOB, asked=pb.ArtifactSelection(run_id="r", artifact_path="a/b"))
    log.lines(3)
    with log.path.open("ab") as file:
        file.write(b'{"time": "2027-01-15T\n[1]\n\n{}\nnull\n{"time": "2027-01-15T08:05:00.000Z", "lost": 2}\n')
    everything = log.shown()
    assert [told.get("uid") for told in everything] == [ALICE.uid, BOB.uid, BOB.uid, None]
    lost = everything[-1]
    assert log.shown(user="70002") == [everything[1], everything[2], lost], "a gap may be anybody's"
    assert log.shown(refused_only=True) == [everything[1], lost]
    assert log.shown(artifact="models:/resnet/*") == [everything[0], everything[2], lost]
    assert log.shown(artifact="*@champion") == [everything[0], everything[1], lost]
    assert log.shown(artifact="runs:/r/*", user="70001") == [lost]
    assert log.shown(since=log.now - 50) == [everything[2], lost]
    assert log.shown(since=log.now) == [everything[2], lost]
    assert log.shown(since=log.now + 0.001, user="70002") == [lost]
    assert log.shown(since=log.now + 10_000) == []


@pytest.mark.parametrize("since", [-1.0, float("nan"), float("inf"), 1e12])
def test_no_time(log: Log, since: float) -> None:
    """What is no time is refused."""
    with pytest.raises(InvalidRequest):
        log.shown(since=since)


def test_a_follower_reads_nothing_ahead(tmp_path: Path) -> None:
    """Who does not take what is there makes nobody keep it: the file waits, not the memory."""
    log = Log(tmp_path, max_bytes=Amount(1 << 30))
    log.path.write_bytes(b'{"time": "2027-01-15T08:00:00.000Z", "uid": 1}\n' * 100_000)
    events = log.log.events(pb.AuditRequest(follow=True), lambda: True)
    next(events)
    assert 0 < sum(map(len, next(events).lines)) < 1 << 19


def test_a_follower_ends_with_its_call_and_with_the_daemon(tmp_path: Path) -> None:
    """However long nothing has come."""
    log = Log(tmp_path)
    assert len(list(log.log.events(pb.AuditRequest(follow=True), lambda: False))) == 1
    log.log.start()
    log.log.stop()
    assert len(list(log.log.events(pb.AuditRequest(follow=True), lambda: True))) == 1


def test_a_defect_in_one_attempt_does_not_end_the_log(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and counted as lost; the next one is written."""

    class Odd(CacheError):
        def __str__(self) -> str:
            raise ValueError("no words")

    with pytest.raises(Odd):
        log.attempt(error=Odd())
    log.attempt()
    assert [told.get("lost") for told in log.lines(2)] == [1, None]
    assert "an attempt could not be written down" in caplog.messages
