"""Retention rules: what they say of a tree, and that whatever is not known protects."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import fields, replace
from typing import Any

import pytest

from cacheserver import uris
from cacheserver.retention import (
    ALIASES,
    DELETED,
    EXPERIMENT,
    RUN,
    TAG,
    VERSIONS,
    Facts,
    Rule,
    Verdict,
    matches,
    needs,
    unmatched,
    verdict,
)

DAY = 86_400.0
FETCHED, USED = 1000 * DAY, 1010 * DAY

RUN_FACTS = Facts(
    version="runs:/r",
    tracking_uri="http://mlflow",
    run_id="r",
    experiment="prod/vision",
    status="FINISHED",
    tags={"team": "vision", "gpu": None},
    owner="alice",
    ended_at=990 * DAY,
    model="",
    number=0,
    aliases=frozenset(),
    newer_count=0,
    is_deleted=False,
)
VERSION = replace(
    RUN_FACTS, version="models:/resnet/3", model="resnet", number=3, aliases=frozenset({"champion"}), newer_count=2
)
BARE = Facts.of(uris.parse("s3://bucket/data"), "http://mlflow")


def said(*rules: Rule, of: Facts = RUN_FACTS) -> Verdict:
    """What rules say of one artifact that was fetched at FETCHED and used at USED."""
    return verdict(rules, [(of, FETCHED, USED)])


def test_without_rules_nothing_is_kept_and_nothing_goes() -> None:
    """The same where no rule matches, and for a tree that is held as nothing any more."""
    assert said() == said(Rule("a", model="x", keep=math.inf, drop=0.0, priority=3)) == Verdict()
    assert verdict([Rule("a", keep=math.inf)], []) == Verdict()


CONDITIONS: list[tuple[str, Any, Any, str]] = [
    ("tracking_uri", "http://mlf*", "https://*", "tracking_uri"),
    ("experiment", "prod/*", "prod", "experiment"),
    ("model", "res???", "Resnet", "model"),
    ("alias", "champ*", "challenger", "aliases"),
    ("owner", "alice", "a", "owner"),
    ("tag", {"team": "vis*"}, {"team": "nlp"}, "tags"),
    ("tag", {"team": "vision"}, {"team": "vision", "gpu": "*"}, "tags"),
    ("status", "FINISHED", "FAILED", "status"),
    ("deleted", False, True, "is_deleted"),
]


@pytest.mark.parametrize(("key", "yes", "no", "fact"), CONDITIONS)
def test_a_condition(key: str, yes: Any, no: Any, fact: str) -> None:
    """It holds, or it does not; where the fact is not known, that is not known either."""
    assert matches(Rule("a", **{key: yes}), VERSION) is True
    assert matches(Rule("a", **{key: no}), VERSION) is False
    if fact != "tracking_uri":
        unknown = _without(VERSION, fact)
        assert matches(Rule("a", **{key: yes}), unknown) is None
        assert matches(Rule("a", **{key: no}), unknown) is None


def test_all_conditions_have_to_hold() -> None:
    """One that does not hold decides, also where another one is not known."""
    assert matches(Rule("a", model="resnet", owner="alice"), VERSION) is True
    assert matches(Rule("a", model="resnet", owner="bob"), VERSION) is False
    assert matches(Rule("a", model="resnet", owner="bob"), replace(VERSION, model=None)) is False
    assert matches(Rule("a", model="resnet", owner="alice"), replace(VERSION, model=None)) is None


@pytest.mark.parametrize("key", ["experiment", "model", "alias", "owner", "tag", "status", "keep_last"])
def test_a_condition_about_something_that_there_is_not(key: str) -> None:
    """A pattern that matches everything does not match nothing: a bare artifact URI has no run and no model."""
    value: Any = {"tag": {"team": "*"}, "keep_last": 3}.get(key, "*")
    assert matches(Rule("a", **{key: value}), BARE) is False
    assert said(Rule("a", keep=math.inf, drop=0.0, **{key: value}), of=BARE) == Verdict()


def test_a_version_of_a_model_is_no_run() -> None:
    """A run has no model; a version of a model has what its run has."""
    assert matches(Rule("a", model="*"), RUN_FACTS) is False
    assert matches(Rule("a", status="FINISHED", model="resnet"), VERSION) is True


def test_keep_counts_from_the_last_use() -> None:
    """However long ago it was fetched."""
    assert said(Rule("a", keep=30 * DAY)).kept_until == USED + 30 * DAY
    assert said(Rule("a", keep=math.inf)).kept_until == math.inf


@pytest.mark.parametrize(("newer_count", "is_kept"), [(0, True), (2, True), (3, False), (None, True)])
def test_the_last_versions_are_kept(newer_count: int | None, is_kept: bool) -> None:
    """Counted by those that the origin has; all of them where it cannot be asked."""
    found = said(Rule("a", model="resnet", keep_last=3), of=replace(VERSION, newer_count=newer_count))
    assert found.kept_until == (math.inf if is_kept else 0.0)


def test_keep_the_last_and_drop_the_rest() -> None:
    """One rule says both; it is about versions of models only."""
    rule = Rule("a", keep_last=3, drop=0.0)
    assert said(rule, of=VERSION).drop_at == math.inf
    assert said(rule, of=replace(VERSION, newer_count=3)).drop_at == FETCHED
    assert said(rule, of=replace(VERSION, is_deleted=True)).drop_at == FETCHED  # it is no version any more
    assert said(rule, of=RUN_FACTS) == Verdict()


def test_drop_counts_from_when_it_was_fetched() -> None:
    """In a rule about a status from the run's end where that was later: a checkpoint that came while it ran."""
    assert said(Rule("a", drop=DAY)).drop_at == FETCHED + DAY
    failed = Rule("a", status="FAILED", drop=DAY)
    for ended_at, since in ((990 * DAY, FETCHED), (1005 * DAY, 1005 * DAY), (0.0, FETCHED)):
        assert said(failed, of=replace(RUN_FACTS, status="FAILED", ended_at=ended_at)).drop_at == since + DAY
    assert said(failed, of=replace(RUN_FACTS, status="FAILED", ended_at=None)).drop_at == math.inf


def test_the_most_protective_wins_whatever_the_order() -> None:
    """A keep beats every drop, the longest keep and the highest priority count; the first drop does."""
    rules = [
        Rule("a", keep=2 * DAY),
        Rule("b", keep=30 * DAY),
        Rule("c", drop=0.0),
        Rule("d", drop=90 * DAY),
        Rule("e", priority=-1),
        Rule("f", priority=5),
    ]
    for order in itertools.permutations(rules):
        kept_until, drop_at, priority, _ = said(*order)
        assert (kept_until, drop_at, priority) == (USED + 30 * DAY, USED + 30 * DAY, 5)
    assert said(*rules[2:4]).drop_at == FETCHED
    assert said(rules[4]).priority == -1 and said(rules[0]).priority == 0


def test_unknown_facts_protect() -> None:
    """A keep applies and a drop does not, of two priorities the higher may be its."""
    unknown = replace(VERSION, aliases=None, status=None)
    found = said(Rule("a", alias="champion", keep=math.inf), Rule("b", status="FAILED", drop=0.0), of=unknown)
    assert found.kept_until == math.inf and found.drop_at == math.inf
    assert "as long as which aliases it has is not known" in found.because[0]
    alias: dict[str, Any] = {"alias": "champion"}
    assert said(Rule("a", **alias, priority=-3), of=unknown) == Verdict()
    assert said(Rule("a", **alias, priority=3), of=unknown).priority == 3
    assert said(Rule("a", priority=-5), Rule("b", **alias, priority=-3), of=unknown).priority == -3


def test_less_knowledge_never_protects_less() -> None:
    """Tried with many rules and facts, of which some are taken away."""
    seed = 20_260
    chance = random.Random(seed)
    hidden = [f.name for f in fields(Facts) if f.name not in ("version", "tracking_uri")]
    for _ in range(3000):
        rules = [_any_rule(chance, number) for number in range(chance.randint(1, 4))]
        known = [_any_facts(chance) for _ in range(chance.randint(1, 3))]
        less = [_without(facts, *(name for name in hidden if chance.random() < 0.3)) for facts in known]
        more, protected = (verdict(rules, [(f, FETCHED, USED) for f in facts]) for facts in (known, less))
        assert protected.kept_until >= more.kept_until, (seed, rules, known, less)
        assert protected.drop_at >= more.drop_at >= more.kept_until, (seed, rules, known, less)
        assert protected.priority >= more.priority, (seed, rules, known, less)


def _without(facts: Facts, *names: str) -> Facts:
    """The same, but that these are not known."""
    unknown: dict[str, Any] = {name: {} if name == "tags" else None for name in names}
    return replace(facts, **unknown)


def _any_rule(chance: random.Random, number: int) -> Rule:
    conditions: dict[str, Any] = {
        key: chance.choice((yes, yes, no)) for key, yes, no, _ in CONDITIONS if chance.random() < 0.15
    }
    effects: dict[str, Any] = {"keep": DAY, "keep_last": 2, "drop": 3 * DAY, "priority": chance.randint(-3, 3)}
    return Rule(str(number), **conditions, **{k: v for k, v in effects.items() if chance.random() < 0.5})


def _any_facts(chance: random.Random) -> Facts:
    return replace(
        chance.choice((RUN_FACTS, VERSION)),
        status=chance.choice(("FAILED", "FINISHED", "")),
        experiment=chance.choice(("prod/x", "prod", "")),
        owner=chance.choice(("alice", "a")),
        ended_at=chance.choice((0.0, 1005 * DAY)),
        newer_count=chance.randint(0, 4),
        is_deleted=chance.random() < 0.3,
        tags=chance.choice(({"team": "vision", "gpu": "1"}, {"team": "nlp", "gpu": None})),
    )


def test_one_tree_that_is_several_artifacts() -> None:
    """It is kept where one of them is, and dropped where each of them is, at the last one's time."""
    failed, champion = replace(RUN_FACTS, status="FAILED"), VERSION
    rules = [Rule("failed", status="FAILED", drop=DAY), Rule("low", model="", status="FAILED", priority=-1)]
    both = verdict(rules, [(failed, FETCHED, USED), (champion, FETCHED, USED)])
    assert both.drop_at == math.inf and both.priority == 0
    assert both.because[-1] == "It is held as models:/resnet/3 as well, which no rule drops; so it is not dropped."
    other = replace(failed, version="runs:/other")
    assert verdict(rules, [(failed, FETCHED, USED), (other, FETCHED + DAY, USED)])[:3] == (0.0, FETCHED + 2 * DAY, -1)
    kept = verdict([*rules, Rule("c", alias="champion", keep=math.inf)], [(failed, 0, 0), (champion, 0, 0)])
    assert kept.kept_until == math.inf


def test_where_its_bytes_are_does_not_keep_a_version_from_going() -> None:
    """The bare artifact URI behind a version is held as the same tree; alone, no rule about runs finds it."""
    rule, failed = Rule("failed", status="FAILED", drop=DAY), replace(RUN_FACTS, status="FAILED")
    assert verdict([rule], [(BARE, FETCHED, USED), (failed, FETCHED, USED)]).drop_at == FETCHED + DAY
    assert verdict([rule], [(BARE, FETCHED, USED)]).drop_at == math.inf
    everything = Rule("all", drop=2 * DAY)
    found = verdict([rule, everything], [(BARE, FETCHED + DAY, USED), (failed, FETCHED, USED)])
    assert found.drop_at == FETCHED + 3 * DAY  # a rule that drops it has its say
    assert verdict([Rule("a", keep=DAY)], [(BARE, FETCHED, USED), (failed, FETCHED, 0.0)]).kept_until == USED + DAY


def test_a_rule_says_why() -> None:
    """One plain sentence for each that applies, with its name."""
    rules = [
        Rule("champions", alias="champion", keep=math.inf),
        Rule("month", keep=30 * DAY),
        Rule("last", keep_last=3),
        Rule("newest", keep_last=4),
        Rule("failed", status="FINISHED", drop=DAY),
        Rule("never", drop=0.0),
        Rule("low", priority=-1),
    ]
    assert said(*rules, of=VERSION).because == (
        'Rule "champions" keeps models:/resnet/3.',
        'Rule "month" keeps models:/resnet/3 for 30d after its last use.',
        'Rule "last" keeps models:/resnet/3 as one of the 3 newest versions of resnet.',
        'Rule "newest" keeps models:/resnet/3 as one of the 4 newest versions of resnet.',
        'Rule "failed" drops models:/resnet/3 1d after it was fetched, or after the run\'s end if that was later.',
        'Rule "never" drops models:/resnet/3 as soon as nobody uses it.',
        'Rule "low" gives models:/resnet/3 the priority -1.',
        "What a rule keeps is not dropped by another.",
    )
    assert said(Rule("n", keep_last=1), of=replace(VERSION, newer_count=None)).because == (
        'Rule "n" keeps models:/resnet/3 as the newest version of resnet, as long as its newer versions are not known.',
    )


def test_only_what_rules_need_is_asked() -> None:
    """Names are known without a question, and each tag is asked for by itself."""
    assert needs([]) == needs([Rule("a", tracking_uri="x", model="y", keep=math.inf, drop=0.0)]) == frozenset()
    assert needs([Rule("a", alias="x")]) == {ALIASES}
    assert needs([Rule("a", keep_last=1)]) == {VERSIONS, DELETED}
    assert needs([Rule("a", deleted=False)]) == {DELETED}
    assert needs([Rule("a", owner="x"), Rule("b", status="FAILED"), Rule("c", experiment="e")]) == {RUN, EXPERIMENT}
    assert needs([Rule("a", tag={"team": "x", "gpu": "y"})]) == {RUN, TAG + "team", TAG + "gpu"}


def test_rules_that_match_nothing() -> None:
    """What may match by what is known counts as matching."""
    rules = [Rule("resnet", model="resnet"), Rule("typo", model="resnte"), Rule("all"), Rule("bob", owner="bob")]
    assert unmatched(rules, []) == ("resnet", "typo", "all", "bob")
    assert unmatched(rules, [RUN_FACTS, VERSION]) == ("typo", "bob")
    assert unmatched(rules, [replace(VERSION, owner=None)]) == ("typo",)


@pytest.mark.parametrize("facts", [Facts(), RUN_FACTS, VERSION, BARE], ids=lambda facts: facts.version)
def test_facts_can_be_written_down(facts: Facts) -> None:
    """And read again; what is none is refused."""
    assert Facts.decode(facts.encode()) == facts
    for nonsense in ("", "[]", "{}", '{"aliases": null, "colour": 1}', '{"aliases": 1}', "1"):
        with pytest.raises(ValueError):
            Facts.decode(nonsense)


@pytest.mark.parametrize(
    ("uri", "known"),
    [
        ("runs:/r/model", {"run_id": "r", "model": "", "aliases": frozenset()}),
        ("models:/m-1/x", {"run_id": None, "model": "", "is_deleted": None}),
        ("models:/resnet/3", {"model": "resnet", "number": 3, "aliases": None, "run_id": None}),
        ("models:/resnet@champion", {"model": "resnet", "number": None, "aliases": None}),
        ("s3://bucket/x", {"run_id": "", "model": "", "status": "", "owner": "", "is_deleted": False}),
    ],
)
def test_what_a_name_says(uri: str, known: dict[str, Any]) -> None:
    """A run has no model, a bare artifact URI has nothing; the rest is not known."""
    facts = Facts.of(uris.parse(uri), "http://mlflow")
    assert {name: getattr(facts, name) for name in known} == known
    assert facts.version == uris.parse(uri).base and facts.is_bare == uri.startswith("s3:")
