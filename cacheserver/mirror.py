"""The mirror: what is held by which names, a second time, in a file of its own beside the index.

Blobs and manifests say what the store has, and not what it is called. An index that cannot be read is made anew from
them and from this.

Law of this file: SQLite's own triggers write it, in the transaction that changes the index; nothing else has to know of
it, and nothing is read from it but where the index has been lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from cacheserver.faults import trouble

_DIGEST = "(SELECT digest FROM trees WHERE id = {}.tree)"
_ORIGIN = "(SELECT tracking_uri FROM origins WHERE id = {}.origin)"


class Mirrored(NamedTuple):
    """A table of the index: columns that name a row, and others; each with what it is of a row called {}."""

    key: dict[str, str]
    rest: dict[str, str]

    @property
    def columns(self) -> dict[str, str]:
        """All of them."""
        return self.key | self.rest


def _same(*names: str) -> dict[str, str]:
    return {name: "{}." + name for name in names}


TABLES = {
    "versions": Mirrored(
        {"tracking_uri": _ORIGIN} | _same("version"), _same("root", "overlays", "settled", "resolved_at", "stamp")
    ),
    "aliases": Mirrored({"tracking_uri": _ORIGIN} | _same("uri"), _same("version", "resolved_at")),
    "artifacts": Mirrored(
        {"tracking_uri": _ORIGIN} | _same("uri", "selection"),
        {"tree": _DIGEST} | _same("file_name", "standing", "asked", "fetched_at", "checked_at", "etags"),
    ),
    "pins": Mirrored(
        {"tracking_uri": _ORIGIN} | _same("uri", "selection", "owner", "asked"), _same("pinned_at", "expires_at")
    ),
    "accounts": Mirrored({"tree": _DIGEST} | _same("uid"), {}),
    "trees": Mirrored({"tree": "{}.digest"}, _same("recorded_at", "fetch_seconds", "fetch_bytes")),
}


def path_of(index_path: str) -> str:
    """Where the mirror of an index is."""
    return f"{index_path.removesuffix('.db')}.names.db"


def attach(db: Any, index_path: str) -> None:
    """Has a connection write the mirror along with the index. Raises CacheError where it cannot be closed to others."""
    path = path_of(index_path)
    db.execute("ATTACH ? AS names", (path,))
    db.execute("PRAGMA names.journal_mode = WAL")
    db.execute("PRAGMA names.synchronous = NORMAL")
    for statement in (*tables(), *_triggers()):
        db.execute(statement)
    try:
        os.chmod(path, 0o600)
    except OSError as error:
        raise trouble(error, f"the mirror {path} cannot be closed to others") from None


def tables() -> Iterator[str]:
    """The statements that make a mirror, in a file that is attached as `names`."""
    yield "CREATE TABLE IF NOT EXISTS names.mirror (changes INTEGER NOT NULL)"
    yield "INSERT INTO mirror SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM mirror)"
    for name, table in TABLES.items():
        yield (
            f"CREATE TABLE IF NOT EXISTS names.mirrored_{name} ({', '.join(table.columns)},"
            f" PRIMARY KEY ({', '.join(table.key)})) WITHOUT ROWID"
        )


def _triggers() -> Iterator[str]:
    """Of this connection only: no other one has the mirror. SQLite lets only such triggers write another file."""
    count = "UPDATE mirror SET changes = changes + 1; UPDATE mirrored SET changes = changes + 1;"
    for name, table in TABLES.items():

        def out(row: str, name: str = name, table: Mirrored = table) -> str:
            where = " AND ".join(f"{column} = {text.format(row)}" for column, text in table.key.items())
            return f"DELETE FROM mirrored_{name} WHERE {where};"

        values = ", ".join(text.format("new") for text in table.columns.values())
        into = f"{out('new')} INSERT INTO mirrored_{name} ({', '.join(table.columns)}) VALUES ({values});"
        yield f"CREATE TEMP TRIGGER {name}_added AFTER INSERT ON main.{name} BEGIN {into} {count} END"
        yield f"CREATE TEMP TRIGGER {name}_removed AFTER DELETE ON main.{name} BEGIN {out('old')} {count} END"
        if table.rest:
            changed = " OR ".join(f"{t.format('new')} IS NOT {t.format('old')}" for t in table.rest.values())
            yield (
                f"CREATE TEMP TRIGGER {name}_changed AFTER UPDATE ON main.{name} WHEN {changed}"
                f" BEGIN {into} {count} END"
            )
