"""The configuration: what the keys are, what they mean, what they may be.

Law of this file: text in, values or words out; it opens no file and reads no environment. A key that nobody reads does
not exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

import tomllib

from cacheserver.space import Amount, parse_amount

DURATION_SECONDS_MAX = 366 * 86_400
SOCKET_DIR_BYTES_MAX = 107 - len("/handoff.sock")  # sun_path of unix(7)


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and why."""


@dataclass(frozen=True)
class StoreConfig:
    """[store]"""

    root: str = ""
    capacity: Amount = field(default=Amount(100, percent=True))
    min_free: Amount = field(default=Amount(1, percent=True))


@dataclass(frozen=True)
class OriginConfig:
    """[origin]"""

    tracking_uri: str = ""
    unreachable_after: float = 10.0
    stale_after: float = 2.0
    relist_after: float = 3600.0
    alias_ttl: float = 0.0
    local_roots: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AccessConfig:
    """[access]"""

    check: str = "none"
    users: str = ""
    hardlink_for_root: bool = False


@dataclass(frozen=True)
class ServerConfig:
    """[server]"""

    socket_dir: str = ""


@dataclass(frozen=True)
class Config:
    """All of it; an empty text stands for "find a place by the environment"."""

    store: StoreConfig = field(default_factory=StoreConfig)
    origin: OriginConfig = field(default_factory=OriginConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text in quotes, not empty")
    return value


def _path(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def _socket_dir(value: Any) -> str:
    text = _path(value)
    if len(text.encode("utf-8", "surrogateescape")) > SOCKET_DIR_BYTES_MAX:
        raise ValueError(f"at most {SOCKET_DIR_BYTES_MAX} bytes long: Linux takes no longer path for a socket")
    return text


def _paths(value: Any) -> list[str]:
    try:
        return [_path(one) for one in (value if isinstance(value, list) else [None])]
    except ValueError:
        raise ValueError('a list of absolute paths, as in ["/srv/mlflow"]') from None


def _amount(value: Any) -> Amount:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Amount(value)
    return parse_amount(value if isinstance(value, str) else "")


def _uri(value: Any) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        has_scheme = bool(parts.scheme) and parts.port != 0  # a password with "/" in it makes another port of it
    except ValueError:
        has_scheme = False
    if not has_scheme and not text.startswith("/"):
        raise ValueError('a tracking URI, as in "http://mlflow.example:5000" or "sqlite:////var/lib/mlflow.db"')
    return text


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= DURATION_SECONDS_MAX:
        raise ValueError("seconds, from 0 to a year")
    return float(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise ValueError("seconds, above 0 and at most 3600")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(f'"{word}"' for word in words))
        return str(value)

    return check


_SECTIONS: dict[str, tuple[type[Any], dict[str, Callable[[Any], Any]]]] = {
    "store": (StoreConfig, {"root": _path, "capacity": _amount, "min_free": _amount}),
    "origin": (
        OriginConfig,
        {
            "tracking_uri": _uri,
            "unreachable_after": _seconds,
            "stale_after": _seconds,
            "relist_after": _duration,
            "alias_ttl": _duration,
            "local_roots": _paths,
        },
    ),
    "access": (
        AccessConfig,
        {"check": _one_of("none"), "users": _one_of("self", "all"), "hardlink_for_root": _flag},
    ),
    "server": (ServerConfig, {"socket_dir": _socket_dir}),
}


def parse(text: str, name: str) -> Config:
    """Reads a configuration's TOML text.

    Args:
        name: what to call it in messages, such as its path.

    Raises ConfigError, with the line and what to write instead.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5,000 digits
        raise ConfigError(f"{name}: this is not TOML: {error}.") from None
    found: dict[str, Any] = {}
    for section, values in tables.items():
        if section in _SECTIONS and not isinstance(values, dict):
            raise ConfigError(f"{name}{_line(text, section)}: {section} is a section: write [{section}] once.")
        if section not in _SECTIONS:
            raise ConfigError(f"{name}{_line(text, section)}: [{section}] is no section.{_suggest(section, _SECTIONS)}")
        found[section] = _section(section, values, text, name)
    return Config(**found)


def keys() -> list[tuple[str, str, Any]]:
    """Every (section, key, default)."""
    return [(s, f.name, getattr(kind(), f.name)) for s, (kind, _) in _SECTIONS.items() for f in fields(kind)]


def _section(section: str, values: dict[str, Any], text: str, name: str) -> Any:
    kind, readers = _SECTIONS[section]
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in readers:
            raise ConfigError(
                f"{name}{_line(text, section, key)}: [{section}] has no key {key}.{_suggest(key, readers)}"
            )
        try:
            read[key] = readers[key](value)
        except ValueError as error:
            raise ConfigError(
                f"{name}{_line(text, section, key)}: [{section}] {key} = {value!r}: must be {error}."
            ) from None
    return kind(**read)


def _line(text: str, section: str, key: str = "") -> str:
    """The line where a section, or a key of it, stands, for a message; tomllib does not tell."""
    head, entry = (re.compile(rf"\s*\[?\s*[\"']?{re.escape(word)}[\"']?\s*[]=.]") for word in (section, key))
    within = False
    for number, line in enumerate(text.splitlines(), start=1):
        if head.match(line) and not (within and not line.lstrip().startswith("[")):
            within = True
            if not key or f".{key}" in line:
                return f":{number}"
        elif line.lstrip().startswith("["):
            within = False
        elif within and entry.match(line):
            return f":{number}"
    return ""


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(known)}."
