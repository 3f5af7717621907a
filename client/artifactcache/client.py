"""The calls that a program makes. Arguments are checked here; nothing heavy is loaded before the first call."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from artifactcache import forks, request
from artifactcache.deadline import Deadline
from artifactcache.errors import InvalidRequest
from artifactcache.operations import OnProgress, Operations, Patterns
from artifactcache.results import (
    Fetched,
    Held,
    Inspected,
    Pong,
    Stats,
    Synced,
    Verified,
    Warmed,
    WhoAmI,
)

if TYPE_CHECKING:
    from artifactcache.calls import Calls
    from artifactcache.lockfile import Lock

Destination = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Client(Operations):
    """A session with the daemon on this host. Safe to share between threads, and around `fork`.

    The session opens with the first call. It ends with `close()` or the `with` block, and with it the leases of its
    views; where neither comes, with the process.

    Every method raises an `artifactcache.CacheError`, and takes a `timeout` in seconds for the whole call, None for
    no limit. `include` and `exclude` are glob patterns on paths relative to the artifact, where `**` crosses folders.
    """

    def __init__(self, socket_dir: str | os.PathLike[str] | None = None) -> None:
        """Talk to the daemon whose sockets are in the folder `socket_dir`.

        None: `ARTIFACTCACHE_SOCKET_DIR`, else the host's daemon if it answers, else the user's own.
        """
        self._socket_dir = None if socket_dir is None else request.socket_dir(socket_dir)
        self._loaded: list[Calls] = []
        self._closed = False

    def fetch(
        self,
        uri: str | None = None,
        dst: Destination | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        mode: str = "auto",
        writable: bool = False,
        include: Patterns = (),
        exclude: Patterns = (),
        exists: str = "error",
        refresh: bool = False,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Fetched:
        """Fetch an artifact from the cache, and hand it over.

        Without `dst` as a view: a read-only path inside the store, kept until `release()`. With `dst` exactly that
        folder (or file, where the artifact is one file) comes into being, with missing parents and at once.

        Args:
            uri: A `runs:/` or `models:/` URI or a bare artifact URI.
            dst: Where to place it. A relative path is resolved now; `~` is not expanded.
            run_id: A run's ID, instead of a URI.
            artifact_path: A path inside that run.
            mode: "auto", "view", "reflink", "hardlink" or "copy". With a `dst` "auto" tries the last three in that
                order; `Fetched.mode` says what it was. One asked for by name that cannot be had is ModeUnavailable.
            writable: Hand out files of the caller's own only, never a hard link.
            include: Take only files that match one of these.
            exclude: Leave out files that match one of these.
            exists: What to do where `dst` exists: "error" raises DestinationExists, "replace" exchanges it
                atomically, "merge" overwrites files of the same names and keeps the others.
            refresh: Ask the origin again, even where the artifact is held.
            progress: Called with a `Progress` while bytes come from the origin. What it raises cancels the call.
            timeout: Seconds for everything, the hand-over included.
        """
        wanted = request.selection(uri, run_id, artifact_path, include, exclude)
        request.manner(mode, exists, writable, dst is not None)
        request.flag(refresh, "refresh")
        request.callback(progress)
        deadline = Deadline(request.timeout(timeout))
        calls = self._calls()
        if dst is None:
            return calls.view(wanted, refresh, progress, deadline)
        destination = request.destination(dst)
        return calls.place(wanted, destination, mode, writable, exists, refresh, progress, deadline)

    def warm(
        self,
        *uris: str,
        include: Patterns = (),
        exclude: Patterns = (),
        refresh: bool = False,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> list[Warmed]:
        """Make artifacts present, one after the other, without handing them over. The `timeout` is for all."""
        wanted = [request.selection(uri, include=include, exclude=exclude) for uri in uris]
        request.flag(refresh, "refresh")
        request.callback(progress)
        deadline = Deadline(request.timeout(timeout))
        calls = self._calls()
        return [calls.warm(each, refresh, progress, deadline) for each in wanted]

    def lock(
        self,
        *uris: str,
        include: Patterns = (),
        exclude: Patterns = (),
        refresh: bool = False,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Lock:
        """Make artifacts present, and say what each URI stands for now; `Lock.text()` is the lock file.

        Raises InvalidRequest for a URI with credentials in it, and OriginUnavailable where the origin does not say
        whether what is held is what it has.
        """
        from artifactcache import lockfile, locking

        if not uris:
            raise InvalidRequest("give at least one uri")
        wanted = dict.fromkeys(request.selection(uri, include=include, exclude=exclude) for uri in uris)
        for number, each in enumerate(wanted, start=1):
            lockfile.without_secret(each.uri, f"uri {number}")
        request.flag(refresh, "refresh")
        request.callback(progress)
        return locking.lock(self._calls(), wanted, refresh, progress, Deadline(request.timeout(timeout)))

    def relock(
        self,
        lock: Lock | str | os.PathLike[str],
        *,
        refresh: bool = False,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Lock:
        """Lock the URIs of a lock, or of a lock file, again: with their patterns, and under their names."""
        from artifactcache import locking

        old, where = locking.given(lock)
        request.flag(refresh, "refresh")
        request.callback(progress)
        return locking.relock(self._calls(), old, where, refresh, progress, Deadline(request.timeout(timeout)))

    def sync(
        self,
        lock: Lock | str | os.PathLike[str],
        dst: Destination | None = None,
        *,
        mode: str = "auto",
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> list[Synced]:
        """Make exactly the trees of a lock, or of a lock file, present, whatever their URIs stand for today.

        With `dst` each is placed in that folder under its name; what had that name is exchanged for it in one step,
        everything else stays. Until all are present and right nothing in `dst` changes.

        Raises Corrupted, with the artifact's name, where the origin has other bytes than those that were locked.
        """
        from artifactcache import locking

        wanted, where = locking.given(lock)
        request.kind(mode)
        request.callback(progress)
        folder = None if dst is None else request.destination(dst)
        return locking.sync(self._calls(), wanted, where, folder, mode, progress, Deadline(request.timeout(timeout)))

    def list(self, *, timeout: float | None = None) -> tuple[Held, ...]:
        """List the artifacts that the daemon holds, sorted by version.

        Where it checks access, these are those that this user has fetched; all of them for operators.
        """
        return self._calls().list(Deadline(request.timeout(timeout)))

    def inspect(
        self,
        uri: str | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
        timeout: float | None = None,
    ) -> Inspected:
        """List the files of an artifact that is held, with their digests. Never takes bytes from the origin."""
        wanted = request.selection(uri, run_id, artifact_path, include, exclude)
        return self._calls().inspect(wanted, Deadline(request.timeout(timeout)))

    def verify(
        self,
        uri: str | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Verified:
        """Have the stored bytes of an artifact hashed again, or of everything where none is named.

        Blobs that are wrong are not an error here: they are in the result, quarantined, and fetched again when they
        are next asked for. Everything is for operators, else PermissionDenied.
        """
        everything = uri is None and run_id is None and artifact_path is None
        wanted = None if everything else request.selection(uri, run_id, artifact_path)
        request.callback(progress)
        return self._calls().verify(wanted, progress, Deadline(request.timeout(timeout)))

    def stats(self, *, timeout: float | None = None) -> Stats:
        """Ask what the store holds, and what was served."""
        return self._calls().stats(Deadline(request.timeout(timeout)))

    def whoami(self, *, timeout: float | None = None) -> WhoAmI:
        """Ask who this process is to the daemon, with its groups and roles, and which tracking server is served."""
        return self._calls().whoami(Deadline(request.timeout(timeout)))

    def ping(self, *, timeout: float | None = None) -> Pong:
        """Ask whether the daemon answers, and which it is."""
        return self._calls().ping(Deadline(request.timeout(timeout)))

    def close(self) -> None:
        """End the session, and the leases of its views."""
        self._closed = True
        for calls in self._loaded:
            calls.session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({'' if self._socket_dir is None else repr(self._socket_dir)})"

    def _calls(self) -> Calls:
        if self._closed:
            raise InvalidRequest("this client is closed: make a new one")
        if not self._loaded:
            forks.gate.enter(is_import=True)
            try:
                forks.before_imports()
                from artifactcache.calls import Calls
            finally:
                forks.gate.leave()

            self._loaded.append(Calls(self._socket_dir))
        return self._loaded[0]  # where two threads came here at once, the other's has opened nothing


_default_clients: dict[str | None, Client] = {}


def fetch(
    uri: str | None = None,
    dst: Destination | None = None,
    *,
    run_id: str | None = None,
    artifact_path: str | None = None,
    mode: str = "auto",
    writable: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
    exists: str = "error",
    refresh: bool = False,
    progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Fetched:
    """Fetch an artifact: `Client.fetch` with a client that lives as long as the process.

    So a view's lease lasts until `release()` or the end of the process, and `str(fetch(uri))` is safe to write.
    """
    socket_dir = os.environ.get("ARTIFACTCACHE_SOCKET_DIR") or None
    client = _default_clients.get(socket_dir)
    if client is None:
        client = _default_clients.setdefault(socket_dir, Client(socket_dir))
    return client.fetch(
        uri,
        dst,
        run_id=run_id,
        artifact_path=artifact_path,
        mode=mode,
        writable=writable,
        include=include,
        exclude=exclude,
        exists=exists,
        refresh=refresh,
        progress=progress,
        timeout=timeout,
    )
