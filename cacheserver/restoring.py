"""An index that is damaged or gone is made anew, from the blobs, the manifests and the mirror of names.

Law of this file: the old one is kept for a person to look at; what is put back is what the disk has, and bytes are
believed only when they were hashed. What is lost is when things were used, and what failed downloads have left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cacheserver.database import IndexDamaged, find_damage
from cacheserver.disk import Disk
from cacheserver.faults import trouble
from cacheserver.index import Index

UNMOVED = "a damaged index cannot be moved to quarantine/"

_log = logging.getLogger(__name__)


def open_index(disk: Disk, tracking_uri: str) -> Index:
    """The index of a store, made anew where it cannot be read; and its mirror. Raises CacheError, NoSpace."""
    try:
        return _opened(disk, tracking_uri)
    except IndexDamaged as error:
        _log.warning("%s", error)
    # SQLite does not say in which of the two files it has met the damage; the other one is what that is made of.
    _set_aside(disk, find_damage(disk.index_path, thorough=True) or ["main"])
    return _opened(disk, tracking_uri)


def mend(index: Index, disk: Disk) -> bool:
    """Looks whether SQLite can read all of an index, and sees to it where it cannot. Returns whether it was damaged, or
    seemed so for a moment."""
    damaged = index.find_damage()
    if not damaged and not index.is_damaged:
        if index.is_behind:
            _drop_unexplained(index)
            index.recovery.mirror_all()
        return False
    with index.renewed(lambda: _catch_up(index, disk)):
        _set_aside(disk, damaged)
    return True


def look_through(index: Index) -> None:
    """Looks at each entry of an index while it serves, as at one that is no row's any more: SQLite meets such a one
    when it is asked for it, if at all."""
    if not index.is_sound():
        index.suspect()


def compare(index: Index) -> list[str]:
    """Looks whether the index and the mirror say the same of each artifact, version and alias: SQLite's pages have no
    checksums. What they do not agree on is asked and fetched again. Returns what that is."""
    return _tell(index.recovery.drop_differing())


def _drop_unexplained(index: Index) -> None:
    """The same where one of the two has missed changes, before it is made anew of the other: what these explain is no
    rot."""
    _tell(index.recovery.drop_unexplained())


def _tell(differing: list[str]) -> list[str]:
    if differing:
        _log.warning(
            "the index and its mirror of names say different things of %d names: a disk has changed one of them. They"
            " are fetched again when they are asked for: %s",
            len(differing),
            ascii(", ".join(differing[:3])),
        )
    return differing


def _opened(disk: Disk, tracking_uri: str) -> Index:
    index = Index(disk.index_path, tracking_uri)
    try:
        _catch_up(index, disk)
    except BaseException:
        index.close()
        raise
    return index


def _set_aside(disk: Disk, damaged: list[str]) -> None:
    with _telling(UNMOVED):
        if "main" in damaged:
            aside = disk.quarantine.put_index(disk.index_path)
            _log.warning("the index is damaged: it is kept as %s, and made anew", aside)
        if "names" in damaged:
            aside = disk.quarantine.put_mirror(disk.index_path)
            _log.warning("the mirror of names is damaged: it is kept as %s, and made anew of the index", aside)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise trouble(error, what) from None


def _catch_up(index: Index, disk: Disk) -> None:
    """Whatever the mirror knows and the index does not comes back; then both know the same."""
    index.recovery.keep_origin()
    lag = index.recovery.lag()
    if lag:
        _drop_unexplained(index)
    if lag > 0:
        with _telling("what an index had lost cannot be put back"):
            _put_back(index, disk)
    elif index.recovery.is_empty():  # with the mirror gone too, what is on the disk has no name
        with _telling("what an index had lost cannot be removed"):
            index.recovery.leave_unknown(disk.digests("manifests"), disk.digests("blobs"))
    if lag:
        index.recovery.mirror_all()


def _put_back(index: Index, disk: Disk) -> None:
    lost = index.recovery.lost()
    found = 0
    with index.transaction():
        for tree in lost:
            manifest = disk.read_manifest(tree.digest)
            if manifest is None:
                continue
            wanted = {entry.digest: entry.size for entry in manifest.files if entry.size}
            seen = {digest: disk.blob_size(digest) for digest in wanted}
            for digest, size in seen.items():
                if size is not None and size != wanted[digest]:
                    disk.quarantine.put(digest)
            index.recovery.put_back(tree, manifest, {d: size for d, size in wanted.items() if seen[d] == size})
            found += 1
        artifacts = index.recovery.put_back_names()
        index.recovery.leave_unknown(disk.digests("manifests"), disk.digests("blobs"))
    _log.warning(
        "the index was made anew, or had lost its last changes: %d artifacts are again what the mirror of names says,"
        " %d trees are put back, %d trees have no manifest any more and are downloaded again when they are asked for;"
        " each blob is hashed before it is handed out",
        artifacts,
        found,
        len(lost) - found,
    )
