"""Verification: the blobs of one artifact, or of all, hashed again.

Law of this file: what is said to be fine was read just now; what an artifact lacks is said as long as it lacks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cacheserver.words import BlobRow, Progress


@dataclass(frozen=True)
class Verified:
    """What a verification found: how much it hashed, which blobs were wrong or are gone, which artifacts need them."""

    blobs_checked: int
    bytes_checked: int
    corrupted: tuple[str, ...]
    affected: tuple[str, ...]


@dataclass
class Verification:
    """One run over some blobs.

    Attributes:
        recheck: hashes a blob again; its row as of now, or None where its bytes are wrong or gone.
        take_back: records a blob whose bytes are right and whose inode is another.
        put_aside: quarantines a wrong blob; False where it was dropped, or found by somebody else, since it was read.
        holders: the URIs of the artifacts that need a blob.
    """

    recheck: Callable[[BlobRow], BlobRow | None]
    take_back: Callable[[BlobRow], None]
    put_aside: Callable[[BlobRow], bool]
    holders: Callable[[list[str]], list[str]]
    blobs_checked: int = 0
    bytes_checked: int = 0
    corrupted: dict[str, None] = field(default_factory=dict)  # in the order in which they were found
    affected: set[str] = field(default_factory=set)

    def run(self, batches: Iterable[list[BlobRow]], progress: Progress) -> bool:
        """Hashes the blobs. Returns False where it ended because nobody waits for it any more."""
        for rows in batches:
            for row in rows:
                if not progress.is_wanted:  # a large store takes minutes, and another verification may wait
                    return False
                fine = self.recheck(row)
                self.blobs_checked, self.bytes_checked = self.blobs_checked + 1, self.bytes_checked + row.size
                progress.files_done, progress.bytes_done = self.blobs_checked, self.bytes_checked
                if fine is None:
                    holders = self.holders([row.digest])  # before its row goes, and with it who needs it
                    if self.put_aside(row):
                        self.lacks(holders, [row.digest])
                elif fine != row:
                    self.take_back(fine)
        return True

    def lacks(self, uris: Iterable[str], digests: Iterable[str]) -> None:
        """Counts blobs that are wrong or gone, and the artifacts that need them."""
        self.corrupted.update(dict.fromkeys(digests))
        self.affected.update(uris)

    def found(self) -> Verified:
        """What was found until now."""
        return Verified(self.blobs_checked, self.bytes_checked, tuple(self.corrupted), tuple(sorted(self.affected)))
