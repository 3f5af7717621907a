"""The cache: an artifact in, what is held of it out, downloaded first where it must be.

Law of this file: whatever is given out has been checked a moment ago. Work of the origin happens in flights that belong
to nobody; nothing here waits while it holds a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from artifactcache.errors import Corrupted, NoSpace, NotFound, OriginUnavailable
from cacheserver import space
from cacheserver.downloads import Downloads, key
from cacheserver.flights import Flight, Flights
from cacheserver.index import MissingBlobs
from cacheserver.origin import MlflowOrigin
from cacheserver.selection import Selection
from cacheserver.store import Store, Tree
from cacheserver.uris import MOVING, Artifact, Kind
from cacheserver.words import (
    Brought,
    Entry,
    File,
    Held,
    Location,
    Manifest,
    Progress,
    Standing,
    folder,
    overlay,
)

FLIGHTS_MAX = 64  # artifacts being brought at a time; more wait their turn
COMMIT_ATTEMPTS = 3


@dataclass(frozen=True, eq=False)
class Promise:
    """Space promised to a download: what of it the disk or the index shows already is not counted again."""

    needed: int
    progress: Progress
    done_before: int
    kept_before: int

    def coming(self) -> int:
        """Bytes that are no blobs yet."""
        return max(0, self.needed - (self.progress.bytes_kept - self.kept_before))

    def unwritten(self) -> int:
        """Bytes that are not on the disk yet, but for files that are half written."""
        return max(0, self.needed - (self.progress.bytes_done - self.done_before))


@dataclass(frozen=True)
class Part:
    """What one location holds of an artifact: the selected files, and its name where it is one file."""

    location: Location
    manifest: Manifest
    file_name: str
    standing: Standing
    arrived: tuple[str, ...] = ()


class Cache:
    """Artifacts of one origin, in one store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, origin: MlflowOrigin, limits: space.Limits, clock: Callable[[], float]) -> None:
        self._store = store
        self._index = store.index
        self._origin = origin
        self._limits = limits
        self._clock = clock
        self._downloads = Downloads(store, origin, clock)
        self._pool = ThreadPoolExecutor(max_workers=FLIGHTS_MAX, thread_name_prefix="flight")
        self._flights: Flights[Brought] = Flights(self._pool)
        self._lock = threading.Lock()
        self._space_lock = threading.Lock()
        self._promises: list[Promise] = []
        self._uses: dict[tuple[str, str], float] = {}

    def close(self) -> None:
        """Brings nothing any more, and writes down what was used."""
        self._downloads.close()
        self._origin.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.record_uses()

    # -- the verbs --------------------------------------------------------------------------------------------------

    def version_of(self, artifact: Artifact) -> Artifact:
        """The artifact without alias, stage or `latest`: the origin is asked each time. Raises errors of ours."""
        return self._origin.version_of(artifact) if artifact.kind in MOVING else artifact

    def find(self, artifact: Artifact, selection: Selection, *, view: bool) -> Brought | None:
        """What is held, where it is complete, sound and needs no question to the origin.

        Args:
            view: whether the view is what will be handed out: then the view is what is checked.
        """
        held = self._index.held(artifact.uri, selection.key)
        if held is None or held.standing is Standing.OPEN or self._origin.guards(artifact):
            return None
        if not (view and self._store.view_is_sound(held.tree)) and not self._sound(held):
            return None
        self._used(held)
        return Brought(held)

    def bring(self, artifact: Artifact, selection: Selection, *, refresh: bool) -> tuple[Flight[Brought], bool]:
        """Brings an artifact into the store, with everybody who asks for the same at the same time.

        Returns the flight, and whether this call started it.
        """
        resolved = self._index.resolved(artifact.base)
        return self._flights.join(
            (artifact.uri, selection.key, refresh),
            lambda progress: self._bring(artifact, selection, refresh, progress),
            fresh=refresh or (resolved is not None and not resolved.settled),
        )

    def look_up(self, artifact: Artifact, selection: Selection) -> tuple[Held, Manifest]:
        """What is held of an artifact, without asking for its bytes. Raises NotFound."""
        held = self._index.held(artifact.uri, selection.key)
        if held is not None and self._origin.guards(artifact):
            self._origin.listing(_location(artifact), named_by_client=True)  # as a fetch does: may it be read by all?
        tree = self._store.tree(held.tree) if held else None
        if held is None or tree is None:
            raise NotFound(
                f"{artifact.uri} is not held{' with these patterns' if selection.key else ''}: fetch it first."
            )
        return held, tree.manifest

    def record_uses(self) -> None:
        """Writes down when artifacts were used since the last time: a hit itself writes nothing."""
        with self._lock:
            uses, self._uses = self._uses, {}
        try:
            if uses:
                self._index.record_uses(uses)
        except NoSpace:  # when a hit was is not worth an error: the next time may have room for it
            with self._lock:
                self._uses = uses | self._uses

    def download_count(self) -> int:
        """How many artifacts are being brought."""
        return self._flights.count()

    # -- one flight -------------------------------------------------------------------------------------------------

    def _bring(self, artifact: Artifact, selection: Selection, refresh: bool, progress: Progress) -> Brought:
        held = self._index.held(artifact.uri, selection.key)
        damaged = held is not None and not self._sound(held)
        try:
            for _ in range(COMMIT_ATTEMPTS):
                try:
                    found = self._sync(artifact, selection, refresh, progress)
                except MissingBlobs:
                    continue  # a blob that was counted on went into quarantine meanwhile
                if self._sound(found):
                    self._store.view_is_sound(found.tree)  # one that is not is built again when it is handed out
                    self._used(found)
                    taken = progress.bytes_done  # of all attempts
                    return Brought(found, taken, transport="+".join(sorted(progress.transports)) if taken else "")
            raise Corrupted(f"{artifact.uri}: its bytes do not stay what they are. Look at the store's disk.")
        except (OriginUnavailable, NotFound) as error:
            if held is not None and damaged:
                raise Corrupted(
                    f"{artifact.uri}: stored bytes were damaged and are in quarantine,"
                    f" and right ones cannot be had: {error}"
                ) from None
            answerable = isinstance(error, OriginUnavailable) and not refresh and not self._origin.guards(artifact)
            if held is not None and answerable:
                self._store.view_is_sound(held.tree)  # one that is not is built again when it is handed out
                self._used(held)
                return Brought(held, stale=True)
            raise

    def _sync(self, artifact: Artifact, selection: Selection, refresh: bool, progress: Progress) -> Held:
        """Brings what the origin has and the store lacks, and records the tree."""
        since = self._downloads.mark() if refresh else 0
        locations, standing = self._remembered(artifact, refresh)
        parts = self._parts(locations, standing, artifact, selection, refresh, since, progress)
        if not parts and artifact.kind is not Kind.BARE:
            # Nothing was remembered, or it leads nowhere by now: a run can be opened again, a model created anew.
            resolved = self._origin.resolve(artifact)
            locations = resolved.locations(artifact.path)
            standing = Standing.FINISHED if resolved.settled else Standing.OPEN
            parts = self._parts(locations, standing, artifact, selection, refresh, since, progress)
            if parts:
                self._index.record_version(resolved, self._clock())
        if not parts:
            raise NotFound(f"{artifact.uri}: the origin has no file or folder there.")
        whole = parts[0].manifest
        for part in parts[1:]:
            whole = overlay(whole, part.manifest)
        _check_paths(artifact.uri, [entry.path.rstrip(b"/") for entry in whole.entries])
        now, file_name = self._clock(), parts[-1].file_name
        standing = min(part.standing for part in parts)
        arrived = [uri for part in parts for uri in part.arrived]
        before = self._index.held(artifact.uri, selection.key)
        same = before and (before.tree, before.file_name, before.standing) == (whole.digest, file_name, standing)
        if before and same and not refresh and not arrived and self._store.tree(before.tree):
            return before  # nothing has changed: nothing is written, so that a full disk does not matter
        if len(parts) > 1:
            for part in parts:
                row = (part.location.uri, selection.key, part.file_name, standing, False)
                self._store.commit(part.manifest, [row], (), now)
        rows = [(artifact.uri, selection.key, file_name, standing, True)]
        if len(parts) == 1 and parts[0].location.uri != artifact.uri:
            rows.append((parts[0].location.uri, selection.key, file_name, standing, False))
        self._store.commit(whole, rows, arrived, now)
        held = self._index.held(artifact.uri, selection.key)
        assert held is not None
        return held

    def _remembered(self, artifact: Artifact, refresh: bool) -> tuple[tuple[Location, ...], Standing]:
        """Where the bytes are as far as that needs no question: of what the origin had finished when it was asked."""
        if artifact.kind is Kind.BARE:
            return (_location(artifact),), Standing.UNKNOWN
        resolved = None if refresh else self._index.resolved(artifact.base)
        if resolved is None or not resolved.settled:
            return (), Standing.FINISHED
        return resolved.locations(artifact.path), Standing.FINISHED

    def _parts(
        self,
        locations: tuple[Location, ...],
        standing: Standing,
        artifact: Artifact,
        selection: Selection,
        refresh: bool,
        since: int,
        progress: Progress,
    ) -> list[Part]:
        found = (self._part(at, standing, artifact, selection, refresh, since, progress) for at in locations)
        return [part for part in found if part]

    def _part(
        self,
        location: Location,
        standing: Standing,
        artifact: Artifact,
        selection: Selection,
        refresh: bool,
        since: int,
        progress: Progress,
    ) -> Part | None:
        """What one location has: from a whole tree that is held above it, else listed and downloaded."""
        named_by_client = artifact.kind is Kind.BARE
        try:
            derivable = standing is not Standing.OPEN and not refresh and not self._origin.guards(artifact)
            if derivable and (part := self._derived(location, selection, standing)):
                return part
            listing = self._origin.listing(location, named_by_client=named_by_client)
        except NotFound:
            return None
        wanted = [file for file in listing.files if selection.takes(file.path)]
        _check_paths(location.uri, [file.path for file in wanted])
        have = {} if refresh else self._known(location, standing)
        missing = [f for f in wanted if not f.is_folder and not _same(have.get(f.path), f)]
        if missing:
            needed = sum(file.size or 0 for file in missing)
            progress.files_total += len(missing)
            progress.transports.add(listing.transport)
            progress.bytes_total += needed
            with self._reserve(location, needed, progress):
                arrived = self._downloads.bring(
                    location,
                    missing,
                    progress,
                    named_by_client=named_by_client,
                    standing=standing,
                    since=since,
                    known=lambda: {} if refresh else self._known(location, standing),
                )
            have |= arrived
        entries = [folder(f.path) if f.is_folder else Entry(f.path, *have[f.path]) for f in wanted]
        arrivals = tuple(key(location, file) for file in missing)
        return Part(location, Manifest.of(entries), listing.file_name, standing, arrivals)

    def _derived(self, location: Location, selection: Selection, least: Standing) -> Part | None:
        """The part that a whole tree held above has already, if that is worth as much as `least`."""
        for held in reversed(self._index.above(location.uri)):
            tree = self._store.tree(held.tree)
            if held.selection or held.standing < least or tree is None or self._store.unsound(tree):
                continue
            path = location.uri[len(held.uri) :].strip("/").encode()
            if not path:
                return Part(location, selection.of_manifest(tree.manifest), held.file_name, held.standing)
            manifest = None if held.file_name else tree.manifest.below(path)
            if manifest is None:
                return None  # it may have been added since: the origin is asked
            file_name = location.uri.rpartition("/")[2] if tree.manifest.has_file(path) else ""
            return Part(location, selection.of_manifest(manifest), file_name, held.standing)
        return None

    def _known(self, location: Location, least: Standing) -> dict[bytes, tuple[str, int]]:
        """Digest and size, by path below the location, of every file whose blob is held already.

        Once the origin has finished, what was taken while it was still writing, or may have been, proves nothing: a
        file may have been rewritten with the same size since.
        """
        found: dict[bytes, tuple[str, int]] = {}
        near = self._index.above(location.uri) + self._index.at_or_below(location.uri)
        for held in sorted((h for h in near if h.standing >= least), key=lambda h: h.fetched_at):
            if tree := self._store.tree(held.tree):
                found.update(_paths(location, held, tree))
        prefix = location.uri + "/"
        for uri, arrived in self._index.arrivals(location.uri, least).items():
            name = uri[len(prefix) :] if uri.startswith(prefix) else uri.rpartition("/")[2]
            found[name.encode()] = arrived
        sound = self._index.blobs({digest for digest, size in found.values() if size})
        return {path: (digest, size) for path, (digest, size) in found.items() if not size or digest in sound}

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _sound(self, held: Held) -> bool:
        tree = self._store.tree(held.tree)
        return tree is not None and not self._store.unsound(tree)

    @contextmanager
    def _reserve(self, location: Location, needed: int, progress: Progress) -> Iterator[None]:
        """Promises space to a download before its first byte. Raises NoSpace."""
        promise = Promise(needed, progress, progress.bytes_done, progress.bytes_kept)
        with self._space_lock:
            disk = self._store.space()
            if why := space.shortage(
                needed,
                stored=self._index.totals()["blob_bytes"],
                coming=sum(p.coming() for p in self._promises),
                unwritten=sum(p.unwritten() for p in self._promises),
                total=disk.total,
                free=disk.free,
                limits=self._limits,
            ):
                raise NoSpace(f"{location.uri}: {why}")
            self._promises.append(promise)
        try:
            yield
        finally:
            with self._space_lock:
                self._promises.remove(promise)

    def _used(self, held: Held) -> None:
        with self._lock:
            self._uses[held.uri, held.selection] = self._clock()


def _location(artifact: Artifact) -> Location:
    """The folder and the name in it that a bare artifact URI means."""
    root, _, name = artifact.name.rpartition("/")
    return Location(root + "/" if root.endswith((":", "/")) else root, name)


def _same(known: tuple[str, int] | None, file: File) -> bool:
    """Whether a file that is held is, as far as a listing tells, the one that is listed."""
    return known is not None and file.size in (None, known[1])


def _paths(location: Location, held: Held, tree: Tree) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """The files of a tree held at, above or below a location, by their paths below the location."""
    below = held.uri[len(location.uri) :].strip("/").encode() if len(held.uri) > len(location.uri) else b""
    above = location.uri[len(held.uri) :].strip("/").encode() if len(held.uri) < len(location.uri) else b""
    for entry in tree.manifest.files:
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
        yield path, (entry.digest, entry.size)


def _check_paths(uri: str, paths: list[bytes]) -> None:
    """Raises Corrupted where one name is listed twice, or as a file and as a folder."""
    unique = set(paths)
    if len(unique) != len(paths):
        raise Corrupted(f"{uri}: the origin lists one name twice.")
    for path in paths:
        parent = path.rpartition(b"/")[0]
        while parent:
            if parent in unique:
                raise Corrupted(f"{uri}: the origin lists a file that is a folder as well.")
            parent = parent.rpartition(b"/")[0]
