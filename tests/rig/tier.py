"""Whether a shared tier has all that its records name."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from cacheserver.packing import Large, Pack, layout
from cacheserver.tierstore import TierStore
from cacheserver.treerecords import RECORD_BYTES_MAX, TREES, NotARecord, TreeRecord


def lacking(objects: TierStore, secret: bytes | None = None) -> list[str]:
    """What is wrong with the records of a tier: a line for each that is none, and for each blob of one that is not
    there, or is not what its name says. Each object is asked for by its name, for a listing may lag.

    Args:
        secret: what the records are signed with; None where that does not matter.
    """
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
            wrong += [f"{listed.key} ({record.uri}) lacks {digest}" for digest in _lacking(objects, piece)]
    return wrong


def _lacking(objects: TierStore, piece: Large | Pack) -> Iterator[str]:
    sizes = [part.length for part in piece.parts] if isinstance(piece, Large) else [piece.size]
    got = [objects.read(key, 0, size + 1) or b"" for key, size in zip(piece.keys, sizes, strict=True)]
    data = b"".join(got)
    blobs, begin = ([piece.blob], 0) if isinstance(piece, Large) else (piece.blobs, len(piece.head))
    for blob in blobs:
        is_right = [len(one) for one in got] == sizes and blake3(
            data[begin : begin + blob.size]
        ).hexdigest() == blob.digest
        if not is_right:
            yield blob.digest
        begin += blob.size
