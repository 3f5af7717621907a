"""Which files of an artifact are wanted: include and exclude patterns.

Patterns match whole paths relative to the artifact. `*`, `?` and `[…]` stay inside one folder, a component `**` crosses
folders (beside other characters it is a `*`), and a pattern that ends with "/" means everything in that folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from artifactcache.errors import InvalidRequest
from cacheserver.words import Entry, Manifest

PATTERNS_MAX = 100
PATTERN_LENGTH_MAX = 1000


@dataclass(frozen=True)
class Selection:
    """Include and exclude patterns; without any, all is wanted."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: Iterable[str], exclude: Iterable[str]) -> Selection:
        """Checks patterns from a client. Raises InvalidRequest."""
        chosen = cls(tuple(sorted(set(include))), tuple(sorted(set(exclude))))
        patterns = chosen.include + chosen.exclude
        if len(patterns) > PATTERNS_MAX:
            raise InvalidRequest(f"{len(patterns)} patterns are too many: at most {PATTERNS_MAX} are taken.")
        for pattern in patterns:
            if not pattern or len(pattern) > PATTERN_LENGTH_MAX or "\0" in pattern:
                raise InvalidRequest(
                    f"The pattern {pattern[:80]!r} is empty, contains NUL, or is longer than {PATTERN_LENGTH_MAX}."
                )
        _ = chosen._compiled  # here, and not when the origin has been asked already
        return chosen

    @classmethod
    def from_key(cls, key: str) -> Selection:
        """The inverse of `key`."""
        include, exclude = json.loads(key) if key else ((), ())
        return cls(tuple(include), tuple(exclude))

    @property
    def key(self) -> str:
        """The same text for the same patterns; empty where all is wanted."""
        return json.dumps([self.include, self.exclude]) if self.include or self.exclude else ""

    @cached_property
    def _compiled(self) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
        return [_compile(p) for p in self.include], [_compile(p) for p in self.exclude]

    def takes(self, path: bytes) -> bool:
        """Whether the file, or the empty folder, at `path` is wanted."""
        include, exclude = self._compiled
        # As text: "?" is one character, not one byte of it. A byte that is not UTF-8 is a character of its own.
        text = path.rstrip(b"/").decode("utf-8", "surrogateescape")
        return (not include or any(p.fullmatch(text) for p in include)) and not any(p.fullmatch(text) for p in exclude)

    def of_manifest(self, manifest: Manifest) -> Manifest:
        """The wanted part of a manifest."""
        return Manifest(tuple(e for e in manifest.entries if self.takes_entry(e))) if self.key else manifest

    def takes_entry(self, entry: Entry) -> bool:
        """Whether an entry is wanted."""
        return self.takes(entry.path)


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression in which nothing is tried twice: a client must not be able to hang a match.

    What stands before a later star is matched at its first place only (atomic groups), which loses nothing: whatever
    a later place leaves to the star after it, the first place leaves as well. As in Python's own fnmatch.
    """
    first, *later = _between_stars(pattern + "**" if pattern.endswith("/") else pattern)
    if later:
        middle = ("(?>(?:[^/]+/)*?" + "".join(f"{s}/" for s in part) + ")" for part in later[:-1] if part)
        last = "(?:[^/]+/)*" + "/".join(later[-1]) if later[-1] else ".+"
        out = "".join(f"{s}/" for s in first) + "".join(middle) + last
    else:
        out = "/".join(first)
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise InvalidRequest(f"The pattern {pattern!r} cannot be read: {error}.") from None


def _between_stars(pattern: str) -> list[list[str]]:
    """The expressions of a pattern's components, in a list for each stretch between components that are "**"."""
    out: list[list[str]] = [[]]
    for component in pattern.split("/"):
        if component == "**":
            out.append([])
        else:
            out[-1].append(_component(component))
    return out


def _component(text: str) -> str:
    """The expression of one component: what stands between its stars, the last star being the only one that gives."""
    parts, i = [""], 0
    while i < len(text):
        end = _class_end(text, i) if text[i] == "[" else None
        if end:
            inner = text[i + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            inner = f"^{inner[1:]}" if inner[0] in "!^" else inner
            parts[-1] += f"(?!/)[{inner}]"  # a range such as [.-0] has the slash in it as well
            i = end
        elif text[i] == "*":
            if parts[-1] or len(parts) == 1:  # several in a row are one
                parts.append("")
        else:
            parts[-1] += "[^/]" if text[i] == "?" else re.escape(text[i])
        i += 1
    first, *later = parts
    return first + "".join(f"(?>[^/]*?{p})" for p in later[:-1]) + "[^/]*" + later[-1] if later else first


def _class_end(pattern: str, start: int) -> int | None:
    """Where the character class that opens at `start` closes; None where it does not."""
    first = start + 2 if pattern[start + 1 : start + 2] in ("!", "^") else start + 1
    end = pattern.find("]", first + 1)
    return end if end > 0 else None
