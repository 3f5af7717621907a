"""The same trace through the policies of libcachesim, whose authors are those of S3-FIFO and SIEVE.

Law of this file: it is the only one that imports libcachesim, when it is asked to. There a tree is one object that
shares nothing, and room is made for one at a time; so ours are run in the same way beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from artifactcache.errors import InvalidRequest
from cacheserver.simulate import Outcome
from cacheserver.traces import Fetch

MISSING = "libcachesim is not installed: pip install 'cacheserver[simulate]'"
PREFIX = "libcachesim "
# By name, the class there. BeladySize is not among them: with trees nearly as large as the cache, of which some are
# never used again, that of 0.3.5 finds nothing to evict and never returns.
POLICIES: Mapping[str, str] = {
    "lru": "LRU",
    "s3-fifo": "S3FIFO",
    "sieve": "Sieve",
    "gdsf": "GDSF",
    "belady": "Belady",
}
HASH_POWER = 16  # logarithm of its table's first size: its own 24 takes 128 MB for each cache
NEVER = 1 << 62  # as the number of a tree's next fetch


def is_installed() -> bool:
    """Whether there is anything to compare with."""
    try:
        import libcachesim  # noqa: F401
    except ImportError:
        return False
    return True


def unshared(fetches: Iterable[Fetch]) -> list[Fetch]:
    """The same fetches of trees that have no blob in common: each is one blob of its own."""
    return [
        Fetch(at, tree._replace(blobs=((f"all of {tree.name}", tree.size_bytes),) if tree.blobs else ()))
        for at, tree in fetches
    ]


def compared(fetches: Sequence[Fetch], name: str, capacity_bytes: int) -> Outcome:
    """The outcome of one of libcachesim's policies. Raises InvalidRequest where it is not installed."""
    try:
        import libcachesim
    except ImportError:
        raise InvalidRequest(f"{MISSING}.") from None
    cache: Any = getattr(libcachesim, POLICIES[name])(capacity_bytes, hashpower=HASH_POWER)
    keys: dict[tuple[str, int], int] = {}  # a tree that has become larger is another object
    seen: set[tuple[str, int]] = set()
    hits = requested = hit_bytes = brought = 0
    seconds = again = 0.0
    for (_, tree), following in zip(fetches, _following(fetches), strict=True):
        size = tree.size_bytes
        key = (tree.name, size)
        requested += size
        fits = size <= capacity_bytes  # what does not is not asked for: it would be a miss with a warning
        if fits and cache.get(
            libcachesim.Request(
                obj_size=max(size, 1), obj_id=keys.setdefault(key, len(keys) + 1), next_access_vtime=following
            )
        ):
            hits += 1
            hit_bytes += size
            continue
        brought += fits
        seconds += tree.seconds
        again += tree.seconds if key in seen else 0.0
        seen.add(key)
    gone = brought - int(cache.get_n_obj())  # also what S3-FIFO did not let in
    return Outcome(PREFIX + name, capacity_bytes, len(fetches), hits, requested, hit_bytes, seconds, again, gone)


def _following(fetches: Sequence[Fetch]) -> list[int]:
    """For each fetch, the number of the next one of the same tree."""
    found, after = [NEVER] * len(fetches), dict[str, int]()
    for number in range(len(fetches) - 1, -1, -1):
        name = fetches[number].tree.name
        found[number] = after.get(name, NEVER)
        after[name] = number
    return found
