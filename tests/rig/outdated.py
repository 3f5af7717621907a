"""A store as an earlier release would have left it: the same artifacts, in the schema of then."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from cacheserver.schema import MIGRATIONS, statements

SEEN = 2  # migrations: before evictions, pins and accounts


def outdate(index: Path) -> None:
    """Write an index anew, in the older schema, with all that has a place there. Nobody has it open."""
    owner, older = index.stat(), index.with_name("older.db")
    with contextlib.closing(sqlite3.connect(older, isolation_level=None)) as db:
        db.execute("ATTACH ? AS newer", (str(index),))
        for migration in MIGRATIONS[:SEEN]:
            for statement in statements(migration):
                db.execute(statement)
        db.execute("BEGIN")
        for (table,) in db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'").fetchall():
            columns = ", ".join(sorted(_columns(db, "main", table) & _columns(db, "newer", table)))
            db.execute(f"INSERT OR REPLACE INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
        db.execute("COMMIT")
        db.execute(f"PRAGMA main.user_version = {SEEN}")
    for rest in ("-wal", "-shm"):
        index.with_name(index.name + rest).unlink(missing_ok=True)
    os.chown(older, owner.st_uid, owner.st_gid)
    older.chmod(owner.st_mode)
    older.rename(index)


def _columns(db: sqlite3.Connection, schema: str, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA {schema}.table_info({table})")}
