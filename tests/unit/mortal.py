"""A store whose steps may fail, whose daemon may die and be started again, and what must be true of it all the while.

Law of this file: what must be true is said once, for a daemon that goes on and for the next one.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver import fsck
from cacheserver.space import Limits
from cacheserver.staging import Sink
from cacheserver.tierstore import TierError
from cacheserver.uris import Artifact
from cacheserver.words import File, Held, Listing, Location, Resolved, join
from tests.rig.seam import Seam, origin_failed
from tests.unit.house import ROOMY, FakeOrigin, House
from tests.unit.tiers import Cupboard

PIECE_BYTES = 64
LARGE_BYTES = 100  # large enough to go on where it was broken off


def tier_failed(number: int) -> None:
    """What the tier raises for an errno, whichever it is."""
    raise TierError(f"The shared tier s3://bucket/prefix cannot be used now: {os.strerror(number)}")


class SteppingOrigin(FakeOrigin):
    """An origin whose every answer, and every piece of a file, is a step; it goes on where a file was broken off.

    Attributes:
        breaks_after: pieces of a file after which it breaks off; None for never.
    """

    def __init__(self, seam: Seam) -> None:
        super().__init__()
        self._seam = seam
        self.tags = "listed"
        self.breaks_after: int | None = None

    def _step(self, name: str, real: Callable[[], Any]) -> Any:
        return self._seam.answer(f"origin.{name}", real, origin_failed)

    def version_of(self, artifact: Artifact, *, patience: float | None = None) -> tuple[Artifact, str]:
        """As the origin below has it; a step."""
        found: tuple[Artifact, str] = self._step("version_of", lambda: super(SteppingOrigin, self).version_of(artifact))
        return found

    def resolve(self, artifact: Artifact, *, patience: float | None = None) -> Resolved:
        """As the origin below has it; a step."""
        found: Resolved = self._step("resolve", lambda: super(SteppingOrigin, self).resolve(artifact))
        return found

    def listing(self, location: Location, *, named_by_client: bool, patience: float | None = None) -> Listing:
        """As the origin below has it; a step."""
        ask = super().listing
        found: Listing = self._step("listing", lambda: ask(location, named_by_client=named_by_client))
        return found

    def fill(self, location: Location, file: File, sink: Sink, *, named_by_client: bool) -> None:
        """Writes a file in pieces, after what is there of it already."""
        uri = join(location.root, file.remote)
        self._step("answer", self._answer)
        self.before_download(uri)
        tag, content = self._etag(uri), self.files[uri]
        if sink.size and sink.etag != tag:
            sink.restart()
        sink.begin(tag)
        for number, start in enumerate(range(sink.size, len(content), PIECE_BYTES)):
            if number == self.breaks_after:
                origin_failed(0)
            self._step("piece", lambda: None)
            sink.write(content[start : start + PIECE_BYTES])
        sink.check()
        self.downloads[uri] += 1


class SteppingCupboard(Cupboard):
    """A shared tier whose every call is a step. It outlives the daemons that use it."""

    def __init__(self, seam: Seam) -> None:
        super().__init__()
        self.before = lambda what, key: seam.answer(f"tier.{what}", lambda: None, tier_failed)


_EMPTY: list[bytes] = []  # an index without a row: to make one takes as long as all the rest of a case


class Kept(NamedTuple):
    """What was held of an artifact at some time."""

    held: Held
    content: dict[str, bytes | None]


class Place:
    """A store, an origin that outlives its daemons, and the daemon there is now.

    Attributes:
        damaged: digests whose bytes somebody has changed; nobody may be given them.
        meddled: trees in whose views somebody has changed something.
    """

    def __init__(self, folder: Path, seam: Seam) -> None:
        self.root, self.seam = folder / "store", seam
        self.origin = SteppingOrigin(seam)
        self.limits: Limits = ROOMY
        self.now, self.ticks = 1_700_000_000.0, 1000.0
        self.cupboard: SteppingCupboard | None = None
        self.damaged: set[str] = set()
        self.meddled: set[str] = set()
        self._house: House | None = None
        self._has_begun = False
        self._folder = folder

    def share(self) -> None:
        """From the next daemon on there is a shared tier."""
        self.cupboard = SteppingCupboard(self.seam)

    @property
    def house(self) -> House:
        """The daemon."""
        assert self._house is not None
        return self._house

    @property
    def is_open(self) -> bool:
        """Whether there is a daemon."""
        return self._house is not None

    def open(self) -> House:
        """Starts a daemon."""
        assert self._house is None
        if not self._has_begun and _EMPTY:
            self.root.mkdir()
            (self.root / "index.db").write_bytes(_EMPTY[0])
        self._has_begun = True
        self._house = House(self.root, self.limits, origin=self.origin, tier=self.cupboard)
        self._house.now, self._house.ticks = self.now, self.ticks
        return self._house

    def close(self) -> None:
        """Ends it, as it ends when it is told to."""
        house, self._house = self.house, None
        house.close()

    def die(self) -> None:
        """Ends it as kill -9 does. Nobody may have anything of it by now."""
        self._house = None
        self.seam.kill()
        self.seam.bury()

    def end(self) -> None:
        """Leaves nothing of it, however it was."""
        self._house = None
        if self.seam.is_in_use():
            self.seam.kill()
            self.seam.bury()

    def later(self, seconds: float) -> None:
        """Time goes by."""
        self.now, self.ticks = self.now + seconds, self.ticks + seconds
        if self._house:
            self._house.now, self._house.ticks = self.now, self.ticks

    @contextmanager
    def destination(self, *folders: str) -> Iterator[int]:
        """A descriptor of a new folder of the client's, with these folders in it; it is gone afterwards."""
        top = self._folder / f"client-{len(os.listdir(self._folder))}"
        for folder in ("", *folders):
            (top / folder).mkdir(parents=True, exist_ok=True)
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)
            shutil.rmtree(top)

    def give_back(self, fds: list[int]) -> None:
        """A client closes descriptors that it was given."""
        for fd in fds:
            self.seam.close(fd)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def kept(self) -> dict[tuple[str, str], Kept]:
        """All that is held now and is whole, by URI and selection, with its bytes."""
        house, found = self.house, {}
        for held in house.index.asked():
            tree = house.store.tree(held.tree)
            if tree is not None and not tree.missing and not self.damaged & set(tree.rows):
                found[held.uri, held.selection] = Kept(held, house.content(held))
        return found

    def assert_held(self, before: dict[tuple[str, str], Kept], may_be_lost: frozenset[str] | None) -> None:
        """What was held is held and is the same, but for URIs that may be another or gone; None for all."""
        for (uri, selection), kept in before.items():
            held = self.house.index.held(uri, selection)
            if may_be_lost is None or uri in may_be_lost:
                continue
            assert held is not None, f"{uri} is not held any more"
            assert held.tree == kept.held.tree, f"{uri} is another"
            assert not self.house.store.unsound(self.house.tree(held)), f"{uri} is not sound"
            assert self.house.content(held) == kept.content

    def assert_sound(self, *, stuck: int = 0, leases: int = 0) -> None:
        """No row without bytes, nothing wrong that could be served, no promise left and no lease but so many, nothing
        in staging but what waits to go on, and so many things that could not be removed."""
        house = self.house
        for digest in house.index.all_digests():
            if digest in self.damaged:
                continue
            seen = house.blob(digest).lstat()
            assert stat.S_IMODE(seen.st_mode) == 0o444, f"{digest} can be written"
            assert blake3(house.blob(digest).read_bytes()).hexdigest() == digest, "bytes that are not their digest's"
        for digest in house.index.tree_digests():
            tree = house.store.tree(digest)
            assert tree is not None, f"a row without its manifest: {digest}"
            if tree.missing or self.damaged & set(tree.rows):
                continue
            if house.index.has_view(digest) and digest not in self.meddled:
                assert house.store.view_is_sound(digest), f"a row without its view: {digest}"
        assert house.leases.total() == leases and not house.leases._doomed, "a lease was left"
        assert house.reservations._promises == [] and house.cache.download_count() == 0, "a promise was left"
        assert not house.store._building and not house.budgets._claims, "a turn or a claim was left"
        assert not house.cache._bringing._downloads._claims and not house.store.leftovers._counts, "a claim was left"
        assert len(house.disk.unwanted()) <= stuck, f"left in staging: {house.disk.unwanted()}"

    def assert_tidy(self) -> None:
        """After the next daemon has tidied: nothing is about to go any more."""
        self.house.sweeper.tidy()
        gone, _ = self.house.index.holdings.leaving()
        assert not gone.trees and not gone.blobs, f"still leaving: {gone}"
        self.close()

    def assert_checked(self) -> None:
        """Of a store that no daemon has: fsck finds nothing wrong."""
        report = fsck.check(str(self.root))
        assert set(report.verified.corrupted) <= self.damaged and not report.manifests, report.lines()
        assert not report.strange and not report.stuck, report.lines()


def assert_ours(error: BaseException) -> None:
    """An error is one of ours, and reads like one: a sentence that says what can be done, and no traceback's words."""
    assert isinstance(error, CacheError), f"{type(error).__name__}: {error}"
    text = str(error)
    assert text and text.rstrip()[-1] in ".)" and "Errno" not in text and "Traceback" not in text, text


@contextmanager
def mortal(seam: Seam, folder: Path) -> Iterator[None]:
    """The seam is under all rooms. What counts as large is small, so that every way is taken with few bytes."""
    House(folder).close()
    _EMPTY[:] = [(folder / "index.db").read_bytes()]
    with pytest.MonkeyPatch.context() as small, seam.installed():
        small.setattr("cacheserver.downloads.RESUMABLE_BYTES_MIN", LARGE_BYTES)
        small.setattr("cacheserver.disk.LARGE_BYTES_MIN", LARGE_BYTES)
        small.setattr("cacheserver.staging.WRITE_BEHIND_BYTES", PIECE_BYTES)
        small.setattr("cacheserver.staging.NOTE_EVERY_BYTES", PIECE_BYTES)
        small.setattr("cacheserver.ballast.BYTES_MAX", 4096)
        small.setattr("cacheserver.handoff.Connections", lambda *args: None)  # a verb asks by itself
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # what is told of thousands of faults, nobody reads
        gc.collect()
        gc.freeze()  # what there was before is no business of the collections that end a daemon
        try:
            yield
        finally:
            gc.unfreeze()
            logging.disable(before)
