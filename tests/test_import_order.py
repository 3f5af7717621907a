"""The import order, and what only some rooms may do: each room of the daemon knows only those before it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
DAEMON = TOP / "cacheserver"
CLIENT = TOP / "client" / "artifactcache"

# Each room imports only rooms that stand before it. Nothing calls upward.
ORDER = (
    "__init__",
    "names",
    "words",
    "trees",
    "bounded",
    "turns",
    "rests",
    "tallies",
    "history",
    "snapshots",
    "stopping",
    "ending",
    "plain",
    "schema",
    "selection",
    "uris",
    "packing",
    "treerecords",
    "space",
    "schedules",
    "retention",
    "tierplan",
    "access",
    "allowances",
    "readers",
    "settings",
    "toml_lines",
    "config",
    "advice",
    "changes",
    "place",
    "flights",
    "quotas",
    "uses",
    "alarms",
    "troubles",
    "eviction",
    "planning",
    "traces",
    "workloads",
    "simulate",
    "foresight",
    "comparing",
    "plots",
    "whatif",
    "leases",
    "register",
    "programs",
    "credentials",
    "libc",
    "proofs",
    "sessions",
    "identities",
    "roles",
    "lock",
    "lean",
    "doors",
    "faults",
    "hashing",
    "ballast",
    "removal",
    "staging",
    "partials",
    "mirror",
    "quarantine",
    "disk",
    "links",
    "probing",
    "views",
    "watch",
    "database",
    "versions",
    "holdings",
    "extents",
    "arrivals",
    "rankings",
    "pins",
    "rulings",
    "ledger",
    "publications",
    "recovery",
    "scrubs",
    "index",
    "restoring",
    "prospects",
    "departures",
    "leftovers",
    "recorder",
    "verify",
    "store",
    "reservations",
    "sweeper",
    "outlook",
    "fsck",
    "listings",
    "local",
    "throttle",
    "http",
    "headers",
    "proxied",
    "shares",
    "crews",
    "repository",
    "refusals",
    "questions",
    "buckets",
    "s3",
    "gcs",
    "azure",
    "objects",
    "roots",
    "sources",
    "resolving",
    "caller",
    "looking",
    "breaker",
    "catalogue",
    "outcomes",
    "origin",
    "gate",
    "work",
    "receiving",
    "downloads",
    "evidence",
    "pace",
    "budgets",
    "tierstore",
    "claims",
    "errands",
    "tier",
    "unpacking",
    "outgoing",
    "publishing",
    "sharing",
    "joining",
    "bringing",
    "cache",
    "retaining",
    "tiersweep",
    "warming",
    "runfolders",
    "settling",
    "folderevents",
    "discovery",
    "ingesting",
    "healing",
    "meddling",
    "scrubbing",
    "explaining",
    "answers",
    "attempts",
    "logs",
    "auditfile",
    "journald",
    "audit",
    "administration",
    "waiting",
    "fetching",
    "counters",
    "overview",
    "entrance",
    "findings",
    "checkup",
    "upkeep",
    "listening",
    "connections",
    "handoff",
    "statuses",
    "service",
    "guests",
    "health",
    "server",
    "peers",
    "pulse",
    "notify",
    "signals",
    "reloading",
    "assembly",
    "metrics",
    "visitors",
    "scraping",
    "page",
    "daemon",
    "cli",
    "__main__",
)

# These rooms are values and decisions: no disk, no clock, no network, no environment, no randomness.
PURE = (
    *("names", "words", "bounded", "selection", "uris", "space", "schedules", "retention", "access", "allowances"),
    *(
        "readers",
        "settings",
        "toml_lines",
        "config",
        "credentials",
        "advice",
        "changes",
        "place",
        "flights",
        "alarms",
        "history",
        "snapshots",
        "troubles",
        "trees",
        "packing",
        "treerecords",
        "tierplan",
        "eviction",
        "planning",
    ),
    *("traces", "workloads", "simulate", "foresight", "findings"),
)
IMPURE = {
    *("os", "time", "datetime", "sqlite3", "sqlite_utils", "grpc", "mlflow", "io", "pathlib", "shutil", "tempfile"),
    *("subprocess", "socket", "signal", "random", "secrets", "logging", "ctypes", "fcntl"),
}

# What only some rooms may import.
RESERVED = {
    "mlflow": {"origin"},
    "sqlite3": {"database", "schema"},
    "sqlite_utils": {"database"},
    "grpc": {"health", "service", "server", "statuses"},
    "grpc_health": {"health"},
    "grpc_reflection": {"health"},
    "prometheus_client": {"metrics", "scraping"},
    "structlog": {"logs"},
    "ctypes": {"libc"},
    "signal": {"signals"},
    "subprocess": set[str](),
    "socket": {"http", "connections", "handoff", "journald", "listening", "notify", "peers", "visitors"},
}

# Only the edge reads a clock; `connections` waits with it.
CLOCKS = re.compile(r"\btime\.(time|time_ns|monotonic|monotonic_ns|perf_counter)\b|\bdatetime\.now\b")
READ_A_CLOCK = {"connections", "assembly", "daemon", "service", "cli"}

# `staging`, `disk`, `doors`, `probing`, `removal`, `views` change the store, `links` others' folders, `auditfile` the
# audit log, `listening` makes the sockets; `libc` has a call of `disk`'s.
CHANGES = re.compile(
    r"\bos\.(rename|renames|replace|unlink|remove|rmdir|removedirs|mkdir|makedirs|link|symlink|chmod|fchmod|chown|truncate"
    r"|ftruncate|utime|mkfifo|setxattr|removexattr)\b|\bshutil\.|\bexchange\("
)
CHANGE_FILES = {
    *("ballast", "register", "partials", "staging", "disk", "doors", "removal", "views", "links", "auditfile"),
    *("mirror", "quarantine", "listening", "libc", "probing"),
}

SQL = re.compile(
    r"\b(SELECT .+ FROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM|CREATE (TABLE|INDEX)|PRAGMA)\b", re.S
)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _rooms() -> list[str]:
    return sorted(path.stem for path in DAEMON.glob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: `a.b.c` for `from a.b import c` and `import a.b.c` alike."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(room: str) -> set[str]:
    """The rooms that a room imports."""
    found = set()
    for name in _imports(DAEMON / f"{room}.py"):
        first, *rest = name.split(".")
        if first == "cacheserver":
            found.add(rest[0] if rest and (DAEMON / f"{rest[0]}.py").exists() else "__init__")
    return found


def test_every_room_has_its_place_in_the_order() -> None:
    """The list and the folder are the same."""
    assert sorted(ORDER) == _rooms()


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    """Wherever the import stands, inside a function too."""
    assert _own_imports(room) <= set(ORDER[: ORDER.index(room)])


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_touches_nothing(room: str) -> None:
    """It imports nothing that could, and no room that does."""
    assert {name.split(".")[0] for name in _imports(DAEMON / f"{room}.py")} & IMPURE == set()
    assert _own_imports(room) <= {"__init__", *PURE}


@pytest.mark.parametrize("module", RESERVED)
def test_what_is_reserved_is_imported_where_it_belongs(module: str) -> None:
    """One room imports mlflow, one speaks SQL, one speaks gRPC."""
    importers = {room for room in _rooms() if any(n.split(".")[0] == module for n in _imports(DAEMON / f"{room}.py"))}
    assert importers == RESERVED[module]


def test_only_the_edge_reads_a_clock() -> None:
    """Elsewhere time is an argument."""
    assert {room for room in _rooms() if CLOCKS.search(_code(DAEMON / f"{room}.py"))} <= READ_A_CLOCK


def test_only_few_rooms_change_the_filesystem() -> None:
    """Whoever looks for what can remove a file looks there."""
    assert {room for room in _rooms() if CHANGES.search(_code(DAEMON / f"{room}.py"))} == CHANGE_FILES


def test_only_the_index_speaks_sql() -> None:
    """Its statements are there, its schema is in the room beside it."""
    speakers = set()
    for room in _rooms():
        texts = [n.value for n in ast.walk(_tree(DAEMON / f"{room}.py")) if isinstance(n, ast.Constant)]
        if any(isinstance(text, str) and SQL.search(text) for text in texts):
            speakers.add(room)
    assert speakers == {
        *("arrivals", "database", "extents", "holdings", "index", "ledger", "mirror", "pins", "rankings", "recovery"),
        *("publications", "rulings", "schema", "scrubs", "versions"),
    }


def test_the_client_imports_nothing_of_the_daemon() -> None:
    """And of others only what its distribution depends on; MLflow's plugin runs inside MLflow."""
    # `credentials` asks MLflow for headers only where a package of this process has a plugin for them.
    plugin = {"plugin.py", "repositories.py", "daemon_for_mlflow.py", "credentials.py"}
    for path in CLIENT.rglob("*.py"):
        for name in _imports(path):
            if path.name in plugin and name.split(".")[0] == "mlflow":
                continue
            assert name.split(".")[0] not in ("cacheserver", "mlflow", "sqlite3", "blake3", "xxhash"), f"{path}: {name}"


def test_only_the_plugin_imports_the_plugin() -> None:
    """And it imports MLflow inside its functions only: who has no MLflow never meets it."""
    plugin = {"plugin", "switch", "repositories", "daemon_for_mlflow", "temporary"}
    for path in CLIENT.glob("*.py"):
        if path.stem not in plugin:
            # The doctor tells whether the plugin is switched off, by the plugin's own rule.
            closed = plugin - {"switch"} if path.stem == "surroundings" else plugin
            assert not {f"artifactcache.{name}" for name in closed} & set(_imports(path)), path
            continue
        for node in _tree(path).body:
            names = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            assert "mlflow" not in names.replace("daemon_for_mlflow", ""), path


def _code(path: Path) -> str:
    """A file without its comments and texts."""
    return ast.unparse(_WithoutTexts().visit(ast.parse(path.read_text(encoding="utf-8"))))


class _WithoutTexts(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")
