"""What a sweep of the shared tier removes of its records, and why: the plan, without a tier."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from cacheserver.retention import Facts, Rule
from cacheserver.tierplan import Decision, Plan, Seen, mark, plan, questions

DAY = 86_400.0
NOW = 1000 * DAY
HERE, ELSEWHERE = "http://mlflow", "http://other"


def record(name: str, days: float = 0.0, *, of: Mapping[str, int] | None = None, size: int = 0, **more: object) -> Seen:
    """A record that was written so many days ago, of a run of this name, and needs these objects."""
    needed = of or {}
    fields: dict[str, object] = {
        "tracking_uri": HERE,
        "uri": f"s3://bucket/{name}",
        "versions": (f"runs:/{name}",),
        "needs": array("q", map(mark, needed)),
        "sizes": array("q", needed.values()),
    }
    return Seen(f"v1/trees/{name}", size, NOW - days * DAY, **fields | more)  # type: ignore[arg-type]


def planned(
    *seen: Seen, rules: Sequence[Rule] = (), told: Mapping[str, Facts] | None = None, capacity: int = 0
) -> dict[str, Decision]:
    """What becomes of records, by their names."""
    found = whole(*seen, rules=rules, told=told, capacity=capacity)
    return {decision.seen.key.rpartition("/")[2]: decision for decision in found.decisions}


def whole(*seen: Seen, rules: Sequence[Rule] = (), told: Mapping[str, Facts] | None = None, capacity: int = 0) -> Plan:
    """The same, as it was planned."""
    return plan(seen, told or {}, rules, here=HERE, capacity=capacity, grace=DAY, now=NOW)


def kept(found: Mapping[str, Decision]) -> set[str]:
    """The names of those that stay."""
    return {name for name, decision in found.items() if decision.is_kept}


def test_without_rules_everything_stays() -> None:
    """However old."""
    assert kept(planned(record("a", 10_000), record("b"))) == {"a", "b"}


def test_drop_counts_from_when_it_was_written() -> None:
    """And the reason names the rule."""
    found = planned(record("old", 31), record("new", 29), rules=[Rule("monthly", drop=30 * DAY)])
    assert kept(found) == {"new"}
    assert found["old"].reason == 'rule "monthly" drops runs:/old 30d after it was written'
    assert found["new"].reason == "no rule drops it yet"


def test_keep_counts_from_then_too_and_beats_drop() -> None:
    """Whichever stands first."""
    rules = [Rule("keep", model="resnet*", keep=60 * DAY), Rule("drop", drop=30 * DAY)]
    seen = [record(f"r{days}", days, versions=("models:/resnet/1",)) for days in (40, 61)]
    for order in (rules, rules[::-1]):
        found = planned(*seen, record("other", 40), rules=order)
        assert kept(found) == {"r40"} and found["r40"].reason == 'rule "keep" keeps it'


def test_what_the_tracking_server_does_not_say_protects() -> None:
    """A rule about a status drops only what it is known to match; one that keeps a status keeps what may match."""
    run = Facts("runs:/a", HERE, run_id="a", status="FAILED", ended_at=NOW - 50 * DAY)
    drops, keeps = Rule("failed", status="FAILED", drop=DAY), Rule("finished", status="FINISHED", keep=math.inf)
    everything = Rule("everything", drop=DAY)
    seen = record("a", 40)
    assert kept(planned(seen, rules=[drops])) == {"a"}
    assert kept(planned(seen, rules=[drops], told={"runs:/a": run})) == set()
    assert kept(planned(seen, rules=[keeps, everything])) == {"a"}
    assert kept(planned(seen, rules=[keeps, everything], told={"runs:/a": run})) == set()


def test_a_run_that_ended_later_counts_from_then() -> None:
    """As in a store."""
    rule = Rule("failed", status="FAILED", drop=10 * DAY)
    run = Facts("runs:/a", HERE, run_id="a", status="FAILED", ended_at=NOW - 5 * DAY)
    assert kept(planned(record("a", 40), rules=[rule], told={"runs:/a": run})) == {"a"}


def test_one_name_that_no_rule_drops_keeps_all() -> None:
    """A run's bytes are a registered version's as well."""
    seen = record("a", 40, versions=("runs:/a/model", "models:/resnet/3"))
    rule = Rule("runs", experiment="scratch", drop=DAY)
    told = {"runs:/a": Facts("runs:/a", HERE, run_id="a", experiment="scratch")}
    assert kept(planned(seen, rules=[rule], told=told)) == {"a"}
    told["models:/resnet/3"] = Facts("models:/resnet/3", HERE, experiment="scratch")
    assert kept(planned(seen, rules=[rule], told=told)) == set()


def test_what_has_no_version_is_a_bare_location() -> None:
    """And what no release of this kind has written is known by nothing."""
    bare, odd = record("a", 40, versions=()), record("b", 40, versions=("models:/no",))
    named = Rule("bare", model="*", drop=DAY)
    assert kept(planned(bare, odd, rules=[named])) == {"a", "b"}
    found = planned(bare, odd, rules=[Rule("all", drop=DAY)])
    assert found["a"].reason == 'rule "all" drops s3://bucket/a 1d after it was written' and kept(found) == set()


def test_a_record_of_another_tracking_server_goes_only_by_a_rule_that_names_it() -> None:
    """And by what is known without asking; whatever keeps keeps it too."""
    seen = record("a", 40, tracking_uri=ELSEWHERE, versions=("models:/resnet/1",))
    everything, there = Rule("all", drop=DAY), Rule("there", tracking_uri=f"{ELSEWHERE}*", drop=DAY)
    told = {"models:/resnet/1": Facts("models:/resnet/1", HERE, status="FAILED", is_deleted=True)}
    failed = Rule("failed", tracking_uri=f"{ELSEWHERE}*", status="FAILED", drop=DAY)
    finished = Rule("finished", status="FINISHED", keep=math.inf)
    assert kept(planned(seen, rules=[everything])) == {"a"}
    assert kept(planned(seen, rules=[failed], told=told)) == {"a"}, "that is another model of this name"
    anywhere = Rule("anywhere", tracking_uri="*", drop=DAY)
    assert kept(planned(seen, rules=[anywhere, finished], told=told)) == {"a"}, "of which nothing is known"
    assert kept(planned(seen, rules=[there])) == set()
    assert kept(planned(seen, rules=[there, Rule("keep", model="resnet", keep=math.inf)])) == {"a"}
    assert questions([seen], HERE) == []


def test_what_cannot_be_read_goes_after_the_grace() -> None:
    """And no capacity takes it before."""
    found = planned(record("old", 1.5, fault="cannot be read"), record("new", 0.5, fault="cannot be read"), capacity=1)
    assert kept(found) == {"new"}
    assert found["old"].reason == "it cannot be read"
    assert found["new"].reason == "it cannot be read; it goes 1d after it was written"


def test_capacity_takes_the_oldest_first_and_counts_what_is_shared_once() -> None:
    """Until the rest fits, and not one more."""
    seen = [
        record("a", 3, of={"shared": 100, "a": 10}),
        record("b", 2, of={"shared": 100, "b": 10}),
        record("c", 1, of={"shared": 100, "c": 10}),
    ]
    assert kept(planned(*seen, capacity=130)) == {"a", "b", "c"}
    assert kept(planned(*seen, capacity=129)) == {"b", "c"}
    assert kept(planned(*seen, capacity=119)) == {"c"}
    assert kept(planned(*seen, capacity=109)) == set()
    assert "[shared] capacity" in planned(*seen, capacity=129)["a"].reason


def test_capacity_takes_nothing_that_a_rule_keeps() -> None:
    """By how much it is over is told."""
    seen = [record("a", 3, of={"a": 100}, versions=("models:/m/1",)), record("b", 2, of={"b": 50}, size=7)]
    rule = Rule("keep", model="m", keep=5 * DAY)
    found = whole(*seen, rules=[rule], capacity=60)
    assert [decision.is_kept for decision in found.decisions] == [True, False] and found.excess == 40
    assert kept(planned(*seen, rules=[replace(rule, keep=2 * DAY)], capacity=60)) == {"b"}


@pytest.mark.parametrize("seed", range(20))
def test_capacity_is_kept_whatever_is_shared(seed: int) -> None:
    """What is left fits, and with the next older one it would not."""
    dice = random.Random(seed)
    sizes = {f"o{n}": dice.randrange(1, 100) for n in range(30)}
    seen = [
        record(f"r{n}", 100 - n, of={o: sizes[o] for o in dice.sample(sorted(sizes), 6)}, size=dice.randrange(5))
        for n in range(15)
    ]
    capacity = dice.randrange(0, 1500) + 1

    def bytes_of(some: Sequence[Seen]) -> int:
        return sum({m: s for one in some for m, s in zip(one.needs, one.sizes, strict=True)}.values()) + sum(
            one.size for one in some
        )

    found = whole(*seen, capacity=capacity)
    left = [decision.seen for decision in found.decisions if decision.is_kept]
    assert bytes_of(left) <= capacity and found.excess == 0
    assert left == seen[len(seen) - len(left) :]
    assert len(left) == len(seen) or bytes_of(seen[len(seen) - len(left) - 1 :]) > capacity


def test_only_what_this_tracking_server_can_say_is_asked() -> None:
    """Each version once, without its path."""
    seen = [
        record("a", versions=("runs:/a/model", "runs:/a/other", "models:/resnet/3")),
        record("b", versions=()),
        record("c", fault="cannot be read"),
        record("d", versions=("models:/no",)),
    ]
    assert questions(seen, HERE) == ["models:/resnet/3", "runs:/a"]
