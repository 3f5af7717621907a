"""Blobs on their way to other hosts.

Law of this file: what leaves is hashed, and what is wrong is put aside here, where it is fetched again, and given to
nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver.faults import GONE_ERRNOS, LOST_ERRNOS, trouble
from cacheserver.packing import Blob
from cacheserver.store import Store


def read(store: Store, blob: Blob) -> bytes:
    """A small blob, hashed. Raises CacheError where it is wrong or cannot be read."""
    with opened(store, blob) as fd:
        data = os.pread(fd, blob.size + 1, 0)
    if blake3(data).hexdigest() != blob.digest:
        raise rotten(store, blob)
    return data


@contextmanager
def opened(store: Store, blob: Blob) -> Iterator[int]:
    """A descriptor of a blob, for whoever hashes what he reads. Raises CacheError, also of what is read from it."""
    try:
        fd = store.open_blob(blob.digest)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in GONE_ERRNOS | LOST_ERRNOS:
            raise rotten(store, blob) from None
        raise trouble(error, f"the blob {blob.digest} cannot be read to be published") from None


def rotten(store: Store, blob: Blob) -> CacheError:
    """What is to be told of a blob that is wrong here; the store puts it aside, and fetches it again."""
    for row in store.index.blobs([blob.digest]).values():
        store.verifier.recheck(row)
    return CacheError(f"The blob {blob.digest} is damaged: it is fetched again, and given to others then.")
