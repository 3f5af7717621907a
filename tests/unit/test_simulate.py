"""The simulator: traces so small that their outcome can be worked out by hand, and the command's answers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from artifactcache.errors import InvalidRequest
from cacheserver import comparing
from cacheserver.cli import main
from cacheserver.eviction import POLICIES, Item, Lru, Policy
from cacheserver.foresight import ORDERS, Future, offline_best
from cacheserver.simulate import ONE_BY_ONE, Outcome, Replay, Watermarks, replay
from cacheserver.traces import Fetch, Tree, written
from cacheserver.whatif import Question, answer
from cacheserver.workloads import generate

needs_libcachesim = pytest.mark.skipif(not comparing.is_installed(), reason=comparing.MISSING)


def tree(name: str, size: int = 10, seconds: float = 1.0) -> Tree:
    """A tree of one blob."""
    return Tree(name, seconds, ((f"blob of {name}", size),))


def trace(names: str, **trees: Tree) -> list[Fetch]:
    """A fetch each hour, by letters."""
    return [Fetch(3600.0 * n, trees.get(name) or tree(name)) for n, name in enumerate(names)]


def run(fetches: Sequence[Fetch], capacity: int, policy: Policy = Lru(), marks: Watermarks = ONE_BY_ONE) -> Outcome:  # noqa: B008
    """Replays it."""
    return replay(fetches, policy, capacity, marks)


def test_hits_misses_and_seconds_are_those_worked_out_by_hand() -> None:
    """Room for two: c takes the place of b, b that of a, and a that of c."""
    found = run(trace("abacba", a=tree("a", seconds=5.0)), 20)
    assert found == Outcome("lru", 20, 6, 1, 60, 10, 13.0, 6.0, 3)
    assert found.hit_ratio == found.byte_hit_ratio == 1 / 6


def test_with_room_for_everything_each_tree_is_fetched_once() -> None:
    """The first fetches are no refetching."""
    for policy in POLICIES.values():
        found = run(trace("abcabcabc"), 30, policy)
        assert (found.hits, found.fetch_seconds, found.refetch_seconds, found.evictions) == (6, 3.0, 0.0, 0)


def test_what_does_not_fit_at_all_is_fetched_each_time_and_not_kept() -> None:
    """And nothing goes for it."""
    found = run(trace("aXaXa", X=tree("X", 21, 7.0)), 20)
    assert (found.hits, found.evictions, found.refetch_seconds, found.hit_bytes) == (2, 0, 7.0, 20)


def test_a_sweep_starts_above_one_watermark_and_ends_at_the_other() -> None:
    """Of ten that fit, nothing goes at nine; for the tenth three go."""
    store = Replay(Lru(), 100, Watermarks(0.95, 0.75))
    for fetch in trace("abcdefghi"):
        store.fetch(*fetch)
    assert store.held_bytes == 90 and store.evictions == 0
    store.fetch(1e6, tree("j"))
    assert list(store.held) == list("defghij") and store.held_bytes == 70


def test_what_was_just_brought_is_not_what_goes() -> None:
    """Its caller has a lease, even where it is all that is left."""
    for policy in POLICIES.values():
        store = Replay(policy, 100)
        for fetch in trace("abX", X=tree("X", 100, 0.001)):
            store.fetch(*fetch)
        assert list(store.held) == ["X"] and store.held_bytes == 100
        store.fetch(1e6, tree("c"))
        assert list(store.held) == ["c"]


def shared(name: str) -> Tree:
    """A fine-tune: 10 bytes of its own beside a base of 90."""
    return Tree(name, 10.0, (("base", 90), (f"own of {name}", 10)))


def test_a_shared_blob_counts_once_and_is_fetched_once() -> None:
    """The second fine-tune takes its own tenth of the seconds."""
    store = Replay(Lru(), 110, ONE_BY_ONE)
    store.fetch(0.0, shared("a"))
    store.fetch(1.0, shared("b"))
    found = store.outcome()
    assert store.held_bytes == 110 and found.hits == 0 and found.hit_bytes == 90
    assert found.fetch_seconds == pytest.approx(11.0) and found.refetch_seconds == 0


def test_a_shared_blob_goes_with_its_last_holder() -> None:
    """With one of two fine-tunes goes its own part; what comes back takes only that from the origin."""
    store = Replay(Lru(), 115, ONE_BY_ONE)
    for at, one in enumerate([shared("a"), shared("b"), tree("x"), shared("a")]):
        store.fetch(float(at), one)
    assert set(store.held) == {"x", "a"} and store.held_bytes == 110
    assert store.outcome().refetch_seconds == pytest.approx(1.0)
    store.fetch(9.0, tree("y", 106))
    assert set(store.held) == {"y"} and store.held_bytes == 106


def test_a_tree_whose_blobs_are_all_held_is_a_hit() -> None:
    """Under a name that was never seen: it takes no bytes."""
    store = Replay(Lru(), 100, ONE_BY_ONE)
    store.fetch(0.0, Tree("a", 1.0, (("x", 10),)))
    store.fetch(1.0, Tree("b", 1.0, (("x", 10),)))
    assert store.outcome().hits == 1 and store.held_bytes == 10


def test_a_tree_that_has_changed_is_fetched_anew() -> None:
    """Of it what is new; one whose seconds alone have changed is held."""
    store = Replay(Lru(), 100, ONE_BY_ONE)
    store.fetch(0.0, Tree("a", 1.0, (("x", 10),)))
    store.fetch(1.0, Tree("a", 2.0, (("x", 10),)))
    assert store.outcome().hits == 1
    store.fetch(2.0, Tree("a", 2.0, (("y", 10),)))
    assert store.outcome().hits == 1 and store.held_bytes == 10


def test_gdsf_keeps_what_lru_lets_go() -> None:
    """A slow tree that is used now and then, among others that pass by once."""
    slow = tree("S", seconds=100.0)
    fetches = trace("SabcSdefSghiS", S=slow)
    assert run(fetches, 30).refetch_seconds == 300.0
    assert run(fetches, 30, POLICIES["gdsf"]).refetch_seconds == 0.0


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_what_a_replay_holds_adds_up(policy: Policy) -> None:
    """After every fetch: bytes are those of the blobs, queues have all of them, and the capacity holds."""
    fetches = generate("mixed", random.Random(3), 400)
    distinct = sum({blob: size for _, t in fetches for blob, size in t.blobs}.values())
    store = Replay(policy, distinct // 8)
    for fetch in fetches:
        store.fetch(*fetch)
        held = {blob: size for one in store.held.values() for blob, size in one.tree.blobs}
        assert store.held_bytes == sum(held.values()) <= store.capacity_bytes
        assert sum(store._queued) == pytest.approx(store.held_bytes, abs=1024)
    assert store.evictions > 20 and store.outcome() == replay(fetches, policy, distinct // 8)


# -- the future, and libcachesim --------------------------------------------------------------------------------------


def test_the_future_is_known() -> None:
    """The next fetch after a moment, not the one at it."""
    future = Future(trace("aba"))
    assert future.distance("a", 0.0) == 7200.0 and future.distance("b", 7200.0) == float("inf")


@pytest.mark.parametrize("name", ORDERS)
def test_who_knows_the_future_lets_go_what_is_used_last(name: str) -> None:
    """Of two that are alike; and by two of three orders what is cheap to fetch again."""
    rank, item = ORDERS[name], Item("t", 1000.0, 10.0)
    assert rank(item, 7200.0) < rank(item, 60.0)
    cheap = item._replace(seconds=1.0)
    assert (rank(cheap, 60.0) < rank(item, 60.0)) == (name != "farthest next use")


def test_the_offline_best_keeps_what_is_used_next() -> None:
    """LRU misses each one of a loop that is one too long; who knows the future misses every second one at most."""
    fetches = trace("abc" * 10)
    assert run(fetches, 20).hits == 0
    assert offline_best(fetches, 20, ONE_BY_ONE).hits >= 13


@pytest.mark.parametrize("seed", range(3))
def test_the_offline_best_is_better_than_all_others(seed: int) -> None:
    """On every kind of trace it refetches least."""
    fetches = generate("mixed", random.Random(seed), 600)
    capacity = sum({blob: size for _, t in fetches for blob, size in t.blobs}.values()) // 8
    best = offline_best(fetches, capacity)
    assert best.policy == "offline best"
    assert all(best.refetch_seconds < replay(fetches, policy, capacity).refetch_seconds for policy in POLICIES.values())


@needs_libcachesim
@pytest.mark.parametrize("name", ["zipf", "mixed"])
def test_our_lru_is_libcachesims(name: str) -> None:
    """Where trees share nothing and go one by one, to the fetch."""
    fetches = comparing.unshared(generate(name, random.Random(5), 1500))
    distinct = sum({t.name: t.size_bytes for _, t in fetches}.values())
    for part in (20, 8, 3):
        ours, theirs = run(fetches, distinct // part), comparing.compared(fetches, "lru", distinct // part)
        assert ours[1:6] == theirs[1:6] and ours.evictions == theirs.evictions > 0
        assert ours[6:8] == pytest.approx(theirs[6:8])


@needs_libcachesim
@pytest.mark.parametrize("name", comparing.POLICIES)
def test_every_policy_of_libcachesim_can_be_compared(name: str) -> None:
    """Also with a tree that does not fit; none hits what was never fetched."""
    found = comparing.compared(trace("abXabcab", X=tree("X", 5000)), name, 1000)
    assert found.policy == f"libcachesim {name}" and found.requests == 8 and found.hits == 4
    assert found.refetch_seconds == 0.0


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_answer_says_what_more_capacity_saves(tmp_path: Path) -> None:
    """Of a recorded trace; against the row above, in seconds."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(written(trace("abcabc"))))
    found = answer(Question(str(path), capacities=["40B", "25B"], policies=["lru"]))
    assert [(o.capacity_bytes, o.refetch_seconds) for o in found.outcomes] == [(25, 3.0), (40, 0.0)]
    lines = list(found.lines())
    assert str(path) in lines[0] and "6 fetches of 3 trees" in lines[0]
    assert lines[-1].endswith("3 s for 15 B") and lines[-2].endswith("-")
    assert found.document()["outcomes"][0]["hit_ratio"] == 0.0


def test_the_seed_is_printed_and_makes_the_same_answer() -> None:
    """Ours, the offline best and, where it is installed, libcachesim's; else the extra is named."""
    question = Question(workload="ci", seed=42, requests=200, capacities=["30%"])
    found = answer(question)
    assert "seed 42" in next(found.lines()) and found == answer(question)
    names = [outcome.policy for outcome in found.outcomes]
    assert names[:4] == ["gdsf", "lru", "s3-fifo", "offline best"]
    assert ("libcachesim sieve" in names) == comparing.is_installed()
    assert comparing.is_installed() or any("cacheserver[simulate]" in note for note in found.notes)


def test_without_libcachesim_ours_are_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And which extra to install; who asks for its policies by name is told the same."""
    monkeypatch.setitem(__import__("sys").modules, "libcachesim", None)
    found = answer(Question(workload="ci", requests=100, capacities=["30%"]))
    assert len(found.outcomes) == 4 and "cacheserver[simulate]" in found.notes[-1]
    with pytest.raises(InvalidRequest, match=r"cacheserver\[simulate\]"):
        comparing.compared(trace("a"), "lru", 10)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(workload="nothing"), "no workload 'nothing'"),
        (Question(requests=0), "--requests"),
        (Question(requests=10, capacities=["lots"]), "--capacity lots"),
        (Question(requests=10, capacities=["0%"]), "--capacity 0%"),
        (Question(requests=10, policies=["fifo"]), "no policy 'fifo'"),
    ],
)
def test_a_wrong_question_is_refused(question: Question, words: str) -> None:
    """In words that name the option."""
    with pytest.raises(InvalidRequest, match=words):
        answer(question)


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And says in one line what is wrong."""
    made = ["simulate", "--generate", "ci", "--requests", "60", "--policy", "lru", "--capacity", "20%"]
    assert main(made) == 0 and "seed 1" in capsys.readouterr().out
    assert main([*made, "--json"]) == 0
    assert [one["policy"] for one in json.loads(capsys.readouterr().out)["outcomes"]] == ["lru"]
    (tmp_path / "bad").write_text("hello\n")
    for path, words in ((tmp_path / "bad", "line 1"), (tmp_path / "none", "No such file")):
        assert main(["simulate", "--trace", str(path)]) == 1
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1


def test_a_trace_without_fetches_is_refused(tmp_path: Path) -> None:
    """Nothing can be said of it."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(written([])))
    with pytest.raises(InvalidRequest, match="no fetches"):
        answer(Question(str(path)))


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    """In the format of its name; another name is refused before the work."""
    pytest.importorskip("matplotlib")
    for name, magic in (("p.svg", b"<?xml"), ("p.PNG", b"\x89PNG")):
        answer(Question(workload="ci", requests=50, policies=["lru", "gdsf"]), str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(InvalidRequest, match=r"\.svg or \.png"):
        answer(Question(requests=10**6), str(tmp_path / "p.pdf"))
