"""A tree in memory.

Law of this file: values only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from cacheserver.words import BlobRow, Entry, Manifest


@dataclass(frozen=True)
class Tree:
    """A tree in memory: its digest, its manifest, and the rows of its blobs as far as they are held."""

    digest: str
    manifest: Manifest
    rows: dict[str, BlobRow]

    @cached_property
    def missing(self) -> Counter[str]:
        """Digests of the blobs that are not held, and how many files each of them is."""
        return Counter(e.digest for e in self.filled if e.digest not in self.rows)

    @cached_property
    def filled(self) -> tuple[Entry, ...]:
        """The files that are not empty: those that have blobs."""
        return tuple(e for e in self.manifest.entries if e.size)
