"""A process of several clients that fetch in every manner until they are told to stop, or are killed; they compare all.

Each writes a line for every fetch, whole or not at all, so that whoever kills the process still knows what it did. What
a client does follows from its seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import artifactcache
from tests.rig.caller import Caller, Job
from tests.rig.crowd import Shelf
from tests.rig.trees import Files, read

THINK_SECONDS_MAX = 1.0  # between two fetches of a client: it is there to use what it gets
AWAY_SECONDS = 1.0  # until a client that found no daemon goes on
IMPATIENT = 0.03  # so many fetches have a timeout
IMPATIENT_SECONDS_MAX = 0.2
VIEWS_MAX = 2
_OWN: Files = {"own.txt": b"was here before"}
_SELECTED = "part0/**"
_JOIN = "from tests.rig import soaker\nsoaker.soak(soaker.Shelf(**shelf), hear=hear, **options)"


@dataclasses.dataclass(frozen=True)
class Note:
    """What became of one fetch.

    Attributes:
        what: the mode of what came, or the error.
        is_hit: whether it was there: nothing was waited for, be it somebody else's download.
        bytes: that were compared.
    """

    what: str
    manner: str
    begin: float
    end: float
    is_hit: bool
    bytes: int


def start(caller: Caller, of: Shelf, *, slot: int, seed: int, client_count: int) -> Job:
    """Start a process; it works in a folder of its slot, where it leaves nothing of whoever had that before."""
    options = {"slot": slot, "seed": seed, "client_count": client_count}
    return caller.start(_JOIN, shelf=dataclasses.asdict(of), options=options)


def notes(homes: Iterable[Path]) -> Iterator[Note]:
    """Everything that was noted by anybody."""
    for home in homes:
        for file in sorted(home.glob("*.notes")):
            for line in file.read_text().splitlines():
                what, manner, begin, end, hit, size = line.split(" ")
                yield Note(what, manner, float(begin), float(end), hit == "1", int(size))


def wrongs(homes: Iterable[Path]) -> list[str]:
    """What nobody may ever meet."""
    return [file.read_text() for home in homes for file in sorted(home.glob("*.wrong"))]


# -- inside a client's process ----------------------------------------------------------------------------------------


def soak(of: Shelf, *, hear: Callable[[], Any], slot: int, seed: int, client_count: int) -> None:
    """Works until something is heard."""
    shutil.rmtree(f"slot{slot}", ignore_errors=True)
    stopping = threading.Event()
    clients = [_Client(of, Path(f"slot{slot}", str(n)), seed * 100 + n, stopping) for n in range(client_count)]
    threads = [threading.Thread(target=client.work) for client in clients]
    for thread in threads:
        thread.start()
    hear()
    stopping.set()
    for thread in threads:
        thread.join()


class _Client:
    def __init__(self, of: Shelf, folder: Path, seed: int, stopping: threading.Event) -> None:
        self._of = of
        self._folder = folder
        self._seed = seed
        self._chance = random.Random(seed)
        self._stopping = stopping
        self._client = artifactcache.Client()
        self._views: list[tuple[artifactcache.Fetched, Files]] = []
        self._turn = 0
        self._compared = 0
        self._replaced: Files = {}
        folder.mkdir(parents=True)
        self._notes = os.open(folder.with_name(f"{folder.parent.name}-{folder.name}.notes").name, _APPEND, 0o644)

    def work(self) -> None:
        manners = {
            "view": self._view,
            "hardlink": self._place,
            "copy": self._place,
            "auto": self._place,
            "selection": self._select,
            "replace": self._replace,
            "merge": self._merge,
        }
        with contextlib.suppress(artifactcache.CacheError):
            self._client.ping()  # imports are no part of how long a fetch takes
        while not self._stopping.wait(self._chance.uniform(0, THINK_SECONDS_MAX)):
            self._turn += 1
            self._compared = 0
            manner = self._chance.choices(list(manners), (5, 2, 2, 2, 2, 2, 1))[0]
            try:
                manners[manner](manner)
            except Exception:  # noqa: BLE001 - told to whoever runs the soak, who ends it
                told = f"{self._folder}, seed {self._seed}, turn {self._turn}, {manner}\n{traceback.format_exc()}"
                Path(f"{os.getpid()}-{self._folder.name}.wrong").write_text(told)
                return
        self._client.close()

    # -- what it does -----------------------------------------------------------------------------------------------

    def _view(self, manner: str) -> None:
        number = self._number()
        if fetched := self._fetch(manner, number):
            self._views.append((fetched, self._of.files(number)))
        while len(self._views) > self._chance.randint(0, VIEWS_MAX):
            view, files = self._views.pop(0)
            self._compare(view.path, files)
            view.release()

    def _place(self, manner: str) -> None:
        dst, number, before = self._folder / str(self._turn), self._number(), os.listdir(self._folder)
        if self._fetch(manner, number, dst, mode=manner):
            shutil.rmtree(dst)
        assert sorted(os.listdir(self._folder)) == sorted(before), f"left behind: {os.listdir(self._folder)}"

    def _select(self, manner: str) -> None:
        number = self._number()
        files = {name: data for name, data in self._of.files(number).items() if name.startswith("part0/")}
        if fetched := self._fetch(manner, number, files=files, include=_SELECTED):
            fetched.release()

    def _replace(self, manner: str) -> None:
        dst, number = self._folder / "replaced", self._number()
        new = self._of.files(number)
        if self._fetch(manner, number, dst, exists="replace"):
            self._replaced = new
        else:
            there = read(dst) if dst.exists() else {}
            assert there in (self._replaced, new), f"{dst} is neither what it was nor what it was to be"
            self._replaced = there

    def _merge(self, manner: str) -> None:
        dst, number = self._folder / "merged", self._number()
        dst.mkdir()
        (dst / "own.txt").write_bytes(_OWN["own.txt"])
        files = _OWN | self._of.files(number)
        if not self._fetch(manner, number, dst, files=files, exists="merge"):
            assert read(dst).items() <= files.items(), f"{dst} has what nobody has put there"
        shutil.rmtree(dst)

    # -- and compares -----------------------------------------------------------------------------------------------

    def _number(self) -> int:
        """Some much more often than others: most fetches are hits."""
        return int(self._of.artifact_count * self._chance.random() ** 3)

    def _fetch(
        self, manner: str, number: int, dst: Path | None = None, *, files: Files | None = None, **options: Any
    ) -> artifactcache.Fetched | None:
        """What came, compared; None where an error did, which is noted."""
        is_impatient, waited = self._chance.random() < IMPATIENT, list[artifactcache.Progress]()
        timeout = self._chance.uniform(0.001, IMPATIENT_SECONDS_MAX) if is_impatient else None
        begin = time.monotonic()
        try:
            fetched = self._client.fetch(
                self._of.uri_of(number), dst, timeout=timeout, progress=waited.append, **options
            )
        except artifactcache.DeadlineExceeded as error:
            assert is_impatient, error
            self._note("DeadlineExceeded", manner, begin)
            return None
        except artifactcache.CacheError as error:
            self._note(type(error).__name__, manner, begin)
            if isinstance(error, artifactcache.DaemonUnavailable):
                self._stopping.wait(AWAY_SECONDS)
            return None
        end = time.monotonic()
        self._compare(fetched.path, self._of.files(number) if files is None else files)
        self._note(fetched.mode, manner, begin, end, is_hit=fetched.hit and not waited)
        return fetched

    def _compare(self, path: Path, files: Files) -> None:
        found = read(path, _refuse)
        wrong = sorted(name for name in found.keys() | files.keys() if found.get(name) != files.get(name))
        assert not wrong, f"{path} differs in {wrong}"
        self._compared += sum(map(len, files.values()))

    def _note(self, what: str, manner: str, begin: float, end: float | None = None, *, is_hit: bool = False) -> None:
        end = time.monotonic() if end is None else end
        line = f"{what} {manner} {begin:.6f} {end:.6f} {is_hit:d} {self._compared}\n"
        os.write(self._notes, line.encode())


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def _refuse(error: OSError) -> None:
    raise error
