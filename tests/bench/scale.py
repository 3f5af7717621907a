"""A store of 1,000,000 blobs in 100,000 trees: its opening, its hits, and sweeps beside them, against an empty store.

The trees are written into the index by SQL. Blob files and manifests are made for those that sweeps will let go only;
what is hit is fetched, as everything is.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifactcache
from cacheserver.assembly import sweeper_of
from cacheserver.disk import Disk
from cacheserver.index import Index
from cacheserver.restoring import open_index
from cacheserver.scrubs import Scrub
from cacheserver.settings import Config
from cacheserver.store import Store
from tests.bench.cases import Ground
from tests.bench.figures import Figure, milliseconds, seconds
from tests.rig.daemon import Daemon

TREES, BLOBS_OF_EACH, SHARED_BLOBS = 100_000, 10, 10_000  # each tree has one of the shared ones beside its own
GHOSTS = 100_000  # as many evicted trees as a store remembers
BLOB_BYTES = 4096  # by the index; the files are smaller, and nobody reads them
SWEPT_TREES, SWEEPS, PLANS = 5_000, 3, 5  # five per cent: from the high watermark to the low one
VIEWED_EVERY = 5  # of what is swept every fifth has a view
HIT_TREES, HIT_FILES = 100, 10
HITS, HIT_ROUNDS = 500, 6
OPENINGS = 5
DEAD = "http://127.0.0.1:9"
_SWEEP = """
import sys, time, artifactcache
with artifactcache.Client(sys.argv[1]) as client:
    client.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    swept = client.sweep(free_bytes=int(sys.argv[2]), dry_run=sys.argv[3] == "dry")
    print(time.perf_counter() - began, swept.tree_count, flush=True)
"""


@dataclasses.dataclass
class Hits:
    """How long hits took, in seconds."""

    took: list[float] = dataclasses.field(default_factory=list)

    def at(self, percent: float) -> float:
        """A percentile."""
        return sorted(self.took)[min(len(self.took) - 1, int(len(self.took) * percent / 100))]

    def __str__(self) -> str:
        return f"p50 {milliseconds(self.at(50))}, p99 {milliseconds(self.at(99))}, {len(self.took):,} hits"


def scale(ground: Ground) -> Iterator[Figure]:
    """Opens the store, hits it, plans sweeps and executes them beside hits; the empty store in turn with it."""
    uris = artifacts(ground.folder / "scale-origin")
    full, empty = ground.folder / "scale-full", ground.folder / "scale-empty"
    built = seconds(lambda: build(full, sweepable=SWEPT_TREES * (SWEEPS + 1)))
    print(f"built in {built:.0f} s, index {(full / 'index.db').stat().st_size >> 20} MiB", flush=True)
    opened = statistics.median(seconds(lambda: Index(str(full / "index.db"), DEAD).close()) for _ in range(OPENINGS))
    yield Figure("index of 1,000,000 blobs, opened and closed alone", milliseconds(opened), "", "", "1 s")
    planned = milliseconds(_planned_alone(full))
    yield Figure(f"sweep of {SWEPT_TREES:,} trees of 1,000,000 blobs, the plan alone", planned, "", "", "1 s")
    with ground.daemon(DEAD, full) as big, ground.daemon(DEAD, empty) as small:
        a, b = _openings(big, small)
        yield Figure(
            "daemon with 1,000,000 blobs, until it answers",
            milliseconds(a),
            f"empty store {milliseconds(b)}",
            f"{a - b:+.2f} s",
            "1 s more",
        )
        yield from _hits(big, small, uris)
    for folder in (full, empty, ground.folder / "scale-origin"):
        shutil.rmtree(folder)


def _planned_alone(root: Path) -> float:
    """Without a daemon, and without anybody who is told."""
    disk = Disk(str(root), shared=None)
    store = Store(disk, open_index(disk, DEAD), time.monotonic)
    sweeper = sweeper_of(Config(), store)
    wanted = SWEPT_TREES * BLOBS_OF_EACH * BLOB_BYTES
    took = statistics.median(seconds(lambda: sweeper.sweep(free_bytes=wanted, dry_run=True)) for _ in range(PLANS))
    store.index.close()
    disk.close()
    return took


def _openings(big: Daemon, small: Daemon) -> tuple[float, float]:
    took: list[tuple[float, float]] = []
    for _ in range(OPENINGS):
        big.stop()
        small.stop()
        took.append((seconds(big.start), seconds(small.start)))
    first, second = zip(*took, strict=True)
    return statistics.median(first), statistics.median(second)


def _hits(big: Daemon, small: Daemon, uris: Sequence[str]) -> Iterator[Figure]:
    with artifactcache.Client(str(big.socket_dir)) as full, artifactcache.Client(str(small.socket_dir)) as empty:
        for client in (full, empty):
            for uri in uris:
                client.fetch(uri).release()
        at_rest, bare = Hits(), Hits()
        for _ in range(HIT_ROUNDS):
            hit(full, uris, at_rest, HITS)
            hit(empty, uris, bare, HITS)
        yield _figure("view of 10 files, 1,000,000 blobs held", at_rest, bare)

        planned, beside, elsewhere = [], Hits(), Hits()
        for _ in range(PLANS):
            planned.append(_beside(big, "dry", None, uris, Hits()))
            _beside(big, "dry", full, uris, beside)
            _beside(big, "dry", empty, uris, elsewhere)
        told = milliseconds(statistics.median(planned))
        yield Figure("that plan, asked for by a client, who is told of each tree", told, "", "", "1 s")
        yield _figure("the view while sweeps are planned", beside, bare)
        yield _figure("the empty store's view while the other plans", elsewhere, bare)

        alone = _beside(big, "go", None, uris, Hits())
        executed, beside, again = [], Hits(), Hits()
        for _ in range(SWEEPS):
            executed.append(_beside(big, "go", full, uris, beside))
            hit(empty, uris, again, HITS)
        yield Figure(
            f"sweep of {SWEPT_TREES:,} trees, executed beside hits",
            f"{statistics.median(executed):.1f} s",
            f"without hits {alone:.1f} s",
            f"{SWEPT_TREES / statistics.median(executed):,.0f} trees a second",
            "",
        )
        yield _figure("the view while sweeps are executed", beside, again)


def _figure(what: str, ours: Hits, bare: Hits) -> Figure:
    return Figure(what, str(ours), f"empty store {bare}", f"{ours.at(99) / bare.at(99):.2f} × at p99", "2 × at p99")


def hit(client: artifactcache.Client, uris: Sequence[str], hits: Hits, count: int) -> None:
    for number in range(count):
        began = time.perf_counter()
        fetched = client.fetch(uris[number % len(uris)])
        hits.took.append(time.perf_counter() - began)
        assert fetched.hit
        fetched.release()


def _beside(daemon: Daemon, how: str, client: artifactcache.Client | None, uris: Sequence[str], hits: Hits) -> float:
    """A sweep by another process, and hits until it has ended. Returns the seconds that it took."""
    command = (sys.executable, "-c", _SWEEP, str(daemon.socket_dir), str(SWEPT_TREES * BLOBS_OF_EACH * BLOB_BYTES), how)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(process.stdout.readline)
            while client is not None and not answer.done():
                hit(client, uris, hits, 1)
            took, count = answer.result().split()
    assert int(count) == SWEPT_TREES, count
    return float(took)


def artifacts(folder: Path) -> list[str]:
    """Artifacts of ten files each, on this host."""
    for tree in range(HIT_TREES):
        (folder / f"{tree}").mkdir(parents=True)
        for file in range(HIT_FILES):
            (folder / f"{tree}" / f"{file}").write_bytes(os.urandom(64))
    return [(folder / f"{tree}").as_uri() for tree in range(HIT_TREES)]


# -- the store --------------------------------------------------------------------------------------------------------


def build(root: Path, sweepable: int, more: Callable[[sqlite3.Connection], object] = lambda db: None) -> None:
    """Makes a store; so many of its trees, those that stand first in the queue, have files.

    Args:
        more: writes further rows.
    """
    root.mkdir()
    path = root / "index.db"
    Index(str(path), DEAD).close()  # with a mirror, which is made anew below
    with sqlite3.connect(path, isolation_level=None) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000", "foreign_keys = OFF"):
            db.execute(f"PRAGMA {pragma}")
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql NOTNULL").fetchall()
        for kind, found in (("TRIGGER", triggers), ("INDEX", indexes)):
            for name, _ in found:
                db.execute(f"DROP {kind} {name}")
        db.execute("BEGIN")
        blobs, trees = _rows(db)
        more(db)
        db.execute("COMMIT")
        for _, sql in indexes + triggers:
            db.execute(sql)
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    index = Index(str(path), DEAD)
    index.recovery.mirror_all()
    # Nothing is due for the scrub, which would find that the files are not what their names say.
    index.scrubs.record(Scrub(began_at=time.time(), ended_at=time.time()))
    index.close()
    _files(root, trees[:sweepable], blobs)


def _rows(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Writes all rows. Returns the digests of the blobs, each tree's own one after the other, and of the trees."""
    own = TREES * BLOBS_OF_EACH
    blobs, trees = ([os.urandom(32).hex() for _ in range(count)] for count in (own + SHARED_BLOBS, TREES))
    long_ago = time.time() - 1e6
    db.executemany(
        "INSERT INTO blobs (id, digest, size, xxh3, inode, mtime_ns, holder_count) VALUES (?, ?, ?, ?, 0, 0, ?)",
        (
            (number + 1, digest, BLOB_BYTES, digest[:32], 1 if number < own else TREES // SHARED_BLOBS)
            for number, digest in enumerate(blobs)
        ),
    )
    size = (BLOBS_OF_EACH + 1) * BLOB_BYTES
    share = BLOBS_OF_EACH * BLOB_BYTES + BLOB_BYTES * SHARED_BLOBS / TREES
    db.executemany(
        "INSERT INTO trees (id, digest, file_count, size_bytes, has_view, recorded_at, fetch_seconds, fetch_bytes,"
        f" share_bytes, use_count, used_at, queue, rank, counted) VALUES (?, ?, {BLOBS_OF_EACH + 1}, {size}, ?,"
        f" {long_ago}, 0.1, {size}, {share}, 1, {long_ago}, 0, ?, 1)",
        ((n + 1, digest, n % VIEWED_EVERY == 0, 1e-6 * n) for n, digest in enumerate(trees)),
    )
    db.executemany(
        "INSERT INTO members (tree, blob) VALUES (?, ?)",
        (
            (tree + 1, blob + 1)
            for tree in range(TREES)
            for blob in (
                *range(tree * BLOBS_OF_EACH, (tree + 1) * BLOBS_OF_EACH),
                own + tree % SHARED_BLOBS,
            )
        ),
    )
    origin = db.execute("SELECT id FROM origins").fetchone()[0]
    db.executemany(
        "INSERT INTO artifacts (origin, uri, selection, tree, file_name, standing, asked, fetched_at, used_at,"
        f" checked_at) VALUES ({origin}, ?, '', ?, '', 1, 1, {long_ago}, {long_ago}, {long_ago})",
        ((f"file:///scale/{n:06}", n + 1) for n in range(TREES)),
    )
    db.executemany(
        f"INSERT INTO accounts (tree, uid, used_at) VALUES (?, ?, {long_ago})", ((n + 1, n % 50) for n in range(TREES))
    )
    db.executemany(
        "INSERT INTO ghosts (tree, queue, rank, counted, counted_at, gone_at) VALUES (?, 0, 0, 1, 0, ?)",
        ((os.urandom(32).hex(), long_ago + n) for n in range(GHOSTS)),
    )
    db.execute(
        "UPDATE counters SET artifact_count = ?, artifact_bytes = ?, tree_count = ?, blob_count = ?, blob_bytes = ?",
        (TREES, TREES * size, TREES, len(blobs), len(blobs) * BLOB_BYTES),
    )
    db.execute(f"UPDATE ranking SET policy = 'gdsf', fetch_seconds = {TREES / 10}, fetch_bytes = {TREES * size}")
    return blobs, trees


def _files(root: Path, trees: Sequence[str], blobs: Sequence[str]) -> None:
    for kind in ("blobs", "manifests"):
        for fan in range(256):
            (root / kind / f"{fan:02x}").mkdir(parents=True)
    (root / "views").mkdir()
    for number, tree in enumerate(trees):
        own = [root / "blobs" / b[:2] / b[2:] for b in blobs[number * BLOBS_OF_EACH : (number + 1) * BLOBS_OF_EACH]]
        for blob in own:
            _write(blob)
        _write(root / "manifests" / tree[:2] / tree[2:])
        if number % VIEWED_EVERY == 0:
            view = root / "views" / tree
            view.mkdir()
            for name, blob in enumerate(own):
                os.link(blob, view / str(name))


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o444)
    os.write(fd, b"bytes")
    os.close(fd)
