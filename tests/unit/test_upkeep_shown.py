"""The commands that keep and evict: what people may write, and what they and scripts are shown."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from artifactcache import cli, render, request, units, upkeep
from artifactcache.commands import EXIT_ERROR, EXIT_USAGE
from artifactcache.results import Evicted, Kept, Swept
from artifactcache.v1 import cache_pb2 as pb
from tests.unit.scripted import ALIAS, DIGESTS, MIB, ONE, TWO, Script, scripted

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """What every client of the test calls."""
    return scripted(monkeypatch)


@pytest.fixture
def run(script: Script, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; its status and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        monkeypatch.setattr(sys, "stdout", printed)
        status = cli.main(list(arguments))
        printed.seek(0)
        return status, printed.read()

    return run


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("12h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1.5h", 5_400),
        (" 7 d ", 604_800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "7", "d", "0d", "0.0s", "-1d", "7D", "7 days", "1e3s", "inf", "nan", "٣d", "1d2h", "9" * 400]
)
def test_no_durations(text: str) -> None:
    """What it cannot read it repeats, and says how to write it."""
    with pytest.raises(ValueError, match="7d") as told:
        units.duration(text)
    assert repr(text) in str(told.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("512B", 512), ("10GiB", 10 * 2**30), ("1.5 KiB", 1536), ("500MB", 500 * 10**6), ("2TiB", 2**41)],
)
def test_sizes(text: str, count: int) -> None:
    """As in the daemon's configuration."""
    assert units.size(text) == count


@pytest.mark.parametrize("text", ["", "0", "0GiB", "0.1", "-1", "10%", "10G", "10gib", "1e9", "inf", "GiB", "9" * 400])
def test_no_sizes(text: str) -> None:
    """What it cannot read it repeats, and says how to write it."""
    with pytest.raises(ValueError, match="10GiB") as told:
        units.size(text)
    assert repr(text) in str(told.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pin",),
        ("pin", ONE, "--for", "7"),
        ("pin", ONE, "--for", "0d"),
        ("pin", ONE, "--for", "10000w"),
        ("unpin",),
        ("explain",),
        ("explain", ONE, "--refresh"),
        ("sweep", "--free", "much"),
        ("sweep", "--free", "0"),
        ("sweep", "--free", "9999999999PiB"),
        ("sweep", ONE),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(
    run: Run, script: Script, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """Status 2, a line that says what is wrong, and nothing is asked."""
    try:
        status, out = run(*arguments)
    except SystemExit as ended:
        status, out = int(ended.code or 0), ""
    assert (status, out, script.asked) == (EXIT_USAGE, "", [])
    assert "artifactcache" in capsys.readouterr().err


def test_pin_and_unpin_on_the_command_line(run: Run, script: Script) -> None:
    """What is pinned now, until when and by whom; what is not any more."""
    assert run("pin", ALIAS) == (0, f"{ONE}: pinned until it is unpinned, by ada\n")
    script.until = time.time() + 60
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(script.until))
    assert run("pin", ALIAS, "--for", "1m") == (0, f"{ONE}: pinned until {shown}, by ada\n")
    assert script.asked[-1][1].seconds == 60
    assert run("unpin", ALIAS) == (0, f"{ONE}: no longer pinned\n{TWO}: no longer pinned\n")
    status, out = run("unpin", "--run-id", "r", "--artifact-path", "p", "--include", "a", "--exclude", "b", "--json")
    assert (status, json.loads(out)) == (0, [ONE, TWO])
    wanted = pb.ArtifactSelection(run_id="r", artifact_path="p", include=["a"], exclude=["b"])
    assert script.asked[-1][1].artifact == wanted


def test_pin_as_json(run: Run, script: Script) -> None:
    """Every field; no end is null."""
    pinned = {"uri": ALIAS, "version": ONE, "digest": DIGESTS[ONE], "until": None, "owner": "ada"}
    status, out = run("pin", ALIAS, "--json")
    assert (status, json.loads(out)) == (0, pinned)
    script.until = 1234.5
    assert json.loads(run("pin", ALIAS, "--json")[1]) == pinned | {"until": 1234.5}


def test_ls_as_json_is_json(run: Run, script: Script) -> None:
    """Which has no infinity: it is a text that Python's float(), and JavaScript's Number(), read."""
    script.listed = [pb.HeldArtifact(pinned_until=until) for until in (0, 1234.5, math.inf)]

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    status, out = run("ls", "--json")
    found = [each["pinned_until"] for each in json.loads(out, parse_constant=refuse)]
    assert (status, found) == (0, [None, 1234.5, "Infinity"])
    assert float(found[2]) == math.inf


def test_ls_shows_what_is_kept(run: Run, script: Script) -> None:
    """Pinned, leased or both; not by a pin that has ended."""
    now = time.time()
    kept = [(math.inf, 0), (now + 99, 2), (0, 1), (0, 0), (now - 1, 0)]
    script.listed = [
        pb.HeldArtifact(version=f"models:/m/{number}", pinned_until=until, lease_count=leases)
        for number, (until, leases) in enumerate(kept)
    ]
    status, out = run("ls")
    head, *rows = out.splitlines()
    assert status == 0
    assert [row[head.index("KEPT") :] for row in rows] == ["pinned", "pinned, leased", "leased", "", ""]


def test_stats_has_the_counters(run: Run, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pins, of what has gone and of what comes."""
    reply = pb.StatsReply(pin_count=3, evicted_count=4, evicted_bytes=5 * MIB, coming_bytes=6 * MIB, started_at=1)
    monkeypatch.setattr(script, "unary", lambda *_: reply)
    shown = [line.split("  ") for line in run("stats")[1].splitlines()]
    rows = {cells[0]: cells[-1].strip() for cells in shown}
    assert (rows["pin count"], rows["evicted count"]) == ("3", "4")
    assert (rows["evicted bytes"], rows["coming bytes"]) == ("5.0 MiB", "6.0 MiB")
    found = json.loads(run("stats", "--json")[1])
    counts = {name: found[name] for name in ("pin_count", "evicted_count", "evicted_bytes", "coming_bytes")}
    assert counts == {"pin_count": 3, "evicted_count": 4, "evicted_bytes": 5 * MIB, "coming_bytes": 6 * MIB}


def test_sweep_on_the_command_line(run: Run, script: Script) -> None:
    """A table, a line for all, and a line for each reason to stay."""
    rows = [
        "VERSION               SIZE    FREES  WHY",
        "models:/resnet/1   3.0 MiB  2.0 MiB  old",
        "tree 2b2b2b2b2b2b  1.0 MiB      0 B  linked elsewhere",
    ]
    done = ["2 trees evicted in 0.2 s, which freed 2.0 MiB.", "1 tree stayed: leased", "3 trees stayed: pinned"]
    plan = ["2 trees would go, which would free 2.0 MiB.", "1 tree would stay: leased", "3 trees would stay: pinned"]
    assert run("sweep") == (0, "\n".join([*rows, *done, ""]))
    assert run("sweep", "--dry-run") == (0, "\n".join([*rows, *plan, ""]))
    assert script.asked[-1][1] == pb.SweepRequest(dry_run=True)
    assert run("sweep", "--free", "2MiB")[0] == 0
    assert script.asked[-1][1] == pb.SweepRequest(free_bytes=2 * MIB)
    assert run("sweep", "--free", "3MiB")[0] == EXIT_ERROR, "it was not done"


def test_sweep_as_json(run: Run) -> None:
    """Every field, of what goes and of what stays."""
    status, out = run("sweep", "--dry-run", "--json")
    found = json.loads(out)
    assert (status, found["dry_run"], found["tree_count"], found["wanted_bytes"]) == (0, True, 2, MIB)
    assert found["evicted"][0] == {
        "digest": DIGESTS[ONE],
        "versions": [ONE],
        "size_bytes": 3 * MIB,
        "freed_bytes": 2 * MIB,
        "reason": "old",
    }
    assert found["kept"] == [{"reason": "leased", "tree_count": 1}, {"reason": "pinned", "tree_count": 3}]


def _swept(**values: Any) -> Swept:
    found: dict[str, Any] = {
        "dry_run": False,
        "evicted": (),
        "tree_count": 0,
        "freed_bytes": 0,
        "wanted_bytes": 0,
        "kept": (),
        "seconds": 0.1,
    }
    return Swept(**found | values)


def test_a_sweep_of_nothing() -> None:
    """That nothing has to go is not that nothing can."""
    assert upkeep.sweep_lines(_swept()) == ["Nothing has to go."]
    kept = (Kept("pinned", 2),)
    assert upkeep.sweep_lines(_swept(wanted_bytes=MIB, kept=kept)) == [
        "Nothing can go, although 1.0 MiB were to be freed.",
        "2 trees stayed: pinned",
    ]


def test_a_sweep_of_leftovers() -> None:
    """What downloads that failed had left is told apart from what trees give."""
    assert upkeep.sweep_lines(_swept(freed_bytes=MIB, wanted_bytes=MIB)) == [
        "0 trees evicted in 0.1 s, which freed 1.0 MiB. 1.0 MiB of that was left by downloads that failed."
    ]
    evicted = (Evicted("3c" * 32, ("runs:/r",), MIB, MIB, "old"),)
    swept = _swept(dry_run=True, evicted=evicted, tree_count=1, freed_bytes=3 * MIB, wanted_bytes=MIB)
    assert upkeep.sweep_lines(swept)[-1] == (
        "1 tree would go, which would free 3.0 MiB. 2.0 MiB of that was left by downloads that failed."
    )


@pytest.mark.parametrize(
    ("dry_run", "said"), [(False, "1 tree evicted in 0.1 s, which freed"), (True, "1 tree would go, which would free")]
)
def test_a_sweep_of_too_little(dry_run: bool, said: str) -> None:
    """It says what is missing."""
    names = ("models:/m/1", "runs:/r/\n", "runs:/s", "runs:/t")
    swept = _swept(
        dry_run=dry_run,
        evicted=(Evicted("3c" * 32, names, 9, 9, "old"),),
        tree_count=1,
        freed_bytes=9,
        wanted_bytes=10,
    )
    table = upkeep.sweep_lines(swept)
    assert table[1].startswith("models:/m/1, runs:/r/\\n, 2 more")
    assert table[2] == f"{said} 9 B, less than the 10 B that were wanted."


@pytest.mark.parametrize(
    ("is_kept", "place", "said"),
    [
        (True, 0, "It is kept: no sweep evicts it now."),
        (False, 3, "It is not kept: number 3 of 20 in the queue of what goes first."),
        (False, 0, "It is not kept: a sweep may evict it."),
    ],
)
def test_explain_on_the_command_line(run: Run, script: Script, is_kept: bool, place: int, said: str) -> None:
    """What it is, whether it can go, why, and what that would free and cost."""
    script.explained.is_kept, script.explained.place = is_kept, place
    script.explained.reasons.extend(["It was used\n today.", "No rule wants it gone."])
    assert run("explain", ONE) == (
        0,
        f"{ONE}  {DIGESTS[ONE]}  1 file  3.0 MiB\n{said}\nIt was used\\n today.\nNo rule wants it gone.\n"
        "Its going would free 1.0 MiB; to fetch it again would take about 1.5 s.\n",
    )


def test_explain_as_json(run: Run, script: Script) -> None:
    """Every field, those of the artifact among them; no place is null."""
    script.explained.artifact.pinned_until = math.inf
    script.explained.place = 0
    status, out = run("explain", ONE, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["artifact"]["version"], found["artifact"]["pinned_until"]) == (ONE, "Infinity")
    assert (found["is_kept"], found["place"], found["refetch_seconds"]) == (False, None, 1.5)


def test_documents_are_json() -> None:
    """Whatever is in them, and however deep."""
    assert json.loads(render.document({"a": [math.inf, -math.inf, math.nan, 1.5]})) == {
        "a": ["Infinity", "-Infinity", "NaN", 1.5]
    }


def test_counts() -> None:
    """One is one."""
    assert [render.count(number, "tree") for number in (0, 1, 2)] == ["0 trees", "1 tree", "2 trees"]


def test_how_long_is_the_longest() -> None:
    """A hundred years can be pinned, and shown."""
    assert request.pin_seconds(request.PIN_SECONDS_MAX) == request.PIN_SECONDS_MAX
    assert render.moment(time.time() + request.PIN_SECONDS_MAX).startswith("2")
