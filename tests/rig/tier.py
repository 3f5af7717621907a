"""Whether a shared tier has all that its records name."""

from __future__ import annotations

from collections.abc import Iterator

from cacheserver.packing import BLOBS, PACKS, RECORD_BYTES_MAX, TREES, Large, NotARecord, Pack, TreeRecord, layout
from cacheserver.tierstore import TierStore


def lacking(objects: TierStore, secret: bytes | None) -> list[str]:
    """What is wrong with the records of a tier: a line for each that is none, and for each object that one needs and
    that is not there, or has another size.

    Args:
        secret: what the records are signed with; None where that does not matter.
    """
    there = {found.key: found.size for kind in (BLOBS, PACKS) for found in objects.list(kind)}
    wrong = []
    for listed in objects.list(TREES):
        got = objects.get(listed.key, RECORD_BYTES_MAX)
        if got is None:  # gone meanwhile
            continue
        try:
            record = TreeRecord.decode(listed.key, got.data, secret)
        except NotARecord as why:
            wrong.append(f"{listed.key} {why}")
            continue
        for piece in layout(record.manifest):
            for key, size in _objects(piece):
                # What was written after it was listed is there as well.
                if there.get(key) != size and not objects.has(key, size):
                    wrong.append(f"{listed.key} ({record.uri}) lacks {key}")
    return wrong


def _objects(piece: Large | Pack) -> Iterator[tuple[str, int]]:
    if isinstance(piece, Pack):
        yield piece.key, piece.size
    else:
        yield from ((part.key, part.length) for part in piece.parts)
