"""A store and a cache as the daemon puts them together, over an origin that does what a test tells it."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

from blake3 import blake3

from artifactcache.errors import NotFound, OriginUnavailable
from cacheserver import cli, uris
from cacheserver.access import Caller
from cacheserver.budgets import Budgets
from cacheserver.cache import Cache
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from cacheserver.errands import Ask, Freshness
from cacheserver.eviction import POLICIES
from cacheserver.flights import Flight
from cacheserver.gate import Gate as Doorkeeper
from cacheserver.gate import Tracking
from cacheserver.joining import joined
from cacheserver.leases import Leases
from cacheserver.origin import MlflowOrigin
from cacheserver.reservations import Reservations
from cacheserver.restoring import open_index
from cacheserver.rests import Clocks, Rests
from cacheserver.selection import Selection
from cacheserver.settings import QuotasConfig, SharedConfig
from cacheserver.space import Amount, Limits
from cacheserver.staging import Sink
from cacheserver.stopping import Stopping
from cacheserver.store import Store
from cacheserver.sweeper import Sweeper
from cacheserver.tierstore import TierStore
from cacheserver.trees import Tree
from cacheserver.uris import Artifact, Kind
from cacheserver.words import (
    Brought,
    Entry,
    File,
    Held,
    Listing,
    Location,
    Manifest,
    Payer,
    Record,
    Resolved,
    Standing,
    folder,
    join,
)

TRACKING_URI = "http://origin.example"
PATIENCE_SECONDS = 30  # how long a test waits for a thread before it gives up
ROOT = "s3://bucket/p"
FILES = {"a/one": b"1", "a/two": b"22", "b/three": b"333", "top": b"4444", "zero": b""}
FEW = {f"d{n % 2}/{n}": f"file {n}".encode() for n in range(5)} | {"zero": b""}
MANY = {f"d{n % 3}/{n}": f"file {n}".encode() for n in range(300)} | {"zero": b"", "d0/none": b"", "hollow/": b""}
FRESHNESS = Freshness(relist_after=3600.0, alias_ttl=0.0, stale_after=1.0)
PAYER = Payer(1000, (1000,))
ROOMY = Limits(Amount(10**15), Amount(0))


class FakeOrigin:
    """An origin whose every file is in `files`, by its bare artifact URI; a URI that ends with "/" is an empty folder.

    `tags` says how it gives entity tags: "none", "listed", "asked" for one by one, "unsteady": another one each time.
    It misbehaves on command: `down`, `sized`, `before_download`, `after_download`, `edit_listing`.
    """

    name = TRACKING_URI
    is_own = True
    owner = None

    def asked_by(self, owner: int) -> Self:
        """For whom it is asked makes no difference to it."""
        return self

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, Resolved] = {}
        self.aliases: dict[str, str] = {}
        self.tags = "none"
        self.questions: Counter[str] = Counter()
        self.down = False
        self.guarded = False
        self.sized = True
        self.before_download: Callable[[str], None] = lambda uri: None
        self.after_download: Callable[[str], None] = lambda uri: None
        self.edit_listing: Callable[[list[File]], list[File]] = lambda files: files
        self.downloads: Counter[str] = Counter()
        self.listings: Counter[str] = Counter()
        self.alias_count = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def close(self) -> None:
        """Nothing is open."""

    def guards(self, artifact: Artifact) -> bool:
        """Whether bare URIs are to be looked at each time."""
        return self.guarded and artifact.kind is Kind.BARE

    def version_of(self, artifact: Artifact, *, patience: float | None = None) -> tuple[Artifact, str]:
        """What `aliases` says, and the stamp of what `versions` says."""
        self._answer()
        self.alias_count += 1
        if artifact.base not in self.aliases:
            raise NotFound(f"{artifact.base} is not there.")
        version = artifact.at_version(self.aliases[artifact.base])
        return version, self.versions[version.base].stamp if version.base in self.versions else ""

    def resolve(self, artifact: Artifact, *, patience: float | None = None) -> Resolved:
        """What `versions` says."""
        self._answer()
        if artifact.base not in self.versions:
            raise NotFound(f"{artifact.base} is not there.")
        return self.versions[artifact.base]

    def listing(self, location: Location, *, named_by_client: bool, patience: float | None = None) -> Listing:
        """What `files` says."""
        self._answer()
        self.listings[location.uri] += 1
        prefix = location.root if location.root.endswith("/") else location.root + "/"
        if location.path and location.uri in self.files:
            name = location.path.rpartition("/")[2]
            return Listing(self.edit_listing([self._file(location.uri, name, location.path)]), name, "file")
        below = location.uri + "/"
        found = [self._file(u, u[len(below) :], u[len(prefix) :]) for u in self.files if u.startswith(below)]
        if not found and location.path:
            raise NotFound(f"{location.uri} is not there.")
        return Listing(self.edit_listing([f for f in found if f.path]), "", "file")

    def identified(self, location: Location, files: list[File], *, named_by_client: bool) -> dict[bytes, File]:
        """The entity tags of files, one by one."""
        self._answer()
        self.questions.update(join(location.root, file.remote) for file in files)
        return {f.path: f._replace(etag=self._etag(join(location.root, f.remote))) for f in files}

    def fill(self, location: Location, file: File, sink: Sink, *, named_by_client: bool) -> None:
        """Writes the file, and refuses what is not of the listed size, as the contract of an origin says."""
        uri = join(location.root, file.remote)
        self._answer()
        self.before_download(uri)
        sink.write(self.files[uri])
        sink.etag = self._etag(uri)
        sink.check()
        with self._lock:
            self.downloads[uri] += 1
        self.after_download(uri)

    def run(self, run_id: str, *models: tuple[str, str], settled: bool = True) -> str:
        """Makes a run whose bytes are at the returned root; `models` are name and root of its logged models."""
        version, root = f"runs:/{run_id}", f"s3://bucket/{run_id}/artifacts"
        self.versions[version] = Resolved(version, root, models, settled)
        return root

    def _file(self, uri: str, name: str, remote: str) -> File:
        if uri.endswith("/"):
            return File(name.rstrip("/").encode("utf-8", "surrogateescape"), 0, remote.rstrip("/"), is_folder=True)
        size = len(self.files[uri]) if self.sized else None
        etag = self._etag(uri) if self.tags == "listed" else ""
        return File(name.encode("utf-8", "surrogateescape"), size, remote, etag=etag)

    def _etag(self, uri: str) -> str:
        if self.tags == "unsteady":
            return f'"{next(self._numbers)}"'
        return "" if self.tags == "none" else f'"{blake3(self.files[uri]).hexdigest()}"'

    def _answer(self) -> None:
        if self.down:
            raise OriginUnavailable("the origin is down.")


class Shelf:
    """A store on a real disk, with what a test needs to look into it and to meddle with it."""

    def __init__(
        self, root: Path, *, shared: bool = False, doors: Doors = Doors.OPEN, tracking_uri: str = TRACKING_URI
    ) -> None:
        self.root = root
        self.ticks = 1000.0
        self.disk = Disk(str(root), shared=shared, doors=doors)
        self.index = open_index(self.disk, tracking_uri)
        self.store = Store(self.disk, self.index, lambda: self.ticks)

    def close(self) -> None:
        """Lets the store go."""
        self.store.close()

    def put(self, files: dict[str, bytes], uri: str = "s3://bucket/tree", selection: str = "") -> Held:
        """Takes files into the store as the artifact `uri`, or a selection of it, the way a download does."""
        arrived, entries = {}, []
        for name, content in files.items():
            if name.endswith("/"):
                entries.append(folder(name.encode()))
                continue
            path = self.store.stage()
            Path(path).write_bytes(content)
            arrived[f"{uri}/{name}"] = staged = self.store.measure(path)
            entries.append(Entry(name.encode(), staged.row.digest, staged.row.size))
        self.store.keep(arrived, Standing.FINISHED, 1.0)
        self.store.commit(
            Manifest.of(entries), [Record(uri, selection, "", Standing.FINISHED, True, 1.0)], arrived, 1.0
        )
        held = self.index.held(uri, selection)
        assert held is not None
        return held

    def blob(self, digest: str) -> Path:
        """Where a blob is."""
        return self.root / "blobs" / digest[:2] / digest[2:]

    def tree(self, held: Held) -> Tree:
        """The tree of an artifact that is held."""
        tree = self.store.tree(held.tree)
        assert tree is not None
        return tree

    def digest(self, held: Held, path: str) -> str:
        """The digest of one file of a tree."""
        return next(e.digest for e in self.tree(held).manifest.files if e.path == path.encode())

    def content(self, held: Held) -> dict[str, bytes | None]:
        """What is held: bytes by path; None for an empty folder."""
        return {
            os.fsdecode(e.path): None if e.is_folder else self.blob(e.digest).read_bytes() if e.size else b""
            for e in self.tree(held).manifest.entries
        }

    def damage(self, digest: str) -> None:
        """Turns a blob's bytes into others of the same size, as root or a bad disk could; its mtime shows it."""
        overwrite(self.blob(digest))

    def staging(self) -> list[str]:
        """What is not finished."""
        return os.listdir(self.root / "staging")


class House(Shelf):
    """A cache over a store and a fake origin."""

    def __init__(
        self,
        root: Path,
        limits: Limits = ROOMY,
        *,
        policy: str = "gdsf",
        grace_seconds: float = 60.0,
        quotas: QuotasConfig | None = None,
        origin: FakeOrigin | None = None,
        tier: TierStore | None = None,
        shared: SharedConfig | None = None,
        rests: Rests | None = None,
    ) -> None:
        super().__init__(root)
        self.now = 1_700_000_000.0
        self.origin = origin or FakeOrigin()
        self.leases = Leases(lambda: self.ticks)
        rests = rests or Rests(lambda: 0.0, lambda seconds: None)
        clocks = Clocks(lambda: self.now, lambda: self.ticks, lambda: None, rests)
        self.reservations = Reservations(self.store, limits)
        self.sweeper = Sweeper(self.store, self.leases, self.reservations, POLICIES[policy], grace_seconds, clocks)
        self.budgets = Budgets(self.store, self.sweeper, quotas or QuotasConfig(), lambda: self.ticks, self._sleep)
        self.stopping = Stopping()
        self.hurried = False
        self.sharing = None
        if tier:
            self.sharing = joined(
                tier,
                shared or SharedConfig(),
                TRACKING_URI,
                self.store,
                self.sweeper,
                self.budgets,
                FRESHNESS,
                lambda: self.now,
                lambda: self.ticks,
                self._wait,
            )
        asked = cast(MlflowOrigin, self.origin)
        self.cache = Cache(self.store, asked, self.sweeper, self.budgets, FRESHNESS, lambda: self.now, self.sharing)

    def close(self) -> None:
        """Brings nothing any more."""
        self.stopping.begin()
        if self.sharing:
            self.sharing.close()
        self.cache.close()
        super().close()

    def _sleep(self, seconds: float) -> None:
        self.ticks += seconds

    def _wait(self, seconds: float) -> bool:
        """A tenth of it, and no time at all by the clock; where it is `hurried`, the whole."""
        over = self.stopping.wait(seconds / 10)
        self.ticks += seconds * self.hurried
        return over

    def start(self, uri: str, selection: Selection | None = None, *, refresh: bool = False) -> Flight[Brought]:
        """Starts a fetch."""
        ask = Ask.STRICTLY if refresh else Ask.WHAT_IS_DUE
        return self.cache.bring(uris.parse(uri), selection or Selection(), ask)[0]

    def bring(self, uri: str, selection: Selection | None = None, *, refresh: bool = False) -> Brought:
        """Fetches, waits for it, and notes the use, as the service does."""
        flight = self.start(uri, selection, refresh=refresh)
        try:
            brought = flight.future.result(timeout=PATIENCE_SECONDS)
        finally:
            self.cache.leave(flight)
        self.cache.used(brought.held, PAYER, is_hit=brought.origin_bytes == 0)
        return brought

    def find(self, uri: str, *, view: bool = False) -> Brought | None:
        """What is held and needs no question to the origin."""
        if found := self.cache.find(uris.parse(uri), Selection(), view=view):
            self.cache.used(found.held, PAYER, is_hit=True)
        return found


def fsck_command(root: Path) -> int:
    """Runs `cacheserver fsck` in this process, whose umask stays what it is. Returns the exit status."""
    config = root.parent / "config.toml"
    config.write_text(f'[store]\nroot = "{root}"\n')
    before = os.umask(0o077)
    try:
        return cli.main(["fsck", "--config", str(config)])
    finally:
        os.umask(before)


def overwrite(path: Path) -> None:
    """Other bytes of the same size, written into the same inode. Its mtime becomes another one whatever the clock."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    path.chmod(0o444)


def blob_names(disk: Disk) -> list[str]:
    """The digest that each file in blobs/ is named by."""
    return [f + n for f in disk.fans("blobs") for n in os.listdir(disk.at("blobs", f)) if not n.startswith(".")]


class Gate:
    """Holds downloads of some files until it is opened, and says when one has come to it."""

    def __init__(self, house: House, *names: str) -> None:
        self._uris = {f"{ROOT}/{name}" for name in names}
        self._reached = threading.Semaphore(0)
        self._opened = threading.Event()
        self.error: Exception | None = None
        house.origin.before_download = self._hold

    def _hold(self, uri: str) -> None:
        if uri in self._uris:
            self._reached.release()
            assert self._opened.wait(PATIENCE_SECONDS)
            if self.error:
                raise self.error

    def wait(self) -> None:
        """Until one more download stands at the gate."""
        assert self._reached.acquire(timeout=PATIENCE_SECONDS)

    def open(self, error: Exception | None = None) -> None:
        """Lets all through, or lets all fail."""
        self.error = error
        self._opened.set()


def open_gate() -> Doorkeeper:
    """The gate of a daemon that checks nothing."""
    return Doorkeeper(
        cast(Tracking, None),
        asks_as_caller=False,
        grants=(),
        kept_seconds=60.0,
        who=lambda peer: Caller("", frozenset()),
        is_administrator=lambda peer: False,
        ticks=lambda: 0.0,
    )
