"""Relative paths: which may exist in a tree."""

from __future__ import annotations

import pytest

from cacheserver.names import COMPONENT_BYTES_MAX, DEPTH_MAX, PATH_BYTES_MAX, fault, show

LONG = b"x" * COMPONENT_BYTES_MAX


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (b"", "is empty"),
        (b"/", "is absolute"),
        (b"/etc/passwd", "is absolute"),
        (b"//a", "is absolute"),
        (b"a\0b", "NUL"),
        (b"..", "'..'"),
        (b"../a", "'..'"),
        (b"a/../b", "'..'"),
        (b"a/..", "'..'"),
        (b".", "'.'"),
        (b"a/./b", "'.'"),
        (b"a//b", "empty component"),
        (b"a/", "empty component"),
        (LONG + b"x", f"longer than {COMPONENT_BYTES_MAX} bytes"),
        (b"a/" + "é".encode() * 128, f"longer than {COMPONENT_BYTES_MAX} bytes"),
        (b"/".join([LONG] * 16), f"longer than {PATH_BYTES_MAX} bytes"),
        (b"/".join([b"d"] * (DEPTH_MAX + 1)), f"deeper than {DEPTH_MAX} folders"),
    ],
)
def test_what_may_not_exist_is_said_to_be_so(path: bytes, said: str) -> None:
    """Every fault has words that finish the sentence "the path … "."""
    assert said in (fault(path) or "fine")


@pytest.mark.parametrize(
    "path",
    [
        b"a",
        b"...",
        b"..a",
        b"a..",
        b".hidden",
        b"a/b/c",
        b" ",
        b"a b",
        b"#",
        b"?",
        b"%2e%2e",
        b"new\nline",
        b"back\\slash",
        b"\xff\xfe",
        LONG,
        b"/".join([LONG] * 15),
        b"/".join([b"d"] * DEPTH_MAX),
    ],
)
def test_all_other_names_may_exist(path: bytes) -> None:
    """A name is not refused for being odd: up to the very limit it is fine."""
    assert fault(path) is None


def test_a_path_in_a_message_is_one_short_printable_line() -> None:
    """No control character and no endless name reaches a log or a terminal."""
    assert show(b"a\nb\x1b\xff") == r"'a\nb\x1b\\xff'"
    assert len(show(b"x" * 10_000)) < 130 and show("x" * 10_000).endswith("…'")
