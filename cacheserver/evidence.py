"""What is held already of the files that an origin lists, and what that proves.

Law of this file: equal entity tags prove that bytes are the same, whenever and however they were brought. Where the
origin has none, a file of the listed size is believed to be the same only if what it was brought of had been finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cacheserver.leases import Hold
from cacheserver.selection import Selection
from cacheserver.store import Store
from cacheserver.words import Arrived, File, Held, Location, Manifest, Standing


class Known(NamedTuple):
    """A file that is held, and what is known of how good that is.

    Attributes:
        arrived: its bytes.
        standing: what was known of its origin when it was brought.
        is_trusted: whether the origin need not be asked about it again yet.
        checked_at: when the origin was last seen to have it; seconds since the epoch.
    """

    arrived: Arrived
    standing: Standing
    is_trusted: bool
    checked_at: float


class Whole(NamedTuple):
    """A tree, or a part of one, that need not be listed: its files, their entity tags, its name where it is one file,
    and what the tree is worth."""

    manifest: Manifest
    etags: tuple[str, ...]
    file_name: str
    standing: Standing
    checked_at: float


class Evidence:
    """What the store holds, as evidence.

    Args:
        is_trusted: whether what the origin was seen to have at a time (seconds since the epoch) is trusted still.
    """

    def __init__(self, store: Store, is_trusted: Callable[[float], bool]) -> None:
        self._store = store
        self._index = store.index
        self._is_trusted = is_trusted

    def trusts(self, held: Held) -> bool:
        """Whether an artifact that is held need not be asked about at its origin."""
        return held.standing is not Standing.OPEN and self._is_trusted(held.checked_at)

    def whole(
        self, location: Location, selection: Selection, least: Standing, hold: Hold, *, trusted_only: bool
    ) -> Whole | None:
        """What a whole tree at or above a location has of it. None where there is none, or where it lacks the path:
        it may have been added since. That tree is held."""
        for held in reversed(self._index.above(location.uri)):
            hold(held.tree)
            tree = self._store.tree(held.tree)
            if held.selection or held.standing < least or tree is None or self._store.unsound(tree):
                continue
            if trusted_only and not self.trusts(held):
                continue
            path = location.uri[len(held.uri) :].strip("/").encode()
            manifest: Manifest | None = tree.manifest
            if path:
                manifest = None if held.file_name else tree.manifest.below(path)
            if manifest is None:
                return None
            manifest = selection.of_manifest(manifest)
            etags = dict(self._paths(location, held, tree.manifest))
            file_name = held.file_name
            if path and tree.manifest.has_file(path):
                file_name = location.uri.rpartition("/")[2]
            ordered = tuple(etags[entry.path].etag for entry in manifest.files)
            return Whole(manifest, ordered, file_name, held.standing, held.checked_at)
        return None

    def known(self, location: Location, least: Standing, hold: Hold, *, trusting: bool) -> dict[bytes, Known]:
        """Every file whose blob is held, by its path below a location. Their trees are held.

        Of several that claim to be one file, the one that is worth `least` and was checked last.

        Args:
            trusting: False where nothing is to be trusted, whenever it was checked.
        """
        found: dict[bytes, Known] = {}
        near = self._index.above(location.uri) + self._index.at_or_below(location.uri)
        for held in sorted(near, key=lambda h: (h.standing >= least, h.checked_at, h.fetched_at)):
            hold(held.tree)
            if tree := self._store.tree(held.tree):
                trusted = trusting and self.trusts(held)
                for path, arrived in self._paths(location, held, tree.manifest):
                    found[path] = Known(arrived, held.standing, trusted, held.checked_at)
        prefix = location.uri + "/"
        for uri, (arrived, standing, at) in self._index.arrivals.at_or_below(location.uri).items():
            path = (uri[len(prefix) :] if uri.startswith(prefix) else uri.rpartition("/")[2]).encode()
            if path not in found or standing >= least:
                trusted = trusting and standing is not Standing.OPEN and self._is_trusted(at)
                found[path] = Known(arrived, standing, trusted, at)
        sound = self._index.blobs({known.arrived.digest for known in found.values() if known.arrived.size})
        return {path: k for path, k in found.items() if not k.arrived.size or k.arrived.digest in sound}

    def unused(self, trees: Iterable[str], used: Iterable[Arrived]) -> list[str]:
        """Those of some trees that have none of the bytes that are used."""
        digests = {one.digest for one in used if one.size}
        found = ((digest, self._store.tree(digest)) for digest in trees)
        return [digest for digest, tree in found if tree is None or tree.rows.keys().isdisjoint(digests)]

    def _paths(self, location: Location, held: Held, manifest: Manifest) -> Iterator[tuple[bytes, Arrived]]:
        """The files of a tree held at, above or below a location, by their paths below the location."""
        below = held.uri[len(location.uri) :].strip("/").encode() if len(held.uri) > len(location.uri) else b""
        above = location.uri[len(held.uri) :].strip("/").encode() if len(held.uri) < len(location.uri) else b""
        etags = self._index.etags(held)
        for number, entry in enumerate(manifest.files):
            path = entry.path
            if above:
                if path == above:
                    path = above.rpartition(b"/")[2]
                elif path.startswith(above + b"/"):
                    path = path[len(above) + 1 :]
                else:
                    continue
            if below:
                path = below if held.file_name else below + b"/" + path
            yield path, Arrived(entry.digest, entry.size, etags[number] if number < len(etags) else "")


def is_same(known: Known | None, file: File, least: Standing, *, strict: bool) -> bool:
    """Whether a file that is held is the one that is listed.

    Args:
        least: what it must have been worth when it was brought, where no entity tag says more.
        strict: whether nothing but entity tags is believed.
    """
    if known is None or file.size not in (None, known.arrived.size):
        return False
    if file.size == 0:
        return True
    if file.etag:
        return file.etag == known.arrived.etag
    return known.standing >= least and not strict


def wants_etag(known: Known | None, file: File, least: Standing, *, strict: bool) -> bool:
    """Whether the origin's entity tag of a file would decide what nothing else does: its listing has none."""
    if known is None or file.is_folder or file.etag or not known.arrived.etag or not file.size:
        return False
    if file.size != known.arrived.size:
        return False
    return strict or not known.is_trusted or known.standing < least
