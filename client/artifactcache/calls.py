"""What each method of `Client` does: encode, call, decode. Loaded, with grpc and protobuf, by the first call."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from artifactcache import forks, materialize, overviews, status
from artifactcache.deadline import Deadline
from artifactcache.errors import CacheError, Corrupted, DaemonUnavailable, InvalidRequest, ModeUnavailable, NotFound
from artifactcache.overviews import Overview
from artifactcache.request import Selection
from artifactcache.results import (
    Evicted,
    Explained,
    Fetched,
    File,
    Held,
    Inspected,
    Kept,
    Pinned,
    Pong,
    Progress,
    Stats,
    Swept,
    Usage,
    Verified,
    Warmed,
    WhoAmI,
)
from artifactcache.session import Connection, Session, Watch
from artifactcache.v1 import cache_pb2 as pb

OnProgress = Callable[[Progress], object]
PIN_ATTEMPTS_MAX = 3  # an alias that has moved as often while it was being pinned will move again


class Calls:
    """The calls of one client."""

    def __init__(self, socket_dir: str | None) -> None:
        self.session = Session(socket_dir)

    def view(self, wanted: Selection, refresh: bool, progress: OnProgress | None, deadline: Deadline) -> Fetched:
        """Fetch an artifact and keep its lease, with its view's path."""
        request = pb.FetchRequest(artifact=_encode(wanted), refresh=refresh, view=True)
        watch = _watch(progress)

        def fetch(connection: Connection) -> Fetched:
            result = _result(connection.stream("Fetch", request, deadline, watch))
            try:
                os.stat(result.view_path)
            except OSError as error:
                connection.release(result.lease)
                raise ModeUnavailable(
                    f"the view {os.fsdecode(result.view_path)} cannot be reached from here ({error.strerror}): "
                    "mount the store in this container too, or give a dst"
                ) from None
            end_lease = connection.view_lease(result.lease)
            return _fetched(wanted, result, os.fsdecode(result.view_path), "view", [end_lease])

        return self.session.call(fetch, deadline)

    def place(
        self,
        wanted: Selection,
        destination: bytes,
        mode: str,
        writable: bool,
        exists: str,
        refresh: bool,
        progress: OnProgress | None,
        deadline: Deadline,
        digest: str = "",
    ) -> Fetched:
        """Fetch an artifact, place it at a destination, and end its lease. Where a digest is given, only that tree."""
        if exists == "error":
            materialize.refuse_existing(destination)
        request = pb.FetchRequest(artifact=_encode(wanted), refresh=refresh)
        watch = _watch(progress)

        def fetch(connection: Connection) -> Fetched:
            result = _result(connection.stream("Fetch", request, deadline, watch))
            order = materialize.Order(
                destination=destination,
                mode=mode,
                exists=exists,
                writable=writable,
                hardlink_for_root=result.hardlink_for_root,
                file_name=os.fsencode(result.file_name),
                file_count=result.file_count,
                size_bytes=result.size_bytes,
            )
            try:
                if digest and result.digest != digest:
                    raise Corrupted(f"it has the digest {result.digest} by now instead of {digest}")
                with connection.join(deadline) as handoff:
                    kind = materialize.place(handoff, result.lease, order, deadline)
            finally:
                connection.release(result.lease)
            return _fetched(wanted, result, os.fsdecode(destination), kind, [])

        return self.session.call(fetch, deadline)

    def warm(self, wanted: Selection, refresh: bool, progress: OnProgress | None, deadline: Deadline) -> Warmed:
        """Make an artifact present, and keep nothing of it."""
        warmed, end_lease = self.hold(wanted, refresh, progress, deadline)
        end_lease()
        return warmed

    def hold(
        self, wanted: Selection, refresh: bool, progress: OnProgress | None, deadline: Deadline
    ) -> tuple[Warmed, Callable[[], None]]:
        """Make an artifact present; return also what ends its lease, which ends with the session at the latest."""
        request = pb.FetchRequest(artifact=_encode(wanted), refresh=refresh)
        watch = _watch(progress)

        def fetch(connection: Connection) -> tuple[Warmed, Callable[[], None]]:
            result = _result(connection.stream("Fetch", request, deadline, watch))
            warmed = Warmed(
                uri=wanted.asked_for,
                version=result.version,
                digest=result.digest,
                file_count=result.file_count,
                size_bytes=result.size_bytes,
                hit=result.hit,
                origin_bytes=result.origin_bytes,
                stale=result.stale,
                transport=result.transport,
                shared_bytes=result.shared_bytes,
            )
            return warmed, lambda: connection.release(result.lease)

        return self.session.call(fetch, deadline)

    def list(self, deadline: Deadline) -> tuple[Held, ...]:
        """List what is held."""
        answers = self._stream("List", pb.ListRequest(), deadline)
        return tuple(_held(answer) for answer in answers)

    def inspect(self, wanted: Selection, deadline: Deadline) -> Inspected:
        """List the files of what is held."""
        answers = self._stream("Inspect", pb.InspectRequest(artifact=_encode(wanted)), deadline)
        if not answers or not answers[0].HasField("artifact"):
            raise CacheError("the daemon did not say which artifact it holds")
        files = (
            File(path=os.fsdecode(file.path), digest=file.digest, size_bytes=file.size_bytes)
            for answer in answers[1:]
            for file in answer.files.files
        )
        return Inspected(artifact=_held(answers[0].artifact), files=tuple(files))

    def verify(self, wanted: Selection | None, progress: OnProgress | None, deadline: Deadline) -> Verified:
        """Have stored bytes hashed again."""
        request = pb.VerifyRequest(artifact=None if wanted is None else _encode(wanted))
        result = _result(self._stream("Verify", request, deadline, _watch(progress)))
        return Verified(
            blobs_checked=result.blobs_checked,
            bytes_checked=result.bytes_checked,
            corrupted=tuple(result.corrupted),
            affected=tuple(result.affected),
            seconds=result.seconds,
        )

    def pin(self, wanted: Selection, seconds: float | None, progress: OnProgress | None, deadline: Deadline) -> Pinned:
        """Make an artifact present, and pin what it is.

        The daemon resolves an alias again, so that it can be unpinned by it. Where that gives something else than was
        made present, the alias has moved in between, and both are done again. A lease keeps it until it is pinned.
        """
        request = pb.PinRequest(artifact=_encode(wanted), seconds=seconds or 0.0)
        for attempt in range(1, PIN_ATTEMPTS_MAX + 1):
            held, end_lease = self.hold(wanted, False, progress, deadline)
            try:
                reply = self._unary("Pin", request, deadline)
            except NotFound:
                if attempt == PIN_ATTEMPTS_MAX:
                    raise
                continue  # moved, to what is not held
            finally:
                end_lease()
            if reply.digest == held.digest:
                until = None if math.isinf(reply.until) else reply.until
                return Pinned(wanted.asked_for, reply.version, reply.digest, until, reply.owner)
        raise InvalidRequest(
            f"{wanted.asked_for} stood for something else each of the {PIN_ATTEMPTS_MAX} times that it was pinned: pin "
            f"a version, such as {reply.version}. What it stood for in between is pinned: unpin {wanted.asked_for}"
        )

    def unpin(self, wanted: Selection, deadline: Deadline) -> tuple[str, ...]:
        """End pins."""
        reply = self._unary("Unpin", pb.UnpinRequest(artifact=_encode(wanted)), deadline)
        return tuple(reply.versions)

    def sweep(self, dry_run: bool, free_bytes: int | None, deadline: Deadline) -> Swept:
        """Have trees evicted, or only planned. What is to be freed on top of all that went is not asked for twice."""
        request = pb.SweepRequest(dry_run=dry_run, free_bytes=free_bytes or 0)
        self.ping(deadline)  # opens the session, so that a failure after this is one of the sweep itself
        was_asked = False

        def sweep(connection: Connection) -> Any:
            nonlocal was_asked
            if was_asked and free_bytes and not dry_run:
                raise DaemonUnavailable(
                    "the sweep was broken off, and what it had evicted by then is gone: see what is free now, and "
                    "sweep again for the rest"
                )
            was_asked = True
            return connection.stream("Sweep", request, deadline)

        *steps, last = self.session.call(sweep, deadline) or [pb.SweepEvent()]
        result = _result([last])
        return Swept(
            dry_run=dry_run,
            evicted=tuple(_evicted(step.evicted) for step in steps),
            tree_count=result.tree_count,
            freed_bytes=result.freed_bytes,
            wanted_bytes=result.wanted_bytes,
            kept=tuple(Kept(each.reason, each.tree_count) for each in result.kept),
            seconds=result.seconds,
        )

    def explain(self, wanted: Selection, deadline: Deadline) -> Explained:
        """Ask why something is kept."""
        reply = self._unary("Explain", pb.ExplainRequest(artifact=_encode(wanted)), deadline)
        return Explained(
            artifact=_held(reply.artifact),
            is_kept=reply.is_kept,
            reasons=tuple(reply.reasons),
            place=reply.place or None,
            queue_length=reply.queue_length,
            freed_bytes=reply.freed_bytes,
            refetch_seconds=reply.refetch_seconds,
        )

    def audit(
        self, user: str, artifact: str, refused: bool, since: float, follow: bool, deadline: Deadline
    ) -> Iterator[dict[str, Any]]:
        """Ask for lines of the audit log."""
        request = pb.AuditRequest(user=user, artifact=artifact, refused_only=refused, since=since, follow=follow)

        def begin(connection: Connection) -> Iterator[Any]:
            events = connection.each("Audit", request, deadline)
            next(events, None)  # is empty, and says that this caller may
            return events

        yield from _records(self.session.call(begin, deadline))

    def stats(self, deadline: Deadline) -> Stats:
        """Ask for the counters."""
        reply = self._unary("Stats", pb.StatsRequest(), deadline)
        return Stats(**{name: getattr(reply, name) for name in Stats.__slots__})

    def whoami(self, deadline: Deadline) -> WhoAmI:
        """Ask who is calling."""
        reply = self._unary("WhoAmI", pb.WhoAmIRequest(), deadline)
        return WhoAmI(
            uid=reply.uid,
            user=reply.user,
            gids=tuple(reply.gids),
            pid=reply.pid,
            tracking_uri=reply.tracking_uri,
            access_check=reply.access_check,
            roles=tuple(reply.roles),
            groups=tuple(reply.groups),
        )

    def usage(self, everybody: bool, deadline: Deadline) -> tuple[Usage, ...]:
        """Ask what is on accounts."""
        reply = self._unary("Usage", pb.UsageRequest(everybody=everybody), deadline)
        return tuple(
            Usage(each.uid, each.user, each.held_bytes, each.tree_count, each.held_bytes_max or None)
            for each in reply.users
        )

    def overview(self, since: float, deadline: Deadline) -> Overview:
        """Ask for an overview."""
        return overviews.decode(self._unary("Overview", pb.OverviewRequest(since=since), deadline))

    def page(self, deadline: Deadline) -> tuple[str, float]:
        """Ask for an address of the page."""
        reply = self._unary("Page", pb.PageRequest(), deadline)
        return reply.url, reply.seconds

    def ping(self, deadline: Deadline) -> Pong:
        """Ask who answers."""
        reply = self._unary("Ping", pb.PingRequest(), deadline)
        return Pong(version=reply.version, pid=reply.pid)

    def _unary(self, method: str, request: object, deadline: Deadline) -> Any:
        return self.session.call(lambda connection: connection.unary(method, request, deadline), deadline)

    def _stream(self, method: str, request: object, deadline: Deadline, watch: Watch | None = None) -> Any:
        return self.session.call(lambda connection: connection.stream(method, request, deadline, watch), deadline)


def _records(events: Iterator[Any]) -> Iterator[dict[str, Any]]:
    epoch = forks.gate.epoch
    try:
        for event in events:
            yield from map(json.loads, event.lines)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.CANCELLED and forks.gate.epoch != epoch:
            raise DaemonUnavailable(
                "this process has forked, which broke off what was read of the audit log: ask again, since the last "
                "line's time"
            ) from None
        raise status.typed(error) from None


def _encode(wanted: Selection) -> pb.ArtifactSelection:
    return pb.ArtifactSelection(
        uri=wanted.uri,
        run_id=wanted.run_id,
        artifact_path=wanted.artifact_path,
        include=wanted.include,
        exclude=wanted.exclude,
    )


def _watch(progress: OnProgress | None) -> Watch:
    if progress is None:
        return lambda _: None
    told = progress

    def watch(event: pb.Progress) -> None:
        told(Progress(event.bytes_done, event.bytes_total, event.files_done, event.files_total))

    return watch


def _result(answers: Any) -> Any:
    if len(answers) != 1 or not answers[0].HasField("result"):
        raise CacheError("the daemon ended the call without a result")
    return answers[0].result


def _fetched(
    wanted: Selection, result: pb.FetchResult, location: str, mode: str, leases: list[Callable[[], None]]
) -> Fetched:
    return Fetched(
        location=location,
        uri=wanted.asked_for,
        version=result.version,
        digest=result.digest,
        mode=mode,
        file_count=result.file_count,
        size_bytes=result.size_bytes,
        hit=result.hit,
        origin_bytes=result.origin_bytes,
        stale=result.stale,
        writable=mode in ("reflink", "copy"),
        transport=result.transport,
        shared_bytes=result.shared_bytes,
        _leases=leases,
    )


def _held(answer: pb.HeldArtifact) -> Held:
    return Held(
        version=answer.version,
        digest=answer.digest,
        file_count=answer.file_count,
        size_bytes=answer.size_bytes,
        fetched_at=answer.fetched_at,
        used_at=answer.used_at,
        include=tuple(answer.include),
        exclude=tuple(answer.exclude),
        lease_count=answer.lease_count,
        pinned_until=answer.pinned_until or None,
    )


def _evicted(step: pb.Evicted) -> Evicted:
    return Evicted(
        digest=step.digest,
        versions=tuple(step.versions),
        size_bytes=step.size_bytes,
        freed_bytes=step.freed_bytes,
        reason=step.reason,
    )
