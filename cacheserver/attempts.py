"""Attempts to read an artifact, as lines of the audit log; and which of these somebody wants to see.

Law of this file: a line is one JSON object in ASCII, so that nothing that a client wrote can look like a line of its
own, or reach a terminal; nothing secret is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from artifactcache.errors import CacheError, InvalidRequest, PermissionDenied, Unauthenticated
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.programs import UNKNOWN, Program
from cacheserver.refusals import without_credentials, without_secrets
from cacheserver.sessions import Peer, Session
from cacheserver.uris import URI_LENGTH_MAX
from cacheserver.words import Held

# How a fetch came by what it gave: it was here; the origin had to be asked whether it is what it was; somebody else was
# bringing it; it was brought; or the origin did not answer, and it is what was here last.
WAYS = ("hit", "checked", "joined", "miss", "stale")
VIEW, LEASE = "view", "lease"  # what it gave: a path, or a promise, for which links or descriptors are asked later
GRANTED, REFUSED, FAILED = "granted", "refused", "failed"
REASON_LENGTH_MAX = 1000
_YEAR_10000 = 253_402_300_800.0

# What is about rights. A quota is not: who has used it up may read the artifact, later; and counted as a refusal it
# would warn of people who only fetch much.
_ABOUT_RIGHTS = (PermissionDenied, Unauthenticated)


@dataclass(slots=True)
class Attempt:
    """One attempt, which is filled in as it goes.

    Attributes:
        because: why it is granted, where it is.
        peer: whom the kernel attested; None where the call belongs to no session.
        is_done: whether the caller has got what was asked for.
        way: how a fetch came by what it gave (WAYS).
        at: when it ended, in seconds since the epoch.
    """

    verb: str
    asked: str
    because: str = ""
    peer: Peer | None = None
    program: Program = UNKNOWN
    version: str = ""
    tree: str = ""
    size_bytes: int = 0
    is_hit: bool | None = None
    way: str = ""
    origin_bytes: int = 0
    shared_bytes: int = 0
    transport: str = ""
    given: str = ""
    is_done: bool = False
    error: CacheError | None = None
    seconds: float = 0.0
    at: float = 0.0

    def of(self, session: Session) -> None:
        """Whose it is."""
        self.peer, self.program = session.peer, session.program

    def fetched(self, result: pb.FetchResult, way: str, *, view: bool) -> None:
        """It was a fetch, and this is its result."""
        self.way = way
        self.version, self.tree, self.size_bytes = result.version, result.digest, result.size_bytes
        self.is_hit, self.origin_bytes, self.transport = result.hit, result.origin_bytes, result.transport
        self.shared_bytes = result.shared_bytes
        self.given, self.is_done = VIEW if view else LEASE, True

    def taken_back(self) -> None:
        """The caller has gone, and has nothing of what it was to be given."""
        self.size_bytes, self.is_hit, self.way, self.given, self.is_done = 0, None, "", "", False

    def found(self, held: Held) -> None:
        """It was about what is held, and no bytes were given."""
        self.version, self.tree, self.is_done = held.uri, held.tree, True

    @property
    def decision(self) -> str:
        """ "refused" where the caller may not, "failed" where something else was in the way."""
        if self.error is not None:
            return REFUSED if isinstance(self.error, _ABOUT_RIGHTS) else FAILED
        return GRANTED if self.is_done else FAILED

    @property
    def is_download(self) -> bool:
        """Whether it took bytes from the origin."""
        return self.is_hit is False

    def record(self, user: str | None, groups: list[str]) -> dict[str, Any]:
        """What is written down of it. docs/access.md has a sentence for each field."""
        return {
            "time": moment(self.at),
            "user": user,
            "uid": self.peer.uid if self.peer else None,
            "groups": groups,
            "pid": self.peer.pid if self.peer else None,
            "command": self.program.command,
            "container": self.program.container,
            "verb": self.verb,
            "artifact": shown(self.asked),
            "version": shown(self.version),
            "tree": self.tree,
            "bytes": self.size_bytes,
            "hit": self.is_hit,
            "origin_bytes": self.origin_bytes,
            "shared_bytes": self.shared_bytes,
            "transport": self.transport,
            "given": self.given,
            "decision": self.decision,
            "reason": self._reason(),
            "seconds": round(self.seconds, 6),
        }

    def _reason(self) -> str:
        if isinstance(self.error, InvalidRequest) and "@" in self.asked:
            return "InvalidRequest"  # it repeats the beginning of what may be half a password
        if self.error is not None:
            return f"{type(self.error).__name__}: {without_secrets(str(self.error))}"[:REASON_LENGTH_MAX]
        return self.because if self.is_done else "the caller has gone"


def named(asked: pb.ArtifactSelection) -> str:
    """What a client asked for, as a URI."""
    return asked.uri or f"runs:/{asked.run_id}/{asked.artifact_path}".rstrip("/")


def shown(uri: str) -> str:
    """A URI as it may be written down."""
    if len(uri) > URI_LENGTH_MAX:
        return "(too long)"  # not the beginning: a password whose "@" is cut off does not look like one
    path, mark, query = without_credentials(uri).partition("?")
    return path + mark + without_secrets(query)


def moment(at: float) -> str:
    """A time of ISO 8601, in UTC and to the millisecond. Texts of different times compare as the times do."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(record: dict[str, Any]) -> bytes:
    """A record as a line. `time` is its first field."""
    return json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"


def lost(count: int, why: str, at: float) -> dict[str, Any]:
    """What stands in the place of lines that could not be written."""
    return {"time": moment(at), "lost": count, "reason": f"{count} attempts are missing here: {why}"}


class Wanted:
    """Which lines somebody wants to see: those that meet all conditions, and all that tell of lines that were lost.

    Args:
        user: a name, or a user ID in digits; empty for all.
        artifact: a pattern of what was asked for or resolved to, in which `*` stands for any characters; empty for all.
        since: seconds since the epoch; 0 for all.

    Raises InvalidRequest.
    """

    def __init__(self, *, user: str, artifact: str, refused_only: bool, since: float) -> None:
        if not 0 <= since < _YEAR_10000:
            raise InvalidRequest("Since when lines of the audit log are wanted is no time.")
        self._user = user
        self._artifact = artifact
        self._refused_only = refused_only
        self.since = since
        # Before the line is decoded, which is what costs.
        self._head = b'{"time": "' + moment(since).encode() if since > 0 else b""

    def of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines that are wanted, without their ends. What is no line of ours is left out."""
        for each in lines:
            if each >= self._head and self._is_wanted(each):
                yield each.rstrip(b"\n")

    def _is_wanted(self, each: bytes) -> bool:
        try:
            record = json.loads(each)
        except ValueError:  # half of one: the disk was full, or the daemon was killed
            return False
        if not isinstance(record, dict) or "time" not in record:
            return False
        if "lost" in record:
            return True
        if self._user and self._user not in (record.get("user"), str(record.get("uid"))):
            return False
        if self._refused_only and record.get("decision") != REFUSED:
            return False
        names = (record.get("artifact"), record.get("version"))
        return not self._artifact or any(fnmatchcase(str(name), self._artifact) for name in names)
