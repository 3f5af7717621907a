"""Artifact stores that only clients of MLflow's can read, of which nothing is known: what one may do to the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError, DaemonUnavailable, OriginUnavailable
from cacheserver import crews as crews_room
from cacheserver.crews import Crews
from cacheserver.repository import TRANSFERS_MAX, RepositoryFiles, Transfers
from cacheserver.staging import Sink
from cacheserver.words import File
from tests.rig.until import until

PATIENCE_SECONDS = 0.2
CONTENT = b"0123456789" * 10


class Client:
    """A repository that writes as it is told; a real client cannot be made to hang at a byte."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._download_file = lambda remote, path: write(path)


@pytest.fixture
def transfers() -> Iterator[Transfers]:
    """A pool that gives up quickly."""
    found = Transfers(PATIENCE_SECONDS)
    yield found
    found.close()


def _ask(what: str, question: Callable[[], Any]) -> Any:
    return question()


def _fill(folder: Path, transfers: Transfers, write: Callable[[str], None], path: str = "1") -> tuple[str, bytes]:
    with Sink(str(folder / path), len(CONTENT), "the file") as sink:
        RepositoryFiles(Client(write), True, _ask, transfers).fill(File(b"f", len(CONTENT), "f"), sink)
        return sink.finish().row.digest, (folder / path).read_bytes()


def _write(path: str) -> None:
    Path(path).write_bytes(CONTENT)


def test_what_a_client_writes_is_what_is_hashed(tmp_path: Path, transfers: Transfers) -> None:
    """Under the staged name, with nothing beside it."""
    from blake3 import blake3

    assert _fill(tmp_path, transfers, _write) == (blake3(CONTENT).hexdigest(), CONTENT)
    assert os.listdir(tmp_path) == ["1"]


def test_a_client_that_hangs_is_left_behind(tmp_path: Path, transfers: Transfers) -> None:
    """Whoever waits hears of it. When it comes back it touches no bytes of the store's, and what it left is removed."""
    go_on, ended = threading.Event(), threading.Event()

    def hang(path: str) -> None:
        Path(path).write_bytes(CONTENT[:10])
        go_on.wait()
        Path(path).write_bytes(CONTENT[::-1])
        Path(path + ".more").write_bytes(CONTENT)
        ended.set()

    with pytest.raises(OriginUnavailable, match="nothing of it has come for"):
        _fill(tmp_path, transfers, hang)
    (tmp_path / "1").unlink()  # as whoever staged it does
    assert _fill(tmp_path, transfers, _write)[1] == CONTENT, "another attempt under the same name"
    go_on.set()
    assert ended.wait(10)
    until(lambda: os.listdir(tmp_path) == ["1"], "what it left is removed")
    assert (tmp_path / "1").read_bytes() == CONTENT


def test_a_client_that_is_slow_is_waited_for(tmp_path: Path, transfers: Transfers) -> None:
    """However long it takes, as long as something comes; also where it writes to a name beside its own at first."""
    pause = threading.Event()

    def slow(path: str) -> None:
        for end in range(10, len(CONTENT) + 1, 10):
            Path(path + ".partial").write_bytes(CONTENT[:end])
            pause.wait(PATIENCE_SECONDS / 3)
        os.rename(path + ".partial", path)

    assert _fill(tmp_path, transfers, slow)[1] == CONTENT


def test_clients_that_hang_keep_nobody_waiting_for_ever(tmp_path: Path, transfers: Transfers) -> None:
    """As many as there may be: whoever comes then is told, within the time."""
    go_on, failed = threading.Event(), []

    def hang(path: str) -> None:
        go_on.wait()

    def one(number: int) -> None:
        try:
            _fill(tmp_path, transfers, hang, str(number))
        except OriginUnavailable as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(TRANSFERS_MAX // 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == TRANSFERS_MAX // 2
    try:
        with pytest.raises(OriginUnavailable):
            _fill(tmp_path, transfers, _write, "another")
    finally:
        go_on.set()


@pytest.mark.parametrize("kind", ["fifo", "link", "two names", "folder"])
def test_what_is_no_file_of_its_own_is_refused(tmp_path: Path, transfers: Transfers, kind: str) -> None:
    """Whatever a client leaves under the name it was given, only a plain file of one name becomes a blob."""
    room = tmp_path / "room"
    room.mkdir()
    (tmp_path / "secret").write_bytes(CONTENT)
    leave: dict[str, Callable[[str], None]] = {
        "fifo": os.mkfifo,
        "link": lambda path: os.symlink(tmp_path / "secret", path),
        "two names": lambda path: os.link(tmp_path / "secret", path),
        "folder": os.mkdir,
    }
    with pytest.raises((CacheError, OSError)):
        _fill(room, transfers, leave[kind])
    assert os.listdir(room) == ["1"]
    assert (tmp_path / "secret").read_bytes() == CONTENT


def test_a_store_that_hangs_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can end its threads, so they are its own. Of stores of one scheme there are not more than so many at a
    time, but those that answered make room for others; and those of other schemes are asked beside them."""
    monkeypatch.setattr(crews_room, "CREWS_MAX", 3)
    crews, go = Crews(2, "test"), threading.Event()
    try:
        stuck = [crews.submit("ftp://silent", None, go.wait, 30) for _ in range(5)]
        for number in range(10):
            assert crews.submit(f"ftp://{number}", None, lambda: "answered").result(30) == "answered"
        stuck += [crews.submit(f"ftp://silent{number}", None, go.wait, 30) for number in range(2)]
        with pytest.raises(OriginUnavailable, match="3 artifact stores of ftp"):
            crews.submit("ftp://11", None, lambda: "answered")
        for number in range(10):
            assert crews.submit(f"s3://{number}", None, lambda: "answered").result(30) == "answered"
        go.set()
        assert all(one.result(30) for one in stuck)
        until(lambda: all(not crew.under_way for crew in crews._crews.values()), "all to have ended")
        assert crews.submit("ftp://11", None, lambda: "answered").result(30) == "answered"
    finally:
        go.set()
        crews.close()


def test_stores_of_any_scheme_have_an_end() -> None:
    """Whoever asks for an artifact can write any scheme: those that have answered make room for others."""
    crews = Crews(1, "test")
    try:
        for number in range(crews_room.CREWS_ALL_MAX + 50):
            assert crews.submit(f"a{number}://x", None, lambda: "answered").result(30) == "answered"
            until(lambda: all(not crew.under_way for crew in crews._crews.values()), "it to have ended")
        assert len(crews._crews) == crews_room.CREWS_ALL_MAX
    finally:
        crews.close()


def test_crews_that_are_dismissed_begin_nothing() -> None:
    """And what waits for its turn then ends, whoever else asks at that moment."""
    crews, go = Crews(1, "test"), threading.Event()
    first, second = crews.submit("store", None, go.wait), crews.submit("store", None, go.wait)
    closing = threading.Thread(target=crews.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(DaemonUnavailable):
        second.result(0)
    with pytest.raises(DaemonUnavailable, match="being stopped"):
        crews.submit("another", None, go.wait)
    go.set()
    assert first.result(10)


def test_a_crew_that_takes_nothing_on_is_not_counted_as_at_work() -> None:
    """Who asked hears of it, and the crew still makes room for that of another store."""
    crews = Crews(1, "test")
    try:
        crew = crews._crews["store"] = crews_room._Crew(1, "test")
        crew.pool.close()
        with pytest.raises(DaemonUnavailable):
            crews.submit("store", None, lambda: None)
        assert crew.under_way == 0
    finally:
        crews.close()
