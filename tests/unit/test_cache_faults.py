"""The cache in process, over a real store and an origin that misbehaves on command."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifactcache.errors import Corrupted, NoSpace, NotFound, OriginUnavailable
from cacheserver import downloads, work
from cacheserver.space import Amount, Limits
from cacheserver.words import File
from tests.unit.house import FILES, PATIENCE_SECONDS, ROOT, Gate, House

SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[House]:
    """A house with room for ten bytes."""
    house = House(tmp_path / "small", Limits(Amount(10), Amount(0)))
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    yield house
    house.close()


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_store_that_hangs_keeps_no_download_from_elsewhere_waiting(house: House) -> None:
    """However many of its files are waited for: what the tracking server has itself comes all the same."""
    stuck, near, go = [f"s3://bucket/{n}" for n in range(4)], "mlflow-artifacts:/near", threading.Event()
    house.origin.files = {f"{uri}/{n}": b"x" for uri in stuck for n in range(downloads.WINDOW)} | {f"{near}/x": b"y"}
    reached = threading.Semaphore(0)

    def hold(uri: str) -> None:
        if uri.startswith("s3:"):
            reached.release()
            assert go.wait(PATIENCE_SECONDS)

    house.origin.before_download = hold
    flights = [house.start(uri) for uri in stuck]
    try:
        for _ in range(downloads.DOWNLOADS_MAX // 2):
            assert reached.acquire(timeout=PATIENCE_SECONDS)
        assert house.start(near).future.result(PATIENCE_SECONDS / 3).origin_bytes == 1
    finally:
        go.set()
    assert all(flight.future.result(PATIENCE_SECONDS).origin_bytes == downloads.WINDOW for flight in flights)


def test_any_number_of_callers_take_the_bytes_once(filled: House) -> None:
    """32 callers of one cold artifact: every byte once, the same tree for all."""
    ready = threading.Barrier(32)

    def fetch(_: int) -> str:
        ready.wait(PATIENCE_SECONDS)
        return filled.bring(ROOT).held.tree

    with ThreadPoolExecutor(32) as callers:
        trees = set(callers.map(fetch, range(32)))
    assert len(trees) == 1 and filled.origin.downloads == Counter({f"{ROOT}/{name}": 1 for name in FILES})


def test_overlapping_artifacts_take_each_file_once(filled: House) -> None:
    """A folder and the whole around it, asked for at the same time, share the files that both need."""
    gate = Gate(filled, "a/one", "top")
    part = filled.start(f"{ROOT}/a")
    gate.wait()  # the part has claimed its files
    whole = filled.start(ROOT)
    gate.wait()  # the whole has claimed the rest
    gate.open()
    assert filled.content(part.future.result(PATIENCE_SECONDS).held) == {"one": b"1", "two": b"22"}
    assert filled.content(whole.future.result(PATIENCE_SECONDS).held) == FILES
    assert filled.origin.downloads == Counter({f"{ROOT}/{name}": 1 for name in FILES})
    assert part.future.result().origin_bytes + whole.future.result().origin_bytes == SIZE


def test_a_failure_reaches_all_who_wait_and_nobody_after(filled: House) -> None:
    """All callers get the error, nothing half-made stays, and the next attempt starts anew."""
    gate = Gate(filled, "top")
    flights = [filled.start(ROOT) for _ in range(3)]
    gate.wait()
    gate.open(OriginUnavailable("broke off"))
    for flight in flights:
        assert isinstance(flight.future.exception(PATIENCE_SECONDS), OriginUnavailable)
    assert filled.index.held(ROOT, "") is None and filled.staging() == [] and filled.cache.download_count() == 0
    filled.origin.before_download = lambda uri: None
    assert filled.content(filled.bring(ROOT).held) == FILES


def test_a_failing_artifact_does_not_fail_another_ones_claim(filled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was settled and is claimed again by another download is that one's, whatever happens here."""
    monkeypatch.setattr(work, "BATCH_FILES", 1)  # every file is settled as soon as it is here
    top, again, news = threading.Event(), threading.Event(), threading.Event()
    claimed, fetching_again = threading.Event(), threading.Event()

    def hold(uri: str) -> None:
        if uri == f"{ROOT}/top":
            claimed.set()
            assert top.wait(PATIENCE_SECONDS)
            raise OriginUnavailable("broke off")
        if uri == f"{ROOT}/a/one" and filled.origin.downloads[uri]:
            fetching_again.set()
            news.set()
            assert again.wait(PATIENCE_SECONDS)

    filled.origin.before_download = hold
    whole = filled.start(ROOT)
    assert claimed.wait(PATIENCE_SECONDS)
    while not fetching_again.is_set():  # as long as the claim is the whole's, this one is given its result
        news.clear()
        one = filled.start(f"{ROOT}/a/one", refresh=True)
        one.future.add_done_callback(lambda _: news.set())
        assert news.wait(PATIENCE_SECONDS)
    top.set()
    assert isinstance(whole.future.exception(PATIENCE_SECONDS), OriginUnavailable)
    again.set()
    assert filled.content(one.future.result(PATIENCE_SECONDS).held) == {"one": b"1"}


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_arrived_before_a_failure_is_not_taken_again(filled: House) -> None:
    """The next attempt brings only the rest."""
    arrived = threading.Event()

    def fail_last(uri: str) -> None:
        if uri == f"{ROOT}/top":
            assert arrived.wait(PATIENCE_SECONDS)
            raise OriginUnavailable("broke off")

    def count(uri: str) -> None:
        if filled.origin.downloads.total() == len(FILES) - 1:
            arrived.set()

    filled.origin.before_download, filled.origin.after_download = fail_last, count
    with pytest.raises(OriginUnavailable):
        filled.bring(ROOT)
    assert filled.index.held(ROOT, "") is None and filled.staging() == []
    before = Counter(filled.origin.downloads)
    filled.origin.before_download = lambda uri: None
    brought = filled.bring(ROOT)
    assert filled.content(brought.held) == FILES
    again = {uri for uri, count in filled.origin.downloads.items() if count > before[uri] > 0}
    assert again <= {f"{ROOT}/zero"}  # of no bytes, and so without a blob
    assert brought.origin_bytes == 4


def test_too_little_space_is_known_before_the_first_byte(small: House) -> None:
    """Ten bytes of room and ten bytes to take fit; one more does not, and nothing of it is downloaded."""
    small.origin.files[f"{ROOT}/more"] = b"5"
    with pytest.raises(NoSpace, match=r"1 B are missing; raise \[store\] capacity"):
        small.bring(ROOT)
    assert not small.origin.downloads and small.staging() == [] and small.index.held(ROOT, "") is None
    del small.origin.files[f"{ROOT}/more"]
    assert small.bring(ROOT).origin_bytes == 10
    assert small.bring(f"{ROOT}/a").origin_bytes == 0  # what needs no byte fits in a full store


def test_what_is_promised_to_one_download_is_not_promised_again(small: House) -> None:
    """Two that fit alone and not together: the second is refused, and fits when the first has failed."""
    small.origin.files |= {"s3://bucket/q/x": b"123456"}
    gate = Gate(small, "top")
    first = small.start(ROOT)
    gate.wait()
    with pytest.raises(NoSpace):
        small.bring("s3://bucket/q")
    gate.open(OriginUnavailable("broke off"))
    assert isinstance(first.future.exception(PATIENCE_SECONDS), OriginUnavailable)
    small.ticks += small.sweeper.grace_seconds  # until then the next attempt may come
    assert small.bring("s3://bucket/q").origin_bytes == 6


@pytest.mark.parametrize(
    "listed",
    [
        [File(b"x", 1, "p/x"), File(b"x", 1, "p/x")],
        [File(b"x", 1, "p/x"), File(b"x/y", 1, "p/x/y")],
        [File(b"x", 1, "p/x"), File(b"x", 0, "p/x", is_folder=True)],
        [File(b"x", 1, "p/x"), File(b"x/y/z", 0, "p/x/y/z", is_folder=True)],
    ],
    ids=["a name twice", "a file in a file", "a file and a folder", "a folder in a file"],
)
def test_a_listing_that_contradicts_itself_is_refused(filled: House, listed: list[File]) -> None:
    """Corrupted, before a byte of it is taken."""
    filled.origin.edit_listing = lambda files: listed
    with pytest.raises(Corrupted):
        filled.bring(ROOT)
    assert not filled.origin.downloads and filled.index.held(ROOT, "") is None


def test_a_file_of_another_size_than_listed_is_no_artifact(filled: House) -> None:
    """What the origin refuses to vouch for is not held, and nothing of it stays in staging."""
    filled.origin.edit_listing = lambda files: [f._replace(size=99) if f.path == b"top" else f for f in files]
    with pytest.raises(Corrupted):
        filled.bring(ROOT)
    assert filled.index.held(ROOT, "") is None and filled.staging() == []


def test_what_the_origin_has_not_is_not_found(house: House) -> None:
    """A run, a path, a file: NotFound, and nothing is remembered."""
    house.origin.run("r")
    for uri in ("runs:/none", "runs:/r/none", "s3://bucket/none"):
        with pytest.raises(NotFound):
            house.bring(uri)
    assert house.index.asked() == []


def test_a_damaged_blob_is_brought_again(filled: House) -> None:
    """Found before it is handed out, put into quarantine, and only it is taken from the origin."""
    held = filled.bring(ROOT).held
    filled.damage(filled.digest(held, "top"))
    assert filled.find(ROOT) is None
    again = filled.bring(ROOT)
    assert again.origin_bytes == 4 and filled.content(again.held) == FILES and again.held.tree == held.tree
    assert filled.store.quarantine_count() == 1 and filled.find(ROOT) is not None


def test_a_damaged_blob_is_brought_again_after_a_fetch_that_failed(
    filled: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob had come, and the tree could not be written down: the next fetch finds the blob, and needs no byte."""
    held = filled.bring(ROOT).held
    filled.damage(filled.digest(held, "top"))
    with monkeypatch.context() as full, pytest.raises(NoSpace):
        full.setattr(filled.disk, "write_manifest", _full)
        filled.bring(ROOT)
    again = filled.bring(ROOT)
    assert again.origin_bytes == 0 and filled.content(again.held) == FILES


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_damage_that_is_found_on_the_way_counts_with_what_it_took(filled: House) -> None:
    """A part that was held turns out wrong while the rest is brought: it is brought again, and so said."""
    held = filled.bring(f"{ROOT}/a").held
    filled.damage(filled.digest(held, "two"))
    whole = filled.bring(ROOT)
    assert filled.content(whole.held) == FILES
    assert filled.origin.downloads[f"{ROOT}/a/two"] == 2
    assert whole.origin_bytes == SIZE - 3 + 2


def test_damage_with_the_origin_down_is_said_to_be_that(filled: House) -> None:
    """Wrong bytes are never handed out, not even as stale ones; the rest of the store still serves."""
    filled.origin.files["s3://bucket/q/x"] = b"unhurt"
    held = filled.bring(ROOT).held
    filled.bring("s3://bucket/q")
    filled.damage(filled.digest(held, "top"))
    filled.origin.down = True
    for _ in range(2):
        assert filled.find(ROOT) is None
        with pytest.raises(Corrupted, match="quarantine"):
            filled.bring(ROOT)
    assert filled.find("s3://bucket/q") is not None


def test_damage_of_what_the_origin_has_no_more_is_said_to_be_that(filled: House) -> None:
    """The bytes are lost: Corrupted, not NotFound."""
    held = filled.bring(ROOT).held
    filled.damage(filled.digest(held, "top"))
    filled.origin.files.clear()
    with pytest.raises(Corrupted, match="quarantine"):
        filled.bring(ROOT)


def test_damage_that_is_found_in_a_part_is_mended_from_the_whole_artifact(filled: House) -> None:
    """A part is not derived from a whole that is damaged: the origin is asked for what is wrong."""
    held = filled.bring(ROOT).held
    filled.damage(filled.digest(held, "a/two"))
    part = filled.bring(f"{ROOT}/a")
    assert part.origin_bytes == 2 and filled.content(part.held) == {"one": b"1", "two": b"22"}


@pytest.mark.parametrize("settled", [True, False])
def test_a_view_is_looked_at_whichever_way_its_artifact_came(house: House, settled: bool) -> None:
    """After a refresh, and for a run that is running, a view that somebody meddled with is built again."""
    root = house.origin.run("r", settled=settled)
    house.origin.files = {f"{root}/x": b"right"}
    view = Path(house.store.view(house.bring("runs:/r").held.tree))
    view.chmod(0o755)
    (view / "x").unlink()
    (view / "x").write_bytes(b"wrong")
    brought = house.bring("runs:/r", refresh=settled)
    assert Path(house.store.view(brought.held.tree), "x").read_bytes() == b"right"


def test_a_blob_that_another_download_puts_right_leaves_no_view_with_the_wrong_one(house: House) -> None:
    """Nobody has asked for the artifact whose view that is; nor does the index say that it has one."""
    first, second = "s3://bucket/first", "s3://bucket/second"
    house.origin.files |= {f"{first}/a": b"common", f"{second}/b": b"common"}
    held = house.bring(first).held
    house.store.view(held.tree)
    house.damage(house.digest(held, "a"))
    house.bring(second)
    assert not house.index.has_view(held.tree)
    view = Path(house.store.view(house.bring(first).held.tree))
    assert (view / "a").read_bytes() == b"common"


def test_a_view_is_sound_or_it_is_not_found(filled: House) -> None:
    """Where the view is what will be handed out, a hit is one whose view is right, or can be made right from blobs."""
    held = filled.bring(ROOT).held
    assert filled.find(ROOT, view=True) is not None  # there is none yet: it will be built
    view = Path(filled.store.view(held.tree))
    assert filled.find(ROOT, view=True) is not None
    view.chmod(0o755)
    (view / "top").unlink()
    assert filled.find(ROOT, view=True) is not None
    assert Path(filled.store.view(held.tree), "top").read_bytes() == b"4444"
    filled.damage(filled.digest(held, "top"))
    assert filled.find(ROOT, view=True) is None


def test_a_view_is_looked_at_when_it_is_given_out_as_stale(house: House) -> None:
    """The origin is down, and somebody has meddled with the view: what is given out is old, and right."""
    root = house.origin.run("r", settled=False)
    house.origin.files = {f"{root}/x": b"right"}
    view = Path(house.store.view(house.bring("runs:/r").held.tree))
    view.chmod(0o755)
    (view / "x").unlink()
    (view / "x").write_bytes(b"wrong")
    house.origin.down = True
    brought = house.bring("runs:/r")
    assert brought.stale and brought.origin_bytes == 0
    assert Path(house.store.view(brought.held.tree)) == view and (view / "x").read_bytes() == b"right"
