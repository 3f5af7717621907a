"""Locks artifacts, and makes exactly what was locked present again.

Law of this file: a digest decides, never a name. Everything is present, right and leased before anything is placed, so
a lock that cannot be had in full changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from artifactcache import lockfile, request
from artifactcache.deadline import Deadline
from artifactcache.errors import CacheError, Corrupted, InvalidRequest, OriginUnavailable, PermissionDenied
from artifactcache.lockfile import Lock, Locked
from artifactcache.results import Progress, Synced, Warmed

if TYPE_CHECKING:
    from artifactcache.calls import Calls

OnProgress = Callable[[Progress], object]


# -- files ------------------------------------------------------------------------------------------------------------


def given(lock: object) -> tuple[Lock, str]:
    """Check a lock, or read the file of that name; return also what to call it in errors."""
    if isinstance(lock, Lock):  # made by a program, perhaps: it is held to the same as a file
        return lockfile.parse(lock.text().encode(errors="surrogatepass"), "the lock"), "the lock"
    path = request.file(lock, "lock")
    return load(path), path


def load(path: str) -> Lock:
    """Read and check a lock file. Raises InvalidRequest, and PermissionDenied where it may not be read."""
    with _file_errors(path), open(path, "rb") as file:
        data = file.read(lockfile.FILE_BYTES_MAX + 1)
    return lockfile.parse(data, path)


def refuse_unwritable(path: str) -> None:
    """Raise where `save` could not write: early, before anything is downloaded."""
    with _file_errors(path):
        if os.path.isdir(path):
            raise InvalidRequest(f"{path}: is a folder; name a file")
        folder = os.path.dirname(os.path.realpath(path))
        os.stat(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionDenied(f"{path}: no file can be made in {folder}")


def save(path: str, lock: Lock) -> None:
    """Write a lock file in one step: it is never seen half-written, and a failure leaves the old one."""
    target = os.path.realpath(path)
    staged = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}.lock")
    with _file_errors(path):
        try:
            with open(staged, "xb") as file:
                file.write(lock.text().encode())
            os.replace(staged, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)
            raise


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise InvalidRequest("the lock file's name has a NUL byte in it") from None


# -- lock -------------------------------------------------------------------------------------------------------------


def lock(
    calls: Calls, wanted: Iterable[request.Selection], refresh: bool, progress: OnProgress | None, deadline: Deadline
) -> Lock:
    """Make artifacts present, and say what each of them is."""
    tracking_uri = calls.whoami(deadline).tracking_uri
    found = [(each, _current(calls, each, refresh, progress, deadline)) for each in wanted]
    found.sort(key=lambda pair: pair[0].uri)
    chosen = lockfile.names((each.uri, warmed.version) for each, warmed in found)
    artifacts = (_locked(name, each, warmed) for name, (each, warmed) in zip(chosen, found, strict=True))
    return Lock(tracking_uri, tuple(sorted(artifacts, key=lambda each: each.name)))


def relock(calls: Calls, old: Lock, where: str, refresh: bool, progress: OnProgress | None, deadline: Deadline) -> Lock:
    """Lock the URIs of a lock again, with the patterns and under the names that they have in it."""
    _refuse_other_origin(calls, old, where, deadline)
    artifacts = []
    for artifact in old.artifacts:
        wanted = request.selection(artifact.uri, include=artifact.include, exclude=artifact.exclude)
        with _about(where, artifact):
            warmed = _current(calls, wanted, refresh, progress, deadline)
        artifacts.append(_locked(artifact.name, wanted, warmed))
    return replace(old, artifacts=tuple(artifacts))


def _current(
    calls: Calls, wanted: request.Selection, refresh: bool, progress: OnProgress | None, deadline: Deadline
) -> Warmed:
    warmed = calls.warm(wanted, refresh, progress, deadline)
    if warmed.stale:
        raise OriginUnavailable(
            f"{wanted.uri}: the origin does not say whether what is held is what it has, so it is not locked"
        )
    return warmed


def _locked(name: str, wanted: request.Selection, warmed: Warmed) -> Locked:
    lockfile.without_secret(warmed.version, f"the version of {name}")
    return Locked(
        name=name,
        uri=wanted.uri,
        version=warmed.version,
        digest=warmed.digest,
        file_count=warmed.file_count,
        size_bytes=warmed.size_bytes,
        include=wanted.include,
        exclude=wanted.exclude,
    )


# -- sync -------------------------------------------------------------------------------------------------------------


def sync(
    calls: Calls,
    wanted: Lock,
    where: str,
    folder: bytes | None,
    mode: str,
    progress: OnProgress | None,
    deadline: Deadline,
) -> list[Synced]:
    """Make the trees of a lock present, and with a folder place each in it under its name. `where` names the lock."""
    _refuse_other_origin(calls, wanted, where, deadline)
    with contextlib.ExitStack() as leases:
        present = []
        for artifact in wanted.artifacts:
            with _about(where, artifact):
                warmed, end_lease = _exactly(calls, artifact, progress, deadline)
            leases.callback(end_lease)
            present.append(
                Synced(
                    name=artifact.name,
                    uri=artifact.uri,
                    version=artifact.version,
                    digest=artifact.digest,
                    path=None,
                    mode=None,
                    file_count=warmed.file_count,
                    size_bytes=warmed.size_bytes,
                    hit=warmed.hit,
                    origin_bytes=warmed.origin_bytes,
                    stale=warmed.stale,
                    shared_bytes=warmed.shared_bytes,
                )
            )
        if folder is None:
            return present
        placed = []
        for artifact, done in zip(wanted.artifacts, present, strict=True):
            path = os.path.join(folder, artifact.name.encode())
            with _about(where, artifact):
                fetched = calls.place(
                    _selection(artifact), path, mode, False, "replace", False, progress, deadline, artifact.digest
                )
            placed.append(replace(done, path=os.fsdecode(path), mode=fetched.mode))
        return placed


def _refuse_other_origin(calls: Calls, lock: Lock, where: str, deadline: Deadline) -> None:
    here = calls.whoami(deadline).tracking_uri
    if here.rstrip("/") != lock.tracking_uri.rstrip("/"):
        raise InvalidRequest(
            f"{where} was made for the tracking server {lock.tracking_uri}, and this daemon serves {here}. Ask a "
            "daemon of that server; where both are one server by two names, change tracking_uri in the file"
        )


def _exactly(
    calls: Calls, artifact: Locked, progress: OnProgress | None, deadline: Deadline
) -> tuple[Warmed, Callable[[], None]]:
    """Have the locked tree present and leased. What is held may be old, or the origin mended: it is asked once."""
    wanted = _selection(artifact)
    held, end_lease = calls.hold(wanted, False, progress, deadline)
    if held.digest != artifact.digest:
        end_lease()
        try:
            found, end_lease = calls.hold(wanted, True, progress, deadline)
        except OriginUnavailable as error:
            raise OriginUnavailable(
                f"{artifact.version} is held with the digest {held.digest} instead of {artifact.digest}, and the "
                f"origin cannot be asked for another: {error}"
            ) from None
        held = found
    try:
        _check(artifact, held)
    except CacheError:
        end_lease()
        raise
    return held, end_lease


def _check(artifact: Locked, held: Warmed) -> None:
    if held.version != artifact.version:
        raise InvalidRequest(f"{artifact.version} is not a version: it stands for {held.version} now. Lock it again")
    if held.digest != artifact.digest:
        raise Corrupted(
            f"{artifact.version} has the digest {held.digest} now, and the lock has {artifact.digest}: it was changed "
            "at the origin since it was locked, or the lock was. Put back what it was, or lock it again"
        )
    if (held.file_count, held.size_bytes) != (artifact.file_count, artifact.size_bytes):
        raise InvalidRequest(
            f"the tree of that digest has {held.file_count} files and {held.size_bytes} bytes, the lock says "
            f"{artifact.file_count} and {artifact.size_bytes}. Lock it again"
        )


def _selection(artifact: Locked) -> request.Selection:
    return request.selection(artifact.version_uri, include=artifact.include, exclude=artifact.exclude)


@contextlib.contextmanager
def _about(where: str, artifact: Locked) -> Iterator[None]:
    """Name the entry in whatever goes wrong with it."""
    try:
        yield
    except CacheError as error:
        raise type(error)(f"{where}: {artifact.name}: {error}") from None
