"""On which line of a TOML text something stands, for messages: tomllib does not tell.

Law of this file: it is asked only about texts that tomllib has read, and a line that it cannot find costs a message its
line and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tomllib

Path = tuple[str | int, ...]  # keys, and the numbers of tables in arrays of them

_KEY = re.compile(r"""\s*((?:[\w-]+|"(?:[^"\\]|\\.)*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"(?:[^"\\]|\\.)*"|'[^']*'))*)\s*=""")


def line_of(text: str, path: Path) -> str:
    """The first line that is about `path`, else about what it is in, as in ":12"; empty where there is none."""
    best, at = 0, ""
    for number, found in _lines(text):
        common = 0
        while common < min(len(found), len(path)) and found[common] == path[common]:
            common += 1
        if common == len(path):
            return f":{number}"
        if common > best:
            best, at = common, f":{number}"
    return at


def _lines(text: str) -> Iterator[tuple[int, Path]]:
    """The lines that have a heading or a key, and the whole path of it."""
    lines, number, head = text.split("\n"), 0, Path()
    arrays = Counter[tuple[str, ...]]()
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if line.lstrip().startswith("["):
            keys = _keys(line)
            if line.lstrip().startswith("[["):
                arrays[keys] += 1
            head = _numbered(keys, arrays)
            yield start, head
        elif found := _KEY.match(line):
            yield start, head + _keys(found[1] + " = 0")
            while number < len(lines) and not _is_whole(line):
                line += "\n" + lines[number]
                number += 1


def _numbered(keys: tuple[str, ...], arrays: Counter[tuple[str, ...]]) -> Path:
    """The keys of a heading, with the numbers of the arrays' tables that it is in."""
    path = Path()
    for i, key in enumerate(keys, start=1):
        path += (key, arrays[keys[:i]] - 1) if keys[:i] in arrays else (key,)
    return path


def _keys(line: str) -> tuple[str, ...]:
    """The keys of a heading, or of an assignment."""
    keys, value = [], _read(line)
    while isinstance(value, dict | list) and value:
        if isinstance(value, list):
            value = value[0]
            continue
        key, value = next(iter(value.items()))
        keys.append(key)
    return tuple(keys)


def _is_whole(line: str) -> bool:
    return _read(line) is not None


def _read(line: str) -> Any:
    try:
        return tomllib.loads(line)
    except (ValueError, RecursionError):
        return None
