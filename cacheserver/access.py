"""Who may read what, by the grants of the configuration.

Law of this file: values in, a decision out. What no grant names is refused, and what is not known grants nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from cacheserver.retention import Facts, Rule, matches

EVERYBODY = "*"


@dataclass(frozen=True)
class Grant:
    """A rule that lets users read artifacts: those of whom all conditions hold. What is empty is no condition.

    Attributes:
        to: user names, groups behind an @, or "*" for everybody whom the daemon serves.
        path: a pattern of the path inside the run, the logged model or the version, in which `*` crosses slashes.
        uri: a pattern of bare artifact URIs; the grant is about those only.
        of: what has to hold of the run, the logged model or the version: the conditions of a retention rule.
    """

    name: str = ""
    to: tuple[str, ...] = ()
    path: str = ""
    uri: str = ""
    of: Rule = field(default_factory=Rule)


class Decision(NamedTuple):
    """Whether a caller may read an artifact, and why."""

    granted: bool
    reason: str


class Caller(NamedTuple):
    """Whom a grant may name: a user and groups, by name."""

    user: str
    groups: frozenset[str]

    def is_one_of(self, people: Sequence[str]) -> bool:
        """Whether a list of users, and of groups behind an @, names this one."""
        return any(
            one == EVERYBODY or (one[1:] in self.groups if one.startswith("@") else one == self.user) for one in people
        )


class Target(NamedTuple):
    """What a caller wants to read.

    Attributes:
        facts: what is known of the run, the logged model or the version.
        path: inside of it; empty for all of it.
        uri: where the caller has named a bare artifact URI, that; else empty.
        home_path: of a version of a registered model, where in its run or logged model it lies; None where it lies in
            none that is known.
    """

    facts: Facts
    path: str
    uri: str = ""
    home_path: str | None = ""

    def at(self, path: str) -> Target:
        """The same, at a path inside of it."""
        return self._replace(path=path)

    def path_for(self, grant: Grant) -> str | None:
        """The path that a grant's pattern is about: in the version, where the grant names a registered model, else in
        the run or the logged model; None where that is not known."""
        if grant.of.model or not self.home_path:
            return None if self.home_path is None and not grant.of.model else self.path
        return f"{self.home_path}/{self.path}".rstrip("/")


def judge(grants: Sequence[Grant], caller: Caller, target: Target) -> Decision:
    """Whether one of the grants lets a caller read something."""
    for grant in grants:
        if caller.is_one_of(grant.to) and _covers(grant, target):
            return Decision(True, f'granted by "{grant.name}"')
    return Decision(False, f"no [[grant]] of this host lets {caller.user} read it.")


def _covers(grant: Grant, target: Target) -> bool:
    if grant.uri:
        return bool(target.uri) and fnmatchcase(target.uri, grant.uri)
    if grant.path:
        path = target.path_for(grant)
        if not path or not fnmatchcase(path, grant.path):
            return False
    return matches(grant.of, target.facts) is True
