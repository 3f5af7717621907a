"""Retention rules at work: what they say of trees by what an origin tells, does not tell, or tells wrongly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from artifactcache.errors import OriginUnavailable
from cacheserver import retaining, uris
from cacheserver.holdings import Tree
from cacheserver.index import Index
from cacheserver.retaining import GONE_AT_ONCE_MIN, VERSIONS_AT_A_TIME, Retaining
from cacheserver.retention import ALIASES, DELETED, RUN, Facts, Rule
from tests.unit.rows import ORIGIN, record, tree

CHAMPION = Rule("champions", model="*", alias="champion", keep=math.inf)
FAILED = Rule("failed", status="FAILED", drop=10.0)
DELETED_GOES = Rule("deleted", deleted=True, drop=0.0)
KEPT = Rule("kept", keep=100.0)


class Teller:
    """An origin that knows of versions what the test tells it, and says it to whoever asks."""

    name = ORIGIN

    def __init__(self) -> None:
        self.known: dict[str, Facts] = {}
        self.asked: list[tuple[list[str], frozenset[str]]] = []
        self.is_away = False

    def describe(self, versions: list[str], needs: frozenset[str]) -> dict[str, Facts]:
        """What was told, and of the rest what its name says."""
        self.asked.append((list(versions), needs))
        if self.is_away:
            raise OriginUnavailable("the tracking server does not answer")
        return {one: self.known.get(one) or Facts.of(uris.parse(one), ORIGIN) for one in versions}

    def tell(self, version: str, **facts: object) -> None:
        """From now on this is so."""
        known = self.known.get(version) or Facts.of(uris.parse(version), ORIGIN)
        self.known[version] = replace(known, **facts)  # type: ignore[arg-type]

    def versions_asked(self) -> list[str]:
        """All that was asked for, since the last time this was called."""
        asked, self.asked = self.asked, []
        return [one for versions, _ in asked for one in versions]


class Shop:
    """An index, an origin, and rules between them."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.origin = Teller()
        self.now = 1000.0
        self.retaining = self.rules()

    def rules(self, *rules: Rule) -> Retaining:
        """From now on these rules apply, as in a daemon that has just started."""
        self.retaining = Retaining(self.index, self.origin, rules, lambda: self.now, lambda: None)
        return self.retaining

    def hold(self, uri: str, *names: str, at: float = 1000.0) -> str:
        """An artifact of files that are told apart by their names comes; the rules say what they say."""
        record(self.index, uri, *(names or (uri,)), now=at)
        digest = tree(*(names or (uri,))).digest
        self.retaining.judge([digest])
        return digest

    def of(self, digest: str) -> Tree:
        """What the rules have said of a tree."""
        found = self.index.holdings.tree(digest, now=self.now, young_since=math.inf)
        assert found is not None
        return found


@pytest.fixture
def shop(index: Index) -> Shop:
    """One without rules."""
    return Shop(index)


def test_rules_apply_to_what_comes_at_once(shop: Shop) -> None:
    """What is not known keeps; nothing is asked for it."""
    shop.rules(CHAMPION, FAILED)
    version, run = shop.hold("models:/m/1"), shop.hold("runs:/r")
    assert shop.of(version).kept_until == math.inf and shop.of(run).drop_at is None
    assert any("as long as which aliases it has is not known" in why for why in shop.retaining.because(version))
    assert shop.origin.asked == []


def test_what_has_come_is_asked_about_once(shop: Shop) -> None:
    """And then judged by what is known; the next look asks about what has come since."""
    shop.rules(CHAMPION, FAILED)
    shop.origin.tell("models:/m/1", aliases=frozenset({"champion"}), status="FINISHED", is_deleted=False)
    shop.origin.tell("models:/m/2", aliases=frozenset({"other"}), status="FAILED", ended_at=900.0)
    first, second = shop.hold("models:/m/1"), shop.hold("models:/m/2")
    shop.retaining.look()
    assert (shop.of(first).kept_until, shop.of(first).drop_at) == (math.inf, None)
    assert (shop.of(second).kept_until, shop.of(second).drop_at) == (0.0, 1010.0)
    assert sorted(shop.origin.versions_asked()) == ["models:/m/1", "models:/m/2"]
    shop.retaining.look()
    assert shop.origin.asked == []
    shop.hold("models:/m/3")
    shop.hold("models:/m/1", "another tree of it")
    shop.retaining.look()
    assert shop.origin.versions_asked() == ["models:/m/3"]


def test_all_that_came_of_one_version_is_judged(shop: Shop) -> None:
    """Paths of a run are trees of their own, and what is told of the run is told of each."""
    shop.rules(FAILED)
    trees = [shop.hold(f"runs:/r/{path}") for path in ("a", "b", "c")]
    together = [record(shop.index, f"runs:/s/{path}", path, now=1000.0).digest for path in ("d", "e", "f")]
    shop.retaining.judge(together)
    for run in ("runs:/r", "runs:/s"):
        shop.origin.tell(run, status="FAILED", ended_at=900.0)
    shop.retaining.look()
    assert [shop.of(one).drop_at for one in (*trees, *together)] == [1010.0] * 6
    assert sorted(shop.origin.versions_asked()) == ["runs:/r", "runs:/s"]


def test_all_is_asked_anew_now_and_then(shop: Shop) -> None:
    """An alias that has moved keeps what it stands for now, and not what it stood for."""
    shop.rules(CHAMPION)
    old, new = shop.hold("models:/m/1"), shop.hold("models:/m/2")
    for champion, kept in (("models:/m/1", old), ("models:/m/2", new)):
        for version in ("models:/m/1", "models:/m/2"):
            shop.origin.tell(version, aliases=frozenset({"champion"} if version == champion else ()))
        shop.retaining.refresh()
        assert {one for one in (old, new) if shop.of(one).kept_until == math.inf} == {kept}


def test_an_origin_that_is_away_changes_nothing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """What was known stands, drops and keeps; what has come since keeps. It is told once each time."""
    shop.rules(CHAMPION, FAILED)
    shop.origin.tell("models:/m/1", aliases=frozenset({"champion"}))
    shop.origin.tell("models:/m/2", aliases=frozenset(), status="FAILED", ended_at=0.0)
    first, second = shop.hold("models:/m/1"), shop.hold("models:/m/2")
    shop.retaining.refresh()
    before = [(shop.of(one).kept_until, shop.of(one).drop_at) for one in (first, second)]
    assert before == [(math.inf, None), (0.0, 1010.0)]
    shop.origin.is_away = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            third = shop.hold("models:/m/3")
            shop.retaining.look()
            shop.retaining.refresh()
    assert [(shop.of(one).kept_until, shop.of(one).drop_at) for one in (first, second)] == before
    assert (shop.of(third).kept_until, shop.of(third).drop_at) == (math.inf, None)
    assert caplog.text.count("go by what was known before") == 1
    shop.origin.is_away = False
    shop.retaining.refresh()
    shop.origin.is_away = True
    shop.retaining.refresh()
    assert caplog.text.count("go by what was known before") == 2


def test_an_origin_that_is_away_at_the_start_drops_nothing(shop: Shop) -> None:
    """A daemon that starts again knows what the last one was told, and of the rest nothing."""
    shop.rules(CHAMPION, FAILED)
    shop.origin.tell("models:/m/1", aliases=frozenset({"champion"}))
    known = shop.hold("models:/m/1")
    shop.retaining.refresh()
    shop.origin.is_away = True
    new = shop.hold("models:/m/2")
    shop.rules(CHAMPION, FAILED, DELETED_GOES)
    shop.retaining.refresh()
    assert [(shop.of(one).kept_until, shop.of(one).drop_at) for one in (known, new)] == [(math.inf, None)] * 2


@pytest.mark.parametrize("unknown", [0, 1, 100], ids="{} of which nothing is known".format)
def test_all_gone_at_once_is_not_believed(shop: Shop, unknown: int, caplog: pytest.LogCaptureFixture) -> None:
    """A server that has lost its memory: nothing goes for it, also where it was not asked about everything."""
    shop.rules(DELETED_GOES)
    runs = [f"runs:/{number:03}" for number in range(GONE_AT_ONCE_MIN + 1 + unknown)]
    trees = [shop.hold(run) for run in runs]
    for run in runs:
        shop.origin.tell(run, is_deleted=False)
    shop.retaining.refresh()
    for number, run in enumerate(runs):
        shop.origin.tell(run, is_deleted=True if number >= unknown else None)
    with caplog.at_level(logging.WARNING):
        shop.retaining.refresh()
    assert [shop.of(one).drop_at for one in trees] == [None] * len(trees)
    assert "gone at once" in caplog.text
    shop.origin.tell(runs[-1], is_deleted=False)
    shop.retaining.refresh()
    assert [shop.of(one).drop_at is None for one in trees] == [
        n < unknown or run == runs[-1] for n, run in enumerate(runs)
    ]


def test_a_few_that_are_gone_are_believed(shop: Shop) -> None:
    """A clean-up takes what it takes; a store of a few versions may lose all of them."""
    shop.rules(DELETED_GOES)
    trees = [shop.hold(f"runs:/{number}") for number in range(GONE_AT_ONCE_MIN - 1)]
    for number in range(len(trees)):
        shop.origin.tell(f"runs:/{number}", is_deleted=True)
    shop.retaining.refresh()
    assert all(shop.of(one).drop_at is not None for one in trees)


def test_rules_that_match_nothing_are_told_once(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Not before there is something, nor those that may match for all that is known."""
    typo = Rule("typo", model="resnett", keep=math.inf)
    shop.rules(CHAMPION, typo, FAILED)
    with caplog.at_level(logging.WARNING):
        shop.retaining.refresh()
        assert caplog.text == ""
        shop.hold("models:/resnet/1")
        for _ in range(3):
            shop.retaining.refresh()
    assert caplog.text.count("matches nothing") == 1 and '"typo"' in caplog.text


def test_rules_that_are_gone_say_nothing_any_more(shop: Shop) -> None:
    """A daemon without rules forgets at its start what the last one's said."""
    shop.rules(CHAMPION, Rule("first", keep=1.0, drop=2.0, priority=7))
    held = shop.hold("models:/m/1")
    assert (shop.of(held).level, shop.of(held).drop_at) != (0, None)
    shop.rules()
    assert (shop.of(held).level, shop.of(held).kept_until, shop.of(held).drop_at) == (0, 0.0, None)
    assert shop.retaining.because(held) == ()
    shop.retaining.judge([held])
    shop.retaining.look()
    shop.retaining.refresh()
    assert shop.origin.asked == [] and shop.of(held).kept_until == 0.0


def test_rules_that_are_others_by_now_are_judged_by_anew(shop: Shop) -> None:
    """With the first refresh, whatever the origin says."""
    shop.rules(Rule("first", keep=1.0, drop=2.0, priority=7))
    held = shop.hold("models:/m/1")
    shop.rules(CHAMPION)
    shop.origin.is_away = True
    shop.retaining.refresh()
    assert (shop.of(held).level, shop.of(held).kept_until, shop.of(held).drop_at) == (0, math.inf, None)


def test_what_an_answer_leaves_open_stays_as_it_was_known(shop: Shop) -> None:
    """A question of several stumbled: neither does what was known to be otherwise keep again, nor does what was to go
    stay, by its status or by a tag of which nothing is said now."""
    shop.rules(CHAMPION, FAILED, Rule("scrap", tag={"grade": "scrap"}, drop=20.0))
    version, run, scrap = shop.hold("models:/m/1"), shop.hold("runs:/r"), shop.hold("runs:/scrap")
    shop.origin.tell("models:/m/1", aliases=frozenset({"other"}), status="FINISHED", tags={})
    shop.origin.tell("runs:/r", status="FAILED", ended_at=900.0, tags={})
    shop.origin.tell("runs:/scrap", status="FINISHED", tags={"grade": "scrap"})

    def said() -> tuple[float, float | None, float | None]:
        return shop.of(version).kept_until, shop.of(run).drop_at, shop.of(scrap).drop_at

    shop.retaining.look()
    assert said() == (0.0, 1010.0, 1020.0)
    shop.origin.tell("models:/m/1", aliases=None)
    shop.origin.tell("runs:/r", status=None, ended_at=None)
    shop.origin.tell("runs:/scrap", tags={})
    shop.retaining.refresh()
    assert said() == (0.0, 1010.0, 1020.0)


def test_a_tree_of_several_names_has_what_each_of_them_gives(shop: Shop) -> None:
    """One of them is enough to keep it, and all of them have to be dropped for it to go."""
    shop.rules(CHAMPION, FAILED)
    held = shop.hold("models:/m/1", "same")
    assert shop.hold("runs:/r", "same") == held
    shop.origin.tell("runs:/r", status="FAILED", ended_at=0.0)
    shop.origin.tell("models:/m/1", aliases=frozenset(), status="FINISHED")
    shop.retaining.look()
    assert (shop.of(held).kept_until, shop.of(held).drop_at) == (0.0, None)
    shop.origin.tell("models:/m/1", aliases=frozenset({"champion"}), status="FAILED", ended_at=0.0)
    shop.retaining.refresh()
    assert shop.of(held).kept_until == math.inf
    shop.origin.tell("models:/m/1", aliases=frozenset())
    shop.retaining.refresh()
    assert (shop.of(held).kept_until, shop.of(held).drop_at) == (0.0, 1010.0)


def test_only_what_rules_need_is_asked(shop: Shop) -> None:
    """Nothing at all for rules about names and times, and no bare URI, whatever the rules."""
    shop.rules(KEPT, Rule("models", model="m*", priority=3))
    held = shop.hold("models:/m/1")
    shop.hold("s3://bucket/bare")
    shop.retaining.look()
    shop.retaining.refresh()
    assert shop.origin.versions_asked() == [] and shop.of(held).level == 3 and shop.of(held).kept_until == 1100.0
    shop.rules(CHAMPION, DELETED_GOES)
    shop.retaining.refresh()
    assert [needs for _, needs in shop.origin.asked] == [frozenset({ALIASES, DELETED})]
    assert shop.origin.versions_asked() == ["models:/m/1"]
    shop.rules(FAILED)
    shop.hold("runs:/r")
    shop.retaining.look()
    assert shop.origin.asked == [(["runs:/r"], frozenset({RUN}))]


def test_questions_are_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many versions in one, each once, those first of which nothing is known or which were asked longest ago."""
    assert VERSIONS_AT_A_TIME <= 1000
    monkeypatch.setattr(retaining, "VERSIONS_AT_A_TIME", 4)
    monkeypatch.setattr(retaining, "TREES_AT_A_TIME", 3)
    shop.rules(FAILED)
    for number in range(10):
        shop.hold(f"runs:/{number}")
        shop.hold(f"runs:/{number}/path")
    shop.retaining.refresh()
    assert [len(versions) for versions, _ in shop.origin.asked] == [4, 4, 2]
    assert sorted(shop.origin.versions_asked()) == [f"runs:/{n}" for n in range(10)]
    shop.now += 10
    shop.hold("runs:/late")
    shop.retaining.look()
    shop.origin.versions_asked()
    shop.now += 10
    shop.hold("runs:/new")
    shop.retaining.refresh()
    asked = shop.origin.versions_asked()
    assert asked[0] == "runs:/new" and asked[-1] == "runs:/late" and len(asked) == 12


def test_trees_of_other_origins_are_kept_by_what_they_are(shop: Shop, path: str) -> None:
    """They cannot be asked about: what is not known of them keeps, and does not drop."""
    other = Index(path, "http://two.example")
    try:
        record(other, "models:/m/1", "theirs")
    finally:
        other.close()
    shop.origin.tell("models:/m/1", aliases=frozenset(), status="FAILED", ended_at=0.0, is_deleted=True)
    shop.rules(CHAMPION, FAILED, DELETED_GOES, Rule("two", tracking_uri="http://two*", priority=5))
    shop.hold("models:/m/1", "ours")
    theirs = tree("theirs").digest
    shop.retaining.judge([theirs])
    shop.retaining.look()
    shop.retaining.refresh()
    held = shop.of(theirs)
    assert (held.level, held.kept_until, held.drop_at) == (5, math.inf, None)
    assert shop.of(tree("ours").digest).drop_at is not None


def test_what_cannot_be_read_is_not_known(shop: Shop) -> None:
    """What another release has written down of a version, or under which name it holds something, is no error."""
    shop.rules(CHAMPION)
    held = shop.hold("models:/m/1")
    shop.index.rulings.record_facts({"models:/m/1": '{"of": "another release"}'}, shop.now)
    shop.retaining.judge([held])
    assert shop.of(held).kept_until == math.inf and shop.retaining.because(held)
    strange = shop.hold("models:/no artifact/at all/?", "strange")
    shop.retaining.refresh()
    assert shop.of(strange).drop_at is None


def test_keeps_count_from_the_last_use(shop: Shop) -> None:
    """As it is written down, whatever is asked of the origin."""
    shop.rules(KEPT)
    held = shop.hold("runs:/r")
    assert shop.of(held).kept_until == 1100.0
    shop.index.record_uses({("runs:/r", ""): 5000.0})
    shop.retaining.judge([held])
    assert shop.of(held).kept_until == 5100.0


def test_old_answers_are_forgotten(shop: Shop) -> None:
    """Of what is not held any more, after a month; what is held is asked for again and again."""
    shop.rules(FAILED)
    shop.hold("runs:/r")
    shop.index.rulings.record_facts({"runs:/gone": Facts().encode()}, shop.now)
    shop.now += retaining.FACTS_KEPT_SECONDS - 1
    shop.retaining.refresh()
    assert shop.index.rulings.facts(["runs:/gone"])
    shop.now += 2
    shop.retaining.refresh()
    assert not shop.index.rulings.facts(["runs:/gone"]) and shop.index.rulings.facts(["runs:/r"])


def test_who_fetches_beside_a_look_is_no_error(shop: Shop) -> None:
    """What comes while the origin is being asked is asked about the next time."""
    shop.rules(FAILED)
    shop.hold("runs:/one")
    ask: Callable[[list[str], frozenset[str]], dict[str, Facts]] = shop.origin.describe

    def describe(versions: list[str], needs: frozenset[str]) -> dict[str, Facts]:
        shop.hold("runs:/two")
        return ask(versions, needs)

    shop.origin.describe = describe  # type: ignore[method-assign]
    shop.retaining.look()
    shop.origin.describe = ask  # type: ignore[method-assign, assignment]
    shop.retaining.look()
    assert shop.origin.versions_asked() == ["runs:/one", "runs:/two"]
