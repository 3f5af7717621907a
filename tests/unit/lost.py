"""A store with everything in it that an index knows, and how its index is lost.

Law of this file: nothing here looks at what a daemon makes of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cacheserver.mirror import TABLES
from cacheserver.selection import Selection
from tests.unit.house import FEW, FILES, House

MODEL, LATER = "models:/resnet/3", "models:/resnet/4"


def fill(house: House) -> House:
    """Brings all of it."""
    one, other = house.origin.run("aa"), house.origin.run("bb")
    for root, files in ((one, FILES), (other, FILES | FEW)):
        house.origin.files |= {f"{root}/{name}": content for name, content in files.items()}
    house.origin.versions |= {
        MODEL: replace(house.origin.versions["runs:/aa"], version=MODEL),
        LATER: replace(house.origin.versions["runs:/bb"], version=LATER),
    }
    house.origin.aliases["models:/resnet@champion"] = "4"
    for uri in (MODEL, LATER):
        house.bring(uri)
    house.bring(LATER, Selection.of(["d0/**"], []))
    house.store.index.versions.record_alias("models:/resnet@champion", "4", house.now)
    assert house.index.pins.pin(MODEL, "", owner=1000, asked="models:/resnet@old", now=house.now, seconds=1e9)
    house.cache.record_uses()
    return house


def known(root: Path) -> dict[str, list[Any]]:
    """What the mirror is of, as the index has it; and the members."""
    db = sqlite3.connect(root / "index.db")
    try:
        found = {}
        for name, table in TABLES.items():
            values = ", ".join(text.format("x") for text in table.columns.values())
            found[name] = sorted(db.execute(f"SELECT {values} FROM {name} x"), key=repr)
        found["members"] = sorted(
            db.execute(
                "SELECT t.digest, b.digest, m.path_count FROM members m JOIN trees t ON t.id = m.tree"
                " JOIN blobs b ON b.id = m.blob"
            )
        )
        found["blobs"] = sorted(db.execute("SELECT digest, size, holder_count FROM blobs"))
        found["counters"] = db.execute("SELECT * FROM counters").fetchall()
        return found
    finally:
        db.close()


def garbage(root: Path) -> None:
    (root / "index.db").write_bytes(b"no database at all " * 5000)


def gone(root: Path) -> None:
    (root / "index.db").unlink()


def empty(root: Path) -> None:
    (root / "index.db").write_bytes(b"")


def first_page(root: Path) -> None:
    with (root / "index.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 900)


LOSSES = {"garbage": garbage, "gone": gone, "empty": empty, "first page": first_page}


def reopened(house: House, meanwhile: Callable[[Path], None] = lambda root: None) -> House:
    """Another daemon on the same store, with the same origin."""
    house.close()
    meanwhile(house.root)
    other = House(house.root)
    other.origin = house.origin
    other.cache._origin = house.origin  # type: ignore[assignment]
    return other
