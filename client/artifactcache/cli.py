"""The command `artifactcache`: its command line, and what it says where something goes wrong.

Exit status: 0 for success, 1 for an error or for corrupted bytes, 2 for a wrong command line; what signals do is
said in `command`, which calls this. With `--json` there is exactly one JSON document on stdout: the result or, after an
error, `{"error": class, "message": …}`. Of `audit` it is one a line, for it may have no end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from artifactcache import (
    __version__,
    auditing,
    commands,
    completion,
    diagnosis,
    render,
    request,
    top,
    units,
    upkeep,
    usage,
)
from artifactcache.client import Client
from artifactcache.errors import CacheError, InvalidRequest
from artifactcache.request import EXISTS, KINDS, MODES

LOCK_FILE = "artifacts.lock"
URI_WORDS = "runs:/<id>/<path>, models:/<name>/<version>, models:/<name>@<alias> or a bare artifact URI"


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status. Raises KeyboardInterrupt."""
    if sys.stdout is None:  # closed by whoever started us, such as cron
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if sys.stderr is None:  # print() would take that for stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    arguments = _parser().parse_args(argv)
    bar = render.Bar()
    command: commands.Command = arguments.command
    try:
        with Client(arguments.socket_dir) as client:
            status = command(client, arguments, bar)
        sys.stdout.flush()
        return status
    except CacheError as error:
        bar.clear()
        return _report(error, arguments.json)
    except KeyboardInterrupt:
        bar.clear()
        raise
    except OSError as error:  # only stdout is left: a closed pipe, a full disk
        _drop_stdout()
        if not isinstance(error, BrokenPipeError):  # whoever closed the pipe knows
            print(f"artifactcache: cannot write the output: {error.strerror}", file=sys.stderr)
        return commands.EXIT_ERROR


def _report(error: CacheError, as_json: bool) -> int:
    kind = type(error).__name__
    try:
        if as_json:
            print(render.document({"error": kind, "message": str(error)}), flush=True)
        else:
            print(f"artifactcache: {kind}: {render.printable(str(error))}", file=sys.stderr)
    except OSError:
        _drop_stdout()
    return commands.EXIT_USAGE if isinstance(error, InvalidRequest) else commands.EXIT_ERROR


def _drop_stdout() -> None:
    """Keep the interpreter from flushing into a pipe that nobody reads."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _duration(text: str) -> float:
    try:
        return request.pin_seconds(units.duration(text)) or 0.0
    except (ValueError, InvalidRequest) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    try:
        return request.free_bytes(units.size(text)) or 0
    except (ValueError, InvalidRequest) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="artifactcache",
        description="MLflow artifacts in milliseconds, from the cache on this host.",
        epilog=usage.EPILOG,
        formatter_class=usage.Formatter,
    )
    parser.add_argument("--version", action="version", version=f"artifactcache {__version__}")
    parser.add_argument("--completion", action=completion.Print)
    parser.add_argument(
        "--socket-dir",
        metavar="DIR",
        help="where the daemon's sockets are (default: ARTIFACTCACHE_SOCKET_DIR, else the system daemon's "
        "/run/cacheserver where it answers, else your own)",
    )
    added_to = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    common.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="limit for the whole command (default: none)"
    )
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--run-id", help="a run's ID, instead of URI")
    run.add_argument("--artifact-path", metavar="PATH", help="a path inside that run")
    patterns = argparse.ArgumentParser(add_help=False)
    patterns.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="only files whose path matches; * stays in one folder, ** crosses folders; may be repeated",
    )
    patterns.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="no files whose path matches; may be repeated",
    )
    part = argparse.ArgumentParser(add_help=False, parents=[patterns])
    part.add_argument(
        "--refresh", action="store_true", help="compare everything with the origin now, and download what differs"
    )

    def add(
        name: str, command: commands.Command, words: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        added = added_to.add_parser(
            name,
            help=words,
            description=words,
            epilog=usage.examples(name),
            formatter_class=usage.Formatter,
            parents=[*parents, common],
        )
        added.set_defaults(command=command)
        return added

    _fetch_options(
        add(
            "fetch",
            commands.fetch,
            "Place an artifact at DST. Without DST print the path of a read-only view: its lease ends with this "
            "command, so the daemon may evict it afterwards.",
            run,
            part,
        )
    )
    add("warm", commands.warm, "Make artifacts present, without handing them over.", part).add_argument(
        "uris", nargs="+", metavar="URI", help=URI_WORDS
    )
    add("ls", commands.ls, "List the artifacts that are held.")
    inspect = add("inspect", commands.inspect, "List the files of an artifact that is held.", run)
    inspect.add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    inspect.add_argument(
        "--format", choices=("table", "b3sum"), default="table", help="b3sum: lines for `b3sum --check`"
    )
    add(
        "verify",
        commands.verify,
        "Hash stored bytes again: those of URI, or all, which is for operators. Status 1 if any are wrong.",
        run,
    ).add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    pin = add(
        "pin",
        upkeep.pin,
        "Make an artifact present, and never evict it until the pin ends. An alias is pinned as the version that it "
        "stands for now. For operators.",
        run,
        patterns,
    )
    pin.add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    pin.add_argument(
        "--for",
        dest="for_seconds",
        type=_duration,
        metavar="DURATION",
        help="a number and s, m, h, d or w, as in 12h or 7d (default: until it is unpinned)",
    )
    add(
        "unpin",
        upkeep.unpin,
        "End the pins of a version, or those made by this URI. For operators.",
        run,
        patterns,
    ).add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    sweep = add(
        "sweep",
        upkeep.sweep,
        "Evict what the store's limits and rules want gone now, and show what went, what that freed, why, and what had "
        "to stay. Status 1 where less than --free asks for could go. For operators.",
    )
    sweep.add_argument("--dry-run", action="store_true", help="evict nothing, only show what would go")
    sweep.add_argument(
        "--free", dest="free_bytes", type=_size, metavar="SIZE", help="free at least so much, as in 10GiB"
    )
    add(
        "explain",
        upkeep.explain,
        "Say why an artifact is kept, or when it would go, and what that would free and cost.",
        run,
        patterns,
    ).add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    _audit_options(
        add(
            "audit",
            auditing.audit,
            "Show who has attempted to read what, and what came of it, the oldest first. With --json each line is a "
            "document. For operators.",
        )
    )
    lock = add(
        "lock",
        commands.lock,
        "Write down which version and which bytes each URI stands for now. Without URI those of the file are locked "
        "again, under their names.",
        part,
    )
    lock.add_argument("uris", nargs="*", metavar="URI", help=URI_WORDS)
    lock.add_argument(
        "-o",
        "--output",
        default=LOCK_FILE,
        metavar="FILE",
        help=f"the lock file (default: {LOCK_FILE}); - for standard output",
    )
    sync = add(
        "sync",
        commands.sync,
        "Make exactly what was locked present, whatever an alias says today, and with DIR place each artifact in it "
        "under its name. Nothing in DIR changes until all are present and right.",
    )
    sync.add_argument("--locked", required=True, metavar="FILE", help="the lock file")
    sync.add_argument("dir", nargs="?", metavar="DIR", help="the folder to place them in")
    sync.add_argument("--mode", choices=("auto", *KINDS), default="auto", help="how to place them (default: auto)")
    add(
        "quota",
        upkeep.quota,
        "Show how much is on your account, and how much may be. What others share is divided among all who do.",
    ).add_argument("--all", dest="everybody", action="store_true", help="everybody's account. For administrators")
    _looking(add)
    _add_what_tells(add)
    return parser


def _add_what_tells(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that tell how things are."""
    doctor = add(
        "doctor",
        diagnosis.doctor,
        "Examine sockets, identity, the modes that would work at DST and why not the others, the tracking server, "
        "credentials, disk, limits, clock and versions, and say what to do. Status 1 if anything is a problem.",
    )
    doctor.add_argument(
        "dst", nargs="?", metavar="DST", help="where something is to be fetched to (default: the working directory)"
    )
    doctor.add_argument("--uri", metavar="URI", help="say of this artifact, too, whether it is held")
    add("stats", commands.stats, "Show what the store holds, and what was served.")
    add("whoami", commands.whoami, "Show who you are to the daemon, with your roles and groups.")
    add("ping", commands.ping, "Ask whether the daemon answers.")


def _looking(add: Callable[..., argparse.ArgumentParser]) -> None:
    live = add(
        "top",
        top.top,
        "Show, again and again, what is held, what is coming, what would go next, who uses it and what is wrong, until "
        "q or Ctrl-C. Where standard output is no terminal, once.",
    )
    live.add_argument("--once", action="store_true", help="show it once, and end")
    live.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (default: 2)"
    )
    add(
        "page",
        top.page,
        "Print an address of the daemon's page, where it shows one: it lets in who opens it first, as you.",
    )


def _fetch_options(fetch: argparse.ArgumentParser) -> None:
    fetch.add_argument("uri", nargs="?", metavar="URI", help=URI_WORDS)
    fetch.add_argument("dst", nargs="?", metavar="DST", help="the folder (or file) that is to come into being")
    fetch.add_argument(
        "--mode",
        choices=MODES,
        default="auto",
        help="how to place it; auto: reflink, else hardlink, else copy (default: auto)",
    )
    fetch.add_argument("--writable", action="store_true", help="files of your own, never a hard link")
    fetch.add_argument(
        "--exists",
        choices=EXISTS,
        default="error",
        help="what to do where DST exists; merge overwrites same names and leaves the others (default: error)",
    )


def _audit_options(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("--user", help="only attempts of this user, by name or by number")
    audit.add_argument(
        "--artifact", metavar="PATTERN", help="only of what was asked for, or resolved to, like this; * crosses slashes"
    )
    audit.add_argument("--refused", action="store_true", help="only attempts that were refused")
    audit.add_argument(
        "--since", type=_duration, metavar="DURATION", help="only those of the last 90s, 15m, 12h, 7d or 2w"
    )
    audit.add_argument("--follow", action="store_true", help="go on with those that come, until interrupted")
