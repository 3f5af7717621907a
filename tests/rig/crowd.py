"""A crowd: processes that fetch the artifacts of one run again and again, in every manner, and compare every byte.

What each of them does follows from its seed, which is in what the test says where it fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import random
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import artifactcache
from tests.rig.caller import Caller, Job
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import Files, plant, read

NEIGHBOURS = 4  # so many artifacts have one file in common
MANNERS = ("view", "hardlink", "copy", "auto")
_JOIN = "from tests.rig import crowd\nresult = crowd.fetch_and_compare(crowd.Shelf(**shelf), say=say, **options)"


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Artifacts of one run whose bytes follow from their names.

    Attributes:
        file_count: of one artifact, beside the file that it shares with its neighbours and an empty one.
        large_bytes: of one file more in the last artifact; 0 where there is none.
    """

    uri: str
    artifact_count: int
    file_count: int
    file_bytes: int
    large_bytes: int = 0

    def uri_of(self, number: int) -> str:
        """One artifact."""
        return f"{self.uri}/{_name(number)}"

    def files(self, number: int) -> Files:
        """What is in it."""
        own = {f"part{n % 3}/{n}.bin": _content(f"{number}/{n}", self.file_bytes) for n in range(self.file_count)}
        if self.large_bytes and number == self.artifact_count - 1:
            own["large.bin"] = _unlike_itself(self.large_bytes)
        return own | {"shared.bin": _content(f"shared {number // NEIGHBOURS}", self.file_bytes), "empty": b""}

    @property
    def artifact_bytes(self) -> int:
        """The size of one."""
        return (self.file_count + 1) * self.file_bytes

    @property
    def total_bytes(self) -> int:
        """What a store holds that has all of them, shared files once."""
        shared = -(-self.artifact_count // NEIGHBOURS)
        return (self.artifact_count * self.file_count + shared) * self.file_bytes


@contextlib.contextmanager
def shelf(
    server: MlflowServer, *, artifact_count: int, file_count: int, file_bytes: int, large_bytes: int = 0
) -> Iterator[Shelf]:
    """A finished run of such artifacts; its bytes are removed at the end."""
    run_id = server.run()
    one = Shelf(f"runs:/{run_id}", artifact_count, file_count, file_bytes, large_bytes)
    folder = server.folder(run_id)
    try:
        for number in range(artifact_count):
            plant(folder / _name(number), one.files(number))
        yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def crowd(callers: Sequence[Caller], of: Shelf, *, seed: int, **options: Any) -> Iterator[list[Job]]:
    """A process for each caller that begins to fetch. Those that have not ended at the end of the block are stopped."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for number, caller in enumerate(callers):
            told = {"seed": seed + number} | options
            jobs.append(stack.enter_context(caller.start(_JOIN, shelf=dataclasses.asdict(of), options=told)))
        yield jobs


def outcome(jobs: Sequence[Job]) -> Counter[str]:
    """What all of them have counted; the first error that one of them met."""
    return sum((Counter(job.result()) for job in jobs), Counter())


# -- inside a caller's process ----------------------------------------------------------------------------------------


def fetch_and_compare(
    of: Shelf,
    *,
    say: Any,
    seed: int,
    fetch_count: int,
    kept_max: int = 3,
    manners: Sequence[str] = MANNERS,
    tolerated: Sequence[str] = (),
    say_after: int = 0,
) -> dict[str, int]:
    """Fetches so often, and compares; views are kept for a while, and compared once more before they are released.

    Args:
        kept_max: views at a time. The last ones are released by the end of the process.
        tolerated: errors that are counted, by class, and end nothing.
        say_after: how many fetches are made before this says so.
    """
    chance, counts, kept = random.Random(seed), Counter[str](), deque[tuple[artifactcache.Fetched, int]]()
    client = artifactcache.Client()
    for turn in range(1, fetch_count + 1):
        number = min(chance.randrange(of.artifact_count), chance.randrange(of.artifact_count))  # some more than others
        manner = chance.choice(manners)
        try:
            if manner == "view":
                fetched = client.fetch(of.uri_of(number))
                kept.append((fetched, number))
            else:
                dst = Path(f"{os.getpid()}-{turn}")
                fetched = client.fetch(of.uri_of(number), dst, mode=manner)
        except artifactcache.CacheError as error:
            name = type(error).__name__
            if name not in tolerated:
                raise type(error)(f"seed {seed}, fetch {turn}, {manner} of {of.uri_of(number)}: {error}") from None
            counts[name] += 1
        else:
            _compare(fetched, of, number, f"seed {seed}, fetch {turn}")
            counts.update({"fetches": 1, "bytes": fetched.size_bytes, "origin_bytes": fetched.origin_bytes})
            counts.update({"hits": int(fetched.hit), fetched.mode: 1})
            if manner != "view":
                shutil.rmtree(dst)
        while len(kept) > chance.randint(0, kept_max):
            view, which = kept.popleft()
            _compare(view, of, which, f"seed {seed}, before fetch {turn + 1}, kept")
            view.release()
        if turn == say_after:
            say(turn)
    for view, which in kept:
        _compare(view, of, which, f"seed {seed}, at the end")
    return dict(counts)


def _compare(fetched: artifactcache.Fetched, of: Shelf, number: int, when: str) -> None:
    found, wanted = read(fetched.path), of.files(number)
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    assert not wrong, f"{when}: {fetched.mode} {fetched.path} of {of.uri_of(number)} differs in {wrong}"


def _name(number: int) -> str:
    return f"a{number:04}"


@functools.cache
def _unlike_itself(size: int) -> bytes:
    """Bytes of which no part is another's: what goes on in the wrong place is noticed."""
    return random.Random(size).randbytes(size)


def _content(name: str, size: int) -> bytes:
    seed = hashlib.blake2b(name.encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]
