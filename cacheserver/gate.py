"""The gate: may this caller read this artifact?

Law of this file: it is asked before anything is looked up, brought or handed out, and goes by the source that the
caller named, never by what is held. No answer is no permission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from artifactcache.errors import CacheError, NotFound, PermissionDenied, Unauthenticated
from cacheserver import names
from cacheserver.access import Caller, Decision, Grant, Target, judge
from cacheserver.bounded import Bounded
from cacheserver.credentials import Credentials
from cacheserver.refusals import without_credentials
from cacheserver.retention import Facts, needs
from cacheserver.sessions import Peer
from cacheserver.sources import Place, Proof
from cacheserver.turns import Turns
from cacheserver.uris import Artifact, Kind

DECISIONS_MAX = 200_000  # of 500 bytes: longer names count for several
REFUSED_SECONDS_MAX = 5.0  # for which a refusal counts: long for a loop that tries again, short for a new permission
UNCHECKED = "check = none"


class Tracking(Protocol):
    """What the gate asks of the tracking server. Each raises errors of ours."""

    def prove(self, artifact: Artifact, credentials: Credentials) -> Proof:
        """Looks whether a caller is shown the source of an artifact."""

    def place(self, artifact: Artifact) -> Place:
        """Where the bytes of a bare artifact, or of a version of a registered model, lie."""

    def describe(self, versions: Iterable[str], needs: frozenset[str]) -> dict[str, Facts]:
        """What is known of versions."""

    def asked_by(self, owner: int) -> Tracking:
        """The same, asked for a user, whose questions keep nobody else's waiting."""


class Admission(NamedTuple):
    """Why a caller may read an artifact, and what of it: what is held by its name and lies elsewhere is another one.

    Attributes:
        roots: of a version of a registered model where its bytes lay when that was decided.
        parts: of a run where those logged models lay that were shown with it; None where nobody looked.
    """

    reason: str
    roots: tuple[str, ...] = ()
    parts: frozenset[str] | None = None

    @property
    def says_where(self) -> bool:
        """Whether it is only about what lies there."""
        return bool(self.roots) or self.parts is not None


class _Policy(NamedTuple):
    """What the configuration says: the grants, what of the tracking server's they look at, and how long that counts."""

    grants: tuple[Grant, ...]
    needs: frozenset[str]
    looks_into_versions: bool
    kept_seconds: float


class _Kept(NamedTuple):
    """What the tracking server said, and until when that counts, as long as the policy is the one by which it was
    asked."""

    policy: _Policy
    until: float
    proof: Proof
    error: CacheError | None = None


class _Looked(NamedTuple):
    """What grants look at of a source, when it was asked for, by which policy, and where a version's bytes lay."""

    policy: _Policy
    asked_at: float
    target: Target
    root: str


class Gate:
    """The gate of one daemon.

    Args:
        tracking: the tracking server.
        asks_as_caller: whether it is asked with the caller's credentials.
        grants: of which one has to let the caller in, where there are any.
        kept_seconds: for which an answer of the tracking server counts.
        who: the caller's names.
        is_administrator: whether somebody needs no grant.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        tracking: Tracking,
        *,
        asks_as_caller: bool,
        grants: tuple[Grant, ...],
        kept_seconds: float,
        who: Callable[[Peer], Caller],
        is_administrator: Callable[[Peer], bool],
        ticks: Callable[[], float],
    ) -> None:
        self.asks_as_caller = asks_as_caller
        self._tracking = tracking
        self._who = who
        self._is_administrator = is_administrator
        self._ticks = ticks
        self._answers = Bounded[tuple[int, str, str], _Kept](DECISIONS_MAX)
        self._targets = Bounded[str, _Looked](DECISIONS_MAX)
        self._turns = Turns()
        self.become(grants, kept_seconds)

    def become(self, grants: tuple[Grant, ...], kept_seconds: float) -> None:
        """Decides by these from now on; what was decided before counts no more."""
        looked_at = needs(grant.of for grant in grants)
        looks_into_versions = bool(looked_at) or any(grant.path for grant in grants)
        self._policy = _Policy(grants, looked_at, looks_into_versions, kept_seconds)
        self._answers.clear()
        self._targets.clear()

    @property
    def is_open(self) -> bool:
        """Whether everybody whom the daemon serves may read everything."""
        return not self.asks_as_caller and not self._policy.grants

    def knows(self, peer: Peer, credentials: Credentials, artifact: Artifact) -> bool:
        """Whether it can decide without asking anybody."""
        policy = self._policy
        if self.asks_as_caller and self._fresh(policy, (peer.uid, credentials.key, artifact.base)) is None:
            return False
        return not policy.grants or self._fresh_target(policy, artifact) is not None

    def admit(self, peer: Peer, credentials: Credentials, artifact: Artifact, *, anew: bool = False) -> Admission:
        """Lets a caller read an artifact that is no moving name.

        Args:
            anew: whether what was said before does not count.

        Raises PermissionDenied, Unauthenticated; NotFound where the source does not exist; OriginUnavailable where the
        tracking server does not answer and what it said before is too old.
        """
        policy = self._policy  # one of them from the beginning to the end, whichever is the daemon's by then
        if not self.asks_as_caller and not policy.grants:
            return Admission(UNCHECKED)
        if anew:
            self._answers.forget((peer.uid, credentials.key, artifact.base))
            self._targets.forget(artifact.base)
        reasons, roots, parts = [], [], None
        if self.asks_as_caller:
            reason, root, parts = self._shown(policy, peer, credentials, artifact)
            reasons.append(reason)
            roots.append(root)
        if policy.grants:
            decision, root = self._granted(policy, peer, artifact)
            roots.append(root)
            if not decision.granted:
                raise PermissionDenied(
                    f"{names.show(without_credentials(artifact.uri))}: {decision.reason} Ask the host's administrator."
                )
            reasons.append(decision.reason)
        return Admission("; ".join(reasons), tuple(filter(None, roots)), parts)

    # -- as the caller ----------------------------------------------------------------------------------------------

    def _shown(self, policy: _Policy, peer: Peer, credentials: Credentials, artifact: Artifact) -> Proof:
        """Whether the tracking server shows the caller the artifact's source."""
        key = (peer.uid, credentials.key, artifact.base)
        kept = self._fresh(policy, key)
        if kept is None:
            with self._turns.of(repr(key)):  # of many at once, one asks
                kept = self._fresh(policy, key) or self._asked(policy, key, credentials, artifact)
        if kept.error is not None:
            raise type(kept.error)(str(kept.error))
        return kept.proof

    def _fresh(self, policy: _Policy, key: tuple[int, str, str]) -> _Kept | None:
        kept = self._answers.get(key)
        return kept if kept and kept.policy is policy and self._ticks() < kept.until else None

    def _asked(self, policy: _Policy, key: tuple[int, str, str], credentials: Credentials, artifact: Artifact) -> _Kept:
        asked_at = self._ticks()  # an answer is as old as its question
        try:
            proof = self._tracking.asked_by(key[0]).prove(replace(artifact, path=""), credentials)
            kept = _Kept(policy, asked_at + policy.kept_seconds, proof)
        except (PermissionDenied, Unauthenticated, NotFound) as error:
            until = asked_at + min(policy.kept_seconds, REFUSED_SECONDS_MAX)
            kept = _Kept(policy, until, Proof(""), _plain(error, credentials))
        self._answers.put(key, kept, _weight(artifact))
        return kept

    # -- by grants --------------------------------------------------------------------------------------------------

    def _granted(self, policy: _Policy, peer: Peer, artifact: Artifact) -> tuple[Decision, str]:
        if self._is_administrator(peer):
            return Decision(True, "an administrator"), ""
        found = self._looked_at(policy, peer, artifact)
        decision = judge(policy.grants, self._who(peer), found.target)
        if not decision.granted and self._ticks() - found.asked_at >= REFUSED_SECONDS_MAX:
            self._targets.forget(artifact.base)  # a tag may have been set since
            found = self._looked_at(policy, peer, artifact)
            decision = judge(policy.grants, self._who(peer), found.target)
        return decision, found.root

    def _looked_at(self, policy: _Policy, peer: Peer, artifact: Artifact) -> _Looked:
        """What grants look at. What is known of a source counts for all of its paths and callers."""
        found = self._fresh_target(policy, artifact)
        if found is None:
            with self._turns.of(artifact.base):
                found = self._fresh_target(policy, artifact)
                if found is None:
                    asked_at, tracking = self._ticks(), self._tracking.asked_by(peer.uid)
                    found = _Looked(policy, asked_at, *_looked_up(policy, tracking, replace(artifact, path="")))
                    self._targets.put(artifact.base, found, _weight(artifact))
        if artifact.kind is Kind.BARE:
            return found
        return found._replace(target=found.target.at(artifact.path))

    def _fresh_target(self, policy: _Policy, artifact: Artifact) -> _Looked | None:
        kept = self._targets.get(artifact.base)
        is_fresh = kept is not None and kept.policy is policy and self._ticks() < kept.asked_at + policy.kept_seconds
        return kept if is_fresh else None


def _looked_up(policy: _Policy, tracking: Tracking, artifact: Artifact) -> tuple[Target, str]:
    own = Facts.of(artifact, "")
    if artifact.kind is Kind.BARE:
        home = tracking.place(artifact).home
        if home is None:
            return Target(own, "", artifact.name), ""
        return Target(_facts(policy, tracking, replace(home, path="")), home.path, artifact.name), ""
    if artifact.kind is Kind.MODEL_VERSION and policy.looks_into_versions:
        # Not the run that the version names: whoever registers one may name any. That in which its bytes lie.
        home, root = tracking.place(artifact)
        made_by = _facts(policy, tracking, replace(home, path="")) if home else Facts()
        facts = replace(made_by, version=own.version, model=own.model, number=own.number)
        return Target(facts, "", home_path=home.path if home else None), root
    return Target(_facts(policy, tracking, artifact), ""), ""


def _facts(policy: _Policy, tracking: Tracking, artifact: Artifact) -> Facts:
    return tracking.describe([artifact.base], policy.needs)[artifact.base]


def _weight(artifact: Artifact) -> int:
    return 1 + len(artifact.base) // 100


def _plain(error: CacheError, credentials: Credentials) -> CacheError:
    """A refusal in words that say what the caller can do."""
    text = str(error)
    if isinstance(error, Unauthenticated):
        text = f"{text.rstrip('.')}. " + (
            "The tracking server refuses the credentials of your MLflow environment."
            if credentials.headers
            else "No credentials for the tracking server were found in your MLflow environment: set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    elif isinstance(error, PermissionDenied):
        text = f"{text.rstrip('.')}. The tracking server does not show this to the user of your MLflow credentials."
    return type(error)(text)
