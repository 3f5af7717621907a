"""What the objects of the shared tier say that hold no blobs: which tree a location is, and what is about to go.

Law of this file: values only, and nothing that is read is believed: names, digests, sizes and how much there is of each
are looked at, as if an enemy had written it.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from cacheserver import names
from cacheserver.packing import FORMAT
from cacheserver.words import Entry, Manifest, Standing

RECORD_BYTES_MAX = 512 << 20  # 2,000,000 files
RECORD_FILES_MAX = 2_000_000  # as an origin may list: zlib can make many more lines of a small object
FACTS_BYTES_MAX = 4 << 20  # of a record's line of JSON, for the same reason: what may be in it is less

TREES, CLAIMS = f"{FORMAT}/trees/", f"{FORMAT}/claims/"
CONDEMNED = f"{FORMAT}/condemned"

ETAG_CHARS_MAX = 1024
LINE_BYTES_MAX = 8400  # of a manifest: a path of 4,000 bytes, each of which may be written as two, a digest and a size

_TREE = b"artifactcache tree 1 "
_LONG = re.compile(rb"\n[^\n]{%d}" % LINE_BYTES_MAX)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_MAC = "-"
_NO_BYTES = blake3().hexdigest()


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
        """The object: a line that says what it is; and by zlib, a line of JSON, a line for each entity tag, and the
        manifest.

        Args:
            secret: 32 bytes that all hosts have who may write; None where whoever can write may.

        Raises NotARecord where it is too large for one, or has in it what no record may have.
        """
        facts = {
            "tracking_uri": self.tracking_uri,
            "uri": self.uri,
            "selection": self.selection,
            "file_name": self.file_name,
            "standing": int(self.standing),
            "checked_at": self.checked_at,
            "versions": list(self.versions),
            "etags": len(self.etags),
            "tree": self.manifest.digest,
        }
        if not all(map(is_tag, self.etags)):
            raise NotARecord("has an entity tag that no record may have")
        try:
            line = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
            text = line + b"\n" + "".join(f"{etag}\n" for etag in self.etags).encode() + self.manifest.encode()
        except UnicodeEncodeError:
            raise NotARecord("has a name that is no text") from None
        if len(line) >= FACTS_BYTES_MAX:
            raise NotARecord(f"has {len(line)} bytes of names, and a record {FACTS_BYTES_MAX} at most")
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
            text = _unpressed(body)
            facts, etags, lines = _parts(text)
            manifest = Manifest.decode(lines)
            found = cls(
                _text(facts["tracking_uri"]),
                _text(facts["uri"]),
                _text(facts["selection"]),
                _text(facts["file_name"]),
                Standing(facts["standing"]),
                float(facts["checked_at"]),
                manifest,
                etags,
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


def is_tag(text: str) -> bool:
    """Whether a record may have an entity tag: one that is longer, or has control characters, is no evidence."""
    return len(text) <= ETAG_CHARS_MAX and sayable(text)


def _unpressed(body: bytes) -> bytes:
    """What zlib has made smaller; never more than a record may have."""
    stream = zlib.decompressobj()
    text = stream.decompress(body, RECORD_BYTES_MAX)
    if not stream.eof or stream.unused_data:
        raise ValueError("it is longer, or not all of it")
    return text


def _parts(text: bytes) -> tuple[dict[str, Any], tuple[str, ...], bytes]:
    """What a record says, its entity tags, and the lines of its manifest. Raises ValueError, KeyError, TypeError."""
    end = text.find(b"\n", 0, FACTS_BYTES_MAX)
    if end < 0 or text.count(b"\n") > 2 * RECORD_FILES_MAX + 1 or _LONG.search(text, end):
        raise ValueError("it has more lines, or a longer one, than a record")
    facts = json.loads(text[:end])
    count = facts["etags"]
    if not isinstance(count, int) or not 0 <= count <= RECORD_FILES_MAX:
        raise ValueError("it has more entity tags than files")
    *etags, lines = text[end + 1 :].split(b"\n", count)
    return facts, tuple(etag.decode() for etag in etags), lines


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
