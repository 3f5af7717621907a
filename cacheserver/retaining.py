"""Retention rules at work: asks the origin for what they need, and writes down what they say of each tree.

Law of this file: what the origin does not say is not known, and what is not known lets nothing go that a rule keeps.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, Protocol

from artifactcache.errors import InvalidRequest, OriginUnavailable
from cacheserver import uris
from cacheserver.index import Index
from cacheserver.retention import Facts, Rule, Verdict, needs, unmatched, verdict
from cacheserver.rulings import Named
from cacheserver.uris import Kind

TREES_AT_A_TIME = 200
VERSIONS_AT_A_TIME = 1000
FACTS_KEPT_SECONDS = 30 * 86_400.0
# So many versions that are all gone at once are a tracking server that has lost its memory, rather than a clean-up.
GONE_AT_ONCE_MIN = 20

_log = logging.getLogger(__name__)


class Describes(Protocol):
    """What an origin says of versions."""

    @property
    def name(self) -> str:
        """Its tracking URI, without credentials."""

    def describe(self, versions: list[str], needs: frozenset[str]) -> dict[str, Facts]:
        """What is known of each. Raises OriginUnavailable."""


class Retaining:
    """The rules, for all trees of a store.

    Args:
        clock: seconds since the epoch.
        pause: lets others have their turn.
    """

    def __init__(
        self,
        index: Index,
        origin: Describes,
        rules: Sequence[Rule],
        clock: Callable[[], float],
        pause: Callable[[], None],
    ) -> None:
        self._index = index
        self._rulings = index.rulings
        self._origin = origin
        self._clock = clock
        self._pause = pause
        self._told: set[str] = set()
        self._is_away = False
        self._lock = threading.Lock()
        self._unknown: dict[str, set[str]] = {}  # versions that nobody has asked about yet, and the trees they are
        self.become(rules)
        self._take_back()
        self._is_to_ask = False  # `refresh` comes by itself

    def become(self, rules: Sequence[Rule]) -> None:
        """Goes by these from now on: `rejudge` takes back what the old ones have said, and `look` asks what the new
        ones need."""
        self._rules, self._needs = tuple(rules), needs(rules)
        self._told.clear()
        self._has_changed = self._is_to_ask = True

    def _take_back(self) -> None:
        self._has_changed = False
        if self._rules:
            self._rulings.forget_drops()
        else:
            self._rulings.forget_all()

    def judge(self, trees: Sequence[str]) -> None:
        """Writes down what the rules say of some trees, by what is known now."""
        if not self._rules or not trees:
            return
        held = self._rulings.artifacts(trees)
        self._record(held)
        if not self._needs:
            return
        since = {
            (base, tree): one.fetched_at
            for tree, named in held.items()
            for one in named
            if (base := self._version(one))
        }
        told = self._rulings.facts(version for version, _ in since)
        with self._lock:
            for (version, tree), fetched_at in since.items():
                if version and (version not in told or told[version][1] < fetched_at):
                    self._unknown.setdefault(version, set()).add(tree)

    def because(self, tree: str) -> tuple[str, ...]:
        """What the rules say of a tree, a sentence each."""
        return self._verdict(self._rulings.artifacts([tree])[tree]).because if self._rules else ()

    def would_drop(self, versions: Sequence[str]) -> set[str]:
        """Those of some runs and logged models that would go as soon as they have come. Raises OriginUnavailable."""
        if not versions or all(rule.drop == math.inf for rule in self._rules):
            return set()
        now, told = self._clock(), self._origin.describe(list(versions), self._needs)
        return {one for one, facts in told.items() if verdict(self._rules, [(facts, now, now)]).drop_at <= now}

    def look(self) -> None:
        """Asks the origin about what has come since the last time."""
        if self._is_to_ask:
            self._is_to_ask = False
            self.refresh()
        with self._lock:
            unknown, self._unknown = self._unknown, {}
        if not unknown:
            return
        try:
            self._ask(sorted(unknown), self._clock())
        except OriginUnavailable as error:
            self._tell_away(error)
            return  # `refresh` asks again
        self.judge(sorted({tree for trees in unknown.values() for tree in trees}))

    def refresh(self) -> None:
        """Asks the origin about everything that is held, as far as a rule needs it, and judges all trees anew."""
        if not self._rules:
            self.rejudge()
            return
        now, versions = self._clock(), set[str]()
        for trees in self._walk():
            for named in self._rulings.artifacts(trees).values():
                versions |= {base for one in named if (base := self._version(one))}
            self._pause()
        try:
            self._ask(sorted(versions), now)
        except OriginUnavailable as error:
            self._tell_away(error)
        self.rejudge()

    def rejudge(self) -> None:
        """Judges all trees by what is known now."""
        if self._has_changed:
            self._take_back()
        if not self._rules:
            return
        matched_none: tuple[Rule, ...] = self._rules
        is_empty = True
        for trees in self._walk():
            held = self._rulings.artifacts(trees)
            self._record(held)
            facts = self._facts([one for some in held.values() for one in some]).values()
            names = unmatched(matched_none, facts)
            matched_none, is_empty = tuple(rule for rule in matched_none if rule.name in names), False
            self._pause()
        if not is_empty:
            self._warn(matched_none)

    def _ask(self, versions: list[str], now: float) -> None:
        if not self._needs:
            return
        asked = self._rulings.asked_at(versions)
        versions.sort(key=lambda version: asked.get(version, 0.0))  # the oldest answers first
        gone: dict[str, str] = {}
        alive = 0
        for start in range(0, len(versions), VERSIONS_AT_A_TIME):
            some = versions[start : start + VERSIONS_AT_A_TIME]
            fresh = self._origin.describe(some, self._needs)
            alive += sum(facts.is_deleted is False for facts in fresh.values())
            answers = self._with_known(fresh)
            texts = {version: facts.encode() for version, facts in answers.items()}
            gone |= {version: texts.pop(version) for version, facts in answers.items() if facts.is_deleted}
            self._rulings.record_facts(texts, now)
        if len(gone) >= GONE_AT_ONCE_MIN and not alive:
            raise OriginUnavailable(
                f"all {len(gone)} versions that are held have gone at once: that is not believed. If it is so, start"
                " the daemon with an empty store"
            )
        self._rulings.record_facts(gone, now)
        self._rulings.forget_facts(now - FACTS_KEPT_SECONDS)
        self._is_away = False

    def _with_known(self, answers: dict[str, Facts]) -> dict[str, Facts]:
        """Answers, and what was known before of what they leave open: a question that stumbled takes nothing back."""
        merged = {}
        told = self._rulings.facts(answers)
        for version, facts in answers.items():
            before = Facts()
            with suppress(ValueError):
                before = Facts.decode(told.get(version, ("", 0.0))[0])
            open_fields = [f.name for f in fields(facts) if getattr(facts, f.name) is None]
            known: dict[str, Any] = {name: getattr(before, name) for name in open_fields}
            merged[version] = replace(facts, **known, tags={**before.tags, **facts.tags})
        return merged

    def _record(self, held: dict[str, list[Named]]) -> None:
        # One without a name keeps the ruling that it had: nothing is known of it any more.
        self._rulings.record({tree: self._verdict(named) for tree, named in held.items() if named})

    def _verdict(self, named: Sequence[Named]) -> Verdict:
        facts = self._facts(named)
        return verdict(self._rules, [(facts[one], one.fetched_at, one.used_at) for one in named])

    def _facts(self, named: Sequence[Named]) -> dict[Named, Facts]:
        told = self._rulings.facts(base for one in named if (base := self._version(one)))
        found = {}
        for one in named:
            text, asked_at = told.get(self._version(one), ("", 0.0))
            if asked_at >= one.fetched_at:  # else that was of an earlier life of it, before it was evicted
                with suppress(ValueError):  # another release has written it down
                    found[one] = Facts.decode(text)
                    continue
            try:
                found[one] = Facts.of(uris.stored(one.uri), one.tracking_uri)
            except InvalidRequest:  # of another release
                found[one] = Facts(one.uri, one.tracking_uri)
        return found

    def _version(self, one: Named) -> str:
        """The version that this origin can be asked about; empty where it cannot."""
        if one.tracking_uri != self._origin.name:
            return ""
        try:
            artifact = uris.stored(one.uri)
        except InvalidRequest:
            return ""
        return "" if artifact.kind is Kind.BARE else artifact.base

    def _walk(self) -> Iterator[list[str]]:
        after = -1
        while rows := self._rulings.some_trees(after, TREES_AT_A_TIME):
            yield [digest for _, digest in rows]
            after = rows[-1][0]

    def _tell_away(self, error: OriginUnavailable) -> None:
        if not self._is_away:
            _log.warning("retention rules go by what was known before: %s", error)
        self._is_away = True

    def _warn(self, rules: Sequence[Rule]) -> None:
        for rule in rules:
            if rule.name not in self._told:
                self._told.add(rule.name)
                _log.warning('the retention rule "%s" matches nothing that is held: is it spelled as meant?', rule.name)
