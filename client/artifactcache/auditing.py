"""The command that shows the audit log: as in `commands`, it returns the exit status."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from artifactcache import output, render
from artifactcache.client import Client


def audit(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show who has attempted to read what. Who follows ends it with Ctrl-C, which is no failure."""
    records = client.audit(
        user=arguments.user,
        artifact=arguments.artifact,
        refused=arguments.refused,
        since=None if arguments.since is None else max(0.0, time.time() - arguments.since),
        follow=arguments.follow,
        timeout=arguments.timeout,
    )
    try:
        for record in records:
            if arguments.json:
                output.write(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
            else:
                output.line(shown(record))
            if arguments.follow:
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not arguments.follow:
            raise
    return 0


def shown(record: dict[str, Any]) -> str:
    """Show a line for people: when, who, with what, what, what came of it, and why."""
    if "lost" in record:
        return f"{record['time']}  {record.get('reason')}"
    who = "somebody without a session" if record.get("uid") is None else f"{record.get('user')}"
    place = f" in {record['container'][: render.DIGEST_CHARS]}" if record.get("container") else ""
    process = f"{record.get('command') or 'unknown program'} (pid {record.get('pid')}{place})"
    size = render.size(record.get("bytes", 0))
    what = {True: f", {size} held", False: f", {size} of which {render.size(record.get('origin_bytes', 0))} downloaded"}
    took = what.get(record["hit"], "") if record.get("hit") is not None and record.get("decision") == "granted" else ""
    artifact = record.get("artifact") or "-"
    return (
        f"{record['time']}  {record.get('decision')}  {record.get('verb')}  {artifact}  {who}  {process}"
        f"  {record.get('reason')}{took}"
    )
