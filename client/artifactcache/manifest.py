"""A tree's manifest, decoded. This room reads bytes and opens nothing.

The format is in DESIGN.md. Nothing is tolerated: the names in a manifest become names in the caller's folders, so
whatever could leave the destination, or could be read in two ways, is Corrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifactcache.errors import Corrupted, InvalidRequest

DEPTH_MAX = 256  # folders below each other: one descriptor is held for each
SIZE_BYTES_MAX = 2**63 - 1
_HEXADECIMAL = b"0123456789abcdef"
_ESCAPES = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}
_NOT_NAMES = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a tree consists of. A file is (its folder, its name, its size); the top folder is b""."""

    folders: list[bytes]
    """Every folder with a file in it and every empty one, each before what is below it; those between are implied."""
    files: list[tuple[bytes, bytes, int]]
    """The files that are not empty, in the manifest's order, which is the order of their descriptors."""
    empty_files: list[tuple[bytes, bytes, int]]
    size_bytes: int

    @property
    def file_count(self) -> int:
        """How many files the tree has."""
        return len(self.files) + len(self.empty_files)


def decode(data: bytes) -> Manifest:
    """Decode a manifest. Raises Corrupted where it is not one, InvalidRequest where it is too deep."""
    if data and not data.endswith(b"\n"):
        raise Corrupted("the manifest's last line is cut off")
    if b"\0" in data or b"\r" in data:
        raise Corrupted("the manifest has a byte in it that no line of it can have")
    folders: dict[bytes, None] = {}  # a set that keeps the order
    files: list[tuple[bytes, bytes, int]] = []
    empty_files: list[tuple[bytes, bytes, int]] = []
    size_bytes = 0
    last = b""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        digest, _, rest = line.partition(b" ")
        digits, _, path = rest.partition(b" ")
        if b"\\" in path:
            path = _unescape(path, number)
        if path <= last:
            raise _malformed(number, "is not in order")
        last = path
        folder, _, name = path.rpartition(b"/")
        if folder not in folders:
            _check_folder(folder, path, number)
            folders[folder] = None
        if not digits.isdigit() or (digits[0] == ord("0") and digits != b"0"):
            raise _malformed(number, "has no size")
        size = int(digits[:20])
        if digest == b"-":
            if name or size or not folder:
                raise _malformed(number, "is neither a file nor an empty folder")
            continue
        if name in _NOT_NAMES or len(digest) != 64 or digest.translate(None, _HEXADECIMAL):
            raise _malformed(number, "is not a file's")
        size_bytes += size
        (files if size else empty_files).append((folder, name, size))
    if size_bytes > SIZE_BYTES_MAX:
        raise Corrupted("the manifest's sizes add up to more than a filesystem can hold")
    if any((folder + b"/" + name if folder else name) in folders for folder, name, _ in empty_files + files):
        raise Corrupted("the manifest has a file and a folder of one name")
    return Manifest(list(folders), files, empty_files, size_bytes)


def _check_folder(folder: bytes, path: bytes, number: int) -> None:
    if not folder and not path.startswith(b"/"):
        return
    parts = folder.split(b"/")
    if any(part in _NOT_NAMES for part in parts):
        raise _malformed(number, "has a path that does not stay inside the tree")
    if len(parts) > DEPTH_MAX:
        raise InvalidRequest(
            f"the artifact has more than {DEPTH_MAX} folders below each other: take it as a view, or leave them out"
        )


def _unescape(path: bytes, number: int) -> bytes:
    first, *others = path.split(b"\\")
    # `\\` gives an empty piece, and the piece after it is literal.
    pieces = [first]
    literal = False
    for piece in others:
        if literal:
            pieces.append(piece)
            literal = False
        elif not piece:
            pieces.append(b"\\")
            literal = True
        elif piece[:1] in _ESCAPES:
            pieces.append(_ESCAPES[piece[:1]] + piece[1:])
        else:
            raise _malformed(number, "has an unknown escape")
    if others and not literal and not others[-1]:
        raise _malformed(number, "ends inside an escape")
    return b"".join(pieces)


def _malformed(number: int, what: str) -> Corrupted:
    return Corrupted(f"line {number} of the manifest {what}")
