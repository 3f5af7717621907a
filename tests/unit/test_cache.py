"""The cache in process, over a real store and an origin that obeys: what it brings, and what it need not bring."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactcache.errors import Corrupted, NotFound, OriginUnavailable
from cacheserver import uris
from cacheserver.selection import Selection
from cacheserver.words import Resolved
from tests.unit.house import FILES, ROOT, House

SIZE = sum(map(len, FILES.values()))


# -- what is brought, and what is not ---------------------------------------------------------------------------------


def test_a_miss_brings_all_and_a_hit_nothing(filled: House) -> None:
    """The first fetch takes every byte, once; then all is held, and the origin is not asked at all."""
    assert filled.find(ROOT) is None
    brought = filled.bring(ROOT)
    assert brought.origin_bytes == SIZE and not brought.stale
    assert filled.content(brought.held) == FILES
    assert set(filled.origin.downloads.values()) == {1}
    filled.origin.down = True
    found = filled.find(ROOT)
    assert found is not None and found.origin_bytes == 0 and found.held.tree == brought.held.tree


def test_a_part_and_then_the_whole(filled: House) -> None:
    """The whole downloads only the rest."""
    assert filled.bring(f"{ROOT}/a").origin_bytes == 3
    assert filled.bring(f"{ROOT}/top").origin_bytes == 4
    whole = filled.bring(ROOT)
    assert whole.origin_bytes == SIZE - 7 and filled.content(whole.held) == FILES
    assert set(filled.origin.downloads.values()) == {1}


def test_the_whole_and_then_a_part(filled: House) -> None:
    """A folder, a file, and a file of a folder are served from the whole, with the origin down."""
    filled.bring(ROOT)
    filled.origin.down = True
    for path, content, name in (
        ("a", {"one": b"1", "two": b"22"}, ""),
        ("top", {"top": b"4444"}, "top"),
        ("a/two", {"two": b"22"}, "two"),
        ("zero", {"zero": b""}, "zero"),
    ):
        part = filled.bring(f"{ROOT}/{path}")
        assert part.origin_bytes == 0 and not part.stale
        assert filled.content(part.held) == content and part.held.file_name == name


def test_a_path_that_the_whole_had_not_is_asked_for(filled: House) -> None:
    """It may have been added since; where the origin has it not either, it is not found."""
    filled.bring(ROOT)
    with pytest.raises(NotFound):
        filled.bring(f"{ROOT}/later")
    filled.origin.files[f"{ROOT}/later"] = b"later"
    assert filled.content(filled.bring(f"{ROOT}/later").held) == {"later": b"later"}


def test_a_run_and_the_bare_uri_behind_it_share_their_bytes(filled: House) -> None:
    """What was fetched by one name is not fetched again by another."""
    filled.origin.versions["runs:/r"] = Resolved("runs:/r", ROOT, (), True)
    assert filled.bring("runs:/r/a").origin_bytes == 3
    assert filled.bring(f"{ROOT}/a").origin_bytes == 0
    assert filled.bring("runs:/r").origin_bytes == SIZE - 3
    assert filled.bring(f"{ROOT}/b").origin_bytes == 0
    filled.cache.record_uses()
    assert [h.uri for h in filled.index.asked()] == ["runs:/r", "runs:/r/a", f"{ROOT}/a", f"{ROOT}/b"]


def test_a_selection_brings_only_what_it_takes(filled: House) -> None:
    """A selected part is an artifact of its own; the whole afterwards brings the rest, and serves other selections."""
    some = filled.bring(ROOT, Selection.of(["a/*"], ["**/two"]))
    assert filled.content(some.held) == {"a/one": b"1"} and some.origin_bytes == 1
    assert filled.find(ROOT) is None
    assert filled.bring(ROOT).origin_bytes == SIZE - 1
    filled.origin.down = True
    other = filled.bring(ROOT, Selection.of(["**/t*"], []))
    assert other.origin_bytes == 0 and set(filled.content(other.held)) == {"a/two", "b/three", "top"}
    nothing = filled.bring(ROOT, Selection.of(["none"], []))
    assert filled.content(nothing.held) == {}


def test_a_pattern_does_not_make_other_files_part_of_the_whole(filled: House) -> None:
    """What was fetched with patterns is never taken for all there is."""
    filled.bring(ROOT, Selection.of(["a/**"], []))
    assert filled.content(filled.bring(f"{ROOT}/a").held) == {"one": b"1", "two": b"22"}
    assert filled.content(filled.bring(ROOT).held) == FILES


@pytest.mark.parametrize(
    ("files", "content"),
    [
        ({}, {}),
        ({"zero": b""}, {"zero": b""}),
        ({"hollow/": b"", "a/hollow/": b""}, {"hollow/": None, "a/hollow/": None}),
        ({"a b/#?%20\n\\": b"x"}, {"a b/#?%20\n\\": b"x"}),
        ({"\udcff\udcfe": b"not UTF-8"}, {"\udcff\udcfe": b"not UTF-8"}),
    ],
    ids=["no file", "an empty file", "empty folders", "odd names", "not UTF-8"],
)
def test_odd_trees_are_held_as_they_are(
    house: House, files: dict[str, bytes], content: dict[str, bytes | None]
) -> None:
    """No file at all, empty files, empty folders and any names: a run of such is fetched, and found again."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/{name}": data for name, data in files.items()}
    assert house.content(house.bring("runs:/r").held) == content
    house.origin.down = True
    found = house.find("runs:/r")
    assert found is not None and house.content(found.held) == content
    assert Path(house.store.view(found.held.tree)).is_dir()


def test_the_same_bytes_under_many_names_are_kept_once(house: House) -> None:
    """Deduplicated, within an artifact and between artifacts."""
    house.origin.files = {f"{ROOT}{n % 2}/{n}": b"the same" for n in range(10)}
    for n in range(2):
        assert len(house.content(house.bring(f"{ROOT}{n}").held)) == 5
    assert house.index.totals()["blob_count"] == 1


def test_refresh_takes_every_byte_again(filled: House) -> None:
    """A file that changed behind an unchanged size is right afterwards; without refresh nobody would see it."""
    old = filled.bring(ROOT)
    filled.origin.files[f"{ROOT}/top"] = b"four"
    assert filled.bring(ROOT).held.tree == old.held.tree
    new = filled.bring(ROOT, refresh=True)
    assert new.origin_bytes == SIZE and filled.content(new.held) == {**FILES, "top": b"four"}
    del filled.origin.files[f"{ROOT}/top"]
    assert "top" not in filled.content(filled.bring(ROOT, refresh=True).held)


def test_refresh_fails_where_the_origin_is_down(filled: House) -> None:
    """Who asks for the newest gets no old one; what was held stays held."""
    filled.bring(ROOT)
    filled.origin.down = True
    with pytest.raises(OriginUnavailable):
        filled.bring(ROOT, refresh=True)
    assert filled.find(ROOT) is not None


def test_an_origin_that_tells_no_sizes_is_believed_what_it_sends(filled: House) -> None:
    """Without a size there is nothing to compare; what is held is not asked for again."""
    filled.origin.sized = False
    assert filled.content(filled.bring(f"{ROOT}/a").held) == {"one": b"1", "two": b"22"}
    assert filled.bring(ROOT).origin_bytes == SIZE - 3


# -- runs, models and what they stand for -----------------------------------------------------------------------------


def test_a_run_that_is_running_is_listed_each_time(house: House) -> None:
    """New files and files of another size are brought, those that are gone are gone, and no other byte is taken."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/log": b"1", f"{root}/model": b"model", f"{root}/temp": b"t"}
    house.bring("runs:/r")
    assert house.find("runs:/r") is None
    house.origin.files = {f"{root}/log": b"1 2", f"{root}/model": b"model", f"{root}/new": b"new"}
    again = house.bring("runs:/r")
    assert again.origin_bytes == 6
    assert house.content(again.held) == {"log": b"1 2", "model": b"model", "new": b"new"}
    assert house.origin.downloads[f"{root}/model"] == 1
    house.origin.run("r")  # it has finished: a file rewritten with the same size must not stay as it was
    house.origin.files[f"{root}/model"] = b"MODEL"
    last = house.bring("runs:/r")
    assert house.content(last.held) == {"log": b"1 2", "model": b"MODEL", "new": b"new"} and last.origin_bytes == 11
    assert house.find("runs:/r") is not None


def test_a_running_run_is_given_as_held_while_the_origin_is_down(house: House) -> None:
    """And said to be stale, its parts too; what is not among them may have come since, and nobody can say."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/a/log": b"1"}
    house.bring("runs:/r")
    house.origin.down = True
    again = house.bring("runs:/r")
    assert again.stale and again.origin_bytes == 0 and house.content(again.held) == {"a/log": b"1"}
    part = house.bring("runs:/r/a")
    assert part.stale and house.content(part.held) == {"log": b"1"}
    with pytest.raises(OriginUnavailable):
        house.bring("runs:/r/b")


def test_a_run_shows_its_logged_models(house: House) -> None:
    """Both places are one folder, the model's files win, and each place alone is held for others too."""
    root, model = house.origin.run("r", ("model", "s3://bucket/m-1")), "s3://bucket/m-1"
    house.origin.files = {
        f"{root}/model/both": b"run's",
        f"{root}/model/runs": b"r",
        f"{root}/plain": b"p",
        f"{model}/both": b"model's",
        f"{model}/MLmodel": b"m",
    }
    union = house.bring("runs:/r/model")
    assert house.content(union.held) == {"both": b"model's", "runs": b"r", "MLmodel": b"m"}
    assert union.origin_bytes == sum(map(len, house.origin.files.values())) - 1
    house.origin.versions["models:/m-1"] = Resolved("models:/m-1", model, (), True)
    assert house.bring("models:/m-1").origin_bytes == 0
    assert house.bring("runs:/r/model/both").origin_bytes == 0
    assert house.content(house.bring("runs:/r/model/both").held) == {"both": b"model's"}
    assert house.content(house.bring("runs:/r/plain").held) == {"plain": b"p"}


@pytest.mark.parametrize("where", ["root", "model"])
def test_a_logged_model_may_be_in_one_place_only(house: House, where: str) -> None:
    """MLflow 3 keeps it beside the run, MLflow 2 inside."""
    root = house.origin.run("r", ("model", "s3://bucket/m-1"))
    house.origin.files = {(f"{root}/model/x" if where == "root" else "s3://bucket/m-1/x"): b"x"}
    assert house.content(house.bring("runs:/r/model").held) == {"x": b"x"}
    with pytest.raises(NotFound):
        house.bring("runs:/r/other")


def test_a_file_here_that_is_a_folder_there_is_no_tree(house: House) -> None:
    """Two places that contradict each other make an error of ours, not a tree that nobody can place."""
    root = house.origin.run("r", ("model", "s3://bucket/m-1"))
    house.origin.files = {f"{root}/model/x": b"file", "s3://bucket/m-1/x/y": b"in a folder"}
    with pytest.raises(Corrupted):
        house.bring("runs:/r/model")
    assert house.index.held("runs:/r/model", "") is None


def test_an_alias_is_asked_for_each_time(house: House) -> None:
    """It may stand for another version now; the versions are held by themselves."""
    for number in ("1", "2"):
        version = f"models:/m/{number}"
        house.origin.versions[version] = Resolved(version, f"s3://bucket/v{number}", (), True)
        house.origin.files[f"s3://bucket/v{number}/x"] = number.encode()
    for number in ("1", "2"):
        house.origin.aliases["models:/m@champion"] = number
        version_now = house.cache.version_of(uris.parse("models:/m@champion/x")).artifact
        assert version_now.uri == f"models:/m/{number}/x"
        assert house.content(house.bring(version_now.uri).held) == {"x": number.encode()}
    assert house.cache.version_of(uris.parse("runs:/r/x")).artifact == uris.parse("runs:/r/x")


def test_what_must_be_looked_at_each_time_is(filled: House) -> None:
    """A file of this host, named by one of many users: the origin decides each time whether it may be read."""
    filled.bring(ROOT)
    filled.origin.guarded = True
    assert filled.find(ROOT) is None
    assert filled.bring(ROOT).origin_bytes == 0
    listed = filled.origin.listings.total()
    filled.bring(f"{ROOT}/a")
    assert filled.origin.listings.total() == listed + 1


# -- looking up -------------------------------------------------------------------------------------------------------


def test_only_what_is_held_is_looked_up(filled: House) -> None:
    """Without a byte from the origin; patterns make another artifact."""
    with pytest.raises(NotFound, match="fetch it first"):
        filled.cache.look_up(uris.parse(ROOT), Selection())
    brought = filled.bring(ROOT)
    filled.origin.down = True
    held, manifest = filled.cache.look_up(uris.parse(ROOT), Selection())
    assert held == brought.held and len(manifest.files) == len(FILES)
    with pytest.raises(NotFound, match="with these patterns"):
        filled.cache.look_up(uris.parse(ROOT), Selection.of(["x"], []))


def test_uses_are_written_down_now_and_then(filled: House) -> None:
    """A hit writes nothing itself; what was used is recorded together, also when the daemon ends."""
    filled.bring(ROOT)
    filled.now += 100
    assert filled.find(ROOT) is not None
    held = filled.index.held(ROOT, "")
    assert held is not None and held.used_at == filled.now - 100
    filled.cache.record_uses()
    held = filled.index.held(ROOT, "")
    assert held is not None and held.used_at == filled.now
    assert held.fetched_at == filled.now - 100
