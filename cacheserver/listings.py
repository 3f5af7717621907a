"""What an origin lists, folder after folder or all at once, as the files of one artifact.

Law of this file: nothing of it is believed. Every name passes `names`, every entry lies in the folder that was listed,
and a listing without end ends.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from artifactcache.errors import Corrupted, NotFound
from cacheserver import names
from cacheserver.words import File, Listing, Location

ENTRIES_MAX = 2_000_000  # of one artifact


class Entry(NamedTuple):
    """One name in a folder: its path below the location's root, its size in bytes where the origin says it, and the
    entity tag of its bytes where the origin has one."""

    path: str
    is_folder: bool
    size: int | None
    etag: str = ""


def walk(location: Location, entries: Callable[[str], Iterable[Entry]]) -> Listing:
    """All files at a location, or the one file that it is.

    Args:
        entries: lists a folder, given and answered as paths below the location's root ("" for the root).

    Raises NotFound where there is nothing, Corrupted where a listing contradicts itself or names what must not be, and
    what `entries` raises.
    """
    top = list(entries(location.path))
    if location.path and _may_be_a_file(location.path, top):
        itself = _in_the_folder_above(location, entries)
        if not itself.is_folder:
            return one_file(location, itself)
    return Listing(list(_below(location, top, entries)), "")


def flat(location: Location, entries: Iterable[Entry]) -> Listing | None:
    """All files at a location of a store that has no folders, only names with slashes in them; None where it has none.

    Args:
        entries: everything below the location, as paths below its root. A folder there is a name that says no more than
            that it exists, be it the location's own.

    Raises Corrupted where a name must not be, and what iterating raises.
    """
    files, folders, filled, seen = list[File](), list[File](), set[bytes](), 0
    for seen, entry in enumerate(entries, 1):
        if seen > ENTRIES_MAX:
            raise Corrupted(f"{location.uri}: the origin lists more than {ENTRIES_MAX} files.")
        if entry.path == location.path:
            continue
        path = path_below(location, entry.path)
        if wrong := names.fault(path):
            raise Corrupted(f"{location.uri}: the origin lists {names.show(path)}, which {wrong}.")
        (folders if entry.is_folder else files).append(File(path, entry.size, entry.path, entry.is_folder, entry.etag))
        above = path.rpartition(b"/")[0]
        while above and above not in filled:
            filled.add(above)
            above = above.rpartition(b"/")[0]
    return Listing(files + [folder for folder in folders if folder.path not in filled], "") if seen else None


def one_file(location: Location, itself: Entry) -> Listing:
    """The listing of a location that is a file."""
    name = location.path.rpartition("/")[2]
    return Listing([File(os.fsencode(name), itself.size, location.path, etag=itself.etag)], name)


def _may_be_a_file(path: str, listed: list[Entry]) -> bool:
    """A file lists as nothing, as itself or as a folder with only itself in it; so does what does not exist, and so
    does a folder that has one file of its own name."""
    if len(listed) > 1:
        return False
    return not listed or (not listed[0].is_folder and posixpath.basename(listed[0].path) == posixpath.basename(path))


def _in_the_folder_above(location: Location, entries: Callable[[str], Iterable[Entry]]) -> Entry:
    for entry in entries(location.path.rpartition("/")[0]):
        if entry.path.strip("/") == location.path:
            return entry
    raise NotFound(f"{location.uri}: the origin has no file or folder there.")


def _below(location: Location, top: list[Entry], entries: Callable[[str], Iterable[Entry]]) -> Iterator[File]:
    folders, seen = [location.path], 0
    while folders:
        folder = folders.pop()
        listed = top if folder == location.path else entries(folder)
        inside = [e for e in listed if e.path not in (".", folder)]  # some list the folder in itself
        if not inside and folder != location.path:
            yield File(path_below(location, folder), 0, folder, is_folder=True)
        for entry in inside:
            seen += 1
            if seen > ENTRIES_MAX:
                raise Corrupted(f"{location.uri}: the origin lists more than {ENTRIES_MAX} files.")
            path = path_below(location, entry.path)
            if (wrong := names.fault(path)) or posixpath.dirname(entry.path) != folder:
                wrong = wrong or "is not inside the folder that was listed"
                raise Corrupted(f"{location.uri}: the origin lists {names.show(path)}, which {wrong}.")
            if entry.is_folder:
                folders.append(entry.path)
            else:
                yield File(path, entry.size, entry.path, etag=entry.etag)


def path_below(location: Location, remote: str) -> bytes:
    """A path below the location's root as one below the location. Raises Corrupted where it is not."""
    inside = f"{location.path}/" if location.path else ""
    try:
        if remote.startswith(inside):
            return os.fsencode(remote[len(inside) :])
    except UnicodeEncodeError:
        pass  # half a surrogate pair: JSON can say it, no filesystem can have it
    raise Corrupted(f"{location.uri}: the origin lists {names.show(remote)}, which cannot be inside it.")
