"""What a configuration may say, but surely does not mean: a sentence for each.

Law of this file: it refuses nothing; `config` does that. Values in, words out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase

from cacheserver import schedules, uris
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.retention import Facts, verdict
from cacheserver.settings import Config, OriginConfig


def warnings(config: Config) -> list[str]:
    """All of them."""
    return [*_of_limits(config), *_of_access(config), *_of_rules(config), *_of_warm(config)]


def _of_limits(config: Config) -> Iterator[str]:
    capacity, min_free = config.store.capacity, config.store.min_free
    if capacity.percent and min_free.percent and capacity.number < 100 < capacity.number + min_free.number:
        yield (
            f"[store] capacity of {capacity.number:g}% is never reached, for min_free keeps {min_free.number:g}% of the"
            " same filesystem free."
        )
    origin = config.origin
    if origin.stale_after > origin.unreachable_after and origin.stale_after != OriginConfig.stale_after:
        yield (
            f"[origin] stale_after of {origin.stale_after:g} s counts as {origin.unreachable_after:g} s: no question"
            " takes longer than unreachable_after."
        )
    for kind, allowances in (("user", config.quotas.users), ("group", config.quotas.groups)):
        for name, allowance in allowances.items():
            held = allowance.held or capacity
            if held.percent == capacity.percent and held.number > capacity.number:
                yield f"[quotas.{kind}] {name}: held is more than [store] capacity, and so no limit."
            # A user's empty entry means something: the one for every other user is not for this one.
            if allowance == Allowance() and (kind == "group" or name == EVERYBODY):
                yield f"[quotas.{kind}] {name}: limits nothing, and can be left out."


def _of_access(config: Config) -> Iterator[str]:
    if config.access.users == "self":
        if config.quotas.users or config.quotas.groups:
            yield '[quotas] can only limit the daemon\'s own user, for [access] users is "self".'
        if config.access.operators:
            yield '[access] operators can be left out: with users = "self" only the daemon\'s own user is served.'


def _of_rules(config: Config) -> Iterator[str]:
    here = config.origin.tracking_uri.rstrip("/")
    for rule in config.retention:
        shown = f'[[retention]] "{rule.name}"'
        if rule.tracking_uri and here and "@" not in here and not fnmatchcase(here, rule.tracking_uri):
            yield f"{shown} matches nothing: [origin] tracking_uri is {here}."
        is_of_the_living = rule.keep_last and not rule.keep and rule.drop == math.inf and rule.priority is None
        if rule.deleted and (rule.alias or is_of_the_living):
            yield f"{shown} matches nothing: a version that was deleted has no alias, and is none of the last ones."
        if not rule.has_conditions and rule.keep == math.inf:
            yield f"{shown} keeps everything, always: nothing is ever evicted, and a full store takes nothing more in."
        if not rule.has_conditions and rule.drop == 0:
            yield f"{shown} drops everything at once: nothing is cached but what another rule keeps."
        if any(c in rule.model for c in "/:"):
            yield f'{shown} matches nothing: a registered model has a name, not a URI; write model = "resnet".'


def _of_warm(config: Config) -> Iterator[str]:
    seen = set[tuple[str, tuple[str, ...], tuple[str, ...]]]()
    for warm in config.warm:
        if (key := (warm.uri, warm.include, warm.exclude)) in seen:
            yield f"[[warm]] {warm.uri} is there twice."
        seen.add(key)
        artifact = uris.parse(warm.uri)
        if artifact.kind in uris.MOVING and config.origin.alias_ttl > warm.every:  # `at` asks whatever is remembered
            yield f"[[warm]] {warm.uri} is looked at less often than every says: [origin] alias_ttl is longer."
        facts = Facts.of(artifact, config.origin.tracking_uri.rstrip("/"))
        found = verdict(config.retention, [(facts, 0.0, 0.0)])
        if found.drop_at < (schedules.gap(warm.at) if warm.at else warm.every):
            yield f"[[warm]] {warm.uri} goes before it is looked at again: {' '.join(found.because)}"
