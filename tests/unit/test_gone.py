"""Callers who have gone while they were waited for: what they were about to be given is taken back, and said so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.attempts import GRANTED, Attempt
from cacheserver.fetching import Call
from cacheserver.quotas import Quota
from cacheserver.sessions import Session
from cacheserver.settings import AccessConfig
from cacheserver.words import Progress, Resolved
from tests.rig.until import until
from tests.rig.wire import bearer, stub
from tests.unit.accounts import ALICE, start
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate
from tests.unit.serving import Served
from tests.unit.shown import ShownHouse

BOB = 4_000_002
SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ShownHouse]:
    """Its origin has FILES as a run, and is asked whether a caller may read them."""
    house = ShownHouse(tmp_path / "store")
    house.origin.versions["runs:/r"] = Resolved("runs:/r", ROOT, (), True)
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    yield house
    house.close()


@pytest.fixture
def served(house: ShownHouse, tmp_path: Path) -> Iterator[Served]:
    """The house, served."""
    served = Served(house, tmp_path / "sockets", gate=house.gate, access=AccessConfig(check="caller"))
    yield served
    served.stop()


@pytest.fixture
def bob(served: Served) -> Session:
    """Somebody whose session goes on, whatever becomes of his calls."""
    return served.session(BOB, "bob")


class Halt:
    """Somewhere in the daemon where a call stops until it may go on."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()

    def here(self, *_: object) -> None:
        """Stop."""
        self._reached.set()
        assert self._opened.wait(PATIENCE_SECONDS)

    def wait(self) -> None:
        """Until somebody stands here."""
        assert self._reached.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        """Let everybody go on."""
        self._opened.set()


def hold(house: ShownHouse) -> None:
    """It is held, and on nobody's account."""
    flight = house.start("runs:/r")
    flight.future.result(PATIENCE_SECONDS)
    house.cache.leave(flight)


def fetching(cache: Any, session: Session, *, view: bool) -> Any:
    """A call that has begun."""
    request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri="runs:/r"), view=view)
    return cache.Fetch(request, metadata=bearer(session.token))


@pytest.fixture
def looks(house: ShownHouse, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One for each time that somebody who waits has looked how far it is."""
    looks: list[object] = []
    written = house.store.written

    def counted(progress: Progress) -> int:
        looks.append(progress)
        return written(progress)

    monkeypatch.setattr(house.store, "written", counted)
    return looks


def wait_with(call: Any, looks: list[object]) -> None:
    """Until a call waits for a download: it has told how far that is, and has looked again."""
    assert next(call).HasField("progress")
    told = len(looks)
    until(lambda: len(looks) > told, "another look")


def go(cache: Any, call: Any) -> None:
    """Break a call off, until the daemon has noticed: what comes later on the same connection has been answered."""
    call.cancel()
    cache.Ping(pb.PingRequest())


def assert_nothing_was_given(served: Served, session: Session, line: dict[str, Any]) -> None:
    """No lease, no use, no account; and the audit log says why."""
    assert (line["uid"], line["decision"], line["reason"]) == (BOB, "failed", "the caller has gone")
    assert (line["bytes"], line["hit"], line["given"]) == (0, None, "")
    assert not session.leases and served.house.leases.total() == 0
    assert BOB not in accounts(served) and counted(served, session) == (0, 0, 0)


def accounts(served: Served) -> dict[int, float]:
    """What is on each account."""
    served.house.cache.record_uses()
    return {uid: held for uid, _, held in served.house.index.ledger.usage(None)}


def counted(served: Served, session: Session) -> tuple[int, int, int]:
    """How many fetches, and how many hits, and how many bytes the daemon says that it has served."""
    with stub(served.folder) as cache:
        stats = cache.Stats(pb.StatsRequest(), metadata=bearer(session.token))
    return stats.fetch_count, stats.hit_count, stats.served_bytes


@pytest.mark.parametrize("view", [False, True])
def test_while_it_was_asked_whether_they_may(served: Served, house: ShownHouse, bob: Session, view: bool) -> None:
    """The answer is that they may, and it is held: it is given to nobody, and no view is built for them."""
    hold(house)
    halt = Halt()
    house.origin.asked = halt.here
    with stub(served.folder) as cache:
        call = fetching(cache, bob, view=view)
        halt.wait()
        go(cache, call)
        halt.open()
        (line,) = served.attempts(1)
    assert_nothing_was_given(served, bob, line)
    assert os.listdir(house.root / "views") == []


def test_while_their_view_was_built(
    served: Served, house: ShownHouse, bob: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was leased to them already: that ends, though their session goes on. Into the view they were let: that stays,
    and is written down, so that nobody reads one without a line, or an account, by going in time."""
    hold(house)
    halt, view = Halt(), house.store.view

    def slowly(digest: str, uid: int) -> str:
        halt.here()
        return view(digest, uid)

    monkeypatch.setattr(house.store, "view", slowly)
    with stub(served.folder) as cache:
        call = fetching(cache, bob, view=True)
        halt.wait()
        assert len(bob.leases) == 1
        go(cache, call)
        halt.open()
        (line,) = served.attempts(1)
    assert not bob.leases and house.leases.total() == 0
    assert (line["uid"], line["decision"], line["given"], line["bytes"]) == (BOB, "granted", "view", SIZE)
    assert accounts(served) == {BOB: SIZE} and counted(served, bob) == (1, 1, SIZE)


def test_while_others_brought_it(served: Served, house: ShownHouse, bob: Session, looks: list[object]) -> None:
    """Their call ends before that does, and costs nobody a place; whose download it is gets it."""
    gate = Gate(house, "top")
    flight = start(house, "runs:/r", ALICE)
    gate.wait()
    with stub(served.folder) as cache:
        call = fetching(cache, bob, view=False)
        wait_with(call, looks)
        assert flight.waiting == 2
        go(cache, call)
        (line,) = served.attempts(1)
        assert not flight.future.done() and flight.waiting == 1
        gate.open()
        assert flight.future.result(PATIENCE_SECONDS).origin_bytes == SIZE
    house.cache.leave(flight)
    assert_nothing_was_given(served, bob, line)


def test_while_it_was_brought_for_them(served: Served, house: ShownHouse, bob: Session, looks: list[object]) -> None:
    """What they have begun is brought to its end, and on their account, for it is on nobody else's; it is a hit for
    them when they come again."""
    gate = Gate(house, "top")
    with stub(served.folder) as cache:
        call = fetching(cache, bob, view=False)
        gate.wait()
        wait_with(call, looks)
        go(cache, call)
        (line,) = served.attempts(1)
        assert (line["decision"], line["reason"], line["bytes"]) == ("failed", "the caller has gone", 0)
        gate.open()
        until(lambda: house.cache.download_count() == 0, "the download to end")
        assert not bob.leases and house.leases.total() == 0
        *_, last = fetching(cache, bob, view=False)
    assert last.result.hit and last.result.lease in bob.leases
    assert accounts(served) == {BOB: SIZE}


@pytest.mark.parametrize("how", ["closed", "asked for more"])
def test_while_they_were_told(served: Served, house: ShownHouse, bob: Session, how: str) -> None:
    """The result was on its way, and nobody knows whether it came: it is taken back all the same, be it that nobody
    asks what comes after it, or that somebody does and the call is over."""
    hold(house)
    is_there, attempt = threading.Event(), Attempt("Fetch", "runs:/r")
    is_there.set()
    with ExitStack() as ends:
        call = Call(attempt, bob, is_there.is_set, Quota("calls", per_user=1, total=1), ends)
        events = served.fetching.fetch(call, pb.FetchRequest(artifact=pb.ArtifactSelection(uri="runs:/r")))
        assert next(events).result.lease in bob.leases and attempt.decision == GRANTED
        is_there.clear()
        events.close() if how == "closed" else next(events, None)
    attempt.of(bob)
    assert_nothing_was_given(served, bob, attempt.record(None, []))


@pytest.mark.parametrize("view", [False, True])
def test_who_is_there_still_is_given_it(served: Served, house: ShownHouse, bob: Session, view: bool) -> None:
    """The same call, which nobody breaks off: a lease, a use and an account."""
    hold(house)
    with stub(served.folder) as cache:
        *_, last = fetching(cache, bob, view=view)
    assert last.result.lease in bob.leases and house.leases.total() == 1
    assert accounts(served) == {BOB: SIZE} and counted(served, bob) == (1, 1, SIZE)
    (line,) = served.attempts(1)
    assert (line["decision"], line["given"], line["bytes"]) == ("granted", "view" if view else "lease", SIZE)
