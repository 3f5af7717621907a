"""The lock file: which tree each artifact URI stood for, so that another day and another host get the same bytes.

Law of this file: text in, `Lock` out, and back; nothing else is touched. The same lock is the same text, byte for byte.
Whatever somebody has edited into the text is refused with its place, in words. No secret gets into a lock file: a URI
that carries one is refused, and no error here repeats a value that could be one.

It is JSON because that is what Python 3.10 reads without help, and every tool of a pipeline as well; each line has one
value, and the artifacts are sorted, so that a change is a change of few lines.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from artifactcache import request
from artifactcache.errors import InvalidRequest

FORMAT = 1
FILE_BYTES_MAX = 16 * 1024 * 1024
ARTIFACTS_MAX = 10_000
URI_LENGTH_MAX = 4096  # the daemon takes no longer one
NAME_BYTES_MAX = 255  # NAME_MAX of Linux's filesystems
CHOSEN_BYTES_MAX = 230  # of a name that is chosen here, so that a number has room behind it
COUNT_MAX = 2**63 - 1  # what the contract can say of a size
STAGING_PREFIX = ".artifactcache-"  # folders of that name are deleted where their maker is gone
SHOWN_CHARS_MAX = 80  # of an unknown key in an error

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KEYS = ("format", "tracking_uri", "artifacts")
_PATTERN_KEYS = ("include", "exclude")  # these may be missing
_CONFLICT = re.compile(r"^(<{7} |>{7} |={7}$)", re.M)

# Where what stands before an "@" is part of a name, or a login without its password. In all other schemes it is taken
# for a secret: tokens are often written like that.
_NAMES_BEFORE_AT = frozenset({"abfs", "abfss", "dbfs", "ftp", "hdfs", "sftp", "viewfs", "wasb", "wasbs"})
# Where "?" is a character like any other; elsewhere what follows it may be a signature.
_WITHOUT_QUERY = frozenset({"runs", "models", "file"})


@dataclass(frozen=True, slots=True)
class Locked:
    """What one artifact URI stood for when it was locked."""

    name: str
    """What `sync` calls it in a folder: one component of a path, different from all others of the lock."""
    uri: str
    """What was asked for."""
    version: str
    """What it resolved to."""
    digest: str
    """The digest of the tree, or of the part of it that the patterns select."""
    file_count: int
    size_bytes: int
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def version_uri(self) -> str:
        """The URI that stands for the version: a `file:` version has plain names, a `file:` URI has escapes."""
        return self.version.replace("%", "%25") if self.version.startswith("file:") else self.version


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file: the artifacts of one tracking server, sorted by name."""

    tracking_uri: str
    """Without credentials."""
    artifacts: tuple[Locked, ...]

    def text(self) -> str:
        """Write the file."""
        plain = {
            "format": FORMAT,
            "tracking_uri": self.tracking_uri,
            "artifacts": [_plain(each) for each in sorted(self.artifacts, key=lambda each: each.name)],
        }
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def _plain(artifact: Locked) -> dict[str, object]:
    written = dataclasses.asdict(artifact)
    for key in _PATTERN_KEYS:
        if patterns := sorted(set(written.pop(key))):
            written[key] = patterns
    return written


# -- what somebody may have written into it ---------------------------------------------------------------------------


def parse(data: bytes, where: str) -> Lock:
    """Read a lock file; `where` names it in errors. Raises InvalidRequest."""
    if len(data) > FILE_BYTES_MAX:
        raise InvalidRequest(f"{where} is larger than {FILE_BYTES_MAX} bytes: that is no lock file")
    document = _document(data, where)
    written_in = document.get("format", FORMAT) if isinstance(document, dict) else FORMAT
    if type(written_in) is not int or written_in < 1:
        raise InvalidRequest(f"{where}: format is the number {FORMAT}")
    if written_in > FORMAT:  # before its keys are looked at, which may be others
        raise InvalidRequest(
            f"{where} was written by a newer artifactcache: its format is {str(written_in)[:20]}, this one reads "
            f"format {FORMAT}. Install a newer artifactcache, or lock again with this one"
        )
    given = _object(document, where, _KEYS, ())
    tracking_uri = _text(given["tracking_uri"], f"{where}: tracking_uri")
    without_secret(tracking_uri, f"{where}: tracking_uri")
    entries = given["artifacts"]
    if not isinstance(entries, list):
        raise InvalidRequest(f"{where}: artifacts is a list")
    if len(entries) > ARTIFACTS_MAX:
        raise InvalidRequest(f"{where} has {len(entries)} artifacts: at most {ARTIFACTS_MAX} are taken")
    artifacts = tuple(_entry(entry, f"{where}: artifact {number}") for number, entry in enumerate(entries, start=1))
    for name, count in collections.Counter(each.name for each in artifacts).items():
        if count > 1:
            raise InvalidRequest(f"{where}: {count} artifacts have the name {name!r}: give each a name of its own")
    return Lock(tracking_uri, tuple(sorted(artifacts, key=lambda each: each.name)))


def _document(data: bytes, where: str) -> object:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where} is not UTF-8 (at byte {error.start}): that is no lock file") from None

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        for key, count in collections.Counter(key for key, _ in found).items():
            if count > 1:
                raise InvalidRequest(f"{where}: the key {_shown(key)} is there {count} times in one place")
        return dict(found)

    def constant(name: str) -> object:
        raise InvalidRequest(f"{where}: {name} is no value of a lock file")

    try:
        document: object = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        words = "it has the marks of a merge that is not finished" if _CONFLICT.search(text) else error.msg
        raise InvalidRequest(
            f"{where} is no JSON (line {error.lineno}, column {error.colno}): {words}. Mend it, or lock again"
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets in brackets
        raise InvalidRequest(f"{where} is no lock file: nothing in one is so long or so deep") from None
    return document


def _object(value: object, where: str, required: Iterable[str], optional: Iterable[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is an object of keys and values, {{…}}")
    known = (*required, *optional)
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(key[:SHOWN_CHARS_MAX], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise InvalidRequest(f"{where} has the unknown key {_shown(key)}: {hint}")
    for key in required:
        if key not in value:
            raise InvalidRequest(f"{where} lacks {key!r}. Add it, or lock again")
    return value


def _entry(value: object, where: str) -> Locked:
    required = [field.name for field in dataclasses.fields(Locked) if field.name not in _PATTERN_KEYS]
    given = _object(value, where, required, _PATTERN_KEYS)
    name = _text(given["name"], f"{where}: name")
    if fault := name_fault(name):
        raise InvalidRequest(
            f"{where}: the name {_shown(name)} {fault}. It is what sync calls the artifact in a folder"
        )
    where = f"{where} ({name})"
    uri, version = (
        without_secret(_text(given[key], f"{where}: {key}"), f"{where}: {key}") for key in ("uri", "version")
    )
    digest = given["digest"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidRequest(f"{where}: digest is 64 hexadecimal digits, in lower case")
    patterns = []
    for key in _PATTERN_KEYS:
        listed = given.get(key, [])
        if not isinstance(listed, list):
            raise InvalidRequest(f"{where}: {key} is a list of glob patterns")
        patterns.append(tuple(_text(each, f"{where}: a pattern of {key}") for each in listed))
    try:
        request.selection(uri, include=patterns[0], exclude=patterns[1])
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None
    return Locked(
        name=name,
        uri=uri,
        version=version,
        digest=digest,
        file_count=_count(given["file_count"], f"{where}: file_count"),
        size_bytes=_count(given["size_bytes"], f"{where}: size_bytes"),
        include=patterns[0],
        exclude=patterns[1],
    )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f'{where} is a text, "…"')
    if not value or len(value) > URI_LENGTH_MAX:
        raise InvalidRequest(f"{where} is empty or longer than {URI_LENGTH_MAX} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where} is not Unicode: it has half a character in it") from None
    if "\0" in value:
        raise InvalidRequest(f"{where} has a NUL character in it")
    return value


def _count(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise InvalidRequest(f"{where} is a whole number from 0 to {COUNT_MAX}")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…")


def name_fault(name: str) -> str:
    """Say what is wrong with a name, in words that finish "the name … "; empty where it is fine."""
    if name in ("", ".", ".."):
        return "is no name of a file"
    if "/" in name:
        return "has a slash in it"
    if _CONTROL.search(name):
        return "has control characters in it"
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"is longer than {NAME_BYTES_MAX} bytes"
    if name.startswith(STAGING_PREFIX):
        return f"begins with {STAGING_PREFIX!r}, as what is half made does"
    return ""


def without_secret(uri: str, where: str) -> str:
    """Return a URI that may be read by everybody who reads the lock. Raises InvalidRequest, without the URI."""
    scheme, _, rest = uri.partition(":")
    scheme = scheme.lower()
    has_authority = rest.startswith("//") or scheme in ("http", "https")
    user, at, _ = rest.lstrip("/").partition("/")[0].rpartition("@") if has_authority else ("", "", "")
    if at and (":" in user or scheme not in _NAMES_BEFORE_AT):
        found = "a user or a password"
    elif "?" in rest and scheme not in _WITHOUT_QUERY:
        found = "a query, which may be a signature,"
    else:
        return uri
    raise InvalidRequest(
        f"{where} has {found} in it, and a lock file is there to be passed on: leave it out, and give credentials to "
        "the daemon's environment"
    )


# -- names ------------------------------------------------------------------------------------------------------------


def names(wanted: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Choose a name for each (URI, version), in their order: the model's, or the last of the path.

    Where two would have the same, neither gets it, but each its whole URI: so adding an artifact may take a name away,
    which shows, and never gives it to another artifact.
    """
    pairs = list(wanted)
    plain = [_usable(_last(version)) for _, version in pairs]
    often = collections.Counter(plain)
    taken: set[str] = set()
    for (uri, _), short in zip(pairs, plain, strict=True):
        chosen = base = short if often[short] == 1 else _usable("-".join(_parts(uri)))
        number = 1
        while chosen in taken:
            number += 1
            chosen = f"{base}-{number}"
        taken.add(chosen)
        yield chosen


def _parts(uri: str) -> list[str]:
    return [part for part in uri.partition(":")[2].split("/") if part] or [uri]


def _last(version: str) -> str:
    parts = _parts(version)
    is_model = version.startswith("models:") and len(parts) == 2 and parts[1].isdecimal()
    return parts[0] if is_model else parts[-1]


def _usable(text: str) -> str:
    name = _CONTROL.sub("-", text).replace("/", "-").encode()[:CHOSEN_BYTES_MAX].decode(errors="ignore")
    return f"artifact{name}" if name_fault(name) else name
