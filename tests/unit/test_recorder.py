"""The trace that a daemon writes: whatever happens to the daemon, the file and what is held, it can be read."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest

from cacheserver import traces
from cacheserver.eviction import POLICIES
from cacheserver.recorder import Recorder
from cacheserver.words import Held
from tests.unit.house import Shelf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the trace is."""
    return tmp_path / "trace"


@pytest.fixture
def recorder(shelf: Shelf, path: Path) -> Recorder:
    """A recorder of what is on the shelf."""
    return Recorder(str(path), shelf.index.holdings)


def fetches(path: Path) -> list[traces.Fetch]:
    """What the simulator reads."""
    with path.open() as lines:
        return traces.read(lines, str(path))


def put(shelf: Shelf, name: str, **files: bytes) -> Held:
    """An artifact of its own."""
    return shelf.put({"name": name.encode()} | files, f"s3://bucket/{name}")


def evict(shelf: Shelf, held: Held) -> None:
    """Lets it go."""
    shelf.store.departures.evict([held.tree], now=1e9, young_since=1e9)


def test_what_is_written_is_read(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """Who fetched is not in it; when, which tree, its blobs and what it took are; a tree is told once."""
    one, two = put(shelf, "one", weights=b"w" * 100), put(shelf, "two", weights=b"w" * 100)
    for at, held in ((10.0, one), (11.5, two), (12.0, one)):
        recorder.note(held.tree, at)
    assert not path.exists()
    recorder.write()
    recorder.note(two.tree, 13.0)
    recorder.write()
    read = fetches(path)
    assert [(f.at, f.tree.name) for f in read] == [
        (10.0, one.tree),
        (11.5, two.tree),
        (12.0, one.tree),
        (13.0, two.tree),
    ]
    assert read[0].tree.size_bytes == 103 and len(dict(read[0].tree.blobs).keys() & dict(read[1].tree.blobs)) == 1
    assert path.read_text().count('"tree"') == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_where_none_is_wanted(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a path nothing is noted; without fetches no file comes into being."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    held = put(shelf, "one")
    none = Recorder("", shelf.index.holdings)
    none.note(held.tree, 1.0)
    none.write()
    Recorder(str(tmp_path / "trace"), shelf.index.holdings).write()
    assert sorted(tmp_path.iterdir()) == before and not caplog.records


@pytest.mark.parametrize("half", ['{"at":14.0,"fet', '{"tree":"' + "f" * 64 + '","seconds":1.0,"blobs":{"a":1', "{"])
def test_half_a_line_is_cut(recorder: Recorder, shelf: Shelf, path: Path, half: str) -> None:
    """What a daemon left that was killed does not run into what the next one writes."""
    held = put(shelf, "one")
    recorder.note(held.tree, 1.0)
    recorder.write()
    with path.open("a") as file:
        file.write(half)
    after = Recorder(str(path), shelf.index.holdings)
    after.note(held.tree, 2.0)
    after.write()
    assert [f.at for f in fetches(path)] == [1.0, 2.0]


def test_half_a_first_line_is_begun_anew(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """A file that has not even its header gets one."""
    path.write_text(traces.header()[:7])
    held = put(shelf, "one")
    recorder.note(held.tree, 1.0)
    recorder.write()
    assert [f.at for f in fetches(path)] == [1.0]


def test_a_daemon_that_starts_again_goes_on(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """Behind what there is, without a second header; it tells again what it fetches."""
    held = put(shelf, "one")
    for at in (1.0, 2.0):
        started = Recorder(str(path), shelf.index.holdings)
        started.note(held.tree, at)
        started.write()
    assert [f.at for f in fetches(path)] == [1.0, 2.0]
    assert path.read_text().count(traces.HEADER) == 1


def test_what_has_gone_meanwhile_is_told_if_it_can_be(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """A tree that was told is fetched all the same; one that was evicted before it could be told is left out."""
    told, never, stays = put(shelf, "told"), put(shelf, "never"), put(shelf, "stays")
    recorder.note(told.tree, 1.0)
    recorder.write()
    for held in (told, never, stays):
        recorder.note(held.tree, 2.0)
    evict(shelf, told)
    evict(shelf, never)
    recorder.write()
    assert [(f.at, f.tree.name) for f in fetches(path)] == [(1.0, told.tree), (2.0, told.tree), (2.0, stays.tree)]


def test_a_tree_that_changed_is_told_again(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """As it takes longer to fetch now; what was fetched before took what it took."""
    held = put(shelf, "one", data=b"d" * 1000)
    for seconds in (5.0, 50.0):
        shelf.index.rankings.arrived(held.tree, POLICIES["lru"], seconds=seconds, fetched_bytes=1003, now=seconds)
        recorder.note(held.tree, seconds)
        recorder.write()
    assert [f.tree.seconds for f in fetches(path)] == [5.0, 50.0]


def test_where_it_cannot_be_written_that_is_told_once(
    recorder: Recorder, shelf: Shelf, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No error, and no second warning; when it can be again, what comes from then on can be read."""
    held, other = put(shelf, "one"), put(shelf, "two")
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        for at in (1.0, 2.0):
            recorder.note(held.tree, at)
            recorder.write()
    assert len(caplog.records) == 1 and str(path) in caplog.text
    path.rmdir()
    for at, tree in ((3.0, held.tree), (4.0, other.tree)):
        recorder.note(tree, at)
        recorder.write()
    assert [f.at for f in fetches(path)] == [3.0, 4.0]


def test_a_full_disk_leaves_what_can_be_read(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """It takes a part of what is written, without an error: what is missing is told with the next fetch."""
    held = put(shelf, "one")
    recorder.note(held.tree, 1.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(traces.header()) + 20, before[1]))
    try:
        recorder.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == len(traces.header()) + 20
    recorder.note(held.tree, 2.0)
    recorder.write()
    assert fetches(path)[-1].at == 2.0


@pytest.mark.parametrize("how", ["removed", "emptied", "renamed"])
def test_a_trace_that_is_put_away_begins_anew(recorder: Recorder, shelf: Shelf, path: Path, how: str) -> None:
    """It grows without an end, so somebody will: the new file tells its trees itself."""
    held = put(shelf, "one")
    recorder.note(held.tree, 1.0)
    recorder.write()
    if how == "emptied":
        path.write_bytes(b"")
    elif how == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".1"))
    for at in (2.0, 3.0):
        recorder.note(held.tree, at)
        recorder.write()
    assert [f.at for f in fetches(path)] == [2.0, 3.0]


def test_a_link_is_not_followed(recorder: Recorder, shelf: Shelf, path: Path, tmp_path: Path) -> None:
    """Whoever may write in the folder of the trace cannot have another file written."""
    victim = tmp_path / "victim"
    mine = traces.header() + "{"
    victim.write_text(mine)
    path.symlink_to(victim)
    recorder.note(put(shelf, "one").tree, 1.0)
    recorder.write()
    assert victim.read_text() == mine


def test_what_is_no_trace_is_left_alone(recorder: Recorder, shelf: Shelf, path: Path) -> None:
    """A file that is something else, by a slip in the configuration, loses nothing."""
    path.write_text("precious\nand without a newline at its end")
    recorder.note(put(shelf, "one").tree, 1.0)
    recorder.write()
    assert path.read_text().startswith("precious\nand without a newline at its end")
