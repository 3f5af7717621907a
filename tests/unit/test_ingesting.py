"""What is brought before anybody asks: its order, its patience and its bounds, over an origin that obeys the test."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import NoSpace, OriginUnavailable
from cacheserver import discovery, ingesting, uris
from cacheserver.errands import Ask
from cacheserver.ingesting import AWAY_SECONDS, FULL_SECONDS
from cacheserver.outcomes import Outcome, State
from cacheserver.selection import Selection
from cacheserver.settling import RUNNING_SECONDS_MAX
from cacheserver.space import Amount, Limits
from cacheserver.words import Resolved
from tests.rig.until import until
from tests.unit.house import PATIENCE_SECONDS
from tests.unit.sweeping import ALL
from tests.unit.yard import SETTLE, Yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """One in which nothing was logged."""
    yard = Yard(tmp_path)
    yield yard
    yard.close()


def test_the_newest_come_first(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, where only one comes at a time."""
    monkeypatch.setattr(ingesting, "AT_ONCE", 1)
    added = [yard.origin.add(number) for number in range(6)]
    came = list[str]()
    yard.origin.after_download = lambda uri: came.append(f"runs:/{uri.split('/')[-3]}")
    times = [(Path(yard.origin.versions[uri].root).stat().st_ctime, uri) for uri in added]
    yard.later(0)
    assert set(came) == set(added) == yard.held()
    order = {uri: at for at, uri in times}
    assert [order[uri] for uri in came] == sorted((at for at, _ in times), reverse=True)


def test_newer_ones_keep_nobody_waiting_for_ever(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many folders somebody goes on making, who waits for longest is asked about beside the newest."""
    monkeypatch.setattr(ingesting, "ASKED_TOGETHER", 2)
    patient = yard.origin.add(1, State.OPEN)
    yard.later(0)
    for number in range(2, 10):
        yard.origin.add(number)

    def are_known() -> bool:
        yard.later(0)
        return yard.ingesting.waiting_count() == 9

    until(are_known, "all folders to be known")
    yard.origin.asked.clear()
    yard.later(SETTLE)
    assert patient.removeprefix("runs:/") in yard.origin.asked[0]


@pytest.mark.parametrize("bound", ["FOUND_MAX", "WAITING_MAX", "both"])
def test_more_than_is_remembered_comes_all_the_same(yard: Yard, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """A look gives so many, and goes on where it ended when there is room for more; what could not be remembered is
    found again."""
    if bound != "WAITING_MAX":
        monkeypatch.setattr(discovery, "FOUND_MAX", 10)
    if bound != "FOUND_MAX":
        monkeypatch.setattr(ingesting, "WAITING_MAX", 12)
    added = {yard.origin.add(number) for number in range(45)}
    counts = list[int]()
    yard.origin.before_download = lambda uri: counts.append(yard.ingesting.waiting_count())
    for _ in range(12):
        yard.later(600.0 if bound == "WAITING_MAX" else discovery.RETRY_SECONDS)
    assert yard.held() == added and max(counts) <= (12 if bound == "WAITING_MAX" else 10)


def test_a_run_that_runs_is_asked_about_less_and_less_often(yard: Yard) -> None:
    """Until it is once a minute; when something is written in it, soon again."""
    uri = yard.origin.add(1, State.OPEN)
    for _ in range(600):
        yard.later(1.0)
    assert 600 / RUNNING_SECONDS_MAX <= len(yard.origin.asked) <= 600 / RUNNING_SECONDS_MAX + 6
    asked = len(yard.origin.asked)
    yard.origin.states[uri[6:]] = State.DONE
    for _ in range(round(RUNNING_SECONDS_MAX)):
        yard.later(1.0)
    assert yard.held() == {uri} and len(yard.origin.asked) == asked + 1


def test_what_is_held_is_not_asked_about_again(yard: Yard) -> None:
    """By a daemon that starts anew: that its folders have not changed since is enough."""
    added = {yard.origin.add(number) for number in range(5)}
    yard.later(0)
    assert yard.held() == added
    asked, listings = len(yard.origin.asked), yard.origin.listings.total()
    yard.ingesting.stop()
    yard.ingesting.look()
    yard.ingesting = yard.made()
    yard.later(1000.0)
    yard.later(1000.0)
    assert (len(yard.origin.asked), yard.origin.listings.total()) == (asked, listings)
    assert yard.ingesting.waiting_count() == 0


def test_what_was_evicted_is_not_brought_again_by_a_look(yard: Yard) -> None:
    """It went because it was worth less than others; whoever fetches it brings it."""
    yard.origin.add(1)
    yard.later(0)
    yard.now += 1e5
    yard.ticks += 1e5
    yard.sweeper.sweep(free_bytes=ALL)
    for _ in range(5):
        yard.later(700.0)
    assert not yard.held() and yard.origin.downloads.total() == 1


def test_a_server_that_is_away_is_left_alone(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    """For a while, whatever waits; and it is told once."""
    added = {yard.origin.add(number) for number in range(3)}
    yard.origin.down = True
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            yard.later(AWAY_SECONDS + 1)
    assert caplog.text.count("nothing is ingested until") == 1
    yard.origin.down = False
    yard.later(AWAY_SECONDS + 1)
    assert yard.held() == added
    yard.origin.add(4, State.OPEN)
    yard.origin.down = True
    with caplog.at_level(logging.WARNING):
        for _ in range(5):  # the kernel may tell of it a moment late
            yard.later(700.0)
    assert caplog.text.count("nothing is ingested until") == 2


def test_one_that_fails_keeps_no_other_waiting(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it fails of; it is told once for all that fail so, and tried again, later and later."""
    bad, odd, good = yard.origin.add(1), yard.origin.add(2), yard.origin.add(3)

    def fail(uri: str) -> None:
        if bad[6:] in uri:
            raise OriginUnavailable("it broke off")
        if odd[6:] in uri:
            raise RuntimeError("whatever it is")

    yard.origin.before_download = fail
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            yard.later(60.0)
    assert yard.held() == {good}
    assert caplog.text.count("it broke off") == 1 and caplog.text.count(f"ingesting '{odd}' failed") == 1
    assert 3 <= yard.ingesting.counts.counts()["failed",] <= 15
    yard.origin.before_download = lambda uri: None
    yard.later(1800.0)
    assert yard.held() == {good, bad}


def test_what_is_gone_is_forgotten(yard: Yard) -> None:
    """Its folder, or what the tracking server knows of it."""
    running, vanishing = yard.origin.add(1, State.OPEN), yard.origin.add(2)
    yard.origin.versions.pop(vanishing)
    yard.origin.states[vanishing[6:]] = State.ENDED
    yard.origin.outcomes = lambda asked: {  # type: ignore[method-assign]
        one: Outcome(yard.origin.states[one], "/nowhere") for _, one in asked
    }
    yard.later(0)
    assert yard.ingesting.waiting_count() == 1
    shutil.rmtree(yard.folder / "1" / running[6:])
    yard.later(60.0)
    assert yard.ingesting.waiting_count() == 0 and not yard.held()


def test_a_clock_that_is_ahead_delays_and_stops_nothing(yard: Yard) -> None:
    """A file server's, say: what stays what it is for as long as that has settled. It is looked at once more, and not
    for ever."""
    uri = yard.origin.add(1)
    file = Path(yard.origin.versions[uri].root) / "f"

    def is_later() -> bool:
        file.touch()
        return file.stat().st_ctime > file.parent.stat().st_ctime

    until(is_later, "the clock to go on")
    yard.now -= 20_000
    yard.later(0)
    assert not yard.origin.asked
    yard.later(SETTLE)  # its folder has settled: it is asked about, and its files are looked at
    assert not yard.held()
    yard.later(SETTLE)
    assert yard.held() == {uri} and yard.ingesting.waiting_count() == 1
    yard.later(SETTLE)
    asked = len(yard.origin.asked)
    for _ in range(20):
        yard.later(SETTLE)
    assert len(yard.origin.asked) == asked == 3 and yard.ingesting.waiting_count() == 0


@pytest.mark.parametrize("state", [State.OPEN, State.ENDED, State.REFUSED, State.DONE])
def test_no_file_is_looked_at_that_the_server_has_not_confirmed(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    """Whoever may write in the folder can make symlinks of any names to something large. What has finished, and lies
    there, is brought from behind a symlink too."""
    large = yard.root / "large"
    (large / "deep").mkdir(parents=True)
    (large / "deep/f").touch()
    lies = yard.origin.add(1, State.OPEN)
    elsewhere = [yard.origin.add(number, state) for number in range(2, 6)]
    for uri in (lies, *elsewhere):
        artifacts = Path(yard.origin.versions[uri].root)
        artifacts.rename(yard.root / uri[6:])
        artifacts.symlink_to(large)
    for uri in elsewhere:
        yard.origin.versions[uri] = Resolved(uri, str(yard.root / "elsewhere"), (), True)
    walked, scandir = list[str](), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(os.path.basename(path)) or scandir(path))  # type: ignore[func-returns-value]
    for _ in range(10):
        yard.later(RUNNING_SECONDS_MAX)
    assert "artifacts" in walked and "deep" not in walked and not yard.held()
    yard.origin.states[lies[6:]] = State.DONE
    yard.later(RUNNING_SECONDS_MAX)
    assert yard.held() == {lies} and "deep" in walked


def test_what_is_written_while_it_waits_for_its_turn(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until that has settled, and is not brought as it was asked about."""
    monkeypatch.setattr(ingesting, "AT_ONCE", 1)
    both = {yard.origin.add(number) for number in range(2)}
    first = set[str]()

    def write(uri: str) -> None:
        if first:
            return
        first.add(f"runs:/{uri.split('/')[-3]}")
        (other,) = both - first
        (Path(yard.origin.versions[other].root) / "late").mkdir()  # one event
        until(lambda: yard.ingesting._discovery.events._noted, "that to be told")
        yard.ticks += SETTLE * 2  # it takes that long

    yard.origin.before_download = write
    yard.later(0)
    assert yard.held() == first and len(yard.origin.asked) == 1
    yard.later(SETTLE)
    assert yard.held() == both and len(yard.origin.asked) == 2


# -- room, and threads ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Yard]:
    """One that may hold 10,000 bytes, of which sweeps leave 9,000."""
    yard = Yard(tmp_path, Limits(Amount(10_000), Amount(0)))
    yield yard
    yard.close()


def test_nothing_goes_for_it(small: Yard, caplog: pytest.LogCaptureFixture) -> None:
    """It comes up to what sweeps leave, and no further, so that none begins for its sake; one line says so; what fits
    comes though something larger does not; and when there is room, the rest."""
    small.origin.files["s3://b/mine/f"] = os.urandom(5000)
    small.bring("s3://b/mine")
    fits = small.origin.add(2, size=3000)
    before = small.touched()
    until(lambda: small.touched() > before, "the clock to go on")
    large = small.origin.add(1, size=4500)  # the newest: it would fit, above what sweeps leave
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            small.later(FULL_SECONDS + 1)
    assert small.held() == {"s3://b/mine", fits} and small.sweeper.evicted_count == 0
    assert caplog.text.count("no room to ingest more") == 1
    small.now += 10.0
    assert not small.sweeper.watch()
    small.origin.files["s3://b/more/f"] = os.urandom(1500)
    small.bring("s3://b/more")
    asked = len(small.origin.asked)
    small.later(1800.0)
    assert len(small.origin.asked) == asked  # there is no room for anything
    small.now += 10.0
    small.sweeper.sweep(free_bytes=ALL)
    small.later(1800.0)
    assert small.held() == {large}


def test_a_full_store_has_no_runs_walked(small: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of a hundred runs, every so often, for nothing: that the first one has no place is enough."""
    small.origin.files["s3://b/mine/f"] = os.urandom(9500)
    small.bring("s3://b/mine")
    for number in range(20):
        small.origin.add(number)
    walked, scandir = set[str](), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.add(path) or scandir(path))  # type: ignore[func-returns-value]
    for _ in range(3):
        small.later(FULL_SECONDS + 1)
    assert len([path for path in walked if path.endswith("artifacts")]) == 1
    assert small.ingesting.waiting_count() == 20 and not small.origin.asked


def test_who_fetches_it_has_room_made(small: Yard) -> None:
    """A flight of somebody who waits is another one than that of what nobody has asked for."""
    small.origin.files["s3://b/mine/f"] = os.urandom(8000)
    small.bring("s3://b/mine")
    small.now += 100.0
    small.ticks += 100.0
    uri = small.origin.add(1, size=4000)
    flight = small.cache.bring(uris.parse(uri), Selection(), Ask.WHAT_IS_DUE, unasked=True)[0]
    with pytest.raises(NoSpace, match="do not fit"):
        flight.future.result(PATIENCE_SECONDS)
    small.cache.leave(flight)
    assert small.bring(uri).origin_bytes == 4000 and small.held() == {uri}


def test_it_shares_downloads_and_keeps_no_threads(yard: Yard) -> None:
    """What it brings is downloaded by threads of its own, and not twice where somebody fetches it meanwhile."""
    uri = yard.origin.add(1)
    begun, go_on, threads = threading.Event(), threading.Event(), list[str]()

    def hold(_: str) -> None:
        threads.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)

    yard.origin.before_download = hold
    unasked = yard.cache.bring(uris.parse(uri), Selection(), Ask.WHAT_IS_DUE, unasked=True)[0]
    assert begun.wait(PATIENCE_SECONDS)
    asked = yard.start(uri)
    assert asked is not unasked
    go_on.set()
    for flight in (unasked, asked):
        assert flight.future.result(PATIENCE_SECONDS).held.uri == uri
        yard.cache.leave(flight)
    assert yard.origin.downloads.total() == 1 and all("paced" in name for name in threads)


def test_a_rule_that_would_drop_it(yard: Yard) -> None:
    """It is not brought, and not asked about for ever."""
    dropped, kept = yard.origin.add(1), yard.origin.add(2)
    yard.dropped = {dropped}
    for _ in range(5):
        yard.later(700.0)
    assert yard.held() == {kept} and len(yard.origin.asked) == 1
    assert yard.ingesting.counts.counts()["dropped",] == 1
