"""A tree's manifest, decoded. This room reads bytes and opens nothing.

The format is in DESIGN.md. Nothing is tolerated: the names in a manifest become names in the caller's folders, so
whatever could leave the destination, or could be read in two ways, is Corrupted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from artifactcache.errors import Corrupted, InvalidRequest

DEPTH_MAX = 256  # folders below each other: one descriptor is held for each
SIZE_BYTES_MAX = 2**63 - 1
# ^ and $ tie every match to one line, so as many matches as lines means that every line is one. One group, because
# a tuple for each line would cost as much again; looking ahead for the "/" at every line's end would, too.
_LINE = re.compile(rb"^(?:[0-9a-f]{64}|-(?= 0 [^\n]+/$)) ((?:0|[1-9][0-9]{0,18}) [^\n]+)$", re.MULTILINE)
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPES = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}
_NOT_NAMES = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a tree consists of."""

    folders: list[bytes]
    """Every folder with a file in it and every empty one, each before what is below it; those between are implied."""
    paths: list[bytes]
    """The files that are not empty, in the manifest's order, which is the order of their descriptors."""
    sizes: list[int]
    """Their sizes in bytes."""
    empty_paths: list[bytes]
    """The files that are empty."""
    size_bytes: int

    @property
    def file_count(self) -> int:
        """How many files the tree has."""
        return len(self.paths) + len(self.empty_paths)


def decode(data: bytes) -> Manifest:
    """Decode a manifest. Raises Corrupted where it is not one, InvalidRequest where it is too deep.

    This is on the way of every hand-over, so what can be checked for all lines at once is; 10,000 files take 10 ms.
    """
    lines = _LINE.findall(data)
    if len(lines) != data.count(b"\n") or (data and not data.endswith(b"\n")):
        raise Corrupted("the manifest has a line that is none, or was cut off")
    if b"\0" in data or b"\r" in data:
        raise Corrupted("the manifest has a byte in it that no line of it can have")
    folder_lines = data.count(b"\n- ") + data.startswith(b"- ")
    escaped = b"\\" in data
    folders: dict[bytes, None] = {}  # a set that keeps the order
    paths: list[bytes] = []
    sizes: list[int] = []
    empty_paths: list[bytes] = []
    last = b""
    for line in lines:
        digits, _, path = line.partition(b" ")
        if escaped and b"\\" in path:
            path = _unescape(path)
        if path <= last:
            raise Corrupted(f"the manifest is not in order at {path!r}")
        last = path
        folder, _, name = path.rpartition(b"/")
        if folder not in folders:
            _check_folder(folder, path)
            folders[folder] = None
        if not name:
            folder_lines -= 1
        elif name in _NOT_NAMES:
            raise Corrupted(f"the manifest has a file that cannot be one: {path!r}")
        elif digits == b"0":
            empty_paths.append(path)
        else:
            paths.append(path)
            sizes.append(int(digits))
    if folder_lines:  # every folder's line ends with "/", so a file's does as well
        raise Corrupted("the manifest has a file whose name ends with a slash")
    if (size_bytes := sum(sizes)) > SIZE_BYTES_MAX:
        raise Corrupted("the manifest's sizes add up to more than a filesystem can hold")
    _check_names_differ(folders, {*paths, *empty_paths})
    return Manifest(list(folders), paths, sizes, empty_paths, size_bytes)


def _check_folder(folder: bytes, path: bytes) -> None:
    if not folder and not path.startswith(b"/"):
        return  # the top
    parts = folder.split(b"/")
    if any(part in _NOT_NAMES for part in parts):
        raise Corrupted(f"the manifest has a path that does not stay inside the tree: {path!r}")
    if len(parts) > DEPTH_MAX:
        raise InvalidRequest(
            f"the artifact has more than {DEPTH_MAX} folders below each other: take it as a view, or leave them out"
        )


def _check_names_differ(folders: Iterable[bytes], paths: set[bytes]) -> None:
    for folder in folders:
        above = folder
        while above:
            if above in paths:
                raise Corrupted(f"the manifest has a file and a folder of one name: {above!r}")
            above = above.rpartition(b"/")[0]


def _unescape(path: bytes) -> bytes:
    try:
        return _ESCAPE.sub(lambda escape: _ESCAPES[escape[1]], path)
    except KeyError:
        raise Corrupted(f"the manifest has an unknown escape: {path!r}") from None
