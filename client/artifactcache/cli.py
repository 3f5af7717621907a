"""The command `artifactcache`.

Exit status: 0 for success, 1 for an error or for corrupted bytes, 2 for a wrong command line; what signals do is
said in `command`, which calls this. With `--json` there is exactly one JSON document on stdout: the result or, after an
error, `{"error": class, "message": …}`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from artifactcache import __version__, render
from artifactcache.client import Client
from artifactcache.errors import CacheError, InvalidRequest
from artifactcache.request import EXISTS, MODES

EXIT_ERROR = 1
EXIT_USAGE = 2
DIGEST_CHARS = 12  # of a digest in a table

Command = Callable[[Client, argparse.Namespace, render.Bar], int]


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status. Raises KeyboardInterrupt."""
    if sys.stdout is None:  # closed by whoever started us, such as cron
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if sys.stderr is None:  # print() would take that for stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    arguments = _parser().parse_args(argv)
    bar = render.Bar()
    command: Command = arguments.command
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
        return EXIT_ERROR


def _report(error: CacheError, as_json: bool) -> int:
    kind = type(error).__name__
    try:
        if as_json:
            print(render.document({"error": kind, "message": str(error)}), flush=True)
        else:
            print(f"artifactcache: {kind}: {render.printable(str(error))}", file=sys.stderr)
    except OSError:
        _drop_stdout()
    return EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_ERROR


def _drop_stdout() -> None:
    """Keep the interpreter from flushing into a pipe that nobody reads."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def _line(text: str) -> None:
    """Print what is shown to people: whatever the terminal's encoding lacks is escaped."""
    _write(render.printable(text).encode(sys.stdout.encoding or "utf-8", "backslashreplace") + b"\n")


def _lines(lines: list[str]) -> None:
    for line in lines:
        _line(line)


def _fetch(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    if arguments.run_id is not None and arguments.uri is not None and arguments.dst is None:
        arguments.uri, arguments.dst = None, arguments.uri  # `fetch --run-id R DST`
    fetched = client.fetch(
        arguments.uri,
        arguments.dst,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        mode=arguments.mode,
        writable=arguments.writable,
        include=arguments.include,
        exclude=arguments.exclude,
        exists=arguments.exists,
        refresh=arguments.refresh,
        progress=bar,
        timeout=arguments.timeout,
    )
    bar.clear()
    if arguments.json:
        print(render.document(fetched))
    else:
        _write(os.fsencode(fetched) + b"\n")  # the name's own bytes: this line is for `$(…)`
    return 0


def _warm(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    warmed = client.warm(
        *arguments.uris,
        include=arguments.include,
        exclude=arguments.exclude,
        refresh=arguments.refresh,
        progress=bar,
        timeout=arguments.timeout,
    )
    bar.clear()
    if arguments.json:
        print(render.document(warmed))
    else:
        for each in warmed:
            cost = "held already" if each.hit else f"{render.size(each.origin_bytes)} from the origin"
            _line(f"{each.version}: {each.file_count} files, {render.size(each.size_bytes)}, {cost}")
    return 0


def _ls(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    held = client.list(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(held))
        return 0
    now = time.time()
    rows = [("VERSION", "DIGEST", "FILES", "SIZE", "AGE")]
    rows += [
        (
            each.version,
            each.digest[:DIGEST_CHARS],
            str(each.file_count),
            render.size(each.size_bytes),
            render.age(now - each.fetched_at),
        )
        for each in held
    ]
    _lines(render.table(rows, right=(2, 3, 4)))
    return 0


def _inspect(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    inspected = client.inspect(
        arguments.uri,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        timeout=arguments.timeout,
    )
    if arguments.json:
        print(render.document(inspected))
    elif arguments.format == "b3sum":
        for file in inspected.files:
            line = render.b3sum_line(file) if file.digest else b""
            if line is None:
                print(
                    f"artifactcache: left out, b3sum has no way to name it: {render.printable(file.path)}",
                    file=sys.stderr,
                )
            else:
                _write(line)
    else:
        held = inspected.artifact
        _line(f"{held.version}  {held.digest}  {held.file_count} files  {render.size(held.size_bytes)}")
        rows = [
            (file.digest[:DIGEST_CHARS] or "-", render.size(file.size_bytes), render.printable(file.path))
            for file in inspected.files
        ]
        _lines(render.table(rows, right=(1,)))
    return 0


def _verify(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    verified = client.verify(
        arguments.uri,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        progress=bar,
        timeout=arguments.timeout,
    )
    bar.clear()
    if arguments.json:
        print(render.document(verified))
    else:
        _line(
            f"{verified.blobs_checked} blobs, {render.size(verified.bytes_checked)} checked in "
            f"{verified.seconds:.1f} s: {len(verified.corrupted)} corrupted"
        )
        _lines([f"corrupted: {digest}" for digest in verified.corrupted])
        _lines([f"affected: {version}" for version in verified.affected])
    return EXIT_ERROR if verified.corrupted else 0


def _stats(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    stats = client.stats(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(stats))
        return 0
    rows = []
    for name in stats.__slots__:
        value = getattr(stats, name)
        if name.endswith("_bytes"):
            value = render.size(value)
        elif name == "started_at":
            value = f"{render.age(time.time() - value)} ago"
        rows.append((name.replace("_", " "), str(value)))
    _lines(render.table(rows))
    return 0


def _whoami(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    me = client.whoami(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(me))
        return 0
    groups = ", ".join(map(str, me.gids))
    _line(f"{me.user} (uid {me.uid}, groups {groups}, pid {me.pid})")
    _line(f"origin {me.tracking_uri}, access check {me.access_check}")
    return 0


def _ping(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    pong = client.ping(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(pong))
    else:
        _line(f"cacheserver {pong.version} answers, pid {pong.pid}")
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="artifactcache",
        description="MLflow artifacts in milliseconds, from the cache on this host.",
        epilog="Exit status: 0 success, 1 error or corrupted bytes, 2 wrong request, 128 and its number after a "
        'signal. With --json stdout is one JSON document; after an error it is {"error": class, "message": text}.',
    )
    parser.add_argument("--version", action="version", version=f"artifactcache {__version__}")
    parser.add_argument(
        "--socket-dir", metavar="DIR", help="where the daemon's sockets are (default: ARTIFACTCACHE_SOCKET_DIR)"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    common.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="limit for the whole command")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--run-id", help="a run's ID, instead of URI")
    run.add_argument("--artifact-path", metavar="PATH", help="a path inside that run")
    part = argparse.ArgumentParser(add_help=False)
    part.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="only files that match; may be repeated"
    )
    part.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="no files that match; may be repeated"
    )
    part.add_argument("--refresh", action="store_true", help="ask the origin again")

    def add(name: str, command: Command, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words, parents=[*parents, common])
        added.set_defaults(command=command)
        return added

    fetch = add(
        "fetch",
        _fetch,
        "Place an artifact at DST. Without DST print the path of a read-only view: its lease ends with this "
        "command, so the daemon may evict it afterwards.",
        run,
        part,
    )
    fetch.add_argument("uri", nargs="?", metavar="URI", help="runs:/…, models:/… or a bare artifact URI")
    fetch.add_argument("dst", nargs="?", metavar="DST", help="the folder (or file) that is to come into being")
    fetch.add_argument("--mode", choices=MODES, default="auto", help="how to place it (default: auto)")
    fetch.add_argument("--writable", action="store_true", help="never a hard link")
    fetch.add_argument("--exists", choices=EXISTS, default="error", help="where DST exists (default: error)")
    add("warm", _warm, "Make artifacts present, without handing them over.", part).add_argument(
        "uris", nargs="+", metavar="URI"
    )
    add("ls", _ls, "List the artifacts that are held.")
    inspect = add("inspect", _inspect, "List the files of an artifact that is held.", run)
    inspect.add_argument("uri", nargs="?", metavar="URI")
    inspect.add_argument(
        "--format", choices=("table", "b3sum"), default="table", help="b3sum: lines for `b3sum --check`"
    )
    add(
        "verify", _verify, "Hash stored bytes again: those of URI, or all. Status 1 if any are wrong.", run
    ).add_argument("uri", nargs="?", metavar="URI")
    add("stats", _stats, "Show what the store holds, and what was served.")
    add("whoami", _whoami, "Show who the daemon says you are.")
    add("ping", _ping, "Ask whether the daemon answers.")
    return parser
