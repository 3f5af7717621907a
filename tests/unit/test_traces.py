"""Traces: the format, what is refused, and the workloads that nobody recorded."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from artifactcache.errors import InvalidRequest
from cacheserver.traces import BLOBS_MAX, Fetch, Tree, fetch_line, header, read, tree_line, written
from cacheserver.workloads import DAY, FAR_BUCKET, START, WORKLOADS, generate

MODEL = Tree("model", 12.5, (("weights", 1000), ("config", 3)))


def text(*lines: str) -> list[str]:
    """A trace with these lines behind the first."""
    return [header(), *lines]


def test_what_is_written_is_read_again() -> None:
    """A tree is told once, and again when it has changed."""
    slower = MODEL._replace(seconds=20.0)
    fetches = [Fetch(1.0, MODEL), Fetch(2.0, MODEL), Fetch(3.5, slower), Fetch(4.0, Tree("empty", 0.0, ()))]
    lines = list(written(fetches))
    assert read(lines, "t") == fetches
    assert sum('"tree"' in line for line in lines) == 3
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)


def test_only_the_largest_blobs_are_told_one_by_one() -> None:
    """All others are one that no other tree has; no byte is lost."""
    blobs = [(f"b{n}", n) for n in range(BLOBS_MAX + 50)]
    (fetch,) = read(text(tree_line("t", 1.0, blobs), fetch_line("t", 0.0)), "t")
    told = dict(fetch.tree.blobs)
    assert len(told) == BLOBS_MAX + 1
    assert told["rest of t"] == sum(range(50)) and "b49" not in told and told["b50"] == 50
    assert fetch.tree.size_bytes == sum(size for _, size in blobs)


def test_a_tree_of_as_many_blobs_has_no_rest() -> None:
    """A hundred are told as they are."""
    (fetch,) = read(text(tree_line("t", 1.0, [(f"b{n}", 1) for n in range(BLOBS_MAX)]), fetch_line("t", 0.0)), "t")
    assert len(fetch.tree.blobs) == BLOBS_MAX


def test_a_last_line_that_breaks_off_is_passed_over() -> None:
    """As a daemon leaves it that was killed, wherever it breaks off."""
    whole = text(tree_line(*MODEL), fetch_line("model", 1.0))
    last = fetch_line("model", 2.0)
    for end in range(1, len(last) - 1):
        assert read([*whole, last[:end]], "t") == [Fetch(1.0, MODEL)]
    assert len(read([*whole, last[:-1]], "t")) == 2, "only the newline is missing"


def test_a_clock_that_was_set_back_does_not_take_the_trace_back() -> None:
    """Such a fetch counts as one of the moment before."""
    found = read(text(tree_line(*MODEL), fetch_line("model", 5.0), fetch_line("model", 3.0)), "t")
    assert [at for at, _ in found] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{\n", "no JSON document"),
        ("[" * 5000 + "\n", "no JSON document"),
        ("[1]\n", "no JSON object"),
        ("{}\n", "neither a tree"),
        ('{"at":1,"fetch":"unknown"}\n', "before it is told"),
        ('{"at":-1,"fetch":"model"}\n', '"at" is no number'),
        ('{"at":NaN,"fetch":"model"}\n', '"at" is no number'),
        ('{"at":true,"fetch":"model"}\n', '"at" is no number'),
        ('{"at":1,"fetch":7}\n', '"fetch" is no text'),
        ('{"tree":"","seconds":1,"blobs":{}}\n', '"tree" is no text'),
        ('{"tree":"t","seconds":Infinity,"blobs":{}}\n', '"seconds" is no number'),
        ('{"tree":"t","blobs":{}}\n', '"seconds" is no number'),
        ('{"tree":"t","seconds":1,"blobs":[]}\n', "no object of names"),
        ('{"tree":"t","seconds":1,"blobs":{"b":-1}}\n', "no whole number"),
        ('{"tree":"t","seconds":1,"blobs":{"b":1.5}}\n', "no whole number"),
        ('{"tree":"t","seconds":1,"blobs":{"b":true}}\n', "no whole number"),
        ("x" * 70_000 + "\n", "longer than"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(line: str, words: str) -> None:
    """The caller's move, and where."""
    with pytest.raises(InvalidRequest, match=r"^trace\.jsonl, line 3: ") as caught:
        read(text(tree_line(*MODEL), line), "trace.jsonl")
    assert words in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("lines", "words"),
    [([], "empty"), (["hello\n"], "line 1"), (["{}\n"], "no trace of"), (['{"artifactcache_trace":2}\n'], "format 2")],
)
def test_what_is_no_trace_is_refused(lines: list[str], words: str) -> None:
    """Another file, or a trace of a later format."""
    with pytest.raises(InvalidRequest, match=words):
        read(lines, "t")


# -- workloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_dice_make_the_same_trace(name: str) -> None:
    """In the order of time, about as many fetches as were asked for; other dice make another."""
    found = generate(name, random.Random(7), 1000)
    assert found == generate(name, random.Random(7), 1000)
    assert found != generate(name, random.Random(8), 1000)
    assert 600 <= len(found) <= 1000
    assert [at for at, _ in found] == sorted(at for at, _ in found) and found[0].at >= START
    assert found[-1].at < START + 7 * DAY
    assert all(tree.seconds > 0 and tree.size_bytes > 0 for _, tree in found)


def test_new_versions_take_the_place_of_old_ones() -> None:
    """The trees of the first days are hardly asked for in the last."""
    found = generate("versions", random.Random(1), 8000)
    first = Counter(tree.name for _, tree in found[:1000])
    last = Counter(tree.name for _, tree in found[-1000:])
    assert sum(count for name, count in last.items() if name in first) < 500


def test_fine_tunes_share_their_base() -> None:
    """Most bytes of most trees are in other trees too."""
    trees = {tree for _, tree in generate("finetunes", random.Random(1), 1000)}
    holders = Counter(blob for tree in trees for blob, _ in tree.blobs)
    sharing = [t for t in trees if sum(s for b, s in t.blobs if holders[b] > 1) > t.size_bytes / 2]
    assert len(sharing) > 0.8 * len(trees)


def test_most_runs_of_a_sweep_are_fetched_once() -> None:
    """And its data set by all of them."""
    counts = Counter(tree.name for _, tree in generate("experiments", random.Random(1), 2000))
    assert sum(count == 1 for count in counts.values()) > 0.7 * len(counts)
    assert max(counts.values()) > 10


def test_a_push_fetches_the_same_things_within_minutes() -> None:
    """Most fetches of a tree in CI follow another one of it."""
    last: dict[str, float] = {}
    close = 0
    found = generate("ci", random.Random(1), 2000)
    for at, tree in found:
        close += at - last.get(tree.name, 0.0) < 600
        last[tree.name] = at
    assert close > 0.6 * len(found)


def test_small_files_take_longer_than_their_bytes() -> None:
    """Requests dominate there: a trace has trees that cost ten times what their bytes alone would."""
    trees = {tree for _, tree in generate("mixed", random.Random(1), 2000)}
    assert any(t.seconds > 10 * t.size_bytes / FAR_BUCKET.bytes_a_second for t in trees)
