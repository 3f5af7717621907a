"""A fleet: clients that go on whatever becomes of their daemon, and compare every byte that they get.

Each is a process that hears orders and answers each with one report. What it does follows from its seed. It knows of
the daemon's end by DaemonUnavailable alone; then it reports, and does the same again when it is told to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import artifactcache
from tests.rig.caller import Caller, Job
from tests.rig.crowd import Shelf
from tests.rig.trees import Files, read

ALL_BYTES = 2**62
VIEWS_MAX = 3
PLACES_MAX = 6
RETRY_SECONDS_MAX = 60.0
_JOIN = "from tests.rig import fleet\nfleet.Hand(fleet.Shelf(**shelf), **options).serve(hear, say)"
_SELECTED = ("part0/**", "*.bin")
_OWN: Files = {"own.txt": b"was here before"}


@contextlib.contextmanager
def fleet(callers: Sequence[Caller], of: Shelf, *, seed: int, on_a_disk_that_dies: bool = False) -> Iterator[list[Job]]:
    """A client for each caller; the last one is an operator, and sweeps, pins and verifies as well."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for number, caller in enumerate(callers):
            options = {"seed": seed + number, "is_operator": caller is callers[-1], "dies": on_a_disk_that_dies}
            jobs.append(stack.enter_context(caller.start(_JOIN, shelf=dataclasses.asdict(of), options=options)))
        yield jobs


# -- inside a client's process ----------------------------------------------------------------------------------------

Work = Callable[[], None]


class Hand:
    """One client.

    Args:
        dies: whether the disk below the daemon dies with it: then any error of ours may be the end, and views go.
    """

    def __init__(self, of: Shelf, *, seed: int, is_operator: bool, dies: bool) -> None:
        self._of = of
        self._chance = random.Random(seed)
        self._ends = (artifactcache.CacheError, OSError) if dies else (artifactcache.DaemonUnavailable,)
        self._dies = dies
        self._client = artifactcache.Client()
        self._views: list[tuple[artifactcache.Fetched, int]] = []
        self._places: list[tuple[Path, Files]] = []
        self._turn = 0
        self._pending: Work | None = None
        self._pinned: set[int] = set()
        self._works: list[Work] = [self._view] * 5 + [self._place] * 5 + [self._merge, self._select] * 2 + [self._look]
        self._operators = [self._sweep] * 2 + [self._pin, self._pin, self._unpin, self._verify] if is_operator else []
        self._report: dict[str, Any] = {}
        self._look_after_the_dead()

    def serve(self, hear: Callable[[], Any], say: Callable[[Any], None]) -> None:
        """Does what it is told, until that is nothing."""
        while order := hear():
            self._report = {"acked": [], "brought": [], "swept": False, "counts": Counter()}
            if "check" in order:
                self._check(order["check"])
            elif "retry" in order:
                self._again(at_once=order["retry"] == "at once")
            else:
                self._go(sweeps=order["sweeps"])
            if order.get("unpinned"):
                self._pinned = set()
            self._report["pinned"] = sorted(self._pinned)
            say(self._report)

    def _go(self, *, sweeps: bool) -> None:
        """Works until the daemon ends."""
        while True:
            works = self._works + ([w for w in self._operators if sweeps or w != self._sweep])
            self._pending = self._chance.choice(works)
            try:
                self._pending()
            except self._ends:
                self._report["counts"]["lost"] += 1
                if self._dies:
                    self._views = []
                return
            self._pending = None

    def _again(self, *, at_once: bool) -> None:
        """Does what was under way when the daemon ended. That succeeds, and at the first time where the daemon is there
        again; who tries at once tries until it is."""
        deadline = time.monotonic() + RETRY_SECONDS_MAX
        while self._pending:
            try:
                self._pending()
            except self._ends:
                if not at_once or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                self._report["counts"]["retried"] += 1
                self._pending = None

    def _check(self, numbers: list[int]) -> None:
        """Fetches these, each of which is held: a hit, without a byte of the origin's."""
        for number in numbers:
            fetched = self._client.fetch(self._of.uri_of(number))
            self._compare(fetched, self._of.files(number))
            assert fetched.hit and fetched.origin_bytes == 0, f"{self._of.uri_of(number)} was held, and is not any more"
            fetched.release()

    # -- what it does -----------------------------------------------------------------------------------------------

    def _number(self) -> int:
        return min(self._chance.randrange(self._of.artifact_count) for _ in range(2))

    def _view(self) -> None:
        number = self._number()
        fetched = self._client.fetch(self._of.uri_of(number))
        self._got(fetched, number, self._of.files(number))
        self._views.append((fetched, number))
        while len(self._views) > self._chance.randint(0, VIEWS_MAX):
            view, which = self._views.pop(0)
            self._compare(view, self._of.files(which))
            view.release()

    def _place(self) -> None:
        number, mode = self._number(), self._chance.choice(["copy"] if self._dies else ["hardlink", "copy", "auto"])
        dst = self._free("placed", number)
        with _nothing_left(dst):
            fetched = self._client.fetch(self._of.uri_of(number), dst, mode=mode)
        self._got(fetched, number, self._of.files(number))
        self._keep(dst, self._of.files(number))

    def _merge(self) -> None:
        number = self._number()
        dst = self._free("merged", number)
        dst.mkdir()
        (dst / "own.txt").write_bytes(_OWN["own.txt"])
        try:
            fetched = self._client.fetch(self._of.uri_of(number), dst, exists="merge")
        except BaseException:
            assert read(dst).items() <= (_OWN | self._of.files(number)).items()
            shutil.rmtree(dst)
            raise
        self._got(fetched, number, _OWN | self._of.files(number))
        shutil.rmtree(dst)

    def _select(self) -> None:
        number = self._number()
        dst = self._free("selected", number)
        with _nothing_left(dst):
            fetched = self._client.fetch(self._of.uri_of(number), dst, include=_SELECTED)
        chosen = {n: c for n, c in self._of.files(number).items() if n.startswith("part0/") or n.endswith(".bin")}
        chosen = {n: c for n, c in chosen.items() if n.startswith("part0/") or "/" not in n}
        self._compare(fetched, chosen)
        shutil.rmtree(dst)

    def _look(self) -> None:
        """What was materialized stays, whatever has become of the daemon since."""
        for dst, files in self._places:
            assert read(dst) == files, f"{dst} is not what it was"
            self._report["counts"]["bytes"] += sum(map(len, files.values()))
        for view, number in self._views:
            self._compare(view, self._of.files(number))

    def _sweep(self) -> None:
        self._report["swept"] = True
        self._client.sweep(free_bytes=self._chance.choice([1, 3 * self._of.artifact_bytes, ALL_BYTES]))
        self._report["counts"]["sweeps"] += 1

    def _pin(self) -> None:
        number = self._number()
        self._client.pin(self._of.uri_of(number))
        self._pinned.add(number)

    def _unpin(self) -> None:
        if self._pinned:
            number = self._chance.choice(sorted(self._pinned))
            self._pinned.discard(number)  # before: nobody knows whether the answer will come
            with contextlib.suppress(artifactcache.NotFound):  # it is done, and the answer was lost; or the pin was
                self._client.unpin(self._of.uri_of(number))

    def _verify(self) -> None:
        found = self._client.verify()
        assert not found.corrupted, f"wrong or gone: {found.corrupted}"

    # -- and compares -----------------------------------------------------------------------------------------------

    def _got(self, fetched: artifactcache.Fetched, number: int, files: Files) -> None:
        self._compare(fetched, files)
        self._report["acked"].append(number)
        if not fetched.hit:
            self._report["brought"].append(number)

    def _compare(self, fetched: artifactcache.Fetched, files: Files) -> None:
        found = read(Path(fetched.path), _refuse)
        wrong = sorted(name for name in found.keys() | files.keys() if found.get(name) != files.get(name))
        assert not wrong, f"{fetched.mode} {fetched.path} of {fetched.uri} differs in {wrong}"
        self._report["counts"].update({"fetches": 1, "bytes": sum(map(len, files.values())), fetched.mode: 1})

    def _free(self, kind: str, number: int) -> Path:
        self._turn += 1
        return Path(f"{kind}-{number}-{os.getpid()}-{self._turn}")

    def _keep(self, dst: Path, files: Files) -> None:
        self._places.append((dst, files))
        if len(self._places) > PLACES_MAX:
            oldest, content = self._places.pop(0)
            assert read(oldest) == content, f"{oldest} is not what it was"
            shutil.rmtree(oldest.rename(f"gone-{self._turn}"))  # who is killed now leaves nothing half of that name

    def _look_after_the_dead(self) -> None:
        """What a client that was killed has left under a name of its own is whole; only a merge may be half done."""
        for path in Path().iterdir():
            kind, *rest = path.name.split("-")
            if kind == "placed":
                assert read(path) == self._of.files(int(rest[0])), f"{path} was half made"
            shutil.rmtree(path)


def _refuse(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def _nothing_left(dst: Path) -> Iterator[None]:
    """Where the block fails, the destination does not exist, nor anything beside it that was to become it."""
    before = set(os.listdir())
    try:
        yield
    except BaseException:
        assert set(os.listdir()) == before, f"left behind: {set(os.listdir()) - before}"
        raise
