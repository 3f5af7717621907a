"""What a value of the configuration may be: a reader for each kind.

Law of this file: a value of TOML in, ours out, or a ValueError whose words finish "… must be".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from artifactcache.errors import InvalidRequest
from cacheserver import schedules, uris
from cacheserver.schedules import Schedule
from cacheserver.selection import Selection
from cacheserver.space import BYTES_MAX, Amount, parse_amount

DURATION_SECONDS_MAX = 366 * 86_400
RETENTION_SECONDS_MAX = 10 * DURATION_SECONDS_MAX
SECONDS_MAX = 3600
SOCKET_DIR_BYTES_MAX = 107 - len("/handoff.sock")  # sun_path of unix(7)
TEXT_LENGTH_MAX = 1000
COUNT_MAX = 1_000_000
PRIORITY_MAX = 1000
PORT_MAX = 65_535

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([smhdw])\s*")
_PERCENT = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,12})?)\s*%\s*")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_LOOPBACK = re.compile(r"127(\.\d{1,3}){3}|\[::1\]|localhost")
_OBJECT_STORES = frozenset({"s3", "gs", "az"})
_NAME = re.compile(r"[^\s:/,@\x00-\x1f\x7f]{1,256}")


def text(value: Any) -> str:
    """Any text."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text in quotes, not empty")
    return value


def line(value: Any) -> str:
    """A short text: a name, or a pattern of names."""
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_LENGTH_MAX or not value.isprintable():
        raise ValueError(f"a text in quotes, not empty, on one line and at most {TEXT_LENGTH_MAX} characters long")
    return value


def path(value: Any) -> str:
    """An absolute path."""
    found = text(value)
    if not found.startswith("/"):
        raise ValueError("an absolute path")
    return found


def path_or_none(value: Any) -> str:
    """An absolute path, or an empty text."""
    if value == "":
        return ""
    try:
        return path(value)
    except ValueError:
        raise ValueError('an absolute path, or "" for none') from None


def socket_dir(value: Any) -> str:
    """A folder for sockets."""
    found = path(value)
    if len(found.encode("utf-8", "surrogateescape")) > SOCKET_DIR_BYTES_MAX:
        raise ValueError(f"at most {SOCKET_DIR_BYTES_MAX} bytes long: Linux takes no longer path for a socket")
    return found


def address_or_none(value: Any) -> str:
    """A host, or an address of its own, and a port; or an empty text."""
    if value == "":
        return ""
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if not found or not 0 < int(found[2]) <= PORT_MAX:
        raise ValueError('host:port, as in "127.0.0.1:9464", "[::1]:9464" or "0.0.0.0:9464"; or "" for none')
    return found[0]


def loopback_or_none(value: Any) -> str:
    """A loopback address and a port; or an empty text."""
    try:
        found = address_or_none(value)
    except ValueError:
        found = "elsewhere:0"
    if found and not _LOOPBACK.fullmatch(found.rpartition(":")[0]):
        raise ValueError(
            'an address that only this host can reach, as in "127.0.0.1:9465" or "[::1]:9465", for what is shown there'
            ' goes over plain HTTP; or "" for none. From elsewhere take `ssh -L 9465:127.0.0.1:9465`'
        )
    return found


def paths(value: Any) -> list[str]:
    """Absolute paths."""
    return _each(value, path, 'a list of absolute paths, as in ["/srv/mlflow"]')


def amount(value: Any) -> Amount:
    """Bytes, or per cent of the filesystem."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BYTES_MAX:
        return Amount(value)
    return parse_amount(value if isinstance(value, str) else "")


def some(value: Any) -> Amount:
    """As `amount`, but not nothing."""
    found = amount(value)
    if found.number <= 0 or (not found.percent and found.number < 1):
        raise ValueError('more than nothing: bytes as in "500GiB", or per cent of the filesystem as in "10%"')
    return found


def not_all(value: Any) -> Amount:
    """As `amount`, but not the whole filesystem."""
    found = amount(value)
    if found.percent and found.number >= 100:
        raise ValueError("less than 100%: else nothing could be held")
    return found


def rate(value: Any) -> int:
    """Bytes per second."""
    return int(_bytes(value, 1, 'bytes per second, as in "100MiB", and more than nothing').number)


def size(value: Any) -> Amount:
    """Bytes, from a kilobyte on."""
    return _bytes(value, 1024, 'bytes, from 1KiB on, as in "64MiB"')


def size_or_none(value: Any) -> Amount:
    """Bytes, from a kilobyte on, or none."""
    words = 'bytes, from 1KiB on, as in "10TiB", or 0 for none'
    return Amount(0) if value in (0, "0B") and value is not False else _bytes(value, 1024, words)


def percent(value: Any) -> float:
    """Per cent."""
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if not found or not 0 < float(found[1]) <= 100:
        raise ValueError('per cent, above 0 and at most 100, as in "95%"')
    return float(found[1])


def uri(value: Any) -> str:
    """A tracking URI."""
    found = text(value)
    try:
        parts = urlsplit(found)
        has_scheme = bool(parts.scheme) and parts.port != 0  # a password with "/" in it makes another port of it
    except ValueError:
        has_scheme = False
    if not has_scheme and not found.startswith("/"):
        raise ValueError('a tracking URI, as in "http://mlflow.example:5000" or "sqlite:////var/lib/mlflow.db"')
    return found


def object_store_or_none(value: Any) -> str:
    """A bucket, or a prefix in one; or an empty text."""
    if value == "":
        return ""
    found = value.rstrip("/") if isinstance(value, str) else ""
    parts = urlsplit(found) if found.isprintable() and found.isascii() else urlsplit("")
    below = parts.path.split("/")[1:]
    if parts.scheme not in _OBJECT_STORES or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            'a bucket, as in "s3://bucket/prefix", "gs://bucket/prefix" or "az://container"; or "" for none'
        )
    if any(part in ("", ".", "..") for part in below):
        raise ValueError('a prefix without empty components, "." and "..", as in "s3://bucket/prefix"')
    return found


def endpoint_or_none(value: Any) -> str:
    """The endpoint of an S3 store; or an empty text."""
    if value == "":
        return ""
    try:
        parts = urlsplit(line(value))
        is_fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError('an endpoint, as in "https://s3.example:9000"; or "" for what the environment says')
    return str(value).rstrip("/")


def line_or_none(value: Any) -> str:
    """A short text, or an empty one."""
    return "" if value == "" else line(value)


def server(value: Any) -> str:
    """A pattern of tracking URIs; a slash at the end is none of it."""
    return line(value).rstrip("/") or line("")


def artifact(value: Any) -> str:
    """An artifact URI."""
    try:
        uris.parse(line(value))
    except InvalidRequest as error:
        raise ValueError(f"an artifact URI. {str(error).rstrip('.')}") from None
    return str(value)


def patterns(value: Any) -> tuple[str, ...]:
    """Patterns of paths in an artifact."""
    found = _each(value, line, 'a list of patterns, as in ["*.onnx", "tokenizer/**"]')
    try:
        Selection.of(found, ())
    except InvalidRequest as error:
        raise ValueError(f"patterns that can be read. {str(error).rstrip('.')}") from None
    return tuple(found)


def duration(value: Any) -> float:
    """Seconds, from 0 to a year."""
    return _seconds(value, 0, DURATION_SECONDS_MAX, 'seconds, from 0 to a year, as in 90 or "15m"')


def seconds(value: Any) -> float:
    """Seconds, above 0 and at most an hour."""
    return _seconds(value, 1e-9, SECONDS_MAX, f'seconds, above 0 and at most {SECONDS_MAX}, as in 10 or "2s"')


def period(value: Any) -> float:
    """Seconds, from 1 to a year."""
    return _seconds(value, 1, DURATION_SECONDS_MAX, 'seconds, from 1 to a year, as in 900 or "15m"')


def at(value: Any) -> Schedule:
    """Times of the week: a text, or a list of some."""
    texts = value if isinstance(value, list) else [value]
    if not 0 < len(texts) <= schedules.TIMES_MAX or not all(isinstance(one, str) for one in texts):
        raise ValueError(schedules.WORDS)
    return schedules.read(texts)


def keep(value: Any) -> float:
    """Seconds above 0, or for ever."""
    if value == "always":
        return math.inf
    return _seconds(value, 1e-9, RETENTION_SECONDS_MAX, '"always", or how long since the last use, as in "30d"')


def drop(value: Any) -> float:
    """Seconds from 0 on."""
    return _seconds(value, 0, RETENTION_SECONDS_MAX, 'how long after it was fetched, as in "1d", or "0s" for at once')


def count(value: Any) -> int:
    """A number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= COUNT_MAX:
        raise ValueError(f"a whole number from 1 to {COUNT_MAX}")
    return value


def priority(value: Any) -> int:
    """A whole number on either side of 0."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > PRIORITY_MAX:
        raise ValueError(f"a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def tags(value: Any) -> dict[str, str]:
    """Patterns of a run's tags, by key."""
    words = 'patterns by tag, as in { team = "vision", "mlflow.source.type" = "JOB" }'
    if not isinstance(value, dict) or not value:
        raise ValueError(words)
    try:
        return {line(key): line(pattern) for key, pattern in value.items()}
    except ValueError:
        raise ValueError(f"{words}: a key with a dot in it stands in quotes") from None


def people(value: Any) -> list[str]:
    """Users, groups behind an @, or everybody."""
    return _each(value, _person, 'a list of user names, of groups behind an @, or "*", as in ["alice", "@admins"]')


def name(value: Any) -> str:
    """The name of a user or a group."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("the name of a user or a group, as the host knows it")
    return value


def one_of(*words: str) -> Callable[[Any], str]:
    """One of these words."""

    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(f'"{word}"' for word in words))
        return str(value)

    return check


def suggest(word: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(known)}."


def _person(value: Any) -> str:
    if value == "*":
        return "*"
    name(value.removeprefix("@") if isinstance(value, str) else value)
    return str(value)


def _each(value: Any, reader: Callable[[Any], str], words: str) -> list[str]:
    try:
        return [reader(one) for one in (value if isinstance(value, list) else [None])]
    except ValueError:
        raise ValueError(words) from None


def _seconds(value: Any, least: float, most: float, words: str) -> float:
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        value = float(found[1]) * _UNITS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(words)
    return float(value)


def _bytes(value: Any, least: int, words: str) -> Amount:
    try:
        found = amount(value)
    except ValueError:
        raise ValueError(words) from None
    if found.percent or found.number < least:
        raise ValueError(words)
    return found
