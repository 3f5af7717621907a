"""What a tree is in the shared tier: the objects that hold its bytes.

Law of this file: values only, and a manifest says it all. Which small blobs are packed together, in which order, and
how a large one is cut follows from the manifest by rules that never change within one FORMAT; so whoever has the record
(`treerecords`) knows every other object by its name, and no object says where another one is.

Small blobs are put together in the order of their paths, and a pack ends after a blob whose digest begins with zeros
(content-defined chunking, as in LBFS, Muthitacharoen et al. 2001): two trees that have most files in common have most
packs in common.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from cacheserver.words import Manifest

FORMAT = "v1"
PACKED_BYTES_MAX = 1 << 20  # a larger blob has objects of its own
PACK_BYTES_MIN = 1 << 20  # a pack ends nowhere before it has so many bytes
PACK_BYTES_MAX = 8 << 20
PACK_BLOBS_MAX = 4096
PART_BYTES = 8 << 20  # of a large blob, in one object

BLOBS, PACKS = f"{FORMAT}/blobs/", f"{FORMAT}/packs/"

_ENDS = "00"  # one digest of 256
_PACK = b"artifactcache pack 1\n"


class Blob(NamedTuple):
    """Digest and size of a blob."""

    digest: str
    size: int


class Part(NamedTuple):
    """A part of a large blob: an object with just these bytes.

    Attributes:
        key: the object's name below the tier's prefix.
        offset, length: where the bytes are in the blob.
    """

    key: str
    offset: int
    length: int


@dataclass(frozen=True)
class Large:
    """A blob with objects of its own."""

    blob: Blob

    @property
    def stem(self) -> str:
        """What the names of its objects begin with."""
        return f"{BLOBS}{self.blob.digest[:2]}/{self.blob.digest}"

    @property
    def parts(self) -> list[Part]:
        """Its objects, in order: `cat` of them is the blob."""
        size, stem = self.blob.size, self.stem
        count = -(-size // PART_BYTES)
        return [
            Part(f"{stem}.{n + 1}of{count}", n * PART_BYTES, min(PART_BYTES, size - n * PART_BYTES))
            for n in range(count)
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """How many bytes each of its objects has."""
        return {part.key: part.length for part in self.parts}

    @property
    def keys(self) -> list[str]:
        """The names of its objects."""
        return list(self.sizes)


@dataclass(frozen=True)
class Pack:
    """Small blobs in one object, which begins with a line for each. It is named by the BLAKE3-256 of these lines: they
    name the blobs, and so all that is in it."""

    blobs: tuple[Blob, ...]

    @property
    def head(self) -> bytes:
        """What the object begins with."""
        lines = (f"{blob.digest} {blob.size}\n" for blob in self.blobs)
        return _PACK + "".join(lines).encode() + b"\n"

    @property
    def key(self) -> str:
        """The object's name below the tier's prefix."""
        name = blake3(self.head).hexdigest()
        return f"{PACKS}{name[:2]}/{name}"

    @property
    def sizes(self) -> dict[str, int]:
        """The same, as of a large blob."""
        return {self.key: self.size}

    @property
    def keys(self) -> list[str]:
        """The same, as of a large blob."""
        return [self.key]

    @property
    def offsets(self) -> list[int]:
        """Where each blob begins in the object."""
        return list(accumulate((blob.size for blob in self.blobs[:-1]), initial=len(self.head)))

    @property
    def size(self) -> int:
        """The object's bytes."""
        return len(self.head) + sum(blob.size for blob in self.blobs)


def layout(manifest: Manifest) -> list[Large | Pack]:
    """What holds the bytes of a tree: each blob is in one of these, once."""
    found: list[Large | Pack] = []
    small: list[Blob] = []
    seen = set[str]()
    for entry in manifest.files:
        if entry.size and entry.digest not in seen:
            seen.add(entry.digest)
            blob = Blob(entry.digest, entry.size)
            if entry.size > PACKED_BYTES_MAX:
                found.append(Large(blob))
            else:
                small.append(blob)
    return [*found, *(Pack(tuple(blobs)) for blobs in _packs(small))]


def _packs(blobs: Iterable[Blob]) -> Iterator[list[Blob]]:
    pack: list[Blob] = []
    size = 0
    for blob in blobs:
        if pack and (size + blob.size > PACK_BYTES_MAX or len(pack) == PACK_BLOBS_MAX):
            yield pack
            pack, size = [], 0
        pack.append(blob)
        size += blob.size
        if size >= PACK_BYTES_MIN and blob.digest.startswith(_ENDS):
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


class Run(NamedTuple):
    """Bytes of a pack that are asked for at once: from where on, how many, and the blobs in them that are wanted, each
    with where it begins in the run."""

    begin: int
    length: int
    blobs: tuple[tuple[Blob, int], ...]


GAP_BYTES_MAX = 128 << 10  # so much that nobody wants is cheaper to take along than to ask twice


def runs(pack: Pack, wanted: Container[str]) -> list[Run]:
    """What to ask of a pack for the blobs that are wanted."""
    found: list[Run] = []
    for blob, begin in zip(pack.blobs, pack.offsets, strict=True):
        if blob.digest not in wanted:
            continue
        if found and begin - (found[-1].begin + found[-1].length) <= GAP_BYTES_MAX:
            last = found[-1]
            of = (*last.blobs, (blob, begin - last.begin))
            found[-1] = Run(last.begin, begin + blob.size - last.begin, of)
        else:
            found.append(Run(begin, blob.size, ((blob, 0),)))
    return found
