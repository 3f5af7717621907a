"""The commands about what stays in the store, what goes, and on whose account: each returns the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from artifactcache import output, render
from artifactcache.client import Client
from artifactcache.commands import EXIT_ERROR
from artifactcache.results import Evicted, Explained, Kept, Swept, Usage

NAMES_SHOWN_MAX = 2  # of one tree in a table; --json has all


def pin(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Make an artifact present, and pin it."""
    pinned = client.pin(
        arguments.uri,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        include=arguments.include,
        exclude=arguments.exclude,
        for_seconds=arguments.for_seconds,
        progress=bar,
        timeout=arguments.timeout,
    )
    bar.clear()
    if arguments.json:
        print(render.document(pinned))
    else:
        until = "it is unpinned" if pinned.until is None else render.moment(pinned.until)
        output.line(f"{pinned.version}: pinned until {until}, by {pinned.owner}")
    return 0


def unpin(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """End pins."""
    versions = client.unpin(
        arguments.uri,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        include=arguments.include,
        exclude=arguments.exclude,
        timeout=arguments.timeout,
    )
    if arguments.json:
        print(render.document(versions))
    else:
        output.lines([f"{version}: no longer pinned" for version in versions])
    return 0


def sweep(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Evict, or show what would be evicted."""
    swept = client.sweep(dry_run=arguments.dry_run, free_bytes=arguments.free_bytes, timeout=arguments.timeout)
    if arguments.json:
        print(render.document(swept))
    else:
        output.lines(sweep_lines(swept))
    # Only what was asked for by number has failed: the store's limits may be met by more than free space on the disk.
    return EXIT_ERROR if arguments.free_bytes and swept.freed_bytes < arguments.free_bytes else 0


def sweep_lines(swept: Swept) -> list[str]:
    """Show a sweep: what goes, all of it together, and what had to stay."""
    lines = []
    if swept.evicted:
        rows = [("VERSION", "SIZE", "FREES", "WHY")]
        rows += [
            (_names(each), render.size(each.size_bytes), render.size(each.freed_bytes), render.printable(each.reason))
            for each in swept.evicted
        ]
        lines += render.table(rows, right=(1, 2))
    lines.append(_summary(swept))
    lines += [_stayed(each, swept.dry_run) for each in swept.kept]
    return lines


def _names(each: Evicted) -> str:
    names = [render.printable(version) for version in each.versions[:NAMES_SHOWN_MAX]]
    if more := len(each.versions) - len(names):
        names.append(f"{more} more")
    return ", ".join(names) or f"tree {each.digest[: render.DIGEST_CHARS]}"


def _summary(swept: Swept) -> str:
    freed, wanted = render.size(swept.freed_bytes), render.size(swept.wanted_bytes)
    is_short = swept.freed_bytes < swept.wanted_bytes
    if not swept.tree_count and not swept.freed_bytes:
        return f"Nothing can go, although {wanted} were to be freed." if is_short else "Nothing has to go."
    trees = render.count(swept.tree_count, "tree")
    did = f"{trees} evicted in {swept.seconds:.1f} s, which freed"
    if swept.dry_run:
        did = f"{trees} would go, which would free"
    did += f" {freed}, less than the {wanted} that were wanted." if is_short else f" {freed}."
    if leftover := swept.freed_bytes - sum(each.freed_bytes for each in swept.evicted):
        did += f" {render.size(leftover)} of that was left by downloads that failed."
    return did


def _stayed(each: Kept, dry_run: bool) -> str:
    return f"{render.count(each.tree_count, 'tree')} {'would stay' if dry_run else 'stayed'}: {each.reason}"


def explain(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Say why an artifact is kept, or how soon it would go."""
    explained = client.explain(
        arguments.uri,
        run_id=arguments.run_id,
        artifact_path=arguments.artifact_path,
        include=arguments.include,
        exclude=arguments.exclude,
        timeout=arguments.timeout,
    )
    if arguments.json:
        print(render.document(explained))
        return 0
    output.lines(explained_lines(explained))
    return 0


def explained_lines(explained: Explained) -> list[str]:
    """Show why something is kept: what it is, whether it can go, why, and what its going would free and cost."""
    held = explained.artifact
    if explained.is_kept:
        verdict = "It is kept: no sweep evicts it now."
    elif explained.place is None:
        verdict = "It is not kept: a sweep may evict it."
    else:
        verdict = (
            f"It is not kept: number {explained.place} of {explained.queue_length} in the queue of what goes first."
        )
    freed, seconds = render.size(explained.freed_bytes), f"{explained.refetch_seconds:.1f} s"
    return [
        f"{held.version}  {held.digest}  {render.count(held.file_count, 'file')}  {render.size(held.size_bytes)}",
        verdict,
        *explained.reasons,
        f"Its going would free {freed}; to fetch it again would take about {seconds}.",
    ]


def quota(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show what is on accounts, and how much may be."""
    usage = client.usage(everybody=arguments.everybody, timeout=arguments.timeout)
    if arguments.json:
        print(render.document(usage))
    else:
        output.lines(usage_lines(usage))
    return 0


def usage_lines(usage: Sequence[Usage]) -> list[str]:
    """Show accounts, one a line."""
    rows = [("USER", "HELD", "OF", "TREES")]
    for each in usage:
        limit = "no limit" if each.held_bytes_max is None else render.size(each.held_bytes_max)
        rows.append((render.printable(each.user), render.size(each.held_bytes), limit, str(each.tree_count)))
    return render.table(rows, right=(1, 2, 3))
