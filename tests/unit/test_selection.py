"""Include and exclude patterns."""

from __future__ import annotations

import json
import random
import re
import subprocess

import pytest
from blake3 import blake3

from artifactcache.errors import InvalidRequest
from cacheserver.selection import PATTERN_LENGTH_MAX, PATTERNS_MAX, Selection
from cacheserver.words import Entry, Manifest, folder
from tests.rig import environments

ALL = Selection()
_TRANSLATE = """
import glob, json, re, sys
translate = lambda pattern: glob.translate(pattern, recursive=True, include_hidden=True, seps="/")
print(json.dumps([bool(re.match(translate(pattern), path)) for pattern, path in json.load(sys.stdin)]))
"""


def takes(pattern: str, path: str | bytes) -> bool:
    """Whether a single include pattern takes a path."""
    return Selection.of([pattern], []).takes(path.encode() if isinstance(path, str) else path)


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("a", ["a"], ["b", "a/a", "aa", "A"]),
        ("*", ["a", ".hidden", "a b"], ["a/b"]),
        ("*.bin", ["x.bin", ".bin"], ["x.bin2", "a/x.bin", "xbin"]),
        ("a/*", ["a/b", "a/.b"], ["a", "a/b/c", "b/a"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax", "x/a", "a/xx"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab/c", "b/a/c"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz", "z", "b/a/z"]),
        ("**/a/**/z", ["a/z", "x/a/z", "a/x/z", "x/y/a/b/c/z"], ["z", "a", "xa/z"]),
        ("a/", ["a/b", "a/b/c"], ["a", "b/a/c", "ab"]),
        ("**/a/", ["a/b", "x/a/b/c"], ["xa/b", "a"]),
        ("a**c", ["ac", "abc"], ["a/c", "ab/c"]),
        ("**.bin", ["x.bin"], ["a/x.bin"]),
        ("a?c", ["abc", "a.c", "aéc", "a\nc"], ["ac", "abbc", "a/c"]),
        ("[ab]", ["a", "b"], ["c", "ab", ""]),
        ("[a-c]x", ["ax", "bx", "cx"], ["dx", "-x"]),
        ("[!a]", ["b", "é", "\n", "!"], ["a", "/"]),
        ("[^a]", ["b", "^"], ["a"]),
        ("[!a-c]x", ["dx", "-x"], ["ax", "bx", "/x"]),
        ("[]]", ["]"], ["[", "[]]"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[!]]", ["a"], ["]"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("[é]", ["é"], ["e", "\u00c3"]),
        ("[\\]", ["\\"], ["]"]),
        ("a[.-0]b", ["a.b", "a0b"], ["a/b", "a1b"]),
        ("*[.-0]*", [".", "a0"], ["a/b", "a"]),
        ("**/[ -~]", ["a", "a/b"], ["ab"]),
        ("[!b-c]x", ["ax"], ["/x", "bx"]),
        ("[[]", ["["], ["]", "[["]),
        ("[[:]x", ["[x", ":x"], ["x"]),
        ("[a", ["[a"], ["a"]),
        ("[]", ["[]"], ["]", ""]),
        ("[!]", ["[!]"], ["!", "a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("(a|b)+{1}$^", ["(a|b)+{1}$^"], ["a", "b"]),
        ("\\*", ["\\", "\\a"], ["*"]),
        ("a b#?", ["a b#c"], ["ab#c"]),
        ("new\nline", ["new\nline"], ["newline"]),
        ("é*", ["é", "écru"], ["e"]),
    ],
)
def test_what_a_pattern_takes(pattern: str, taken: list[str], left: list[str]) -> None:
    """`*`, `?` and classes stay inside one folder and mean characters, `**` crosses folders, all else is literal."""
    assert {path: takes(pattern, path) for path in taken + left} == dict.fromkeys(taken, True) | dict.fromkeys(
        left, False
    )


def test_names_that_are_not_utf_8_match_too() -> None:
    """A byte that is no character counts as one."""
    assert takes("*.bin", b"\xff.bin") and takes("?.bin", b"\xff.bin") and takes("[!a].bin", b"\xff.bin")
    assert not takes("?.bin", b"\xff\xfe.bin") and not takes("\ufffd.bin", b"\xff.bin")


def test_the_patterns_match_as_a_plain_reading_of_them_says(dice: random.Random) -> None:
    """The compiled patterns agree with a matcher that goes through pattern and path folder by folder."""
    for _ in range(3000):
        pattern, path = _random_pattern(dice), _random_path(dice)
        assert takes(pattern, path) == _plain_match(pattern.split("/"), path.split("/")), (pattern, path)


def test_the_patterns_match_as_pythons_own(dice: random.Random) -> None:
    """`glob.translate`, with hidden files, means the same, but that its `[!a]` crosses folders. It is there since
    Python 3.13, which need not be the one that the tests run with."""
    newer = environments.python("3.13")
    if newer is None:
        pytest.skip("there is no Python 3.13 here that runs")
    asked = [(_random_pattern(dice).replace("[!a]", "[bc]"), _random_path(dice)) for _ in range(3000)]
    said = subprocess.check_output((newer, "-c", _TRANSLATE), input=json.dumps(asked), text=True, timeout=60)
    ours = {(pattern, path): takes(pattern, path) for pattern, path in asked}
    assert ours == dict(zip(asked, json.loads(said), strict=True)) and set(ours.values()) == {True, False}


def _random_pattern(dice: random.Random) -> str:
    segments = []
    for _ in range(dice.randint(1, 4)):
        if dice.random() < 0.3:
            segments.append("**")
        else:
            segments.append("".join(dice.choices(["a", "b", "*", "?", "[ab]", "[!a]"], k=dice.randint(1, 4))))
    # Two stars that came to stand side by side inside a name are one.
    return "/".join(s if s == "**" else re.sub(r"\*+", "*", s) for s in segments)


def _random_path(dice: random.Random) -> str:
    return "/".join("".join(dice.choices("abc", k=dice.randint(1, 4))) for _ in range(dice.randint(1, 4)))


def _plain_match(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(_plain_match(pattern[1:], path[n:]) for n in range(len(path)))
    return bool(path) and _plain_name(pattern[0], path[0]) and _plain_match(pattern[1:], path[1:])


def _plain_name(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_plain_name(pattern[1:], name[n:]) for n in range(len(name) + 1))
    if not name:
        return False
    if pattern[0] == "[":
        inside, rest = pattern[1:].split("]", 1)
        wanted = name[0] not in inside[1:] if inside[0] == "!" else name[0] in inside
        return wanted and _plain_name(rest, name[1:])
    return pattern[0] in ("?", name[0]) and _plain_name(pattern[1:], name[1:])


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 400 + "b", "a" * 255),
        ("?*" * 400, "a" * 255),
        ("[a]*" * 200 + "b", "a" * 255),
        ("**/a*/" * 150 + "b", "a/" * 99 + "a"),
        ("**/*a" * 160 + "b", ("a" * 39 + "/") * 99 + "a"),
        ("*a" * 60 + "/" + "**/" * 100 + "*a" * 60 + "c", ("a" * 200 + "/") * 18 + "a"),
    ],
)
def test_no_pattern_hangs_the_daemon(pattern: str, path: str) -> None:
    """Patterns that a careless matcher tries for centuries, holding the whole daemon, are answered."""
    assert not takes(pattern, path)


def test_exclude_wins_over_include() -> None:
    """A file is wanted where an include pattern matches, or there is none, and no exclude pattern does."""
    some = Selection.of(["*.bin", "*.txt"], ["b.*"])
    assert [p for p in (b"a.bin", b"a.txt", b"b.bin", b"c.md") if some.takes(p)] == [b"a.bin", b"a.txt"]
    assert not Selection.of([], ["**"]).takes(b"a") and Selection.of([], ["x"]).takes(b"a") and ALL.takes(b"a")


def test_the_wanted_part_of_a_tree() -> None:
    """Files and empty folders are judged by their paths; without patterns the tree is the same."""
    digest = blake3(b"x").hexdigest()
    files = [Entry(p, digest, 1) for p in (b"a/x.bin", b"a/y.txt", b"b/x.bin")]
    manifest = Manifest.of([*files, folder(b"a/empty"), folder(b"b/empty")])
    assert Selection.of(["a/**"], ["**/*.txt"]).of_manifest(manifest) == Manifest.of([files[0], folder(b"a/empty")])
    assert ALL.of_manifest(manifest) is manifest


def test_the_same_patterns_have_the_same_key() -> None:
    """Order and repetition do not matter, include and exclude do; the key gives the selection back."""
    one = Selection.of(["b", "a", "b"], ["c"])
    assert one.key == Selection.of(["a", "b"], ["c"]).key != Selection.of(["a", "b", "c"], []).key
    assert Selection.from_key(one.key) == one
    assert ALL.key == "" and Selection.from_key("") == ALL


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        ([""], []),
        ([], [""]),
        (["a\0b"], []),
        (["x" * (PATTERN_LENGTH_MAX + 1)], []),
        ([str(n) for n in range(PATTERNS_MAX)], ["one more"]),
        (["[z-a]"], []),
        ([], ["[z-a]"]),
    ],
)
def test_a_bad_pattern_is_refused_before_anything_is_asked(include: list[str], exclude: list[str]) -> None:
    """Empty, with NUL, too long, too many or unreadable: the caller hears InvalidRequest at once."""
    with pytest.raises(InvalidRequest):
        Selection.of(include, exclude)


def test_as_much_as_is_allowed_is_taken() -> None:
    """The limits themselves are fine."""
    Selection.of(["x" * PATTERN_LENGTH_MAX], [])
    Selection.of([str(n) for n in range(PATTERNS_MAX)], [])
