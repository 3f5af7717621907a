"""Checks a whole store while no daemon uses it: every row against its bytes, every file against its row.

Law of this file: it mends only what loses nothing. Wrong bytes go to quarantine, what has a name of the store's and no
row is removed; both are fetched again when they are asked for. What has another name is somebody's, and is left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from artifactcache.errors import CacheError
from cacheserver.disk import Disk
from cacheserver.index import Index
from cacheserver.restoring import compare, look_through, mend, open_index
from cacheserver.space import show
from cacheserver.store import Store
from cacheserver.verify import Verified
from cacheserver.words import Progress

_REST = re.compile(r"[0-9a-f]{62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        strays: how many files and views that no row speaks of were removed.
        strange: paths of what the store has not made; it was left.
        stuck: paths of what could not be removed; it was left.
        quarantined: how much lies in quarantine by now.
        manifests: the URIs of the artifacts whose manifests are wrong or gone.
    """

    root: str
    verified: Verified
    strays: int
    strange: tuple[str, ...]
    stuck: tuple[str, ...]
    quarantined: int
    manifests: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every row has its bytes."""
        return not self.verified.corrupted and not self.manifests

    def lines(self) -> list[str]:
        """The report, for a person."""
        found = self.verified
        out = [f"{self.root}: {found.blobs_checked} blobs, {show(found.bytes_checked)} hashed"]
        out += [f"wrong or gone, and in quarantine if there was anything: blob {digest}" for digest in found.corrupted]
        out += [f"wrong or gone: the manifest of {uri}" for uri in self.manifests]
        out += [f"will be fetched again when asked for: {uri}" for uri in found.affected]
        if self.strays:
            out.append(
                f"{self.strays} files or views that no row speaks of were removed: a crash leaves such, and they cost"
                " space only"
            )
        out += [f"not of the store's making, and left: {path}; move it away" for path in self.strange]
        out += [f"could not be removed, it is of another user: {path}; remove it as root" for path in self.stuck]
        if self.quarantined:
            out.append(f"{self.quarantined} in quarantine: look into {self.root}/quarantine, then delete them")
        out.append("sound" if self.sound else "not sound")
        return out


def check(root: str) -> Report:
    """Checks the store in a folder. Raises CacheError where there is none, or a daemon uses it."""
    if not os.path.exists(os.path.join(root, "index.db")):
        raise CacheError(f"There is no store in {root}. Give the --config, or the environment, that the daemon has.")
    disk = Disk(root, shared=None)
    try:
        index = open_index(disk, "")
    except BaseException:
        disk.close()
        raise
    store = Store(disk, index, lambda: 0.0)
    try:
        look_through(index)
        mend(index, disk)
        compare(index)
        verified = store.verify(None, Progress())
        strange, strays = tuple(_strange(disk)), list(_strays(disk, store.index))
        stuck = tuple([path for path in strays if not disk.discard(path)] + disk.unwanted())
        lost = set(verified.manifests)
        broken = tuple(uri for uri, tree in store.index.all_trees() if tree in lost)
        removed = sum(not os.path.lexists(path) for path in strays)
        return Report(disk.root, verified, removed, strange, stuck, _quarantined(disk), broken)
    finally:
        store.close()


def _strays(disk: Disk, index: Index) -> Iterator[str]:
    """Paths of all that has a name of the store's, and no row."""
    trees = set(index.tree_digests())
    for kind, known in (("blobs", set(index.all_digests())), ("manifests", trees)):
        yield from (disk.at(kind, one[:2], one[2:]) for one in disk.digests(kind) if one not in known)
    for name in os.listdir(disk.at("views")):
        if _DIGEST.fullmatch(name) and name not in trees:
            yield disk.at("views", name)


def _quarantined(disk: Disk) -> int:
    """How much is in quarantine; in blobs/ it has a dot before its name, and in quarantine/ a symlink of that name."""
    in_place = {
        name[1:] for fan in disk.fans("blobs") for name in os.listdir(disk.at("blobs", fan)) if name.startswith(".")
    }
    return len(in_place | set(os.listdir(disk.at("quarantine"))))


def _strange(disk: Disk) -> Iterator[str]:
    """Paths of all that the store would not have named like this."""
    for kind in ("blobs", "manifests"):
        fans = set(disk.fans(kind))
        for name in os.listdir(disk.at(kind)):
            if name not in fans:
                yield disk.at(kind, name)
        for fan in fans:
            for name in os.listdir(disk.at(kind, fan)):
                if not _REST.fullmatch(name) and not name.startswith("."):
                    yield disk.at(kind, fan, name)
    for name in os.listdir(disk.at("views")):
        if not _DIGEST.fullmatch(name):
            yield disk.at("views", name)
