"""Rows of an index, made of nothing but names."""

from __future__ import annotations

from blake3 import blake3

from cacheserver.index import Index
from cacheserver.words import Arrived, BlobRow, Entry, Manifest, Record, Standing

ORIGIN = "http://one.example"


def blob(name: str, inode: int = 1) -> BlobRow:
    """A blob's row."""
    return BlobRow(blake3(name.encode()).hexdigest(), len(name), f"xxh3 of {name}", inode, 1_700_000_000_123_456_789)


def arrived(name: str) -> Arrived:
    """A file that has arrived."""
    return Arrived(blob(name).digest, len(name), f'"{name}"')


def tree(*names: str) -> Manifest:
    """A tree of files whose content is their name."""
    return Manifest.of(Entry(n.encode(), blob(n).digest, len(n)) for n in names)


def record(
    index: Index, uri: str, *names: str, standing: Standing = Standing.FINISHED, asked: bool = True, now: float = 5.0
) -> Manifest:
    """Records blobs and their tree as an artifact."""
    index.record_arrivals([blob(n) for n in names], {}, Standing.FINISHED, now)
    index.record_tree(tree(*names), [Record(uri, "", "", standing, asked)], (), now)
    return tree(*names)


def expire(index: Index, before: float) -> dict[str, int]:
    """Ends arrivals that came before a time and that nobody counts on. Returns the blobs that went with them."""
    return index.arrivals.drop(index.arrivals.older(before), lambda key: False)
