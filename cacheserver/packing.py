"""What a tree is in the shared tier: the objects that hold its bytes, and the record that names it.

Law of this file: values only, and a manifest says it all. Which small blobs are packed together, in which order, and
how a large one is cut follows from the manifest by rules that never change within one FORMAT; so whoever has the record
knows every other object by its name, and no object says where another one is.

Small blobs are put together in the order of their paths, and a pack ends after a blob whose digest begins with zeros
(content-defined chunking, as in LBFS, Muthitacharoen et al. 2001): two trees that have most files in common have most
packs in common.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from cacheserver import names
from cacheserver.words import Entry, Manifest, Standing

FORMAT = "v1"
PACKED_BYTES_MAX = 1 << 20  # a larger blob has objects of its own
PACK_BYTES_MIN = 1 << 20  # a pack ends nowhere before it has so many bytes
PACK_BYTES_MAX = 8 << 20
PACK_BLOBS_MAX = 4096
PART_BYTES = 8 << 20  # of a large blob, in one object
RECORD_BYTES_MAX = 512 << 20  # 2,000,000 files

TREES, BLOBS, PACKS, CLAIMS = (f"{FORMAT}/{kind}/" for kind in ("trees", "blobs", "packs", "claims"))
CONDEMNED = f"{FORMAT}/condemned"

_ENDS = "00"  # one digest of 256
_PACK = b"artifactcache pack 1\n"
_TREE = b"artifactcache tree 1 "
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_MAC = "-"
_NO_BYTES = blake3().hexdigest()


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
    def keys(self) -> list[str]:
        """The names of its objects."""
        return [part.key for part in self.parts]


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


class NotARecord(ValueError):
    """An object is no record of a tree; the message says why, for the middle of a sentence."""


@dataclass(frozen=True)
class TreeRecord:
    """What the tier says of one location, or a selection of it: which tree it is.

    Attributes:
        tracking_uri: of the tracking server, without credentials.
        uri: the location's.
        selection: the key of the patterns; empty for the whole.
        file_name: where it is one file, its name; else empty.
        standing: whether the origin had finished it.
        checked_at: when the origin was seen to have just this; seconds since the epoch.
        etags: the origin's entity tags of the manifest's files, in its order; none where it gave none.
        versions: what it was asked for as: versions with their paths. For retention rules.
    """

    tracking_uri: str
    uri: str
    selection: str
    file_name: str
    standing: Standing
    checked_at: float
    manifest: Manifest
    etags: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The object's name below the tier's prefix."""
        return record_key(self.tracking_uri, self.uri, self.selection)

    def encode(self, secret: bytes | None) -> bytes:
        """The object: a line that says what it is; and by zlib, a line of JSON and the manifest.

        Args:
            secret: 32 bytes that all hosts have who may write; None where whoever can write may.

        Raises NotARecord where it is too large for one.
        """
        facts = {
            "tracking_uri": self.tracking_uri,
            "uri": self.uri,
            "selection": self.selection,
            "file_name": self.file_name,
            "standing": int(self.standing),
            "checked_at": self.checked_at,
            "versions": list(self.versions),
            "etags": list(self.etags),
            "tree": self.manifest.digest,
        }
        text = json.dumps(facts, sort_keys=True).encode() + b"\n" + self.manifest.encode()
        if len(text) > RECORD_BYTES_MAX:
            raise NotARecord(f"has {len(text)} bytes, and a record {RECORD_BYTES_MAX} at most")
        body = zlib.compress(text)
        return _TREE + _mac(secret, self.key, body).encode() + b"\n" + body

    @classmethod
    def decode(cls, key: str, data: bytes, secret: bytes | None) -> TreeRecord:
        """The inverse of `encode`. Nothing of it is believed: names, digests and sizes are looked at.

        Args:
            key: what was asked for.

        Raises NotARecord.
        """
        first, _, body = data.partition(b"\n")
        if not first.startswith(_TREE):
            raise NotARecord("does not begin as a record does")
        if secret is not None and first[len(_TREE) :] != _mac(secret, key, body).encode():
            raise NotARecord("was not written by a host that has the key of [shared] key_file")
        try:
            text, _, lines = _unpressed(body).partition(b"\n")
            facts = json.loads(text)
            manifest = Manifest.decode(lines)
            found = cls(
                _text(facts["tracking_uri"]),
                _text(facts["uri"]),
                _text(facts["selection"]),
                _text(facts["file_name"]),
                Standing(facts["standing"]),
                float(facts["checked_at"]),
                manifest,
                tuple(_text(etag) for etag in facts["etags"]),
                tuple(_text(version) for version in facts["versions"]),
            )
            tree = facts["tree"]
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, zlib.error):
            raise NotARecord("cannot be read") from None
        if not math.isfinite(found.checked_at):
            raise NotARecord("was written at no time")
        if found.key != key:
            raise NotARecord("is of another artifact")
        if manifest.digest != tree:
            raise NotARecord("has not the tree that it names")
        if found.etags and len(found.etags) != len(manifest.files):
            raise NotARecord("has another number of entity tags than of files")
        if not all(map(sayable, (found.uri, *found.etags, *found.versions))):
            raise NotARecord("has control characters in it")
        if found.file_name and [entry.path for entry in manifest.entries] != [
            found.file_name.encode("utf-8", "surrogateescape")
        ]:
            raise NotARecord("has another name for its one file than its manifest")
        if wrong := _wrong(manifest.entries):
            raise NotARecord(wrong)
        return found


def sayable(text: str) -> bool:
    """Whether a record may have a text in it: none with control characters."""
    return not _CONTROL.search(text)


def _unpressed(body: bytes) -> bytes:
    """What zlib has made smaller; never more than a record may have."""
    stream = zlib.decompressobj()
    text = stream.decompress(body, RECORD_BYTES_MAX)
    if not stream.eof or stream.unused_data:
        raise ValueError("it is longer, or not all of it")
    return text


@dataclass(frozen=True)
class Condemned:
    """What a sweep of the tier is about to remove.

    Attributes:
        sweep: which sweep, and which round of it. It stays where nothing is condemned any more, so that who looks twice
            sees whether one has begun between.
        keys: the names of the objects.
    """

    sweep: str = ""
    keys: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        """The object: JSON, for people too."""
        return json.dumps({"sweep": self.sweep, "keys": sorted(self.keys)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Condemned:
        """The inverse of `encode`. What is no such list condemns nothing: no sweep goes on where it finds that."""
        try:
            found = json.loads(data)
            return cls(_text(found.get("sweep", "")), frozenset(_text(key) for key in found["keys"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()


def record_key(tracking_uri: str, uri: str, selection: str) -> str:
    """The name of the record of a location, or a selection of it."""
    name = _name(tracking_uri, uri, selection)
    return f"{TREES}{name[:2]}/{name}"


def claim_key(tracking_uri: str, uri: str, selection: str) -> str:
    """The name of the claim to bring it from the origin."""
    return f"{CLAIMS}{_name(tracking_uri, uri, selection)}"


def _name(*of: str) -> str:
    return blake3(json.dumps(of).encode()).hexdigest()


def _mac(secret: bytes | None, key: str, body: bytes) -> str:
    """BLAKE3 with a key, which is a MAC by its specification (section 6): of the name and what it names."""
    if secret is None:
        return _NO_MAC
    return blake3(key.encode() + b"\n" + body, key=secret).hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half a surrogate pair is no text
    return value


def _wrong(entries: Sequence[Entry]) -> str:
    """Why these cannot be the entries of a manifest; empty where they can."""
    files, folders, before = set[bytes](), set[bytes](), b""
    sizes = {_NO_BYTES: 0}
    for entry in entries:
        path = entry.path.rstrip(b"/")
        if path in files:
            return "has a file that is a folder as well"
        if fault := names.fault(path):
            return f"has the path {names.show(path)}, which {fault}"
        if entry.path <= before:
            return "has paths that are not in order"
        before = entry.path
        is_right = entry.size == 0 if entry.is_folder else _DIGEST.fullmatch(entry.digest)
        if entry.is_folder != entry.path.endswith(b"/") or not is_right:
            return "has a line that is no file's and no folder's"
        is_file_right = entry.is_folder or (entry.size == 0) == (entry.digest == _NO_BYTES)
        if not is_file_right or sizes.setdefault(entry.digest, entry.size) != entry.size:
            return "has two sizes of one blob"
        files.add(path)
        above = path.rpartition(b"/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition(b"/")[0]
    return "has a file that is a folder as well" if files & folders else ""
