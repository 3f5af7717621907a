"""Lines for messages: where in a TOML text something stands."""

from __future__ import annotations

import pytest

from cacheserver.toml_lines import Path, line_of

TEXT = """\
top = 1
[a]
x = 1  # [b]
y = '''
[b]
z = 1
'''
list = [
  1,
  "z = 2",
]
[ a . "c.d" ]  # a comment
x.'y z' = 2
  [[many]]
  x = 1
[[many]]
y = 2
[many.inner]
z = 3
[[many.more]]
[[many.more]]
w = 1
[b]
z = { k = 1 }
[c.high]
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), ":1"),
        (("a",), ":2"),
        (("a", "x"), ":3"),
        (("a", "list"), ":8"),
        (("a", "missing"), ":2"),
        (("a", "c.d"), ":12"),
        (("a", "c.d", "x", "y z"), ":13"),
        (("many", 0), ":14"),
        (("many", 0, "x"), ":15"),
        (("many", 1), ":16"),
        (("many", 1, "x"), ":16"),
        (("many", 1, "y"), ":17"),
        (("many", 1, "inner", "z"), ":19"),
        (("many", 1, "more", 1, "w"), ":22"),
        (("b", "z"), ":24"),
        (("b", "z", "k"), ":24"),
        (("c", "low"), ":25"),
        (("nowhere",), ""),
    ],
)
def test_where_something_stands(path: Path, line: str) -> None:
    """What is in a text over several lines, or in a comment, is not taken for it; what is inline is on its line."""
    assert line_of(TEXT, path) == line
