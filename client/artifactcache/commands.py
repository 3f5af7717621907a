"""What each command of `artifactcache` does: one call, and how its result is shown. Returns the exit status."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable

from artifactcache import locking, output, render
from artifactcache.client import Client
from artifactcache.errors import InvalidRequest
from artifactcache.results import Held

EXIT_ERROR = 1
EXIT_USAGE = 2

Command = Callable[[Client, argparse.Namespace, render.Bar], int]


def fetch(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Hand an artifact over, and print where it is."""
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
        output.write(os.fsencode(fetched) + b"\n")  # the name's own bytes: this line is for `$(…)`
    return 0


def warm(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Make artifacts present."""
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
            cost = render.cost(each.origin_bytes, each.shared_bytes)
            output.line(f"{each.version}: {each.file_count} files, {render.size(each.size_bytes)}, {cost}")
    return 0


def ls(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """List what is held."""
    held = client.list(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(held))
        return 0
    now = time.time()
    rows = [("VERSION", "DIGEST", "FILES", "SIZE", "AGE", "KEPT")]
    rows += [
        (
            each.version,
            each.digest[: render.DIGEST_CHARS],
            str(each.file_count),
            render.size(each.size_bytes),
            render.age(now - each.fetched_at),
            _kept(each, now),
        )
        for each in held
    ]
    output.lines(render.table(rows, right=(2, 3, 4)))
    return 0


def _kept(held: Held, now: float) -> str:
    is_pinned = held.pinned_until is not None and held.pinned_until > now
    return ", ".join(word for word, applies in (("pinned", is_pinned), ("leased", held.lease_count)) if applies)


def inspect(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """List the files of what is held."""
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
                output.write(line)
    else:
        held = inspected.artifact
        output.line(f"{held.version}  {held.digest}  {held.file_count} files  {render.size(held.size_bytes)}")
        rows = [
            (file.digest[: render.DIGEST_CHARS] or "-", render.size(file.size_bytes), render.printable(file.path))
            for file in inspected.files
        ]
        output.lines(render.table(rows, right=(1,)))
    return 0


def verify(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Have stored bytes hashed again."""
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
        output.line(
            f"{verified.blobs_checked} blobs, {render.size(verified.bytes_checked)} checked in "
            f"{verified.seconds:.1f} s: {len(verified.corrupted)} corrupted"
        )
        output.lines([f"corrupted: {digest}" for digest in verified.corrupted])
        output.lines([f"affected: {version}" for version in verified.affected])
    return EXIT_ERROR if verified.corrupted else 0


def lock(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Write a lock file."""
    path: str = arguments.output
    is_file = path != "-"
    if is_file:
        locking.refuse_unwritable(path)
    if arguments.uris:
        made = client.lock(
            *arguments.uris,
            include=arguments.include,
            exclude=arguments.exclude,
            refresh=arguments.refresh,
            progress=bar,
            timeout=arguments.timeout,
        )
    else:
        if not is_file:
            raise InvalidRequest("give a URI, or with -o the lock file whose URIs are to be locked again")
        if arguments.include or arguments.exclude:
            raise InvalidRequest(
                "a lock file that is locked again keeps its patterns: give a URI with these, or edit it"
            )
        made = client.relock(path, refresh=arguments.refresh, progress=bar, timeout=arguments.timeout)
    bar.clear()
    if not is_file:
        output.write(made.text().encode())  # one JSON document, also without --json
        return 0
    locking.save(path, made)
    if arguments.json:
        print(render.document({"path": os.path.abspath(path), **dataclasses.asdict(made)}))
        return 0
    for each in made.artifacts:
        output.line(f"{each.name}: {each.version}, {each.file_count} files, {render.size(each.size_bytes)}")
    output.line(f"{len(made.artifacts)} artifacts locked in {path}")
    return 0


def sync(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Make what was locked present."""
    done = client.sync(arguments.locked, arguments.dir, mode=arguments.mode, progress=bar, timeout=arguments.timeout)
    bar.clear()
    if arguments.json:
        print(render.document(done))
        return 0
    for each in done:
        cost = render.cost(each.origin_bytes, each.shared_bytes)
        place = "" if each.path is None else f", {each.mode} at {each.path}"
        size = render.size(each.size_bytes)
        output.line(f"{each.name}: {each.version}, {each.file_count} files, {size}, {cost}{place}")
    return 0


def stats(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show the counters."""
    stats = client.stats(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(stats))
        return 0
    rows = []
    for name in stats.__slots__:
        value = getattr(stats, name)
        if name.endswith("_bytes"):
            value = render.size(value)
        elif name.endswith("_at"):
            value = f"{render.age(time.time() - value)} ago" if value else "never"
        rows.append((name.replace("_", " "), str(value)))
    output.lines(render.table(rows))
    return 0


def whoami(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show who is calling."""
    me = client.whoami(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(me))
        return 0
    gids = ", ".join(map(str, me.gids))
    output.line(f"{render.printable(me.user)} (uid {me.uid}, groups {gids}, pid {me.pid})")
    groups = ", ".join(map(render.printable, me.groups))
    output.line(f"roles {', '.join(('reader', *me.roles))}; groups by name {groups or 'none'}")
    output.line(f"origin {me.tracking_uri}, access check {me.access_check}")
    return 0


def ping(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show who answers."""
    pong = client.ping(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(pong))
    else:
        output.line(f"cacheserver {pong.version} answers, pid {pong.pid}")
    return 0
