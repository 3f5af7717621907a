"""What `artifactcache top` draws: on any screen, with any names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from artifactcache import screen
from artifactcache.overviews import Download, Fault, HeldGroup, Overview, QueuedTree, Sample, UserUse
from artifactcache.results import Progress, Stats, Usage

HOSTILE = "runs:/\x1b]0;owned\x07/\x1b[2J\nnext line\r\u202e"


def overview() -> Overview:
    """A daemon with some of everything."""
    values = {one.name: 0 for one in dataclasses.fields(Stats)}
    values |= {"capacity_bytes": 1000, "free_bytes": 10**9, "blob_bytes": 250, "fetch_count": 8, "hit_count": 6}
    stats = Stats(**values | {"started_at": 1000.0, "store_root": "/store"})  # type: ignore[arg-type]
    return Overview(
        now=1500.0,
        version="0.1.0",
        user="root",
        roles=("operator", "administrator"),
        sees_all=True,
        stats=stats,
        saved_bytes=2048,
        high_percent=95.0,
        low_percent=90.0,
        held=HeldGroup("", 30, 1000, 0.0, ()),
        groups=(HeldGroup("models:/resnet", 3, 600, 0.0, ()), HeldGroup(HOSTILE, 1, 100, 0.0, ())),
        group_count=5,
        history=tuple(Sample(1400.0 + 10 * n, n * n, n, 0, 0, 0) for n in range(5)),
        users=(UserUse(Usage(1, HOSTILE, 500, 2, 1000), 1, 0, 2),),
        queue=(
            QueuedTree("d" * 64, ("models:/resnet/1",), 10, "used least", ""),
            QueuedTree("e" * 64, (), 5, "", "pinned"),
        ),
        queue_length=7,
        downloads=(Download("models:/m/1", Progress(50, 200, 0, 1), 1, ("alice",), (), ()),),
        faults=(Fault("origin", True, "http://x does not answer"), Fault("x", False, HOSTILE)),
    )


def test_all_of_it_is_there() -> None:
    """The numbers in words, and what is most urgent before what is held."""
    shown = screen.lines(overview(), 120)
    text = "\n".join(shown)
    for words in (
        "cacheserver 0.1.0  up 8 min  root (operator, administrator)",
        "[##########------------------------------] 250 B of 1000 B",
        "75.0 % of 8 fetches; of the last 10 min 25.0 %",
        "saved  2.0 KiB of 0 B handed out",
        "!! http://x does not answer",
        "[##--------]  25 % of 200 B  models:/m/1  alice",
        "held (30 artifacts)",
        "3  models:/resnet",
        "300 B",
        "3 others",
        "would go next (of 7; above 95 % full)",
        "models:/resnet/1  used least",
        "1 before them stay",
        "500 B of 1000 B",
        "2 trees, 1 session, 2 downloads",
    ):
        assert words in text, words
    assert text.index("does not answer") < text.index("models:/m/1") < text.index("held (30")
    grave = next(line for line in shown if "does not answer" in line)
    assert grave.style == screen.RED


@pytest.mark.parametrize("columns", [1, 10, 30, 59, 60, 80, 200])
@pytest.mark.parametrize("rows", [1, 2, 10, 24, None])
def test_it_fits(columns: int, rows: int | None) -> None:
    """Whatever the screen's size; what does not is said to be missing."""
    shown = screen.lines(overview(), columns, rows)
    assert all(len(line) <= columns for line in shown)
    assert rows is None or len(shown) <= rows
    if rows == 10 and columns > 40:
        assert "make the window higher" in shown[-1]
    assert all(len(line) <= columns for line in screen.away("gone " * 50, columns))


def test_names_tell_a_terminal_nothing() -> None:
    """What somebody has chosen is shown with its control characters escaped."""
    text = "".join(screen.lines(overview(), 300) + screen.away(HOSTILE, 300))
    assert not [char for char in text if not char.isprintable()] and "\\x1b" in text


def test_rates_are_of_what_was_there_before() -> None:
    """Bytes a second between two looks; none at the first, nor where the clock stood still."""
    one = overview()
    later = dataclasses.replace(
        one,
        now=one.now + 2,
        downloads=(
            dataclasses.replace(one.downloads[0], progress=Progress(4050, 9000, 0, 1)),
            dataclasses.replace(one.downloads[0], version="models:/new/1"),
        ),
    )
    assert screen.rates(one, later) == {"models:/m/1": 2000.0}
    assert screen.rates(None, one) == {} == screen.rates(one, one)
    assert "2.0 KiB/s" in "\n".join(screen.lines(later, 120, None, screen.rates(one, later)))


def test_a_daemon_that_has_nothing() -> None:
    """No ratio of nothing, no heading without anything under it."""
    none: dict[str, Any] = dict.fromkeys(("groups", "queue", "users", "downloads", "faults", "history", "roles"), ())
    stats = dataclasses.replace(overview().stats, fetch_count=0, hit_count=0, capacity_bytes=0)
    empty = dataclasses.replace(overview(), **none, group_count=0, sees_all=False, stats=stats)
    text = "\n".join(screen.lines(empty, 80))
    assert "none yet of 0 fetches" in text and "(reader)" in text and "held on your account" in text
    assert "would go next" not in text and "coming" not in text
