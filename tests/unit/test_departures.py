"""What leaves the store: rows before files, and nothing that is forgotten or that comes back."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheserver.holdings import Gone
from cacheserver.planning import Blob
from cacheserver.words import Held
from tests.unit.house import FEW, PATIENCE_SECONDS, Shelf, fsck_command

NOW = 1_000_000.0
ONE, TWO = "s3://bucket/one", "s3://bucket/two"


def evict(shelf: Shelf, *held: Held) -> Gone:
    """Evicts trees that nothing keeps."""
    return shelf.store.departures.evict([one.tree for one in held], now=NOW, young_since=NOW)


def rows_gone(shelf: Shelf, *held: Held) -> Gone:
    """As `evict`, by a daemon that is killed between the commit and the first file."""
    return shelf.index.holdings.evict([one.tree for one in held], now=NOW, young_since=NOW)


def again(shelf: Shelf) -> None:
    """The next daemon has the store."""
    shelf.close()
    shelf.__init__(shelf.root)  # type: ignore[misc]


def files(shelf: Shelf) -> set[str]:
    """All files and views of the store, by their names."""
    found = {str(p.relative_to(shelf.root)) for kind in ("blobs", "manifests") for p in shelf.root.glob(f"{kind}/*/*")}
    return found | {f"views/{name}" for name in os.listdir(shelf.root / "views")}


def files_of(shelf: Shelf, held: Held) -> set[str]:
    """What should be there of a tree that has a view."""
    digests = {e.digest for e in shelf.tree(held).manifest.files if e.size}
    return (
        {f"blobs/{d[:2]}/{d[2:]}" for d in digests}
        | {f"manifests/{held.tree[:2]}/{held.tree[2:]}"}
        | {f"views/{held.tree}"}
    )


def put(shelf: Shelf, files: dict[str, bytes], uri: str) -> Held:
    """A tree that has a view."""
    held = shelf.put(files, uri)
    shelf.store.view(held.tree)
    return held


def test_all_files_of_what_goes_are_gone(shelf: Shelf) -> None:
    """Blobs, manifest and view; nothing of others, nor of what both have, and nothing is left in staging/."""
    one = put(shelf, FEW | {"mine": b"mine"}, ONE)
    two = put(shelf, FEW | {"other": b"other"}, TWO)
    before, others = files(shelf), files_of(shelf, two)
    assert before == files_of(shelf, one) | others
    gone = evict(shelf, one)
    assert gone.trees == {one.tree: True} and list(gone.blobs.values()) == [4]
    assert files(shelf) == others and shelf.staging() == []
    assert shelf.index.holdings.leaving() == (Gone({}, {}), "")
    assert shelf.store.tree(one.tree) is None and shelf.store.view_is_sound(two.tree)
    assert {path: content for path, content in shelf.content(two).items() if content is not None} == FEW | {
        "other": b"other"
    }
    assert evict(shelf, two).blobs and files(shelf) == set()


def test_a_large_blob_is_set_aside_and_gone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the disk long is removed after all that others wait for."""
    monkeypatch.setattr("cacheserver.disk.LARGE_BYTES_MIN", 4)
    one = put(shelf, {"small": b"123", "large": b"12345"}, ONE)
    evict(shelf, one)
    assert files(shelf) == set() and shelf.staging() == []


@pytest.mark.parametrize("with_view", [True, False])
def test_what_a_crash_has_left_is_removed_by_the_next_daemon(shelf: Shelf, with_view: bool) -> None:
    """The rows are gone, and no file is yet: it stands in the index what was to go."""
    one, two = shelf.put({"x": b"1", "both": b"2"}, ONE), put(shelf, {"both": b"2"}, TWO)
    if with_view:
        shelf.store.view(one.tree)
    expected, before = files_of(shelf, two), files(shelf)
    rows_gone(shelf, one)
    again(shelf)
    assert files(shelf) == before and set(shelf.index.holdings.leaving()[0].trees) == {one.tree}
    shelf.store.departures.tidy()
    assert files(shelf) == expected and shelf.index.holdings.leaving() == (Gone({}, {}), "")
    shelf.close()
    assert fsck_command(shelf.root) == 0
    shelf.__init__(shelf.root)  # type: ignore[misc]


@pytest.mark.parametrize("kept", ["blobs", "manifests", "views"])
def test_what_a_crash_has_left_half_removed_is_removed(shelf: Shelf, kept: str) -> None:
    """It was killed somewhere on its way: what is gone already is no error."""
    one = put(shelf, FEW, ONE)
    rows_gone(shelf, one)
    for kind in {"blobs", "manifests", "views"} - {kept}:
        for path in (shelf.root / kind).iterdir():
            os.chmod(path, 0o755)
            shutil.rmtree(path)
    again(shelf)
    shelf.store.departures.tidy()
    assert files(shelf) == set()


def test_what_is_held_again_by_then_stays(shelf: Shelf) -> None:
    """A blob that was about to go, and that a tree has again, is no business of the next daemon; nor is the tree."""
    one = put(shelf, {"x": b"1", "y": b"2"}, ONE)
    rows_gone(shelf, one)
    again(shelf)
    two = put(shelf, {"other name": b"1"}, TWO)
    shelf.store.departures.tidy()
    assert files(shelf) == files_of(shelf, two) and not shelf.store.unsound(shelf.tree(two))
    rows_gone(shelf, two)
    again(shelf)
    two = put(shelf, {"other name": b"1"}, TWO)
    shelf.store.departures.tidy()
    assert files(shelf) == files_of(shelf, two) and shelf.store.view_is_sound(two.tree)


def test_what_is_recorded_while_a_store_is_tidied_stays(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree was about to go when a daemon was killed; the next one tidies, and brings it again at that moment."""
    one = put(shelf, FEW, ONE)
    rows_gone(shelf, one)
    again(shelf)
    arrived, take_out = shelf.put(FEW, TWO), shelf.disk.take_out
    manifest = shelf.tree(arrived).manifest
    rows_gone(shelf, arrived)  # the daemon before it was killed, and its download has kept its blobs since
    shelf.put({f"other/{name}": content for name, content in FEW.items()}, TWO)

    committing = threading.Thread(target=lambda: shelf.store.commit(manifest, [], (), NOW))

    def and_meanwhile(
        trees: dict[str, bool], blobs: dict[str, int], rest: Callable[[], None]
    ) -> tuple[list[str], set[str]]:
        monkeypatch.undo()
        committing.start()  # it comes to an end now, or waits for this
        committing.join(0.5)
        return take_out(trees, blobs, rest)

    monkeypatch.setattr(shelf.disk, "take_out", and_meanwhile)
    shelf.store.departures.tidy()
    committing.join(PATIENCE_SECONDS)
    assert manifest.digest in shelf.index.tree_digests()
    assert shelf.disk.read_manifest(manifest.digest) == manifest, "a row without bytes"


def test_a_disk_that_refuses_is_tried_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are gone, so nobody is handed it; what could not be removed goes when the store is tidied."""
    one = put(shelf, FEW, ONE)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for call in ("unlink", "rename"):
        monkeypatch.setattr(os, call, refuse)
    assert list(evict(shelf, one).trees) == [one.tree]
    assert shelf.index.held(ONE, "") is None and len(files(shelf)) == len(FEW) + 1
    monkeypatch.undo()
    shelf.store.departures.tidy()
    assert files(shelf) == set()


def test_unheld_blobs_are_removed(shelf: Shelf) -> None:
    """Those that neither a tree nor a download needs: of a download that another one has overtaken, say."""
    kept = put(shelf, {"x": b"1"}, ONE)
    with_arrival, without = shelf.store.stage(), shelf.store.stage()
    Path(with_arrival).write_bytes(b"coming")
    Path(without).write_bytes(b"lost")
    for uri, path in (("s3://b/x", with_arrival), ("s3://b/y", without)):
        shelf.store.keep({uri: shelf.store.measure(path)}, kept.standing, NOW)
    another = shelf.store.stage()
    Path(another).write_bytes(b"overtakes")
    shelf.store.keep({"s3://b/y": shelf.store.measure(another)}, kept.standing, NOW)
    assert shelf.index.totals()["blob_count"] == 4
    shelf.store.departures.tidy()
    assert {row.size for row in shelf.index.some_blobs("", 9)} == {1, len(b"coming"), len(b"overtakes")}
    assert len(files(shelf)) == 5


def blobs_of(shelf: Shelf, held: Held) -> set[Blob]:
    """The blobs of a tree, without their numbers."""
    return {blob._replace(key=0) for blob in shelf.store.departures.prospects().blobs_of(held.tree)}


def test_links_of_views_are_no_links_outside(shelf: Shelf, tmp_path: Path) -> None:
    """However many trees and paths have a blob: what frees nothing is only what somebody has outside the store."""
    one = shelf.put({"a": b"12", "b": b"12", "c": b"3"}, ONE)
    two = shelf.put({"d/a": b"12", "empty": b""}, TWO)
    for view in (None, one, two):
        if view:
            shelf.store.view(view.tree)
        assert blobs_of(shelf, one) == {Blob(0, 2, 2), Blob(0, 1, 1)} and blobs_of(shelf, two) == {Blob(0, 2, 2)}
    os.link(shelf.blob(shelf.digest(one, "a")), tmp_path / "outside")
    assert blobs_of(shelf, one) == {Blob(0, 2, 2, is_linked=True), Blob(0, 1, 1)}
    assert blobs_of(shelf, two) == {Blob(0, 2, 2, is_linked=True)}
    (tmp_path / "outside").unlink()
    evict(shelf, two)
    assert blobs_of(shelf, one) == {Blob(0, 2, 1), Blob(0, 1, 1)}


def test_a_link_outside_is_one_where_there_is_no_view(shelf: Shelf, tmp_path: Path) -> None:
    """Nor a folder of one: jobs had it linked, and nobody has asked for a view."""
    one = shelf.put({"a": b"12", "b": b"3"}, ONE)
    shelf.put({"c": b"12"}, TWO)
    os.link(shelf.blob(shelf.digest(one, "a")), tmp_path / "outside")
    assert blobs_of(shelf, one) == {Blob(0, 2, 2, is_linked=True), Blob(0, 1, 1)}


def test_a_blob_that_came_back_has_no_links_outside(shelf: Shelf) -> None:
    """It was in quarantine, was brought for another tree, and is two files of this one."""
    one = shelf.put({"a": b"12", "b": b"12"}, ONE)
    shelf.damage(shelf.digest(one, "a"))
    assert shelf.store.unsound(shelf.tree(one))
    shelf.put({"c": b"12"}, TWO)
    assert not shelf.store.unsound(shelf.tree(one))
    shelf.store.view(one.tree)
    assert blobs_of(shelf, one) == {Blob(0, 2, 2)}


@pytest.mark.parametrize("how", ["a file was damaged", "its daemon was killed"])
def test_a_view_that_no_row_speaks_of_is_none_outside(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It is on the disk still, and goes with its tree: its links hold no bytes back, beside those of views that count;
    others outside do."""
    one = shelf.put({"a": b"12", "d/b": b"12", "c": b"3", "x": b"damaged"}, ONE)
    two, three = put(shelf, {"a": b"12"}, TWO), shelf.put({"c": b"3"}, "s3://bucket/three")
    if how == "a file was damaged":
        shelf.store.view(one.tree)
        shelf.damage(shelf.digest(one, "x"))
        assert shelf.store.unsound(shelf.tree(one))
    else:
        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            killed.setattr(shelf.index, "record_view", _kill)
            shelf.store.view(one.tree)
        again(shelf)
    assert not shelf.index.has_view(one.tree) and (shelf.root / "views" / one.tree / "d" / "b").exists()
    assert {Blob(0, 2, 2), Blob(0, 1, 2)} <= blobs_of(shelf, one) and not any(b.is_linked for b in blobs_of(shelf, one))
    assert blobs_of(shelf, two) == {Blob(0, 2, 2)} and blobs_of(shelf, three) == {Blob(0, 1, 2)}
    os.link(shelf.blob(shelf.digest(one, "a")), tmp_path / "outside")
    assert blobs_of(shelf, two) == {Blob(0, 2, 2, is_linked=True)} and Blob(0, 1, 2) in blobs_of(shelf, one)
    expected = files_of(shelf, two) | files_of(shelf, three) - {f"views/{three.tree}"}
    evict(shelf, one)
    assert files(shelf) == expected and shelf.staging() == []
    assert blobs_of(shelf, three) == {Blob(0, 1, 1)} and shelf.blob(shelf.digest(three, "c")).stat().st_nlink == 1


def _kill(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_a_view_has_of_a_blob_that_was_damaged_is_no_link_of_the_right_one(shelf: Shelf, tmp_path: Path) -> None:
    """The blob came back, and the view has the damaged file still: a link outside is one outside."""
    one = put(shelf, {"a": b"12", "b": b"3"}, ONE)
    shelf.damage(shelf.digest(one, "a"))
    assert shelf.store.unsound(shelf.tree(one))
    shelf.put({"c": b"12"}, TWO)
    assert not shelf.store.unsound(shelf.tree(one)) and not shelf.index.has_view(one.tree)
    assert blobs_of(shelf, one) == {Blob(0, 2, 2), Blob(0, 1, 1)}
    os.link(shelf.blob(shelf.digest(one, "a")), tmp_path / "outside")
    assert blobs_of(shelf, one) == {Blob(0, 2, 2, is_linked=True), Blob(0, 1, 1)}
