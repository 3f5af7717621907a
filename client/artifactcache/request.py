"""What a caller may ask for. Whatever is wrong with the arguments alone is found here, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from artifactcache.errors import InvalidRequest

KINDS = ("reflink", "hardlink", "copy")  # ways to place files at a destination, the preferred first
MODES = ("auto", "view", *KINDS)
EXISTS = ("error", "replace", "merge")
PATTERNS_MAX = 100  # include and exclude together; the daemon takes no more
PIN_SECONDS_MAX = 100 * 365 * 86_400  # a hundred years: who wants more means "no end"
YEAR_10000 = 253_402_300_800  # in seconds since the epoch; no time of the audit log is as late
BYTES_MAX = 2**63 - 1  # what the contract can say of a size


@dataclass(frozen=True, slots=True)
class Selection:
    """Which artifact, and which of its files."""

    uri: str
    run_id: str
    artifact_path: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    @property
    def asked_for(self) -> str:
        """The URI, also where a run's ID was given."""
        return self.uri or f"runs:/{self.run_id}/{self.artifact_path}".rstrip("/")


def selection(
    uri: object,
    run_id: object = None,
    artifact_path: object = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
) -> Selection:
    """Check what names an artifact."""
    if (uri is None) == (run_id is None):
        raise InvalidRequest("give either a uri or a run_id")
    if artifact_path is not None and run_id is None:
        raise InvalidRequest("artifact_path is a path inside the run of a run_id; a uri names its own")
    included, excluded = _patterns(include, "include"), _patterns(exclude, "exclude")
    if (count := len(included) + len(excluded)) > PATTERNS_MAX:
        raise InvalidRequest(f"{count} patterns are too many: at most {PATTERNS_MAX} are taken.")
    return Selection(
        uri="" if uri is None else _name(uri, "uri"),
        run_id="" if run_id is None else _name(run_id, "run_id"),
        artifact_path="" if artifact_path is None else _text(artifact_path, "artifact_path"),
        include=included,
        exclude=excluded,
    )


def timeout(seconds: object) -> float | None:
    """Check a timeout in seconds."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InvalidRequest(f"timeout is a number of seconds above 0, not {seconds!r}")
    return float(min(seconds, 1e300))  # float() of a huge int overflows


def pin_seconds(seconds: object) -> float | None:
    """Check for how long something is to be pinned; None for no end."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InvalidRequest(
            "for_seconds is a number of seconds above 0, or None to pin until it is unpinned, not " + _shown(seconds)
        )
    if seconds > PIN_SECONDS_MAX:
        raise InvalidRequest(
            f"a pin lasts {PIN_SECONDS_MAX} seconds (100 years) at most: for a longer one give no time, and it lasts "
            "until it is unpinned"
        )
    return float(seconds)


def free_bytes(count: object) -> int | None:
    """Check how much is to be freed; None for what the store's limits ask for."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidRequest(
            "free_bytes is a whole number of bytes above 0, or None to free as much as the store's limits and rules "
            f"ask for, not {_shown(count)}"
        )
    if count > BYTES_MAX:
        raise InvalidRequest(f"free_bytes is at most {BYTES_MAX}: no disk has more")
    return count


def audited(user: object, artifact: object, since: object) -> tuple[str, str, float]:
    """Check which lines of the audit log are wanted; what is empty is no condition."""
    return (
        "" if user is None else _name(user, "user"),
        "" if artifact is None else _name(artifact, "artifact"),
        moment(since, "since"),
    )


def moment(value: object, what: str) -> float:
    """Check a time; None is the beginning of time."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < YEAR_10000:
        raise InvalidRequest(f"{what} is a time in seconds since the epoch, not {_shown(value)}")
    return float(value)


def callback(progress: object) -> None:
    """Check a progress callback."""
    if progress is not None and not callable(progress):
        raise InvalidRequest(f"progress is something to call, not {progress!r}")


def flag(value: object, what: str) -> None:
    """Check a yes or no."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{what} is True or False, not {value!r}")


def manner(mode: object, exists: object, writable: bool, has_dst: bool) -> None:
    """Check how the artifact is to be handed over."""
    flag(writable, "writable")
    if mode not in MODES:
        raise InvalidRequest(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    if exists not in EXISTS:
        raise InvalidRequest(f"exists is one of {', '.join(EXISTS)}, not {exists!r}")
    if has_dst and mode == "view":
        raise InvalidRequest("a view lies inside the store: leave dst out, or choose another mode")
    if not has_dst and mode in KINDS:
        raise InvalidRequest(f"mode {mode!r} places files: say where, with dst")
    if writable and not has_dst:
        raise InvalidRequest("a view is read-only: writable=True needs a dst")
    if writable and mode == "hardlink":
        raise InvalidRequest("hard links share their bytes with others: choose mode reflink or copy, or auto")


def kind(mode: object) -> None:
    """Check how something is to be placed, where a view is out of the question."""
    if mode not in ("auto", *KINDS):
        raise InvalidRequest(f"mode is one of auto, {', '.join(KINDS)}, not {mode!r}")


def file(path: object, what: str) -> str:
    """Check the name of a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidRequest(f"{what} is a path, not {path!r}")
    try:
        return os.fsdecode(path)
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} {path!r} has characters that no file name can have") from None


def destination(dst: object) -> bytes:
    """Check a destination and return its absolute path, without the slashes at its end.

    A relative one is resolved against the working directory, now. `~` is a name like any other.
    """
    if not isinstance(dst, (str, bytes, os.PathLike)):
        raise InvalidRequest(f"dst is a path, not {dst!r}")
    try:
        given = os.fsencode(dst)
    except UnicodeEncodeError:
        raise InvalidRequest(f"dst {dst!r} has characters that no file name can have") from None
    if not given:
        raise InvalidRequest("dst is empty")
    if b"\0" in given:
        raise InvalidRequest("dst has a NUL byte in it")
    try:
        path = os.path.join(os.getcwdb(), given).rstrip(b"/")
    except OSError as error:
        raise InvalidRequest(f"dst is relative to a working directory that is gone: {error.strerror}") from None
    if os.path.basename(path) in (b".", b".."):  # not lexically: what lies before ".." may be a symlink
        path = os.path.realpath(path)
    if path in (b"", b"/"):
        raise InvalidRequest("dst is the root of the filesystem")
    return path


def socket_dir(given: object) -> str:
    """Check a folder of sockets and return its absolute path."""
    if not isinstance(given, (str, os.PathLike)):
        raise InvalidRequest(f"socket_dir is a path, not {given!r}")
    try:
        path = os.path.abspath(os.fsdecode(os.fsencode(given)))
    except UnicodeEncodeError:
        raise InvalidRequest(f"socket_dir {given!r} has characters that no file name can have") from None
    except OSError as error:
        raise InvalidRequest(f"socket_dir is relative to a working directory that is gone: {error.strerror}") from None
    if "\0" in path:
        raise InvalidRequest("socket_dir has a NUL byte in it")
    return path


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an int of thousands of digits
        return "such a number"


def _name(value: object, what: str) -> str:
    text = _text(value, what)
    if not text:
        raise InvalidRequest(f"{what} is empty")
    return text


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} is a str, not {value!r}")
    if "\0" in value:
        raise InvalidRequest(f"{what} has a NUL character in it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} {value!r} is not Unicode: it has lone surrogates") from None
    return value


def _patterns(value: object, what: str) -> tuple[str, ...]:
    if value == ():
        return ()
    if isinstance(value, str):  # one pattern; as an iterable it would be one pattern a letter
        value = (value,)
    if not isinstance(value, Iterable):
        raise InvalidRequest(f"{what} is a glob pattern or several, not {value!r}")
    patterns = tuple(_name(pattern, f"a pattern of {what}") for pattern in value)
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise InvalidRequest(f"{what} is relative to the artifact and stays inside it: {pattern!r} matches nothing")
    return patterns
