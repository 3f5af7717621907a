"""Retention rules: what they say of a tree, by what the origin says of the artifacts that are held as it.

Law of this file: the most protective wins. A `keep` beats every `drop`, the longest `keep` counts, and where something
is not known, a rule that protects applies and one that does not protect does not. So no answer that is missing, no
order of the rules, and no second name of a tree ever takes a protection away. Values in, values out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from cacheserver.uris import Artifact, Kind

# What rules may need to be asked; of a run's tags each by itself, as in TAG + "team": a run may have megabytes of them.
RUN = "run"  # status, owner, end, tags
EXPERIMENT = "experiment"
ALIASES = "aliases"
VERSIONS = "versions"  # how many newer ones a registered model has
DELETED = "deleted"
TAG = "tag:"

_UNITS = ((604_800, "w"), (86_400, "d"), (3_600, "h"), (60, "m"))


@dataclass(frozen=True)
class Facts:
    """What is known of an artifact: a field is None where it is not known, and empty (0) where there is no such thing.

    Attributes:
        version: the artifact, as it is named.
        tracking_uri: of its origin, without credentials.
        run_id: of the run that made it.
        experiment: the name of that run's, or of the logged model's.
        status: of that run, as MLflow writes it: "FINISHED", "FAILED", …
        tags: of that run; None where it has no such tag. What is not in here is not known.
        owner: that run's user.
        ended_at: when that run had ended, seconds since the epoch; 0 while it has not.
        model: the registered model's name.
        number: the version of it.
        aliases: those that stand for this version.
        newer_count: how many newer versions the registered model has.
        is_deleted: whether the origin says that it has been deleted.
    """

    version: str = ""
    tracking_uri: str = ""
    run_id: str | None = None
    experiment: str | None = None
    status: str | None = None
    tags: Mapping[str, str | None] = field(default_factory=dict)
    owner: str | None = None
    ended_at: float | None = None
    model: str | None = None
    number: int | None = None
    aliases: frozenset[str] | None = None
    newer_count: int | None = None
    is_deleted: bool | None = None

    @classmethod
    def of(cls, artifact: Artifact, tracking_uri: str) -> Facts:
        """What the artifact's own name says, without a question."""
        base, no_model = artifact.base, {"model": "", "number": 0, "aliases": frozenset[str](), "newer_count": 0}
        match artifact.kind:
            case Kind.RUN:
                return cls(base, tracking_uri, run_id=artifact.name, **no_model)  # type: ignore[arg-type]
            case Kind.LOGGED_MODEL:
                return cls(base, tracking_uri, **no_model)  # type: ignore[arg-type]
            case Kind.MODEL_VERSION:
                return cls(base, tracking_uri, model=artifact.name, number=int(artifact.selector))
            case Kind.BARE:  # the tracking server cannot say of what it is a part
                gone = {"run_id": "", "experiment": "", "status": "", "owner": "", "ended_at": 0.0, "is_deleted": False}
                return cls(base, tracking_uri, **gone, **no_model)  # type: ignore[arg-type]
            case _:
                return cls(base, tracking_uri, model=artifact.name)

    @classmethod
    def decode(cls, text: str) -> Facts:
        """The inverse of `encode`. Raises ValueError where it is not one."""
        try:
            read = json.loads(text)
            return cls(**read | {"aliases": None if read["aliases"] is None else frozenset(read["aliases"])})
        except (KeyError, TypeError):
            raise ValueError("these are no facts") from None

    def encode(self) -> str:
        """The facts as JSON; the same text for the same facts."""
        aliases = None if self.aliases is None else sorted(self.aliases)
        return json.dumps(asdict(self) | {"tags": dict(self.tags), "aliases": aliases}, sort_keys=True)

    @property
    def is_bare(self) -> bool:
        """Whether this is a bare artifact URI."""
        return bool(self.version) and not self.version.startswith(("runs:/", "models:/"))


@dataclass(frozen=True)
class Rule:
    """A retention rule: where all conditions hold, its effects do. What is empty (None) is no condition, or no effect.

    Attributes:
        tracking_uri, experiment, model, alias, owner: patterns as of fnmatch, in which `*` crosses slashes.
        tag: patterns of values, by key.
        status: of the run.
        deleted: whether the origin has to have deleted it, or must not have.
        keep: seconds since its last use for which it is kept; infinity for always.
        keep_last: of how many newest versions of a model it has to be one to be kept. The rule is about versions of
            registered models only then.
        drop: seconds after which it goes, whether or not room is needed; infinity for never.
        priority: trees of a lower one go first, all of them.
    """

    name: str = ""
    tracking_uri: str = ""
    experiment: str = ""
    model: str = ""
    alias: str = ""
    owner: str = ""
    tag: Mapping[str, str] = field(default_factory=dict)
    status: str = ""
    deleted: bool | None = None
    keep: float = 0.0
    keep_last: int = 0
    drop: float = math.inf
    priority: int | None = None

    @property
    def has_conditions(self) -> bool:
        """Whether it is not about everything."""
        texts = (self.tracking_uri, self.experiment, self.model, self.alias, self.owner, self.tag, self.status)
        return any(texts) or self.deleted is not None or self.keep_last > 0


class Verdict(NamedTuple):
    """What the rules say of a tree.

    Attributes:
        kept_until: seconds since the epoch; 0 where no rule keeps it, infinity where one always does.
        drop_at: when it goes whether or not room is needed, never before `kept_until`; infinity for never.
        priority: trees of a lower one go first.
        because: a sentence for each rule that applies.
    """

    kept_until: float = 0.0
    drop_at: float = math.inf
    priority: int = 0
    because: tuple[str, ...] = ()


def needs(rules: Iterable[Rule]) -> frozenset[str]:
    """What has to be asked so that the rules can be applied; nothing that none of them needs."""
    found: set[str] = set()
    for rule in rules:
        wanted = {
            RUN: rule.owner or rule.status or rule.tag,
            EXPERIMENT: rule.experiment,
            ALIASES: rule.alias,
            VERSIONS: rule.keep_last,
            DELETED: rule.deleted is not None or rule.keep_last,
        }
        found |= {kind for kind, is_wanted in wanted.items() if is_wanted} | {TAG + key for key in rule.tag}
    return frozenset(found)


def matches(rule: Rule, facts: Facts) -> bool | None:
    """Whether all conditions of a rule hold; None where what is not known decides."""
    return _matches(rule, facts)[0]


def unmatched(rules: Iterable[Rule], known: Iterable[Facts]) -> tuple[str, ...]:
    """The names of rules that match none of the artifacts, so far as is known."""
    left = {rule.name: rule for rule in rules}
    for facts in known:
        for name in [name for name, rule in left.items() if matches(rule, facts) is not False]:
            del left[name]
        if not left:
            break
    return tuple(left)


def verdict(rules: Sequence[Rule], artifacts: Iterable[tuple[Facts, float, float]]) -> Verdict:
    """What the rules say of one tree.

    `keep` counts from the last use: what a job uses every week is wanted, however long ago it came. `drop` counts from
    when it was fetched; of a rule about a status from the end of the run, if that was later, for a checkpoint that came
    while the run was running is not the older for it.

    Args:
        artifacts: all that are held as this tree: what is known of each, when it was fetched, and last used.
    """
    opinions = [_opinion(rules, *artifact) for artifact in artifacts]
    if not opinions:
        return Verdict()
    kept_until = max(o.kept_until for o in opinions)
    because = [sentence for o in opinions for sentence in o.because]
    # A bare URI beside a version is most likely where that one's bytes are: no rule about runs or models finds it, and
    # it must not stand in the way of those that found the version.
    voters = [o for o in opinions if not (o.facts.is_bare and o.drop_at == math.inf)] or opinions
    drop_at = max(*(o.drop_at for o in voters), kept_until)
    if dropping := [o for o in voters if o.drop_at < math.inf]:
        others = [o.facts.version for o in voters if o.drop_at == math.inf]
        if others:
            because.append(f"It is held as {others[0]} as well, which no rule drops; so it is not dropped.")
        elif kept_until > max(o.drop_at for o in dropping):
            because.append("What a rule keeps is not dropped by another.")
    return Verdict(kept_until, drop_at, max(o.priority for o in opinions), tuple(dict.fromkeys(because)))


def spell(seconds: float) -> str:
    """A duration as it is written in a configuration, such as "30d"."""
    for length, unit in _UNITS:
        if seconds and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


class _Opinion(NamedTuple):
    """What the rules say of one artifact."""

    facts: Facts
    kept_until: float
    drop_at: float
    priority: int
    because: list[str]


def _opinion(rules: Sequence[Rule], facts: Facts, fetched_at: float, used_at: float) -> _Opinion:
    kept_until, drop_at, because = 0.0, math.inf, list[str]()
    sure: list[int] = []
    unsure: list[int] = []
    for rule in rules:
        holds, unknown = _matches(rule, facts)
        if holds is False:
            continue
        doubt = f", as long as {unknown} is not known" if unknown else ""
        if rule.keep:
            kept_until = max(kept_until, used_at + rule.keep)
            how = "" if rule.keep == math.inf else f" for {spell(rule.keep)} after its last use"
            because.append(f'Rule "{rule.name}" keeps {facts.version}{how}{doubt}.')
        if rule.keep_last and facts.is_deleted is not True and (facts.newer_count or 0) < rule.keep_last:
            kept_until = math.inf
            of = f"one of the {rule.keep_last} newest versions" if rule.keep_last > 1 else "the newest version"
            if not doubt and facts.newer_count is None:
                doubt = ", as long as its newer versions are not known"
            because.append(f'Rule "{rule.name}" keeps {facts.version} as {of} of {facts.model}{doubt}.')
        if rule.drop < math.inf and holds:
            ended_at = math.inf if facts.ended_at is None else facts.ended_at
            since = max(fetched_at, ended_at) if rule.status else fetched_at
            drop_at = min(drop_at, since + rule.drop)
            because.append(f'Rule "{rule.name}" drops {facts.version} {_when(rule)}.')
        if rule.priority is not None:
            (sure if holds else unsure).append(rule.priority)
            if holds or rule.priority > 0:
                because.append(f'Rule "{rule.name}" gives {facts.version} the priority {rule.priority}{doubt}.')
    # The highest that may be its: one that is not sure of itself counts only where that is more than it has without.
    return _Opinion(facts, kept_until, drop_at, max((sure or [0]) + unsure), because)


def _when(rule: Rule) -> str:
    if not rule.drop:
        return "as soon as nobody uses it"
    return f"{spell(rule.drop)} after it was fetched" + (
        ", or after the run's end if that was later" * bool(rule.status)
    )


def _matches(rule: Rule, facts: Facts) -> tuple[bool | None, str]:
    """Whether all conditions hold; None, and what is not known, where that decides."""
    unknown = ""
    for holds, what in _conditions(rule, facts):
        if holds is False:
            return False, ""
        if holds is None:
            unknown = unknown or what
    return (None, unknown) if unknown else (True, "")


def _conditions(rule: Rule, facts: Facts) -> Iterator[tuple[bool | None, str]]:
    """Whether each condition holds, and what it is about."""
    if rule.tracking_uri:
        yield fnmatchcase(facts.tracking_uri, rule.tracking_uri), "the tracking server"
    if rule.model:
        yield _like(facts.model, rule.model), "its model"
    if rule.keep_last:
        yield None if facts.model is None else bool(facts.model), "its model"
    if rule.deleted is not None:
        yield None if facts.is_deleted is None else facts.is_deleted == rule.deleted, "whether it was deleted"
    if rule.status:
        yield _like(facts.status, rule.status), "its run's status"
    if rule.experiment:
        yield _like(facts.experiment, rule.experiment), "its experiment"
    if rule.owner:
        yield _like(facts.owner, rule.owner), "its owner"
    if rule.alias:
        aliases = facts.aliases
        yield None if aliases is None else any(fnmatchcase(a, rule.alias) for a in aliases), "which aliases it has"
    for key, pattern in rule.tag.items():
        is_known = facts.run_id == "" or key in facts.tags
        yield _like((facts.tags.get(key) or "") if is_known else None, pattern), f"its run's tag {key}"


def _like(text: str | None, pattern: str) -> bool | None:
    return None if text is None else bool(text) and fnmatchcase(text, pattern)
