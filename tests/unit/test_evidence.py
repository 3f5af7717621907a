"""What is believed of bytes that are held: never more than the origin was seen to have, and when."""

from __future__ import annotations

import threading

import pytest

from artifactcache.errors import NotFound, OriginUnavailable
from cacheserver import uris
from cacheserver.errands import Ask
from cacheserver.selection import Selection
from cacheserver.words import Entry, Manifest, Record, Resolved, Standing
from tests.unit.house import FRESHNESS, PATIENCE_SECONDS, House, Shelf
from tests.unit.test_freshness import DUE, get, model

URI = "s3://bucket/one"


def test_a_version_made_anew_takes_all_of_the_old_one_with_it(house: House) -> None:
    """What was held of its paths is of another version of the same name: not even without the origin it is given."""
    model(house, 1, "s3://bucket/old", "monday")
    house.origin.files = {"s3://bucket/old/x/y": b"old", "s3://bucket/new/x/y": b"new"}
    house.bring("models:/m/1/x")
    model(house, 1, "s3://bucket/new", "tuesday")
    house.now += DUE
    assert house.content(get(house, "models:/m/1/x/y").held) == {"y": b"new"}
    house.origin.down = True
    with pytest.raises(OriginUnavailable):
        get(house, "models:/m/1/x")


def test_a_version_known_to_be_another_one_is_not_given_stale(house: House) -> None:
    """An alias has shown that the version was made anew; what is held is of the old one, whoever does not answer."""
    model(house, 1, "s3://bucket/old", "monday")
    house.origin.files = {"s3://bucket/old/x": b"old"}
    house.bring("models:/m/1")
    house.origin.down = True
    with pytest.raises(OriginUnavailable):
        house.cache.bring(uris.parse("models:/m/1"), Selection(), Ask.AGAIN)[0].future.result(PATIENCE_SECONDS)


def test_half_of_an_artifact_is_none(house: House) -> None:
    """Of a run's folder and the logged model over it one is held: without the origin that is not the artifact."""
    root = house.origin.run("r", ("model", "s3://bucket/m"))
    house.origin.files = {f"{root}/model/note": b"run's", "s3://bucket/m/MLmodel": b"model's"}
    house.bring("runs:/r")
    house.origin.down = True
    with pytest.raises(OriginUnavailable):
        get(house, "runs:/r/model")
    house.origin.down = False
    assert house.content(get(house, "runs:/r/model").held) == {"note": b"run's", "MLmodel": b"model's"}


def test_what_was_believed_is_no_younger_for_it(house: House) -> None:
    """A whole tree that takes over files without a question is trusted for as long as the oldest of them."""
    root = house.origin.run("r")
    house.origin.tags = "asked"
    house.origin.files = {f"{root}/a/x": b"early", f"{root}/b": b"b"}
    house.bring("runs:/r/a")
    house.now += FRESHNESS.relist_after - 10
    assert get(house, "runs:/r").origin_bytes == 1 and not house.origin.questions
    house.origin.files[f"{root}/a/x"] = b"final"
    house.now += 20
    assert house.content(get(house, "runs:/r").held) == {"a/x": b"final", "b": b"b"}


def test_a_file_rewritten_while_it_is_brought_keeps_its_tag(house: House) -> None:
    """The tag it came with is not the one that was told before; asked again, the origin tells the same: so it is
    evidence, and the next rewriting shows."""
    root = house.origin.run("r")
    house.origin.tags, file = "asked", f"{root}/x"
    house.origin.files = {file: b"one"}
    house.bring("runs:/r")
    house.origin.files[file] = b"two"
    house.origin.before_download = lambda uri: house.origin.files.update({file: b"six"})
    house.now += DUE
    assert house.content(get(house, "runs:/r").held) == {"x": b"six"}
    house.origin.before_download = lambda uri: None
    house.now += DUE
    assert get(house, "runs:/r").origin_bytes == 0
    house.origin.files[file] = b"ten"
    house.now += DUE
    assert house.content(get(house, "runs:/r").held) == {"x": b"ten"}


def test_what_somebody_else_brings_is_compared(house: House) -> None:
    """One call has brought the file's old bytes and not kept them yet; who lists the new ones takes none of them."""
    root = house.origin.run("r")
    house.origin.tags, file = "listed", f"{root}/x"
    house.origin.files = {file: b"early", f"{root}/other": b"other"}
    here, go_on = threading.Semaphore(0), threading.Event()

    def hold(uri: str) -> None:
        here.release()
        assert go_on.wait(PATIENCE_SECONDS)

    house.origin.after_download = hold
    first = house.start("runs:/r/x")
    assert here.acquire(timeout=PATIENCE_SECONDS)
    house.origin.files[file] = b"final"
    second = house.start("runs:/r")
    assert here.acquire(timeout=PATIENCE_SECONDS), "it brings the other file, and waits for this one"
    go_on.set()
    assert house.content(first.future.result(PATIENCE_SECONDS).held) == {"x": b"early"}
    assert house.content(second.future.result(PATIENCE_SECONDS).held) == {"x": b"final", "other": b"other"}


def test_who_joins_the_first_fetch_of_a_version_is_told_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is resolved nobody knows whether it still changes: its answer may be older than the call. Once that is
    known, who comes while it is brought gets the answer after that."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/x": b"x"}
    here, go_on, resolve = threading.Event(), threading.Event(), house.origin.resolve

    def hold(artifact: uris.Artifact, *, patience: float | None = None) -> Resolved:
        here.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return resolve(artifact, patience=patience)

    monkeypatch.setattr(house.origin, "resolve", hold)
    ask = uris.parse("runs:/r"), Selection(), Ask.WHAT_IS_DUE
    first, started, may_be_old = house.cache.bring(*ask)
    assert started and not may_be_old and here.wait(PATIENCE_SECONDS)
    second, started, may_be_old = house.cache.bring(*ask)
    assert second is first and not started and may_be_old
    go_on.set()
    assert second.future.result(PATIENCE_SECONDS).held.standing is Standing.OPEN
    house.origin.files[f"{root}/y"] = b"y"
    third, _, may_be_old = house.cache.bring(*ask)
    assert not may_be_old and house.content(third.future.result(PATIENCE_SECONDS).held) == {"x": b"x", "y": b"y"}


def test_an_answer_is_as_old_as_its_question(house: House) -> None:
    """A download that takes its time makes what the origin said of the version no younger."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/x": b"x"}
    began = house.now

    def later(uri: str) -> None:
        house.now += 100

    house.origin.before_download = later
    held = house.bring("runs:/r").held
    assert (held.checked_at, house.index.versions.resolved_at("runs:/r")) == (began, began)


def test_an_older_answer_replaces_no_newer_one(shelf: Shelf) -> None:
    """Two calls may end in another order than they asked; but for a clock that was set back."""
    old, new = shelf.put({"x": b"old"}, "s3://bucket/old"), shelf.put({"x": b"new"}, "s3://bucket/new")

    def record(digest: str, checked_at: float, now: float) -> str:
        manifest = shelf.store.tree(digest)
        assert manifest is not None
        record = Record(URI, "", "", Standing.FINISHED, True, checked_at)
        shelf.store.commit(manifest.manifest, [record], (), now)
        held = shelf.index.held(URI, "")
        assert held is not None
        return held.tree

    assert record(new.tree, 20.0, 21.0) == new.tree
    assert record(old.tree, 10.0, 22.0) == new.tree
    assert record(old.tree, 30.0, 31.0) == old.tree
    assert record(new.tree, 5.0, 6.0) == new.tree, "31 is in the future"


def test_a_check_counts_for_the_tree_that_was_checked(shelf: Shelf) -> None:
    """What has replaced it meanwhile has a time of its own."""
    held = shelf.put({"x": b"x"}, URI)
    other = Manifest.of([Entry(b"x", "0" * 64, 1)]).digest

    def checked_at() -> float:
        found = shelf.index.held(URI, "")
        assert found is not None
        return found.checked_at

    shelf.index.record_checks([(URI, "", other)], 50.0)
    assert checked_at() == 1.0
    shelf.index.record_checks([(URI, "", held.tree)], 50.0)
    assert checked_at() == 50.0


def test_an_alias_that_refresh_finds_gone_is_forgotten(house: House) -> None:
    """As by any other call."""
    house.origin.versions["models:/m/1"] = Resolved("models:/m/1", "s3://bucket/m", (), True)
    house.origin.files = {"s3://bucket/m/x": b"x"}
    house.origin.aliases["models:/m@champion"] = "1"
    get(house, "models:/m@champion")
    del house.origin.aliases["models:/m@champion"]
    with pytest.raises(Exception, match="champion"):
        get(house, "models:/m@champion", refresh=True)
    assert house.index.versions.alias("models:/m@champion") is None


@pytest.mark.parametrize("stays_listed", [False, True])
def test_a_file_that_is_removed_while_its_run_is_brought(house: House, stays_listed: bool) -> None:
    """As checkpoints are: it is listed again, and what is there then is the artifact. A listing that goes on to name
    what is not there is an error."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/new": b"new", f"{root}/old": b"old"}

    def remove(uri: str) -> None:
        if uri.endswith("/old"):
            if not stays_listed:
                del house.origin.files[uri]
            raise NotFound(f"{uri}: the origin has no such file.")

    house.origin.before_download = remove
    if stays_listed:
        with pytest.raises(NotFound, match="old: the origin has no such file"):
            house.bring("runs:/r")
    else:
        assert house.content(house.bring("runs:/r").held) == {"new": b"new"}
