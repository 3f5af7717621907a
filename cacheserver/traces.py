"""Traces: who fetched what, when, and what fetching it took. The daemon writes them, the simulator replays them.

Law of this file: text in, values out, and back; it touches nothing. What is wrong in a trace is said with its line.

A trace is text, one JSON document a line. The first is `{"artifactcache_trace": 1}`. A tree is told before it is
fetched first, and again when something of it has changed: `{"tree": "…", "seconds": 12.5, "blobs": {"…": 1048576}}`
with the seconds that fetching all of it takes, and its blobs in bytes. A fetch is `{"at": 1767225600.0, "fetch": "…"}`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from artifactcache.errors import InvalidRequest

FORMAT = 1
HEADER = "artifactcache_trace"
BLOBS_MAX = 100  # of a tree, told one by one: others have the large ones in common, if any
LINE_BYTES_MAX = 65_536  # a tree's line has 101 blobs with names of 64 characters: 10 KiB
NAME_MAX = 200  # characters of a tree's or a blob's name
SIZE_MAX = 1 << 60  # bytes of a blob
SECONDS_MAX = 1e9
FETCHES_MAX = 10_000_000  # half a gigabyte of text
AT_MAX = 1e11  # seconds since the epoch


class Tree(NamedTuple):
    """A tree as a trace knows it.

    Attributes:
        seconds: what fetching all of it takes.
        blobs: names and bytes.
    """

    name: str
    seconds: float
    blobs: tuple[tuple[str, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of all blobs."""
        return sum(size for _, size in self.blobs)


class Fetch(NamedTuple):
    """Somebody fetched a tree, `at` seconds since the epoch."""

    at: float
    tree: Tree


def header() -> str:
    """The first line."""
    return _line({HEADER: FORMAT})


def tree_line(name: str, seconds: float, blobs: Iterable[tuple[str, int]]) -> str:
    """Tells a tree: its largest blobs one by one, and all others together as one that no other tree has."""
    every = dict(blobs)
    told = dict(heapq.nlargest(BLOBS_MAX, every.items(), key=lambda blob: (blob[1], blob[0])))
    rest = sum(every.values()) - sum(told.values())
    if len(every) > len(told):
        told[f"rest of {name}"] = rest
    return _line({"tree": name, "seconds": round(seconds, 3), "blobs": told})


def fetch_line(name: str, at: float) -> str:
    """Tells a fetch of a tree that was told before."""
    return _line({"at": round(at, 3), "fetch": name})


def written(fetches: Iterable[Fetch]) -> Iterable[str]:
    """The lines of a trace."""
    yield header()
    told: dict[str, Tree] = {}
    for at, tree in fetches:
        if told.get(tree.name) != tree:
            told[tree.name] = tree
            yield tree_line(*tree)
        yield fetch_line(tree.name, at)


def read(lines: Iterable[str], name: str) -> list[Fetch]:
    """Reads a trace.

    A last line that breaks off is what a daemon leaves that was killed: it is passed over. A time that lies before the
    one of the line above, where the clock was set back, counts as that one.

    Args:
        lines: with their ends.
        name: of the file, for messages.

    Raises:
        InvalidRequest: with the line's number.
    """
    trees: dict[str, Tree] = {}
    fetches: list[Fetch] = []
    number = 0
    for number, line in enumerate(lines, 1):
        try:
            document = _document(line)
            if number == 1:
                _check_header(document)
            elif "fetch" in document:
                at = max(_number(document, "at", AT_MAX), fetches[-1].at if fetches else 0.0)
                fetches.append(Fetch(at, _known(trees, document)))
                if len(fetches) > FETCHES_MAX:
                    raise _Wrong(f"it has more than {FETCHES_MAX:,} fetches: cut it")
            elif "tree" in document:
                tree = _tree(document)
                trees[tree.name] = tree
            else:
                raise _Wrong('it is neither a tree ("tree") nor a fetch ("fetch")')
        except _Wrong as wrong:
            if number > 1 and not line.endswith("\n"):
                break
            raise InvalidRequest(f"{name}, line {number}: {wrong}.") from None
    if not number:
        raise InvalidRequest(f"{name} is empty: a trace begins with {header().strip()}.")
    return fetches


class _Wrong(Exception):
    """What is wrong with a line, in words that follow its number."""


def _line(document: Mapping[str, object]) -> str:
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")) + "\n"


def _document(line: str) -> dict[str, object]:
    if len(line) > LINE_BYTES_MAX:
        raise _Wrong(f"it is longer than {LINE_BYTES_MAX:,} characters")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise _Wrong("it is no JSON document") from None
    if not isinstance(found, dict):
        raise _Wrong("it is no JSON object")
    return found


def _check_header(document: dict[str, object]) -> None:
    version = document.get(HEADER)
    if version is None:
        raise _Wrong(f"this is no trace of artifactcache, which would begin with {header().strip()}")
    if version != FORMAT or isinstance(version, bool):
        raise _Wrong(f"this is a trace of format {version!r:.20}, and only {FORMAT} is known here")


def _tree(document: dict[str, object]) -> Tree:
    name, blobs = _name(document["tree"], "tree"), document.get("blobs")
    if not isinstance(blobs, dict):
        raise _Wrong('its "blobs" are no object of names and bytes')
    found = []
    for blob, size in blobs.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= SIZE_MAX:
            raise _Wrong('a size in "blobs" is no whole number of bytes from 0 to 2^60')
        found.append((_name(blob, "blobs"), size))
    return Tree(name, _number(document, "seconds", SECONDS_MAX), tuple(found))


def _known(trees: Mapping[str, Tree], document: dict[str, object]) -> Tree:
    name = _name(document["fetch"], "fetch")
    if name not in trees:
        raise _Wrong(f"the tree {name!r:.80} is fetched before it is told")
    return trees[name]


def _name(value: object, key: str) -> str:
    if isinstance(value, str) and 0 < len(value) <= NAME_MAX:
        return value
    raise _Wrong(f'a name in "{key}" is no text of 1 to {NAME_MAX} characters')


def _number(document: dict[str, object], key: str, most: float) -> float:
    value = document.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:  # NaN is not
        return float(value)
    raise _Wrong(f'its "{key}" is no number from 0 to {most:g}')
