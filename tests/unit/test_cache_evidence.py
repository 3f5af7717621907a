"""What a fetch proves for another, what it may join, and how its space is counted."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from artifactcache.errors import Corrupted, NoSpace, NotFound, OriginUnavailable
from cacheserver import downloads, uris, work
from cacheserver.selection import Selection
from cacheserver.space import Amount, Limits
from cacheserver.words import Resolved
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate, House

# -- what a fetch proves for another ----------------------------------------------------------------------------------


def test_a_bare_uri_proves_nothing_for_a_run(house: House) -> None:
    """Its bytes may have been taken while the run was writing: the finished run's are taken anew, every one."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/weights": b"early", f"{root}/done": b"done"}
    house.bring(root)
    house.origin.files[f"{root}/weights"] = b"final"  # of the same size: no listing shows it
    house.origin.run("r")
    assert house.content(house.bring("runs:/r/weights").held) == {"weights": b"final"}
    whole = house.bring("runs:/r")
    assert house.content(whole.held) == {"weights": b"final", "done": b"done"} and whole.origin_bytes == len(b"done")
    house.origin.down = True
    assert house.bring(f"{root}/weights").origin_bytes == 0, "what a finished run proves serves the bare URI behind it"


def test_an_arrival_of_a_run_that_was_writing_is_taken_anew(house: House) -> None:
    """A download that was broken off while the run was writing leaves files; the finished run does not get them."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/{n}": b"early" for n in range(3)}

    def fail(uri: str) -> None:
        if uri.endswith("/2"):
            raise OriginUnavailable("breaks off")

    house.origin.before_download = fail
    with pytest.raises(OriginUnavailable):
        house.bring("runs:/r")
    house.origin.before_download = lambda uri: None
    house.origin.files = {f"{root}/{n}": b"final" for n in range(3)}
    house.origin.run("r")
    assert set(house.content(house.bring("runs:/r").held).values()) == {b"final"}


def test_a_download_for_a_bare_uri_is_not_joined_by_one_for_a_run(house: House) -> None:
    """A file that is on its way for a bare URI may have been taken too early; the other way round it is shared."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/{n}": b"early" for n in range(3)}
    first, go = threading.Event(), threading.Event()

    def hold(uri: str) -> None:
        first.set()
        assert go.wait(PATIENCE_SECONDS)

    house.origin.after_download = hold
    bare = house.start(root)
    assert first.wait(PATIENCE_SECONDS)
    house.origin.after_download = lambda uri: None
    house.origin.files = {f"{root}/{n}": b"final" for n in range(3)}
    run = house.bring("runs:/r")
    go.set()
    assert set(house.content(run.held).values()) == {b"final"}
    bare.future.result(PATIENCE_SECONDS)
    assert set(house.content(house.bring("runs:/r").held).values()) == {b"final"}


def test_what_shows_no_more_in_a_run_is_not_held_as_a_part_of_it(house: House) -> None:
    """A logged model that was deleted, or that another one of its name has replaced, is none of the run's folders: who
    may read the run has not been judged for that model's bytes."""
    root = house.origin.run("r", ("model", "s3://bucket/models/1"))
    house.origin.files = {f"{root}/notes": b"notes", "s3://bucket/models/1/MLmodel": b"1"}
    for others in ((), (("model", "s3://bucket/models/2"),)):
        house.origin.run("r", ("model", "s3://bucket/models/1"))
        house.bring("runs:/r/model", refresh=True)
        house.origin.run("r", *others)
        house.bring("runs:/r", refresh=True)
        assert house.find("runs:/r/model") is None


# -- space ------------------------------------------------------------------------------------------------------------


def test_what_has_arrived_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a download that is nearly done there is room for as much as the capacity really has left."""
    monkeypatch.setattr(work, "BATCH_FILES", 1)  # kept one by one
    monkeypatch.setattr(downloads, "WINDOW", 1)
    house = House(tmp_path / "store", Limits(Amount(1000), Amount(0)))
    try:
        house.origin.files = {f"s3://bucket/big/{n}": bytes([n]) * 100 for n in range(6)}
        house.origin.files |= {"s3://bucket/small/x": b"x" * 400, "s3://bucket/more/y": b"y"}
        last, go = threading.Event(), threading.Event()

        def hold(uri: str) -> None:
            if uri.endswith("/5"):
                last.set()
                assert go.wait(PATIENCE_SECONDS)

        house.origin.before_download = hold
        big = house.start("s3://bucket/big")
        assert last.wait(PATIENCE_SECONDS)
        assert house.bring("s3://bucket/small").origin_bytes == 400
        with pytest.raises(NoSpace):
            house.bring("s3://bucket/more")
        go.set()
        assert big.future.result(PATIENCE_SECONDS).origin_bytes == 600
        with pytest.raises(NoSpace):
            house.bring("s3://bucket/more")
    finally:
        go.set()
        house.close()


# -- answers that are not older than the question ----------------------------------------------------------------------


def test_a_refresh_joins_nothing_that_has_begun(filled: House) -> None:
    """Who asks for the newest gets what the origin has at that moment, also beside others who asked a moment before."""
    filled.bring(ROOT)
    gate = Gate(filled, "top")
    early = filled.start(ROOT, refresh=True)
    gate.wait()
    filled.origin.files = {uri: content[::-1] + b"!" for uri, content in filled.origin.files.items()}
    late = filled.start(ROOT, refresh=True)
    part = filled.start(f"{ROOT}/a", refresh=True)
    gate.open()
    wanted = {name: content[::-1] + b"!" for name, content in FILES.items()}
    assert filled.content(late.future.result(PATIENCE_SECONDS).held) == wanted
    assert filled.content(part.future.result(PATIENCE_SECONDS).held) == {
        n[2:]: wanted[n] for n in wanted if n[0] == "a"
    }
    with pytest.raises(Corrupted):  # it had listed other sizes
        early.future.result(PATIENCE_SECONDS)


def test_every_call_lists_a_run_that_is_writing(house: House) -> None:
    """A file that was logged before the call is there, whoever else was asking at that moment."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/one": b"1"}
    house.bring("runs:/r")
    house.origin.files[f"{root}/two"] = b"2"
    begun, go = threading.Event(), threading.Event()

    def hold(uri: str) -> None:
        begun.set()
        assert go.wait(PATIENCE_SECONDS)

    house.origin.before_download = hold
    early = house.start("runs:/r")
    assert begun.wait(PATIENCE_SECONDS)
    house.origin.files[f"{root}/three"] = b"3"
    late = house.start("runs:/r")
    go.set()
    assert set(house.content(early.future.result(PATIENCE_SECONDS).held)) == {"one", "two"}
    assert set(house.content(late.future.result(PATIENCE_SECONDS).held)) == {"one", "two", "three"}


def test_a_run_that_was_opened_again_is_resolved_again_for_what_it_lacked(house: House) -> None:
    """A model that was logged later lies elsewhere: where what is remembered leads to nothing, the origin is asked."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/data/x": b"x"}
    house.bring("runs:/r/data")
    with pytest.raises(NotFound):
        house.bring("runs:/r/model")
    house.origin.run("r", ("model", "s3://bucket/m-1/artifacts"))
    house.origin.files["s3://bucket/m-1/artifacts/MLmodel"] = b"m"
    assert house.content(house.bring("runs:/r/model").held) == {"MLmodel": b"m"}


def test_an_answer_that_leads_nowhere_is_not_remembered(house: House) -> None:
    """A server that was wrong for a moment is believed when it is right again."""
    house.origin.versions["models:/m/1"] = Resolved("models:/m/1", "s3://wrong/place", (), True)
    with pytest.raises(NotFound):
        house.bring("models:/m/1/weights")
    assert house.index.versions.resolved("models:/m/1") is None
    house.origin.versions["models:/m/1"] = Resolved("models:/m/1", "s3://right/place", (), True)
    house.origin.files["s3://right/place/weights"] = b"w"
    assert house.content(house.bring("models:/m/1/weights").held) == {"weights": b"w"}


def test_what_has_to_be_looked_at_is_not_given_without_a_look(filled: House) -> None:
    """A file of this host that a client names: where the look fails, there is neither a stale answer nor a list."""
    filled.origin.guarded = True
    filled.bring(ROOT)
    assert filled.cache.look_up(uris.parse(ROOT), Selection())[1].files
    filled.origin.down = True
    with pytest.raises(OriginUnavailable):
        filled.bring(ROOT)
    with pytest.raises(OriginUnavailable):
        filled.cache.look_up(uris.parse(ROOT), Selection())
