"""Checks a whole store while no daemon uses it: every row against its bytes, every file against its row.

Law of this file: it mends only what loses nothing. Wrong bytes go to quarantine, files that no row speaks of are
removed; both are fetched again when they are asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from artifactcache.errors import CacheError
from cacheserver.disk import Disk
from cacheserver.index import Index
from cacheserver.space import show
from cacheserver.store import Store, Verified
from cacheserver.words import Progress


@dataclass(frozen=True)
class Report:
    """What a check found."""

    root: str
    verified: Verified
    strays: int
    manifests: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every row has its bytes."""
        return not self.verified.corrupted and not self.manifests

    def lines(self) -> list[str]:
        """The report, for a person."""
        found = self.verified
        out = [f"{self.root}: {found.blobs_checked} blobs, {show(found.bytes_checked)} hashed"]
        out += [f"wrong or gone, now in quarantine: blob {digest}" for digest in found.corrupted]
        out += [f"wrong or gone: the manifest of {uri}" for uri in self.manifests]
        out += [f"will be fetched again when asked for: {uri}" for uri in found.affected]
        if self.strays:
            out.append(
                f"{self.strays} files that no row speaks of were removed: a crash leaves such, and they cost space only"
            )
        out.append("sound" if self.sound else "not sound")
        return out


def check(root: str) -> Report:
    """Checks the store in a folder. Raises CacheError where there is none, or a daemon uses it."""
    if not os.path.exists(os.path.join(root, "index.db")):
        raise CacheError(f"There is no store in {root}. Give the --config, or the environment, that the daemon has.")
    disk = Disk(root, shared=None)
    store = Store(disk, Index(disk.index_path, ""), lambda: 0.0)
    try:
        verified = store.verify(None, Progress())
        known = set(store.index.all_digests())
        strays = [digest for digest in disk.blob_names() if digest not in known]
        disk.unlink(strays)
        broken = tuple(uri for uri, tree in store.index.all_trees() if disk.read_manifest(tree) is None)
        return Report(disk.root, verified, len(strays), broken)
    finally:
        store.close()
