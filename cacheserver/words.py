"""The words of the house as values: entries, manifests, trees and what a fetch handed out.

Law of this file: values only. Nothing here touches a disk, a clock or a network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from blake3 import blake3

_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))
_UNESCAPES = {ord("\\"): b"\\", ord("n"): b"\n", ord("r"): b"\r"}


class Entry(NamedTuple):
    """One file of a tree, or one empty folder: then `digest` is "-" and `path` ends with b"/"."""

    path: bytes
    digest: str
    size: int

    @property
    def is_folder(self) -> bool:
        """Whether this is an empty folder."""
        return self.digest == "-"


def folder(path: bytes) -> Entry:
    """The entry of an empty folder."""
    return Entry(path.rstrip(b"/") + b"/", "-", 0)


@dataclass(frozen=True)
class Manifest:
    """Sorted entries; the BLAKE3 of its text names the tree.

    The text has one line per entry, `<digest> <size> <path>`, with backslash, newline and carriage return escaped
    in the path the way b3sum does.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """The manifest of entries in any order, without folders that are not empty after all."""
        ordered = sorted(entries)
        return cls(tuple(_without_filled_folders(ordered)))

    @classmethod
    def decode(cls, text: bytes) -> Manifest:
        """Reads a manifest's text. Raises ValueError where it is not one."""
        if text and not text.endswith(b"\n"):
            raise ValueError("a manifest ends with a newline")
        return cls(tuple(_decode_line(line) for line in text.split(b"\n")[:-1]))

    def encode(self) -> bytes:
        """The manifest's text."""
        return b"".join(b"%s %d %s\n" % (e.digest.encode(), e.size, _escape(e.path)) for e in self.entries)

    @cached_property
    def digest(self) -> str:
        """Names the tree."""
        return blake3(self.encode()).hexdigest()

    @cached_property
    def files(self) -> tuple[Entry, ...]:
        """The entries that are files."""
        return tuple(e for e in self.entries if not e.is_folder)

    @cached_property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(e.size for e in self.entries)

    @cached_property
    def folders(self) -> tuple[bytes, ...]:
        """Every folder of the tree, parents before what is in them, without the tree itself."""
        found: set[bytes] = set()
        for entry in self.entries:
            parent = entry.path[:-1] if entry.is_folder else entry.path.rpartition(b"/")[0]
            while parent and parent not in found:
                found.add(parent)
                parent = parent.rpartition(b"/")[0]
        return tuple(sorted(found))

    @cached_property
    def child_counts(self) -> dict[bytes, int]:
        """How many names each folder of the tree has in it; b"" stands for the tree itself."""
        counts = dict.fromkeys((b"", *self.folders), 0)
        for path in (*self.folders, *(e.path for e in self.files)):
            counts[path.rpartition(b"/")[0]] += 1
        return counts

    def below(self, path: bytes) -> Manifest | None:
        """The part under `path`: a folder's content, or the one file. None where there is no such path."""
        prefix = path + b"/"
        inside = [e._replace(path=e.path[len(prefix) :]) for e in self.entries if e.path.startswith(prefix)]
        if inside:
            return Manifest(tuple(e for e in inside if e.path))
        one = [e for e in self.entries if e.path == path]
        return Manifest((one[0]._replace(path=path.rpartition(b"/")[2]),)) if one else None

    def has_file(self, path: bytes) -> bool:
        """Whether `path` is a file of the tree."""
        return any(e.path == path for e in self.entries)


def overlay(lower: Manifest, upper: Manifest) -> Manifest:
    """Both together; where both have a path, `upper` wins, as in MLflow's union of run and logged model."""
    merged = {e.path: e for e in lower.entries}
    merged.update({e.path: e for e in upper.entries})
    return Manifest.of(merged.values())


def _without_filled_folders(ordered: list[Entry]) -> Iterator[Entry]:
    for entry, after in zip(ordered, [*ordered[1:], None], strict=False):
        if entry.is_folder and after is not None and after.path.startswith(entry.path):
            continue
        yield entry


def _escape(path: bytes) -> bytes:
    for raw, escaped in _ESCAPES:
        path = path.replace(raw, escaped)
    return path


def _decode_line(line: bytes) -> Entry:
    digest, size, path = line.split(b" ", 2)
    if b"\\" in path:
        path = _unescape(path)
    if not path or not size.isdigit():
        raise ValueError("an entry has no path, or no size")
    return Entry(path, digest.decode("ascii"), int(size))


def _unescape(path: bytes) -> bytes:
    out, rest = b"", iter(path)
    for byte in rest:
        if byte != ord("\\"):
            out += bytes((byte,))
            continue
        escaped = next(rest, -1)
        if escaped not in _UNESCAPES:
            raise ValueError("a path has an unknown escape")
        out += _UNESCAPES[escaped]
    return out


class Location(NamedTuple):
    """Where the origin keeps bytes: a bare artifact URI, and a path below it ("" for all of it)."""

    root: str
    path: str

    @property
    def uri(self) -> str:
        """Both together, as one bare artifact URI."""
        return join(self.root, self.path)


def join(uri: str, path: str) -> str:
    """The URI of a path below a URI."""
    if not path:
        return uri
    return uri + path if uri.endswith("/") else f"{uri}/{path}"


class Standing(IntEnum):
    """What a fetched tree is worth as evidence, by what was known of its origin at that moment. Stored as a number."""

    OPEN = 0  # the origin was still writing: looked at again each time
    UNKNOWN = 1  # a bare artifact URI: nobody says whether it is finished; no evidence for a version that is
    FINISHED = 2


@dataclass(frozen=True)
class Resolved:
    """What the origin says of a version.

    Attributes:
        version: the canonical URI without a path: a run, a logged model, a version of a registered model.
        root: the bare artifact URI under which its bytes are.
        overlays: for a run, the logged models that MLflow shows as folders of it: name and root of each. Where both
            have a file, MLflow takes the logged model's.
        settled: False while the origin may still be adding to it (a run that is running).
        stamp: when the origin made it, as the origin writes it: another one is another version of the same name.
    """

    version: str
    root: str
    overlays: tuple[tuple[str, str], ...]
    settled: bool
    stamp: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """Differs between two versions of the same name."""
        return self.stamp, self.root

    def is_same(self, other: Resolved, path: str) -> bool:
        """Whether both are one version, and have the bytes of a path in the same places."""
        return self.identity == other.identity and self.locations(path) == other.locations(path)

    def locations(self, path: str) -> tuple[Location, ...]:
        """Where the bytes of a path of this version are; where two have the same file, the later one wins."""
        first, _, rest = path.partition("/")
        return (Location(self.root, path), *(Location(r, rest) for name, r in self.overlays if name == first))


class File(NamedTuple):
    """One file, or one empty folder, that the origin lists.

    Attributes:
        path: relative to the location.
        size: bytes; None where the origin does not say.
        remote: relative to the location's root, as the origin spells it.
        etag: changes with the bytes, where the origin has such a thing; opaque.
    """

    path: bytes
    size: int | None
    remote: str
    is_folder: bool = False
    etag: str = ""


class Arrived(NamedTuple):
    """A file that is held: digest and size of its bytes, and the origin's entity tag of them, where it has one."""

    digest: str
    size: int
    etag: str = ""


class Listing(NamedTuple):
    """What the origin keeps at a location. `file_name` is set where the location is one file, not a folder.
    `transport` names what lists and downloads there."""

    files: list[File]
    file_name: str
    transport: str = ""


@dataclass(frozen=True)
class Held:
    """What the store holds of one artifact: its whole tree, or the selected part of it.

    Attributes:
        uri: a version with its path, or a bare artifact URI.
        selection: the key of the patterns; empty for the whole.
        tree: the tree's digest.
        file_name: where the artifact is one file, its name; else empty.
        standing: whether the origin had finished it when it was fetched.
        fetched_at, used_at: seconds since the epoch.
        checked_at: when the origin was last seen to have just this; seconds since the epoch.
    """

    uri: str
    selection: str
    tree: str
    file_name: str
    file_count: int
    size_bytes: int
    standing: Standing
    fetched_at: float
    used_at: float
    checked_at: float


class Record(NamedTuple):
    """What a tree is the tree of, as it is to be recorded.

    Attributes:
        asked: whether a client asked for this URI; else it is the location behind one.
        checked_at: when the origin was seen to have just this; seconds since the epoch.
        etags: of the tree's files, in the manifest's order; none where the origin gave none.
    """

    uri: str
    selection: str
    file_name: str
    standing: Standing
    asked: bool
    checked_at: float = 0.0
    etags: tuple[str, ...] = ()


class BlobRow(NamedTuple):
    """What the index knows of a blob: its two hashes, and what its inode looked like when they were taken."""

    digest: str
    size: int
    xxh3: str
    inode: int
    mtime_ns: int


class Payer(NamedTuple):
    """On whose account something is brought: the user, and the groups, as the kernel attested them."""

    uid: int
    groups: tuple[int, ...]


SHARED = "shared"  # the transport of what comes from the shared tier


@dataclass
class Progress:
    """How far a piece of work is. One side adds, others read; each number on its own is true.

    `bytes_kept` are those of `bytes_done` that are blobs by now, `bytes_found` those that an earlier attempt had left,
    `bytes_shared` those that came from the shared tier.
    `trees` are leased for it, those that are `recorded` by it among them. `active` has the files being written now,
    with their listed sizes; `transports` what brings them. `is_wanted` is set to False by who reads, where nobody
    waits for the work any more. `was_short`: the disk was full in the middle of it.
    """

    bytes_total: int = 0
    bytes_done: int = 0
    bytes_kept: int = 0
    bytes_found: int = 0
    bytes_shared: int = 0
    files_total: int = 0
    files_done: int = 0
    active: dict[str, int] = field(default_factory=dict)
    transports: set[str] = field(default_factory=set)
    trees: list[str] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    is_wanted: bool = True
    was_short: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def received(self, size: int, found: int, *, is_shared: bool) -> None:
        """A file has come, so much of which an earlier attempt had left."""
        with self._lock:
            self.bytes_done += size
            self.bytes_found += found
            self.bytes_shared += size - found if is_shared else 0
            self.files_done += 1

    @property
    def bytes_of_origin(self) -> int:
        """How many came from the origin."""
        return self.bytes_done - self.bytes_found - self.bytes_shared

    @property
    def transport(self) -> str:
        """What has brought bytes, by names with a + between them; empty where nothing has."""
        of_origin = self.transports - {SHARED} if self.bytes_of_origin else set()
        return "+".join(sorted(of_origin | ({SHARED} if self.bytes_shared else set())))


@dataclass(frozen=True)
class Brought:
    """What a fetch found or brought: the artifact as held, the bytes that this took from the origin and from the shared
    tier, by which transports, and whether the origin could not be asked although it should have been."""

    held: Held
    origin_bytes: int = 0
    shared_bytes: int = 0
    stale: bool = False
    transport: str = ""

    @property
    def outcome(self) -> str:
        """What it was, in one word."""
        if self.stale:
            return "stale"
        return "brought" if self.origin_bytes else "shared" if self.shared_bytes else "checked"
