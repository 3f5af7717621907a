"""A configuration that takes the place of another while the daemon serves: what changes, and what of it cannot.

Law of this file: values in, names of keys out. All or nothing: where one key of what has changed waits for a restart,
so does the rest, for what serves is one configuration, and never parts of two.
"""

from __future__ import annotations

from dataclasses import fields

from cacheserver.settings import Config

# What is looked at when the daemon starts, and not again: places, sockets, and what the whole store is made for.
RESTART: dict[str, frozenset[str]] = {
    "store": frozenset({"root"}),
    "origin": frozenset({"tracking_uri", "unreachable_after", "local_roots"}),
    "access": frozenset({"check", "users", "views"}),
    "audit": frozenset({"file"}),
    "shared": frozenset({"url", "read_only", "endpoint", "profile", "key_file", "patience", "rate_min", "tree_max"}),
    "server": frozenset({"socket_dir"}),
    "metrics": frozenset({"listen", "accounts"}),
    "page": frozenset({"listen"}),
    "log": frozenset({"format"}),
    "eviction": frozenset({"policy", "trace"}),
}
_ARRAYS = frozenset({"grant", "retention", "warm"})


def changed(old: Config, new: Config) -> list[tuple[str, str]]:
    """The (section, key) of what differs; the key of what there may be several of is empty."""
    found: list[tuple[str, str]] = []
    for section in fields(Config):
        before, after = getattr(old, section.name), getattr(new, section.name)
        if before == after:
            continue
        if section.name in _ARRAYS or section.name == "quotas":
            found.append((section.name, ""))
            continue
        found += [
            (section.name, key.name) for key in fields(before) if getattr(before, key.name) != getattr(after, key.name)
        ]
    return found


def waiting(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of them that need a restart."""
    return [(section, key) for section, key in keys if key in RESTART.get(section, ())]


def show(keys: list[tuple[str, str]]) -> str:
    """Keys as they stand in a file, for messages."""
    return ", ".join(f"[[{s}]]" if s in _ARRAYS else f"[{s}] {k}".rstrip() for s, k in keys)
