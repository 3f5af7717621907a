"""Folders of runs, found by looking and by what the kernel tells, in real folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver import finding, lookout, runfolders
from cacheserver.finding import Finding
from cacheserver.lookout import Lookout
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


class Finder(Finding):
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
    finder.lookout.close()


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


def test_a_folder_without_end_is_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files lie in it, side by side."""
    monkeypatch.setattr(runfolders, "WALK_MAX", 5)
    for number in range(20):
        (tmp_path / f"{number}").touch()
    real, seen = os.scandir, list[str]()

    class Counted:
        """What is listed."""

        def __init__(self, folder: str) -> None:
            self.entries = real(folder)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self.each()

        def each(self) -> Iterator[os.DirEntry[str]]:
            for each in self.entries:
                seen.append(each.name)
                yield each

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Counted)
    runfolders.newest(str(tmp_path))
    assert len(seen) == 5


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
    finder.lookout.close()


def test_a_folder_that_is_taken_out_is_watched_no_more(finder: Finder, root: Path) -> None:
    """And what the kernel had told of it leads nowhere; it can be put back."""
    finder.found()
    assert finder.lookout.count() == 4
    finder.become(IngestConfig([]))
    assert finder.lookout.count() == 0 and finder.found() == set() and finder.told() == []
    finder.become(IngestConfig([str(root)]))
    assert finder.found() == {RUN, MODEL} and finder.lookout.count() == 4


# -- the lookout ------------------------------------------------------------------------------------------------------


@pytest.fixture
def outlook() -> Iterator[Lookout]:
    """One to which every path is worth a look."""
    outlook = Lookout(lambda path: path)
    yield outlook
    outlook.close()


def test_no_more_is_watched_than_may_be(outlook: Lookout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not is told; what is removed makes room."""
    monkeypatch.setattr(lookout, "WATCHES_MAX", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
    assert [outlook.watch(str(tmp_path / name)) for name in "abca"] == [True, True, False, True]
    assert outlook.is_short and outlook.count() == 2
    (tmp_path / "a").rmdir()
    until(lambda: outlook.count() == 1, "the watch to end")
    assert outlook.watch(str(tmp_path / "c"))


def test_what_is_not_there_or_closed_is_not_watched(outlook: Lookout, tmp_path: Path) -> None:
    """That is no want of watches."""
    (tmp_path / "file").touch()
    assert not outlook.watch(str(tmp_path / "file")) and not outlook.watch(str(tmp_path / "none"))
    assert not outlook.is_short and outlook.count() == 0


def test_more_than_can_be_noted_is_told(outlook: Lookout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all is to be looked at; what was noted is given all the same."""
    monkeypatch.setattr(lookout, "NOTED_MAX", 3)
    outlook.watch(str(tmp_path))
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    noted = set[str]()

    def is_told() -> bool:
        some, is_much = outlook.take()
        noted.update(some)
        return is_much

    until(is_told, "more than can be noted")
    assert noted == {str(tmp_path / str(number)) for number in range(3)}


def test_what_is_moved_away_is_not_taken_for_what_was_there(outlook: Lookout, tmp_path: Path) -> None:
    """Nor is what lies in it: what happens there is somewhere else."""
    (tmp_path / "a/b").mkdir(parents=True)
    for path in ("a", "a/b"):
        outlook.watch(str(tmp_path / path))
    (tmp_path / "a").rename(tmp_path / "away")
    until(lambda: outlook.count() == 0, "both to be left")
    (tmp_path / "a/b").mkdir(parents=True)
    assert outlook.watch(str(tmp_path / "a/b"))
    outlook.take()
    (tmp_path / "away/b/x").mkdir()
    (tmp_path / "a/b/y").mkdir()
    until(lambda: str(tmp_path / "a/b/y") in outlook.take()[0] or None, "what happens there to be told")


def test_a_folder_may_be_had_by_two_names(outlook: Lookout, tmp_path: Path) -> None:
    """A symlink's and its own: what happens is told by both."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert outlook.watch(str(tmp_path / "a")) and outlook.watch(str(tmp_path / "link"))
    (tmp_path / "a/x").mkdir()
    told = set[str]()

    def are_told() -> bool:
        told.update(outlook.take()[0])
        return told >= {str(tmp_path / name / "x") for name in ("a", "link")}

    until(are_told, lambda: f"{told}")
    outlook.leave(str(tmp_path / "link"))
    shutil.rmtree(tmp_path / "a")
    until(lambda: outlook.count() == 0, "the watch to end")
    assert not os.path.exists(tmp_path / "a")


def test_what_comes_behind_a_look_is_found_by_the_next_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an experiment that was looked at already, while the look finds something newer in another one. Nor does a run
    of a clock that was ahead hide those of after it was set right: no look begins where an earlier one has not been."""
    monkeypatch.setattr(finding, "MARGIN_SECONDS", 0.0)
    shutil.rmtree(root / "1")
    for path in (f"{experiment}/{letter * 32}/artifacts" for experiment in "12" for letter in f"{experiment}ef"):
        (root / path).mkdir(parents=True)
    behind = list[Path]()

    def pause() -> None:
        watched = [path for path in (root / "1", root / "2") if str(path) in finders[0].lookout._watched]
        if len(watched) < 2 or behind:
            return
        first, second = sorted(watched, key=list(map(Path, finders[0].lookout._watched)).index)
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
    finder.lookout.close()
