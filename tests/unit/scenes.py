"""What there is before a verb is tried: what is held, what the origin has, and what a daemon before has left.

Law of this file: nothing fails here.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
from pathlib import Path

from artifactcache.errors import OriginUnavailable
from cacheserver.mirror import path_of
from cacheserver.schema import MIGRATIONS
from cacheserver.space import Amount, Limits
from cacheserver.words import Held
from tests.unit.house import FILES, PAYER, ROOT, House
from tests.unit.mortal import LARGE_BYTES, Place
from tests.unit.tiers import publish_due

OTHER, THIRD = "s3://bucket/other", "s3://bucket/third"
LARGE = bytes(range(256)) * (2 * LARGE_BYTES // 256 + 1)
RUN = "runs:/r"
_OLD_COLUMNS = {
    "origins": "id, tracking_uri",
    "blobs": "id, digest, size, xxh3, inode, mtime_ns",
    "trees": "id, digest, file_count, size_bytes",
    "members": "tree, blob",
    "artifacts": "origin, uri, selection, tree, file_name, standing, asked, fetched_at, used_at",
}


def offer(place: Place, root: str = ROOT, files: dict[str, bytes] = FILES) -> None:
    """The origin has these files."""
    place.origin.files |= {f"{root}/{name}": content for name, content in files.items()}


def hold(place: Place, uri: str, files: dict[str, bytes] | None = None) -> Held:
    """An artifact with its view."""
    offer(place, uri, {"x": uri.encode(), "d/y": b"yy", "none": b""} if files is None else files)
    held = place.house.bring(uri).held
    place.house.store.view(held.tree)
    return held


def held(place: Place, uri: str = ROOT) -> Held:
    """What is held of an artifact."""
    found = place.house.index.held(uri, "")
    assert found is not None, f"{uri} is not held"
    return found


def is_whole(place: Place, uri: str = ROOT) -> None:
    """All that the origin has of an artifact is held."""
    content = place.house.content(held(place, uri))
    expected = {u.removeprefix(uri + "/"): c for u, c in place.origin.files.items() if u.startswith(uri + "/")}
    assert {p.rstrip("/"): c or b"" for p, c in content.items()} == {p.rstrip("/"): c for p, c in expected.items()}


def cold(place: Place) -> None:
    offer(place, ROOT, FILES | {"hollow/": b""})


def whole(place: Place) -> None:
    cold(place)
    place.house.bring(ROOT)


def sharing(place: Place) -> None:
    """What is held may be published."""
    place.close()
    place.share()
    place.open()
    whole(place)


def published(place: Place) -> None:
    """It was published by another host, and is not held here."""
    cold(place)
    place.close()
    place.share()
    place.open()
    assert place.cupboard
    other = House(place.root.parent / "other", origin=place.origin, tier=place.cupboard)
    other.now = place.now
    other.bring(ROOT)
    assert other.sharing
    publish_due(other.sharing.publishing)
    other.close()


def offered_again(place: Place) -> None:
    whole(place)
    offer(place, THIRD, FILES | {"new": b"new"})


def viewed(place: Place) -> None:
    whole(place)
    place.house.store.view(held(place).tree)


def large_file(place: Place) -> None:
    offer(place, ROOT, {"large": LARGE, "small": b"s"})


def broken_off(place: Place) -> None:
    large_file(place)
    place.origin.breaks_after = 2
    try:
        place.house.bring(ROOT)
    except OriginUnavailable:
        pass
    place.origin.breaks_after = None
    assert place.house.staging()


def due(place: Place) -> None:
    whole(place)
    place.later(4000.0)


def meddled(place: Place) -> None:
    viewed(place)
    view = Path(place.house.store.view(held(place).tree))
    view.chmod(0o755)
    (view / "top").unlink()
    (view / "top").write_bytes(b"bad!")
    place.meddled.add(held(place).tree)


def changed(place: Place) -> None:
    viewed(place)
    offer(place, ROOT, {"top": b"5555", "new": b"new"})


def older(place: Place) -> None:
    """The index as the release before evictions has written it."""
    viewed(place)
    place.close()
    path = place.root / "index.db"
    rows: dict[str, list[tuple[object, ...]]] = {}
    with contextlib.closing(sqlite3.connect(path)) as db:
        for table, columns in _OLD_COLUMNS.items():
            rows[table] = db.execute(f"SELECT {columns} FROM {table}").fetchall()
    for one in place.root.glob("index.db*"):
        one.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        for migration in MIGRATIONS[:2]:
            db.executescript(migration)
        for table, columns in _OLD_COLUMNS.items():
            marks = ",".join("?" * len(columns.split(",")))
            db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows[table])
        db.execute("PRAGMA user_version = 2")
        db.commit()


def damaged_one(place: Place) -> None:
    viewed(place)
    digest = place.house.digest(held(place), "top")
    place.house.damage(digest)
    place.damaged.add(digest)


def restored(place: Place) -> None:
    """Every blob is another inode, as after a backup was played back."""
    viewed(place)
    for digest in place.house.index.all_digests():
        path = place.house.blob(digest)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o444)


def three_held(place: Place) -> None:
    hold(place, THIRD, {"x": b"third", "large": LARGE})
    viewed(place)
    index = place.house.index
    index.pins.pin(OTHER, "", owner=0, asked=OTHER, now=place.now, seconds=math.inf)
    place.later(1000.0)


def crowded(place: Place) -> None:
    three_held(place)
    place.close()
    place.limits = Limits(Amount(place_bytes(place) + 20), Amount(0))
    place.open()
    offer(place, "s3://bucket/new", {"x": b"n" * 40})


def place_bytes(place: Place) -> int:
    """What the blobs of a store are together."""
    return sum(path.stat().st_size for path in place.root.glob("blobs/*/*"))


def of_a_run(place: Place) -> None:
    root = place.origin.run("r")
    offer(place, root, FILES)
    place.house.bring(RUN)


def deleted(place: Place) -> None:
    of_a_run(place)
    place.origin.versions.clear()
    place.origin.files = {u: c for u, c in place.origin.files.items() if u.startswith(OTHER)}
    place.later(4000.0)


def half_gone(place: Place) -> None:
    """A daemon has been killed when the rows were gone, and the files were not."""
    three_held(place)
    place.house.index.holdings.evict([held(place).tree, held(place, THIRD).tree], now=place.now, young_since=place.now)


def index_damaged(place: Place) -> None:
    """Nothing of the index can be read, and the disk has all that it knew."""
    viewed(place)
    place.close()
    (place.root / "index.db").write_bytes(b"no database at all " * 500)


def index_met_damaged(place: Place) -> None:
    """The same under a daemon that serves, and SQLite has met it."""
    with contextlib.closing(sqlite3.connect(place.root / "index.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (place.root / "index.db").write_bytes(b"no database at all " * 500)
    place.house.index._tables.is_damaged = True


def mirror_damaged(place: Place) -> None:
    """A page of the mirror that is read at a start cannot be."""
    viewed(place)
    place.close()
    with open(path_of(str(place.root / "index.db")), "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096)


def rubbish(place: Place) -> None:
    broken_off(place)
    place.close()
    for name in ("70", "71", "72.from"):
        (place.root / "staging" / name).write_bytes(b"rubbish")
    (place.root / "staging" / "73" / "inside").mkdir(parents=True)


def nowhere(place: Place) -> None:
    place.close()
    shutil.rmtree(place.root)


def unsound(place: Place) -> None:
    damaged_one(place)
    place.close()
    stray = place.root / "blobs" / "ab" / ("c" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    (place.root / "staging" / "70").write_bytes(b"rubbish")


def of_a_model(place: Place) -> None:
    of_a_run(place)
    place.origin.aliases["models:/m@best"] = "3"


def used(place: Place) -> None:
    whole(place)
    place.house.cache.used(held(place), PAYER, is_hit=True)
