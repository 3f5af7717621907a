"""The index's schema, and how a store of an older release becomes one of this release.

Law of this file: a migration is never edited once released; a new one is added at the end. `PRAGMA user_version`
counts the migrations that a database has seen. Each one changes the schema: a database that has this release's schema
and another number is damaged, and not of another release.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

FIRST = """
-- Tracking servers whose artifacts this store has held.
CREATE TABLE origins (
    id INTEGER PRIMARY KEY,
    tracking_uri TEXT NOT NULL UNIQUE  -- without credentials
) STRICT;

-- What an origin said of a run, a logged model or a version of a registered model.
CREATE TABLE versions (
    origin INTEGER NOT NULL REFERENCES origins(id),
    version TEXT NOT NULL,             -- runs:/<id>, models:/m-<id> or models:/<name>/<version>
    root TEXT NOT NULL,                -- the bare artifact URI under which its bytes are
    overlays TEXT NOT NULL,            -- JSON: [[name, root], …] of the logged models that show as folders of a run
    settled INTEGER NOT NULL,          -- 0 while the origin may still add to it
    resolved_at REAL NOT NULL,         -- seconds since the epoch
    PRIMARY KEY (origin, version)
) STRICT, WITHOUT ROWID;

-- Bytes in blobs/. A row appears after the file is synced, and goes before the file is unlinked.
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,       -- BLAKE3-256, hexadecimal: the file's name
    size INTEGER NOT NULL,             -- bytes
    xxh3 TEXT NOT NULL,                -- XXH3-128, hexadecimal: checks the bytes again at memory speed
    inode INTEGER NOT NULL,            -- the file's inode when its bytes were last hashed
    mtime_ns INTEGER NOT NULL          -- the file's mtime then, nanoseconds since the epoch
) STRICT;

-- Trees, whose manifests are in manifests/.
CREATE TABLE trees (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,       -- BLAKE3-256 of the manifest
    file_count INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,       -- the sum of the files' sizes
    has_view INTEGER NOT NULL DEFAULT 0  -- 1 once the view is complete
) STRICT;

-- Which blobs a tree needs.
CREATE TABLE members (
    tree INTEGER NOT NULL REFERENCES trees(id),
    blob INTEGER NOT NULL REFERENCES blobs(id),
    PRIMARY KEY (tree, blob)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_by_blob ON members(blob);

-- What is held: which tree an artifact is.
CREATE TABLE artifacts (
    origin INTEGER NOT NULL REFERENCES origins(id),
    uri TEXT NOT NULL,                 -- a version with its path, or a bare artifact URI
    selection TEXT NOT NULL,           -- JSON: [include, exclude]; empty for the whole artifact
    tree INTEGER NOT NULL REFERENCES trees(id),
    file_name TEXT NOT NULL,           -- where the artifact is one file, its name; else empty
    standing INTEGER NOT NULL,         -- when it was fetched the origin was: 0 writing, 1 not known, 2 finished
    asked INTEGER NOT NULL,            -- 1 where a client asked for this URI, 0 where it is the location behind one
    fetched_at REAL NOT NULL,          -- seconds since the epoch
    used_at REAL NOT NULL,             -- seconds since the epoch
    PRIMARY KEY (origin, uri, selection)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_tree ON artifacts(tree);

-- Files of downloads that are not finished: a later download of the same file takes the blob instead.
CREATE TABLE arrivals (
    origin INTEGER NOT NULL REFERENCES origins(id),
    uri TEXT NOT NULL,                 -- the file's bare artifact URI
    blob INTEGER NOT NULL REFERENCES blobs(id),
    standing INTEGER NOT NULL,         -- as in artifacts
    arrived_at REAL NOT NULL,          -- seconds since the epoch
    PRIMARY KEY (origin, uri)
) STRICT, WITHOUT ROWID;
CREATE INDEX arrivals_by_blob ON arrivals(blob);

-- How much is held: one row, kept by the triggers below, so that nobody counts rows while others wait.
CREATE TABLE counters (
    artifact_count INTEGER NOT NULL,   -- of those that a client asked for
    artifact_bytes INTEGER NOT NULL,   -- the sum of their trees' sizes
    tree_count INTEGER NOT NULL,
    blob_count INTEGER NOT NULL,
    blob_bytes INTEGER NOT NULL        -- the sum of their sizes
) STRICT;
INSERT INTO counters VALUES (0, 0, 0, 0, 0);

CREATE TRIGGER blob_comes AFTER INSERT ON blobs BEGIN
    UPDATE counters SET blob_count = blob_count + 1, blob_bytes = blob_bytes + new.size;
END;
CREATE TRIGGER blob_goes AFTER DELETE ON blobs BEGIN
    UPDATE counters SET blob_count = blob_count - 1, blob_bytes = blob_bytes - old.size;
END;
CREATE TRIGGER tree_comes AFTER INSERT ON trees BEGIN
    UPDATE counters SET tree_count = tree_count + 1;
END;
CREATE TRIGGER tree_goes AFTER DELETE ON trees BEGIN
    UPDATE counters SET tree_count = tree_count - 1;
END;
CREATE TRIGGER artifact_comes AFTER INSERT ON artifacts WHEN new.asked BEGIN
    UPDATE counters SET artifact_count = artifact_count + 1,
        artifact_bytes = artifact_bytes + (SELECT size_bytes FROM trees WHERE id = new.tree);
END;
CREATE TRIGGER artifact_goes AFTER DELETE ON artifacts WHEN old.asked BEGIN
    UPDATE counters SET artifact_count = artifact_count - 1,
        artifact_bytes = artifact_bytes - (SELECT size_bytes FROM trees WHERE id = old.tree);
END;
CREATE TRIGGER artifact_changes AFTER UPDATE OF tree, asked ON artifacts BEGIN
    UPDATE counters SET artifact_count = artifact_count + new.asked - old.asked,
        artifact_bytes = artifact_bytes
            + new.asked * (SELECT size_bytes FROM trees WHERE id = new.tree)
            - old.asked * (SELECT size_bytes FROM trees WHERE id = old.tree);
END;
"""

FRESHNESS = """
-- Which version a name that moves stood for when the origin was last asked: an answer for when it does not answer.
CREATE TABLE aliases (
    origin INTEGER NOT NULL REFERENCES origins(id),
    uri TEXT NOT NULL,                 -- models:/<name>@<alias>, models:/<name>/latest or models:/<name>/<stage>
    version TEXT NOT NULL,             -- the number of the registered model's version
    resolved_at REAL NOT NULL,         -- seconds since the epoch
    PRIMARY KEY (origin, uri)
) STRICT, WITHOUT ROWID;

ALTER TABLE versions ADD COLUMN
    stamp TEXT NOT NULL DEFAULT '';    -- when the origin made it: another one is another version of the same name
ALTER TABLE artifacts ADD COLUMN
    checked_at REAL NOT NULL DEFAULT 0;  -- when the origin was last seen to have just this, seconds since the epoch
ALTER TABLE artifacts ADD COLUMN
    etags BLOB;                        -- zlib: the origin's entity tags of the files, a line each, in manifest order
ALTER TABLE arrivals ADD COLUMN
    etag TEXT NOT NULL DEFAULT '';     -- the origin's entity tag of these bytes; empty where it has none
"""

EVICTION = """
ALTER TABLE blobs ADD COLUMN
    holder_count INTEGER NOT NULL DEFAULT 0;  -- how many trees have it, kept by the triggers below
ALTER TABLE members ADD COLUMN
    path_count INTEGER NOT NULL DEFAULT 0;  -- how many files of the tree it is; 0 where an older release did not say
ALTER TABLE trees ADD COLUMN
    recorded_at REAL NOT NULL DEFAULT 0;  -- when it was last brought, seconds since the epoch
ALTER TABLE trees ADD COLUMN
    fetch_seconds REAL NOT NULL DEFAULT 0;  -- what bringing it took
ALTER TABLE trees ADD COLUMN
    fetch_bytes INTEGER NOT NULL DEFAULT 0;  -- how many bytes the origin sent for it in that time
ALTER TABLE trees ADD COLUMN
    share_bytes REAL NOT NULL DEFAULT 0;  -- its size when it was last used, each blob divided by holder_count
ALTER TABLE trees ADD COLUMN
    use_count INTEGER NOT NULL DEFAULT 0;  -- how often it was handed out
ALTER TABLE trees ADD COLUMN
    used_at REAL NOT NULL DEFAULT 0;   -- when it was last handed out, seconds since the epoch
ALTER TABLE trees ADD COLUMN
    level INTEGER NOT NULL DEFAULT 0;  -- the priority that retention rules give it: lower ones go first
ALTER TABLE trees ADD COLUMN
    queue INTEGER NOT NULL DEFAULT -1;  -- which of the policy's queues it stands in; -1 before it was put into one
ALTER TABLE trees ADD COLUMN
    rank REAL NOT NULL DEFAULT 0;      -- its place in the queue: the lowest goes first
ALTER TABLE trees ADD COLUMN
    counted INTEGER NOT NULL DEFAULT 0;  -- uses, as the policy counts them
ALTER TABLE trees ADD COLUMN
    counted_at REAL NOT NULL DEFAULT 0;  -- the time that the policy remembers of them, seconds since the epoch
ALTER TABLE trees ADD COLUMN
    kept_until REAL NOT NULL DEFAULT 0;  -- until when a retention rule keeps it, seconds since the epoch
ALTER TABLE trees ADD COLUMN
    drop_at REAL;                      -- when a retention rule wants it gone, seconds since the epoch
CREATE INDEX trees_in_queues ON trees(level, queue, rank, id);
CREATE INDEX trees_unranked ON trees(id) WHERE queue = -1;
CREATE INDEX trees_to_drop ON trees(drop_at) WHERE drop_at IS NOT NULL;
CREATE INDEX blobs_unheld ON blobs(id) WHERE holder_count = 0;

UPDATE blobs SET holder_count = (SELECT count(*) FROM members WHERE blob = blobs.id);
UPDATE trees SET share_bytes = size_bytes, recorded_at =
    coalesce((SELECT max(fetched_at) FROM artifacts WHERE tree = trees.id), 0);
UPDATE trees SET used_at = coalesce((SELECT max(used_at) FROM artifacts WHERE tree = trees.id), 0),
    use_count = 1;

CREATE TRIGGER member_comes AFTER INSERT ON members BEGIN
    UPDATE blobs SET holder_count = holder_count + 1 WHERE id = new.blob;
END;
CREATE TRIGGER member_goes AFTER DELETE ON members BEGIN
    UPDATE blobs SET holder_count = holder_count - 1 WHERE id = old.blob;
END;

-- The policy whose ranks the trees have: one row.
CREATE TABLE ranking (
    policy TEXT NOT NULL,              -- its name; empty before there was one
    age REAL NOT NULL,                 -- a number of the policy's own, which grows with what goes
    fetch_seconds REAL NOT NULL,       -- of all fetches that took bytes from the origin
    fetch_bytes INTEGER NOT NULL       -- that these took
) STRICT;
INSERT INTO ranking VALUES ('', 0, 0, 0);

-- What was remembered of trees when they were evicted, the last ones only.
CREATE TABLE ghosts (
    tree TEXT PRIMARY KEY,             -- the tree's digest
    queue INTEGER NOT NULL,            -- as in trees
    rank REAL NOT NULL,                -- as in trees
    counted INTEGER NOT NULL,          -- as in trees
    counted_at REAL NOT NULL,          -- as in trees
    gone_at REAL NOT NULL              -- when it was evicted, seconds since the epoch
) STRICT;
CREATE INDEX ghosts_by_time ON ghosts(gone_at);

-- Files and folders whose rows are gone, and which are about to be removed: a daemon that starts after a crash does it.
CREATE TABLE leaving (
    name TEXT PRIMARY KEY              -- relative to the store's folder
) STRICT, WITHOUT ROWID;

-- Promises of operators not to evict an artifact.
CREATE TABLE pins (
    origin INTEGER NOT NULL REFERENCES origins(id),
    uri TEXT NOT NULL,                 -- as in artifacts
    selection TEXT NOT NULL,           -- as in artifacts
    owner INTEGER NOT NULL,            -- the user ID of who pinned it; -1 where the configuration keeps it warm
    asked TEXT NOT NULL,               -- the URI that it was pinned by
    pinned_at REAL NOT NULL,           -- seconds since the epoch
    expires_at REAL NOT NULL,          -- seconds since the epoch; infinity where it has no end
    PRIMARY KEY (origin, uri, selection, owner, asked)
) STRICT, WITHOUT ROWID;

-- Whose account a tree is on: who fetched it since it was brought.
CREATE TABLE accounts (
    tree INTEGER NOT NULL REFERENCES trees(id),
    uid INTEGER NOT NULL,              -- the user ID
    used_at REAL NOT NULL,             -- when this user last fetched it, seconds since the epoch
    PRIMARY KEY (tree, uid)
) STRICT, WITHOUT ROWID;
CREATE INDEX accounts_by_user ON accounts(uid);

-- Which users were in which groups when they last fetched something; only groups that have a quota.
CREATE TABLE memberships (
    uid INTEGER NOT NULL,              -- the user ID
    gid INTEGER NOT NULL,              -- the group ID
    PRIMARY KEY (gid, uid)
) STRICT, WITHOUT ROWID;

-- What an origin said of a version, for the retention rules.
CREATE TABLE facts (
    origin INTEGER NOT NULL REFERENCES origins(id),
    version TEXT NOT NULL,             -- as in versions
    facts TEXT NOT NULL,               -- JSON: the fields of retention.Facts
    asked_at REAL NOT NULL,            -- seconds since the epoch
    PRIMARY KEY (origin, version)
) STRICT, WITHOUT ROWID;
"""

SCRUBBING = """
-- How far the check of all blobs in the background has come: one row.
CREATE TABLE scrub (
    position TEXT NOT NULL,            -- the digest of the last blob that was checked; empty between two passes
    began_at REAL NOT NULL,            -- this pass, or the last one; seconds since the epoch
    ended_at REAL NOT NULL,            -- the last whole pass; seconds since the epoch
    blob_count INTEGER NOT NULL,       -- checked in this pass, or in the last one
    byte_count INTEGER NOT NULL,       -- of these blobs
    wrong_count INTEGER NOT NULL       -- of these, wrong or gone
) STRICT;
INSERT INTO scrub VALUES ('', 0, 0, 0, 0, 0);

-- How many changes of names the mirror beside this index was told of: one row. A mirror that knows of more has seen
-- what an index that was lost had.
CREATE TABLE mirrored (
    changes INTEGER NOT NULL           -- of names that are mirrored
) STRICT;
INSERT INTO mirrored VALUES (1);
"""

SHARING = """
-- What this host has brought and other hosts lack: it is to be written into the shared tier. A daemon that is started
-- again goes on with it.
CREATE TABLE publications (
    origin INTEGER NOT NULL REFERENCES origins(id),
    uri TEXT NOT NULL,                 -- a location: a bare artifact URI
    selection TEXT NOT NULL,           -- as in artifacts
    since REAL NOT NULL,               -- when it was brought, seconds since the epoch
    PRIMARY KEY (origin, uri, selection)
) STRICT, WITHOUT ROWID;
"""

MIGRATIONS = (FIRST, FRESHNESS, EVICTION, SCRUBBING, SHARING)


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: executescript() would commit the transaction that holds them together."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""


def schema_after(statements: Iterable[str]) -> set[Any]:
    """As `schema_in`, of a database in which some statements have been done and nothing else."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in statements:
            db.execute(statement)
        return schema_in(db)


def schema_in(db: Any) -> set[Any]:
    """What a database has of tables, indexes and triggers, to the letter; without what SQLite adds by itself."""
    rows = db.execute(
        "SELECT type, name, sql FROM main.sqlite_schema WHERE sql NOTNULL AND substr(name, 1, 7) <> 'sqlite_'"
    )
    return {tuple(row) for row in rows}
