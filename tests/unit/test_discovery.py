"""Folders of runs, found by looking and by what the kernel tells, in real folders."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver import discovery, folderevents, runfolders
from cacheserver.discovery import Discovery
from cacheserver.folderevents import FolderEvents
from cacheserver.settings import IngestConfig
from tests.rig.until import until

RUN, OTHER, MODEL, MADE = "a" * 32, "b" * 32, "m-" + "c" * 32, "m-" + "d" * 32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one experiment, a run and a logged model, and what is neither."""
    root = tmp_path / "mlruns"
    for path in (f"1/{RUN}/artifacts", f"1/models/{MODEL}/artifacts", "1/tags", ".trash/9", f"models/{OTHER}"):
        (root / path).mkdir(parents=True)
    (root / "1/meta.yaml").touch()
    (root / "1" / OTHER).touch()
    return root


class Finder(Discovery):
    """Looks at one folder, at whatever time a test says."""

    def __init__(self, root: Path, max_age: float = 1e6, pause: Callable[[], None] = lambda: None) -> None:
        self.now = root.stat().st_ctime + 100.0
        self.ticks = 0.0
        super().__init__(
            IngestConfig([str(root)], every=600.0, max_age=max_age),
            lambda: self.now,
            lambda: self.ticks,
            pause,
        )

    def found(self) -> set[str]:
        """The names that a look gives."""
        return {spot.name for spot in self.look(wants_more=True)}

    def until_told(self, name: str) -> None:
        """Waits until the kernel tells of a run, without a look at all."""

        def is_told() -> bool:
            assert not self.found()
            return name in {spot.name for spot in self.told()}

        until(is_told, f"{name} to be told of")


@pytest.fixture
def finder(root: Path) -> Iterator[Finder]:
    """One that has just begun."""
    finder = Finder(root)
    yield finder
    finder.events.close()


def test_what_is_a_run_is_told_by_its_name(finder: Finder, root: Path) -> None:
    """Neither files, nor hidden folders, nor other names; a run without artifacts is none yet."""
    (root / "1" / ("d" * 32)).mkdir()
    assert finder.found() == {RUN, MODEL}
    assert finder.found() == set()


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("", ""),
        ("1", "1"),
        (".trash", ""),
        (f"1/{RUN}", f"1/{RUN}"),
        (f"1/{RUN}/artifacts/a/b", f"1/{RUN}"),
        ("1/models", "1/models"),
        (f"1/models/{MODEL}/artifacts/x", f"1/models/{MODEL}"),
        ("1/meta.yaml", "1/meta.yaml"),
    ],
)
def test_whose_a_change_is(path: str, owner: str) -> None:
    """The experiment's, the run's or the logged model's that it lies in."""
    assert runfolders.owner("/r", f"/r/{path}") == (f"/r/{owner}" if owner else "")


def test_the_newest_file_counts_wherever_it_is(tmp_path: Path) -> None:
    """And no symlink leads out of the run."""
    (tmp_path / "run/deep/er").mkdir(parents=True)
    (tmp_path / "run/link").symlink_to(tmp_path / "outside")
    before = runfolders.newest(str(tmp_path / "run"))
    (tmp_path / "outside").mkdir()
    until(lambda: _touched(tmp_path / "outside/f") > before, "the clock to go on")
    assert runfolders.newest(str(tmp_path / "run")) == before
    (tmp_path / "run/deep/er/f").touch()
    assert runfolders.newest(str(tmp_path / "run")) > before


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was looked at in folders; one called `gone` comes first, and is removed when it has been listed."""
    looked, scandir = list[str](), os.scandir

    def each(some: list[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in some:
            looked.append(entry.name)
            yield entry

    @contextlib.contextmanager
    def scanned(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            some = sorted(entries, key=lambda entry: entry.name != "gone")
        if some and some[0].name == "gone":
            os.unlink(some[0].path)
        yield each(some)

    monkeypatch.setattr(os, "scandir", scanned)
    return looked


def test_a_file_that_goes_hides_no_other(tmp_path: Path, listed: list[str]) -> None:
    """Those that are looked at after it count all the same."""
    for name in ("gone", "late"):
        (tmp_path / name).touch()
    until(lambda: _touched(tmp_path / "late") > tmp_path.stat().st_ctime, "the clock to go on")
    assert runfolders.newest(str(tmp_path)) == (tmp_path / "late").stat().st_ctime
    assert listed == ["gone", "late"]


def test_there_is_an_end_within_a_folder_too(
    tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files lie in it."""
    monkeypatch.setattr(runfolders, "WALK_MAX", 4)
    for path in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        (tmp_path / path).mkdir(parents=True)
    runfolders.newest(str(tmp_path))
    assert len(listed) == 4


def _touched(path: Path) -> float:
    path.touch()
    return path.stat().st_ctime


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a run is made": (lambda root: (root / "1" / OTHER / "artifacts").mkdir(parents=True), OTHER),
    "an experiment is made": (lambda root: (root / "2" / OTHER / "artifacts").mkdir(parents=True), OTHER),
    "a logged model is made": (lambda root: (root / f"1/models/{MADE}/artifacts").mkdir(parents=True), MADE),
    "an experiment is moved here": (lambda root: (root.parent / "aside").rename(root / "3"), OTHER),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_kernel_tells_of_what_comes(finder: Finder, root: Path, what: str) -> None:
    """Without a look at all of it."""
    (root / "1" / OTHER).unlink()
    (root.parent / "aside" / OTHER / "artifacts").mkdir(parents=True)
    finder.found()
    change, name = CHANGES[what]
    change(root)
    finder.until_told(name)


def test_what_is_old_is_left_by_looks_alone(root: Path) -> None:
    """As `max_age` says; when something happens in it, it is told of."""
    finder = Finder(root, max_age=50.0)
    assert finder.found() == set()
    (root / "1" / RUN / "artifacts").rmdir()
    finder.now = root.stat().st_ctime + 10.0
    finder.ticks = 700.0
    assert finder.found() == {MODEL}
    finder.events.close()


def test_a_folder_that_is_taken_out_is_watched_no_more(finder: Finder, root: Path) -> None:
    """And what the kernel had told of it leads nowhere; it can be put back."""
    finder.found()
    assert finder.events.count() == 4
    finder.become(IngestConfig([]))
    assert finder.events.count() == 0 and finder.found() == set() and finder.told() == []
    finder.become(IngestConfig([str(root)]))
    assert finder.found() == {RUN, MODEL} and finder.events.count() == 4


def test_how_often_and_how_far_back_may_change(root: Path) -> None:
    """What counts is what the configuration says now, not what it said when the next look was put off."""
    finder = Finder(root, max_age=50.0)
    assert finder.found() == set()
    finder.become(IngestConfig([str(root)], every=600.0, max_age=1e6))
    assert finder.found() == {RUN, MODEL}
    (root / "1" / OTHER).unlink()
    (root / "1" / OTHER / "artifacts").mkdir(parents=True)
    assert finder.found() == set()
    finder.become(IngestConfig([str(root)], every=1.0, max_age=1e6))
    assert finder.found() == {OTHER}
    finder.ticks += 1.0
    (root / "1" / OTHER / "artifacts").rmdir()
    (root / "1" / OTHER / "artifacts").mkdir()
    assert finder.found() == {OTHER}
    finder.events.close()


@pytest.mark.parametrize("stays", ["outer", "inner"])
def test_a_folder_in_another_is_watched_when_that_is_taken_out(finder: Finder, root: Path, stays: str) -> None:
    """Some of what is watched is both's."""
    (root / "1" / OTHER).unlink()
    (root / "1/sub").mkdir()
    finder.become(IngestConfig([str(root), str(root / "1")], every=600.0, max_age=1e6))
    finder.found()
    finder.become(IngestConfig([str(root if stays == "outer" else root / "1")], every=600.0, max_age=1e6))
    finder.found()
    (root / ("1" if stays == "outer" else "1/sub") / OTHER / "artifacts").mkdir(parents=True)
    finder.until_told(OTHER)


def test_which_limit_it_was_is_told(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: to raise the kernel's does not help where it is the daemon's own."""
    monkeypatch.setattr(folderevents, "WATCHES_MAX", 2)
    assert finder.found() == {RUN, MODEL} and finder.found() == set()
    (message,) = caplog.messages
    assert "more than 2 folders" in message and "inotify" not in message


# -- what the kernel tells ---------------------------------------------------------------------------------------------


@pytest.fixture
def events() -> Iterator[FolderEvents]:
    """One to which every path is worth a look."""
    events = FolderEvents(lambda path: path)
    yield events
    events.close()


def test_no_more_is_watched_than_may_be(events: FolderEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not is told; what is removed makes room."""
    monkeypatch.setattr(folderevents, "WATCHES_MAX", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
    for name in "abca":
        events.watch(str(tmp_path / name))
    assert events.is_full and not events.is_short and events.count() == 2
    (tmp_path / "a").rmdir()
    until(lambda: events.count() == 1, "the watch to end")
    events.watch(str(tmp_path / "c"))
    assert events.count() == 2


def test_what_is_not_there_or_closed_is_not_watched(events: FolderEvents, tmp_path: Path) -> None:
    """That is no want of watches."""
    (tmp_path / "file").touch()
    events.watch(str(tmp_path / "file"))
    events.watch(str(tmp_path / "none"))
    assert not events.is_short and events.count() == 0


def test_more_than_can_be_noted_is_told(events: FolderEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all is to be looked at; what was noted is given all the same."""
    monkeypatch.setattr(folderevents, "NOTED_MAX", 3)
    events.watch(str(tmp_path))
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    until(lambda: events._is_much, "more than can be noted")
    noted, is_much = events.take()
    assert (set(noted), is_much) == ({str(tmp_path / str(number)) for number in range(3)}, True)


def test_what_is_moved_away_is_not_taken_for_what_was_there(events: FolderEvents, tmp_path: Path) -> None:
    """Nor is what lies in it: what happens there is somewhere else."""
    (tmp_path / "a/b").mkdir(parents=True)
    for path in ("a", "a/b"):
        events.watch(str(tmp_path / path))
    (tmp_path / "a").rename(tmp_path / "away")
    until(lambda: events.count() == 0, "both to be left")
    (tmp_path / "a/b").mkdir(parents=True)
    events.watch(str(tmp_path / "a/b"))
    events.take()
    (tmp_path / "away/b/x").mkdir()
    (tmp_path / "a/b/y").mkdir()
    until(lambda: str(tmp_path / "a/b/y") in events.take()[0] or None, "what happens there to be told")


def test_a_folder_may_be_had_by_two_names(events: FolderEvents, tmp_path: Path) -> None:
    """A symlink's and its own: what happens is told by both."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    events.watch(str(tmp_path / "a"))
    events.watch(str(tmp_path / "link"))
    (tmp_path / "a/x").mkdir()
    told = set[str]()

    def are_told() -> bool:
        told.update(events.take()[0])
        return told >= {str(tmp_path / name / "x") for name in ("a", "link")}

    until(are_told, lambda: f"{told}")
    events.leave(str(tmp_path / "link"))
    shutil.rmtree(tmp_path / "a")
    until(lambda: events.count() == 0, "the watch to end")
    assert not os.path.exists(tmp_path / "a")


def test_what_comes_behind_a_look_is_found_by_the_next_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an experiment that was looked at already, while the look finds something newer in another one. Nor does a run
    of a clock that was ahead hide those of after it was set right: no look begins where an earlier one has not been."""
    monkeypatch.setattr(discovery, "MARGIN_SECONDS", 0.0)
    shutil.rmtree(root / "1")
    for path in (f"{experiment}/{letter * 32}/artifacts" for experiment in "12" for letter in f"{experiment}ef"):
        (root / path).mkdir(parents=True)
    behind = list[Path]()

    def pause() -> None:
        watched = [path for path in (root / "1", root / "2") if str(path) in finders[0].events._watched]
        if len(watched) < 2 or behind:
            return
        first, second = sorted(watched, key=list(map(Path, finders[0].events._watched)).index)
        behind.append(first / ("9" * 32))
        (behind[0] / "artifacts").mkdir(parents=True)
        for run in list(second.iterdir()):
            while max(path.stat().st_ctime for path in (run, run / "artifacts")) <= behind[0].stat().st_ctime:
                (run / "artifacts" / os.urandom(4).hex()).touch()

    finder = Finder(root, pause=pause)
    finders = [finder]
    finder.now = max(path.stat().st_ctime for path in root.rglob("*"))
    finder.found()
    finder.ticks += 600.0
    assert behind and behind[0].name in finder.found()
    finder.events.close()
