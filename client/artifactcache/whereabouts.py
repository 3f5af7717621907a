"""Looks where this process would look for a daemon, and says what is there: an answer, or why there is none.

Law of this file: the order is that of `session`. It connects and says Hello as that does, passes over what that passes
over and nothing else, trusts nobody whom that would not trust, and every look ends within its time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace

from artifactcache import handoff
from artifactcache.deadline import Deadline
from artifactcache.errors import CacheError, DeadlineExceeded, PermissionDenied
from artifactcache.findings import NOTE, OK, PROBLEM, Finding
from artifactcache.paths import GRPC_SOCKET, HANDOFF_SOCKET, SOCKET_DIR_VARIABLE, SYSTEM_SOCKET_DIR, user_socket_dir

LOOK_SECONDS_MAX = 5.0
_START = {
    "own": "start one with `cacheserver serve`, or have the host's started (`systemctl start cacheserver`)",
    "host": "start it (`systemctl start cacheserver`; `journalctl -u cacheserver` says why it has ended)",
    "given": "start the daemon that is to be there, or set ARTIFACTCACHE_SOCKET_DIR, or --socket-dir, to where one is",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which a daemon's sockets may be."""

    kind: str
    """"given", "host" or "own"."""
    folder: str
    title: str
    """In words that follow "the daemon"."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is there."""

    place: Place
    answers: bool
    what: str
    todo: str = ""
    is_absent: bool = False
    """Whether there is just nothing: no folder, or no sockets in it."""
    ends: bool = False
    """Whether `session` would look no further, though nothing answers as it should."""


def places(given: str | None, environ: Mapping[str, str], uid: int) -> list[Place]:
    """Return where a daemon is looked for, in this order: one given place, else two."""
    if given:
        return [Place("given", given, "of --socket-dir")]
    if environ.get(SOCKET_DIR_VARIABLE):
        return [Place("given", os.path.abspath(environ[SOCKET_DIR_VARIABLE]), f"of {SOCKET_DIR_VARIABLE}")]
    return usual_places(environ, uid)


def usual_places(environ: Mapping[str, str], uid: int) -> list[Place]:
    """Return where a daemon is looked for when no place was given."""
    return [
        Place("host", SYSTEM_SOCKET_DIR, "of this host"),
        Place("own", user_socket_dir(environ, uid), "of your own"),
    ]


def findings(given: str | None, environ: Mapping[str, str], uid: int) -> tuple[list[Finding], str | None]:
    """Say what is found of a daemon; and in which folder one answers that this process would use."""
    looks = []
    for place in places(given, environ, uid):
        looks.append(look(place, uid))
        if looks[-1].answers or looks[-1].ends:
            break
    *missed, last = looks
    if last.answers:
        told = [Finding("sockets", NOTE, one.what, one.todo) for one in missed if not one.is_absent]
        return [*told, Finding("sockets", OK, last.what)], last.place.folder
    told = [Finding("sockets", PROBLEM, one.what, one.todo) for one in looks]
    if last.place.kind == "given":
        for one in usual_places(environ, uid):
            if one.folder != last.place.folder and (other := look(one, uid)).answers:
                what = f"elsewhere {other.what}"
                told.append(Finding("sockets", NOTE, what, "do without ARTIFACTCACHE_SOCKET_DIR or --socket-dir"))
    return told, None


def look(place: Place, uid: int) -> Look:
    """Look for a daemon in one folder."""
    start, title = _START[place.kind], f"the daemon {place.title}"
    try:
        found = os.lstat(place.folder) if place.kind == "own" else os.stat(place.folder)
    except OSError as error:
        if isinstance(error, PermissionError):
            return Look(
                place, False, f"{title}: {place.folder} cannot be looked at ({error.strerror})", _pass(place.folder)
            )
        what = f"{title}: there is no folder {place.folder} ({error.strerror})"
        return Look(place, False, what, start, is_absent=True)
    if not stat.S_ISDIR(found.st_mode):
        return Look(place, False, f"{title}: {place.folder} is no folder", "have it removed")
    if place.kind == "own" and found.st_uid != uid:
        what = f"{title}: {place.folder} belongs to uid {found.st_uid}, not to you, so that no daemon in it is trusted"
        return Look(place, False, what, "have it removed, or set XDG_RUNTIME_DIR to a folder of your own")
    if (lacks := _lacking(place, HANDOFF_SOCKET, title, start)) is not None:
        return lacks
    if (lacks := _lacking(place, GRPC_SOCKET, title, start)) is None:
        return _greeted(place, uid, title, start)
    # `session` asks handoff.sock alone whether somebody is there.
    greeted = place.kind == "host" and _greeted(place, uid, title, start)
    return replace(lacks, ends=True) if greeted and (greeted.answers or greeted.ends) else lacks


def _lacking(place: Place, name: str, title: str, start: str) -> Look | None:
    """Say what is wrong with a socket's file; None where nothing is."""
    path = os.path.join(place.folder, name)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return Look(place, False, f"{title}: there is no {path}", start, is_absent=True)
    except OSError as error:
        return Look(place, False, f"{title}: {path}: {error.strerror}", _pass(place.folder))
    if kind != stat.S_IFSOCK:
        return Look(place, False, f"{title}: {path} is no socket", "move it away, and start the daemon again")
    return None


def _greeted(place: Place, uid: int, title: str, start: str) -> Look:
    """Say Hello."""
    deadline, path = Deadline(LOOK_SECONDS_MAX), os.path.join(place.folder, HANDOFF_SOCKET)
    try:
        connection = handoff.Handoff(place.folder, deadline)
    except PermissionDenied:
        what = f"{title}: {path} may not be connected to (EACCES)"
        return Look(place, False, what, f"{_pass(place.folder)}; or start one of your own with `cacheserver serve`")
    except CacheError as error:
        kernels = error.__context__  # which a traceback leaves out, and the error keeps
        if not (isinstance(kernels, OSError) and kernels.errno == errno.ECONNREFUSED):
            return Look(place, False, f"{title}: {error}", start, ends=not isinstance(error, handoff.PASSED_OVER))
        what = f"{title}: {path} is stale: nobody listens there, as where a daemon was killed"
        return Look(place, False, what, f"{start}; it puts new sockets in their place")
    with connection:
        owner = connection.peer_uid()
        if place.kind == "own" and owner != uid:
            return Look(place, False, f"{title}: who answers at {path} is uid {owner}, not you", "have it stopped")
        try:
            connection.greet(deadline)
        except DeadlineExceeded:
            what = f"{title}: {path} takes connections, and says nothing within {LOOK_SECONDS_MAX:g} s"
            todo = "it is stopped (SIGSTOP), or hangs: look at its log, and restart it"
            return Look(place, False, what, todo, ends=True)
        except CacheError as error:
            kind = type(error).__name__
            todo = "as it says" if isinstance(error, PermissionDenied) else "look at the daemon's log, and restart it"
            ends = not isinstance(error, handoff.PASSED_OVER)
            return Look(place, False, f"{title} in {place.folder}: {kind}: {error}", todo, ends=ends)
    return Look(place, True, f"the daemon {place.title} answers in {place.folder}; it runs as uid {owner}")


def _pass(folder: str) -> str:
    return (
        f"let your user pass to {folder} (`ls -ld` shows the modes on the way), or ask the administrator of this host"
    )
