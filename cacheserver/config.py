"""The configuration, read: what the keys may be.

Law of this file: text in, values or words out; it opens no file and reads no environment. What contradicts itself is
refused with its place and what to write instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import tomllib

from cacheserver import readers
from cacheserver.access import Grant
from cacheserver.allowances import EVERYBODY, Allowance
from cacheserver.readers import suggest
from cacheserver.retention import Rule
from cacheserver.settings import (
    AccessConfig,
    AuditConfig,
    Config,
    EvictionConfig,
    IngestConfig,
    LogConfig,
    MetricsConfig,
    OriginConfig,
    PageConfig,
    QuotasConfig,
    ScrubConfig,
    ServerConfig,
    SharedConfig,
    StoreConfig,
    WarmConfig,
)
from cacheserver.toml_lines import Path, line_of

PREFIX = "CACHESERVER_"  # of variables of the environment that take the place of keys
TABLES_MAX = 1000  # rules; things kept warm; users, and groups, with quotas


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and why."""


Readers = dict[str, Callable[[Any], Any]]

_SECTIONS: dict[str, tuple[type[Any], Readers]] = {
    "store": (StoreConfig, {"root": readers.path, "capacity": readers.some, "min_free": readers.not_all}),
    "origin": (
        OriginConfig,
        {
            "tracking_uri": readers.uri,
            "unreachable_after": readers.seconds,
            "stale_after": readers.seconds,
            "relist_after": readers.duration,
            "alias_ttl": readers.duration,
            "local_roots": readers.paths,
        },
    ),
    "access": (
        AccessConfig,
        {
            "check": readers.one_of("none", "caller", "rules"),
            "decisions_kept": readers.seconds,
            "users": readers.one_of("self", "all"),
            "allow": readers.people,
            "deny": readers.people,
            "operators": readers.people,
            "administrators": readers.people,
            "views": readers.flag,
            "hardlink_for_root": readers.flag,
        },
    ),
    "audit": (
        AuditConfig,
        {
            "file": readers.path_or_none,
            "max_bytes": readers.size,
            "files": readers.count,
            "warn_refusals": readers.count,
            "warn_downloads": readers.count,
        },
    ),
    "scrub": (ScrubConfig, {"every": readers.period, "rate": readers.size}),
    "ingest": (
        IngestConfig,
        {
            "folders": readers.paths,
            "settle": readers.seconds,
            "every": readers.period,
            "max_age": readers.duration,
        },
    ),
    "shared": (
        SharedConfig,
        {
            "url": readers.object_store_or_none,
            "read_only": readers.flag,
            "endpoint": readers.endpoint_or_none,
            "profile": readers.line_or_none,
            "key_file": readers.path_or_none,
            "patience": readers.seconds,
            "rate_min": readers.rate,
            "tree_max": readers.size,
            "capacity": readers.size_or_none,
        },
    ),
    "server": (ServerConfig, {"socket_dir": readers.socket_dir}),
    "metrics": (MetricsConfig, {"listen": readers.address_or_none, "accounts": readers.flag}),
    "page": (PageConfig, {"listen": readers.loopback_or_none}),
    "log": (
        LogConfig,
        {
            "format": readers.one_of("auto", "console", "json"),
            "level": readers.one_of("debug", "info", "warning", "error"),
        },
    ),
    "eviction": (
        EvictionConfig,
        {
            "policy": readers.one_of("gdsf", "lru", "s3-fifo"),
            "high": readers.percent,
            "low": readers.percent,
            "grace": readers.duration,
            "trace": readers.path_or_none,
        },
    ),
}


def _grant(*, name: str, to: Sequence[str] = (), path: str = "", uri: str = "", **of: Any) -> Grant:
    return Grant(name, tuple(to), path, uri, Rule(name=name, **of))


def _warm(**of: Any) -> WarmConfig:
    return WarmConfig(**({"every": math.inf} if "at" in of else {}) | of)


_ARRAYS: dict[str, tuple[Callable[..., Any], Readers]] = {
    "grant": (
        _grant,
        {
            "name": readers.line,
            "to": readers.people,
            "experiment": readers.line,
            "model": readers.line,
            "tag": readers.tags,
            "owner": readers.line,
            "path": readers.line,
            "uri": readers.line,
        },
    ),
    "retention": (
        Rule,
        {
            "name": readers.line,
            "tracking_uri": readers.server,
            "experiment": readers.line,
            "model": readers.line,
            "alias": readers.line,
            "owner": readers.line,
            "tag": readers.tags,
            "status": readers.one_of("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"),
            "deleted": readers.flag,
            "keep": readers.keep,
            "keep_last": readers.count,
            "drop": readers.drop,
            "priority": readers.priority,
        },
    ),
    "warm": (
        _warm,
        {
            "uri": readers.artifact,
            "every": readers.period,
            "at": readers.at,
            "include": readers.patterns,
            "exclude": readers.patterns,
        },
    ),
}
_ALLOWANCE: Readers = {"held": readers.some, "downloads": readers.count, "rate": readers.rate}
_QUOTAS = {"user": "users", "group": "groups"}


def parse(text: str, name: str, environ: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Reads a configuration's TOML text.

    Args:
        name: what to call it in messages, such as its path.
        environ: of its variables those that begin with CACHESERVER_ take the place of keys: CACHESERVER_STORE_CAPACITY
            that of [store] capacity, with a value as in the file; a text needs no quotes.

    Raises ConfigError, with the line, or the variable, and what to write instead.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5,000 digits
        raise ConfigError(f"{name}: this is not TOML: {error}.") from None
    told = _of_environment(environ)
    try:
        config = Config(**{section: _read(section, values) for section, values in tables.items()})
        for section, values in told.items():
            config = replace(config, **{section: replace(getattr(config, section), **values)})
        for place, words in _contradictions(config):
            raise _Wrong(place, words)
    except _Wrong as wrong:
        raise ConfigError(f"{name}{line_of(text, wrong.place)}: {wrong}") from None
    return config


def _of_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Values by section and key."""
    known = {
        f"{PREFIX}{section}_{key}".upper(): (section, key, reader)
        for section, (_, readers_) in _SECTIONS.items()
        for key, reader in readers_.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        if variable not in known:
            raise ConfigError(f"{variable} in the environment stands for no key.{suggest(variable, known)}")
        section, key, reader = known[variable]
        try:
            value = tomllib.loads(f"value = {environ[variable]}")["value"]
        except (ValueError, RecursionError):
            value = environ[variable]
        try:
            found.setdefault(section, {})[key] = reader(value)
        except ValueError as error:
            raise ConfigError(f"{variable} in the environment: must be {error}.") from None
    return found


def keys() -> list[tuple[str, str, Any]]:
    """Every (section, key, default)."""
    return [(s, f.name, getattr(kind(), f.name)) for s, (kind, _) in _SECTIONS.items() for f in fields(kind)]


def table_keys() -> dict[str, tuple[str, ...]]:
    """The keys of what there may be several of: rules, things kept warm, quotas."""
    return {name: tuple(keys) for name, (_, keys) in _ARRAYS.items()} | {"quotas": tuple(_ALLOWANCE)}


class _Wrong(Exception):
    """What cannot be used, and where it stands."""

    def __init__(self, place: Path, words: str) -> None:
        super().__init__(words)
        self.place = place


def _read(section: str, values: Any) -> Any:
    """One section, array of tables, or the quotas."""
    if section in _SECTIONS:
        kind, known = _SECTIONS[section]
        if not isinstance(values, dict):
            raise _Wrong((section,), f"{section} is a section: write [{section}] once.")
        return kind(**_table((section,), f"[{section}]", values, known))
    if section == "quotas":
        return _quotas(values)
    if section not in _ARRAYS:
        every = (*_SECTIONS, *_ARRAYS, "quotas")
        raise _Wrong((section,), f"[{section}] is no section.{suggest(section, every)}")
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise _Wrong((section,), f"There may be several of {section}: write [[{section}]] above each.")
    if len(values) > TABLES_MAX:
        raise _Wrong((section, TABLES_MAX), f"More than {TABLES_MAX} of [[{section}]] are too many.")
    make, known = _ARRAYS[section]
    read = [_table((section, i), f"[[{section}]]", one, known) for i, one in enumerate(values)]
    if section in ("grant", "retention"):
        read = [{"name": f"{section} {i}", **one} for i, one in enumerate(read, start=1)]
    return tuple(make(**one) for one in read)


def _table(place: Path, shown: str, values: dict[str, Any], known: Readers) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise _Wrong((*place, key), f"{shown} has no key {key}.{suggest(key, known)}")
        try:
            read[key] = known[key](value)
        except ValueError as error:
            raise _Wrong((*place, key), f"{shown} {key} = {value!r}: must be {error}.") from None
    return read


def _quotas(values: Any) -> QuotasConfig:
    form = 'write [quotas.user.alice], [quotas.group.students], or [quotas.user."*"] for every other user.'
    if not isinstance(values, dict):
        raise _Wrong(("quotas",), f"quotas are sections: {form}")
    found: dict[str, dict[str, Allowance]] = {}
    for kind, of in values.items():
        if kind not in _QUOTAS:
            raise _Wrong(("quotas", kind), f"[quotas] has no {kind}: {form}")
        if not isinstance(of, dict) or len(of) > TABLES_MAX:
            raise _Wrong(("quotas", kind), f"[quotas.{kind}] has quotas below it, at most {TABLES_MAX}: {form}")
        found[_QUOTAS[kind]] = {}
        for name, allowance in of.items():
            place, shown = ("quotas", kind, name), f"[quotas.{kind}.{_quoted(name)}]"
            if not isinstance(allowance, dict):
                raise _Wrong(place, f"[quotas.{kind}] {name} is a user's or group's name here: {form}")
            if name != EVERYBODY or kind == "group":
                try:
                    readers.name(name)
                    if name == EVERYBODY:
                        raise ValueError('a group; for every user without an entry write [quotas.user."*"]')
                except ValueError as error:
                    raise _Wrong(place, f"{shown}: must be {error}.") from None
            found[_QUOTAS[kind]][name] = Allowance(**_table(place, shown, allowance, _ALLOWANCE))
    return QuotasConfig(**found)


def _quoted(name: str) -> str:
    return name if name.isalnum() and name.isascii() else f'"{name}"'


def _contradictions(config: Config) -> Iterator[tuple[Path, str]]:
    """What each for itself could be used, but not together: the place, and what to write instead."""
    eviction, root = config.eviction, config.store.root.rstrip("/")
    if eviction.low >= eviction.high:
        key = "low" if eviction.low != EvictionConfig.low else "high"
        yield (
            ("eviction", key),
            f'[eviction] low = "{eviction.low:g}%" must be below high = "{eviction.high:g}%": a sweep begins above high'
            " and goes down to low.",
        )
    if root and f"{eviction.trace}/".startswith(f"{root}/"):
        yield ("eviction", "trace"), "[eviction] trace: must be outside the store, where only the store's files are."
    names = set[str]()
    for i, rule in enumerate(config.retention):
        if words := _contradiction(rule, rule.name in names):
            yield ("retention", i), f'[[retention]] "{rule.name}" {words}.'
        names.add(rule.name)
    yield from _open_doors(config)
    for i, warm in enumerate(config.warm):
        if not warm.uri:
            yield ("warm", i), '[[warm]] has no uri: write which artifact it is, as in uri = "models:/resnet@champion".'
        if warm.at and warm.every < math.inf:
            words = "has both every and at: leave out at to have it looked at so often, or every for these times only."
            yield ("warm", i), f"[[warm]] {warm.uri} {words}"


def _open_doors(config: Config) -> Iterator[tuple[Path, str]]:
    """Access rules that would let in, or keep out, other people than they seem to."""
    check = config.access.check
    if config.grant and check == "none":
        words = '[[grant]] grants nothing while [access] check = "none" lets everybody read everything: write check ='
        yield ("grant", 0), f'{words} "rules", or "caller" to have the tracking server asked as well.'
    if check == "rules" and not config.grant:
        yield ("access", "check"), '[access] check = "rules" without a [[grant]] lets nobody read anything: write one.'
    names = set[str]()
    for i, grant in enumerate(config.grant):
        if not grant.to:
            yield ("grant", i), f'[[grant]] "{grant.name}" names nobody: write to = ["alice", "@vision"], or "*".'
        if grant.name in names:
            yield ("grant", i), f'[[grant]] "{grant.name}" has the name of another grant: write a name of its own.'
        if grant.uri and (grant.path or grant.of.has_conditions):
            words = "has uri, which is about bare artifact URIs, beside what only a run or a model has"
            yield ("grant", i), f'[[grant]] "{grant.name}" {words}: write two grants.'
        names.add(grant.name)


def _contradiction(rule: Rule, is_taken: bool) -> str:
    """What is wrong with a rule, for the middle of a sentence; empty where nothing is."""
    if is_taken:
        return "has the name of another rule: write a name of its own"
    if not rule.keep and not rule.keep_last and rule.drop == math.inf and rule.priority is None:
        return "does nothing: write keep, keep_last, drop or priority"
    if rule.keep == math.inf and rule.drop < math.inf:
        return 'always keeps what it also drops: leave out drop, or write for how long, as in keep = "30d"'
    if rule.keep == math.inf and rule.keep_last:
        return "always keeps all versions, and so the last ones: leave out keep_last, or keep"
    if rule.drop < rule.keep:
        return "drops what it still keeps: write a drop that is longer than keep"
    return ""
