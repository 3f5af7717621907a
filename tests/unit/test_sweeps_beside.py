"""What a sweep is to everything else: nothing that others have is touched, and nobody waits."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from cacheserver.holdings import PINNED
from cacheserver.retention import Verdict
from cacheserver.store import ALWAYS_CHECKED_FILES_MAX
from cacheserver.words import Brought, Held
from tests.unit.house import MANY, PATIENCE_SECONDS, House, fsck_command
from tests.unit.sweeping import ALL, Place, bring, left, names, offer

assert len(MANY) > ALWAYS_CHECKED_FILES_MAX


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for houses."""
    place = Place(tmp_path)
    yield place
    for house in place.houses:
        house.close()


def large(house: House, name: str) -> Held:
    """An artifact whose view is watched; it shares all files but one with others of its kind."""
    uri = f"s3://bucket/{name}"
    house.origin.files |= {f"{uri}/{path}": content for path, content in MANY.items()}
    house.origin.files[f"{uri}/own"] = name.encode()
    held = house.bring(uri).held
    house.store.view(held.tree)
    assert house.store.view_is_sound(held.tree) and house.store.view_is_sound(held.tree)
    return held


def files(house: House) -> dict[str, tuple[int, int]]:
    """Every file of the store but the index, and every folder of a view: inode and mtime."""
    found = [
        path for kind in ("blobs", "manifests", "staging", "quarantine") for path in house.root.glob(f"{kind}/**/*")
    ]
    found = [path for path in found if not path.is_dir()] + list(house.root.glob("views/**/*"))
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found}


def rows(house: House) -> list[str]:
    """The whole index."""
    db = sqlite3.connect(house.disk.index_path)
    try:
        return list(db.iterdump())
    finally:
        db.close()


def test_others_keep_all_of_theirs(place: Place) -> None:
    """Files, views and manifests, and what both have; of what went nothing is left, and the store is sound."""
    house = place.house()
    gone = [bring(house, name, 30, shared=b"both").held for name in "ab"]
    house.leases.take(kept := bring(house, "k", 30, shared=b"both").held.tree)
    before, view = files(house), Path(house.store.view(kept))
    content = {path: path.read_bytes() for path in view.iterdir()}
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["a", "b"]
    after = files(house)
    assert after.items() <= before.items() and {path.read_bytes() for path in view.iterdir()} == set(content.values())
    assert blake3(b"both").hexdigest()[2:] in {Path(path).name for path in after}
    for held in gone:
        assert not any(held.tree[2:] in path for path in after)
    for path in content:
        assert path.stat().st_nlink == 2
    house.close()
    assert fsck_command(house.root) == 0
    assert files(house) == after, "no strays"
    place.houses.remove(house)


def test_what_is_left_of_a_view_holds_no_bytes_back(place: Place) -> None:
    """A blob was damaged, so that the view counts no more: a sweep for as many bytes as are left of it
    finds them, and the folder goes."""
    house = place.house(100)
    held = bring(house, "a", 60, shared=b"30 bytes that will be damaged.").held
    house.damage(house.digest(held, "shared"))
    assert house.store.unsound(house.tree(held)) and (house.root / "views" / held.tree).exists()
    swept = house.sweeper.sweep(free_bytes=60)
    assert swept.enough and swept.freed_bytes == 60 and left(swept) == ["a"]
    assert os.listdir(house.root / "views") == []


def test_a_sweep_keeps_what_is_in_memory(place: Place) -> None:
    """A hit on another tree reads its manifest, of 100,000 files perhaps, no second time."""
    house = place.house()
    large(house, "a")
    kept = large(house, "k")
    house.leases.take(kept.tree)
    before = house.store.tree(kept.tree)
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["a"]
    assert house.store.tree(kept.tree) is before is not None
    house.sweeper.tidy()
    assert house.store.tree(kept.tree) is before


def test_a_view_stays_quick(place: Place) -> None:
    """What the daemon itself removes is no meddling: nothing else that is watched is looked at anew, file by file."""
    house = place.house()
    swept = [large(house, name) for name in "ab"]
    kept = large(house, "k")
    house.leases.take(kept.tree)
    generation = house.store._watch.generation()
    assert left(house.sweeper.sweep(free_bytes=ALL)) == ["a", "b"]
    assert house.store._watch.generation() == generation
    assert house.store._checked[kept.tree][1] == generation and house.store.view_is_sound(kept.tree)
    assert house.store._checked.keys() == {kept.tree}
    (house.root / "views" / kept.tree).chmod(0o755)
    (house.root / "views" / kept.tree / "own").unlink()
    assert house.store._watch.generation() > generation and not house.store.view_is_sound(kept.tree)
    again = large(house, "a")
    assert again.tree == swept[0].tree
    Path(house.store.view(again.tree), "d0").chmod(0o755)
    Path(house.store.view(again.tree), "d0", "0").unlink()
    assert not house.store.view_is_sound(again.tree), "what came back is watched as well"


def test_a_dry_run_changes_nothing(place: Place) -> None:
    """And tells what would go, which is what goes then, with names, sizes and reasons."""
    house = place.house()
    for number, name in enumerate("abc"):
        bring(house, name, 30, 10.0 + number, shared=b"both")
    house.index.pins.pin("s3://bucket/b", "", owner=1, asked="b", now=house.now)
    house.sweeper.sweep(free_bytes=1, dry_run=True)  # notes uses, and gives places in the queue
    before = rows(house), files(house)
    dry = house.sweeper.sweep(free_bytes=ALL, dry_run=True)
    assert (rows(house), files(house)) == before
    assert house.sweeper.evicted_count == house.sweeper.evicted_bytes == 0
    assert dry.kept == {PINNED: 1} and not dry.enough and left(dry) == ["a", "c"]
    assert all(one.reason and one.size_bytes for one in dry.leaving)
    wet = house.sweeper.sweep(free_bytes=ALL)
    assert wet.leaving == dry.leaving and wet.kept == dry.kept and names(house) == "b"


def test_a_dry_run_counts_what_both_kinds_of_going_share(place: Place) -> None:
    """A tree without a name and one that goes for room have a blob together: both going frees it."""
    house = place.house()
    bring(house, "a", 30, shared=b"." * 100)
    house.origin.files["s3://bucket/a/more"] = b"more"
    house.bring("s3://bucket/a", refresh=True)
    dry = house.sweeper.sweep(free_bytes=134, dry_run=True)
    assert dry.freed_bytes == 134 and dry.enough
    wet = house.sweeper.sweep(free_bytes=134)
    assert wet.freed_bytes == 134 and wet.enough and wet.leaving == dry.leaving


def test_a_hit_waits_for_no_sweep(place: Place) -> None:
    """Between the steps of one, whoever asks is handed out what is held, and downloads go on."""
    house = place.house()
    for number in range(70):
        house.bring(offer(house, f"{number}", 10))
    house.leases.take(bring(house, "k", 10).held.tree)
    found: list[tuple[list[str], Brought]] = []

    def meanwhile() -> None:
        hit = house.find("s3://bucket/k", view=True)
        assert hit
        found.append((os.listdir(house.store.view(hit.held.tree)), house.bring(offer(house, f"new{len(found)}", 9))))

    with ThreadPoolExecutor(1) as pool:

        def pause() -> None:
            pool.submit(meanwhile).result(timeout=PATIENCE_SECONDS)

        house.sweeper._clocks = replace(house.sweeper._clocks, pause=pause)
        house.sweeper.sweep(free_bytes=ALL)
    assert len(found) >= 3 and all(listed == ["data"] for listed, _ in found)


def test_who_wants_what_goes_fetches_it_again(place: Place) -> None:
    """A lease that comes between the plan and its step is kept; one that comes after it finds nothing there."""
    house = place.house()
    trees = [house.bring(offer(house, f"{number:02}", 10)).held.tree for number in range(40)]
    house.sweeper.sweep(free_bytes=1, dry_run=True)
    last = [one.item.tree for one in house.index.holdings.queue(0, 0, now=house.now, young_since=house.now)][-1]
    taken: list[str] = []

    def pause() -> None:
        if house.sweeper.evicted_count and not taken:  # the first step is done, and the second has been planned
            taken.append(last)
            house.leases.take(last)

    house.sweeper._clocks = replace(house.sweeper._clocks, pause=pause)
    swept = house.sweeper.sweep(free_bytes=ALL)
    assert {one.tree for one in swept.leaving} == set(trees) - {last}
    assert house.store.tree(last) is not None and house.store.tree(trees[0]) is None
    house.leases.take(trees[0])
    assert not house.index.holdings.has(trees[0])


def test_what_has_no_name_any_more_goes_by_itself(place: Place) -> None:
    """The bytes that an artifact had before are nobody's, when nobody reads them any more; so is what is forgotten."""
    house = place.house()
    before = bring(house, "a", 30).held
    house.leases.take(before.tree)
    house.origin.files["s3://bucket/a/data"] = b"something else"
    after = house.bring("s3://bucket/a", refresh=True).held
    house.sweeper.tidy()
    assert house.index.holdings.has(before.tree), "it is leased"
    house.leases.give_back(before.tree)
    house.sweeper.tidy()
    assert not house.index.holdings.has(before.tree) and house.index.holdings.has(after.tree)
    assert names(house) == "a"


def test_rules_go_before_room(place: Place) -> None:
    """What they want gone goes, needed or not, and counts for what is needed; lower priorities go first."""
    house = place.house()
    for number, name in enumerate("abcd"):
        bring(house, name, 30, 10.0 + number)
    trees = {held.uri[-1]: held.tree for held in house.index.asked()}
    house.index.rulings.record(
        {
            trees["a"]: Verdict(priority=1),
            trees["c"]: Verdict(priority=-1),
            trees["d"]: Verdict(drop_at=house.now, because=("gone",)),
        }
    )
    swept = house.sweeper.sweep(free_bytes=60)
    assert left(swept) == ["d", "c"] and swept.enough and swept.freed_bytes == 60
    assert left(house.sweeper.sweep(free_bytes=31)) == ["b", "a"]


def test_what_goes_for_two_reasons_goes_once(place: Place) -> None:
    """It frees its bytes once: the rest that was asked for comes from others."""
    house = place.house()
    for name in "ab":
        bring(house, name, 30)
    tree = house.index.held("s3://bucket/a", "")
    assert tree is not None
    house.cache.record_uses()
    house.index.rulings.record({tree.tree: Verdict(drop_at=house.now)})
    house.index.forget("s3://bucket/a")
    swept = house.sweeper.sweep(free_bytes=60)
    assert left(swept) == ["", "b"] and swept.freed_bytes == 60 == house.sweeper.evicted_bytes
    assert house.sweeper.evicted_count == 2


def test_what_rules_drop_counts_for_the_capacity(place: Place, tmp_path: Path) -> None:
    """Also where its bytes stay on the disk, linked elsewhere: nothing more goes than has to."""
    house = place.house(100)
    for name in "abc":
        bring(house, name, 30)
    house.reservations.limits = replace(house.reservations.limits, high=70.0, low=60.0)
    held = house.index.held("s3://bucket/a", "")
    assert held is not None
    os.link(house.blob(house.digest(held, "data")), tmp_path / "outside")
    house.cache.record_uses()
    house.index.rulings.record({held.tree: Verdict(drop_at=house.now)})
    assert left(house.sweeper.sweep()) == ["a"] and names(house) == "bc"
