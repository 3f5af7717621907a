"""What the daemon's words are in the contract's messages, and the other way round.

Law of this file: nothing is decided here.
"""

from __future__ import annotations

import grp
import pwd

from artifactcache.errors import InvalidRequest
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import uris
from cacheserver.budgets import Usage
from cacheserver.explaining import Circumstances, sentences
from cacheserver.roles import Roles
from cacheserver.selection import Selection
from cacheserver.sessions import Peer
from cacheserver.sweeper import Leaving, Swept
from cacheserver.words import Held

VERSIONS_MAX = 100  # of one tree, in one message


def artifact(request: pb.ArtifactSelection) -> tuple[uris.Artifact, Selection]:
    """Reads what a client names. Raises InvalidRequest."""
    selection = Selection.of(request.include, request.exclude)
    if bool(request.uri) == bool(request.run_id):
        raise InvalidRequest("Name an artifact by its URI or by run_id: exactly one of them.")
    if request.uri:
        if request.artifact_path:
            raise InvalidRequest("artifact_path goes with run_id; a URI carries its own path.")
        return uris.parse(request.uri), selection
    return uris.run(request.run_id, request.artifact_path), selection


def who(peer: Peer, roles: Roles, about: dict[str, str]) -> pb.WhoAmIReply:
    """Who a caller is, and what the daemon says `about` itself."""
    caller = roles.identities.of(peer).caller
    return pb.WhoAmIReply(
        uid=peer.uid,
        user=caller.user,
        gids=dict.fromkeys((peer.gid, *peer.groups)),
        pid=peer.pid,
        roles=roles.of(peer),
        groups=sorted(caller.groups),
        **about,
    )


def held_artifact(held: Held, leases: int, pinned_until: float) -> pb.HeldArtifact:
    """An artifact that is held; with how many leases it has, and until when it is pinned."""
    selection = Selection.from_key(held.selection)
    return pb.HeldArtifact(
        version=held.uri,
        digest=held.tree,
        file_count=held.file_count,
        size_bytes=held.size_bytes,
        fetched_at=held.fetched_at,
        used_at=held.used_at,
        include=selection.include,
        exclude=selection.exclude,
        lease_count=leases,
        pinned_until=pinned_until,
    )


def evicted(one: Leaving) -> pb.Evicted:
    """A tree that has gone, or would go."""
    return pb.Evicted(
        digest=one.tree,
        versions=one.names[:VERSIONS_MAX],
        size_bytes=one.size_bytes,
        freed_bytes=one.freed_bytes,
        reason=one.reason,
    )


def sweep_result(swept: Swept, seconds: float) -> pb.SweepResult:
    """A sweep's end."""
    return pb.SweepResult(
        tree_count=len(swept.leaving),
        freed_bytes=swept.freed_bytes,
        wanted_bytes=max(swept.wanted),
        kept=[pb.Kept(reason=reason, tree_count=count) for reason, count in sorted(swept.kept.items())],
        seconds=seconds,
    )


def usage(one: Usage) -> pb.UserUsage:
    """An account."""
    # 0 is for no limit; whoever may hold nothing has one all the same.
    limit = 0 if one.held_bytes_max is None else max(1, one.held_bytes_max)
    return pb.UserUsage(
        uid=one.uid, user=one.user, held_bytes=one.held_bytes, tree_count=one.tree_count, held_bytes_max=limit
    )


def explanation(held: pb.HeldArtifact, given: Circumstances) -> pb.ExplainReply:
    """Why an artifact is kept, or what would have to happen for it to go."""
    return pb.ExplainReply(
        artifact=held,
        is_kept=given.is_kept,
        reasons=sentences(given),
        place=0 if given.is_kept else given.place,
        queue_length=given.length,
        freed_bytes=given.freed_bytes,
        refetch_seconds=given.tree.seconds,
    )


def user_name(uid: int) -> str:
    """A user's name; the number where the host knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """A group's name; the number where the host knows none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
