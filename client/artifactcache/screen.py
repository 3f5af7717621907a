"""What `artifactcache top` shows: an overview as lines of text, for a screen of any size. Pure.

Each line is no wider than the screen. What was chosen by somebody else, such as a URI, has no control characters in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from artifactcache import render
from artifactcache.overviews import Download, Overview, QueuedTree

NARROW_COLUMNS = 60  # below it only what matters most has a column
BAR_CELLS_MAX = 40
SPARKS = "▁▂▃▄▅▆▇█"
RECENT_SECONDS = 600.0
ROWS = {"held": 10, "queue": 8, "users": 6, "downloads": 8, "faults": 8}
BOLD, RED, DIM, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class Line(str):
    """A line, and how it is to look."""

    style = ""

    @classmethod
    def of(cls, text: str, style: str = "") -> Line:
        """A line of this style."""
        made = cls(text)
        made.style = style
        return made


def lines(
    one: Overview, columns: int, rows: int | None = None, speeds: Mapping[str, float] = MappingProxyType({})
) -> list[Line]:
    """Show an overview, what is most urgent first.

    Args:
        columns: how wide the screen is.
        rows: how high; None where there is no end.
        speeds: what `rates` gave.
    """
    shown = [Line.of(_cut(line, columns), line.style) for line in _all(one, columns, speeds)]
    if rows is None or len(shown) <= rows:
        return shown
    return [*shown[: max(0, rows - 1)], Line.of(_cut("… more: make the window higher", columns), DIM)][:rows]


def rates(before: Overview | None, after: Overview) -> dict[str, float]:
    """Bytes a second of each download, by version, where it was there at the last look."""
    if before is None or after.now <= before.now:
        return {}
    then = {one.version: one.progress.bytes_done for one in before.downloads}
    return {
        one.version: max(0.0, (one.progress.bytes_done - then[one.version]) / (after.now - before.now))
        for one in after.downloads
        if one.version in then
    }


def away(why: str, columns: int) -> list[Line]:
    """What is shown while the daemon does not answer."""
    return [
        Line.of(_cut("The daemon is away; it is asked again and again.", columns), RED),
        Line.of(_cut(render.printable(why), columns), DIM),
    ]


def _all(one: Overview, columns: int, speeds: Mapping[str, float]) -> Iterator[Line]:
    yield Line.of(_title(one), BOLD)
    stats = one.stats
    room = max(1, min(stats.capacity_bytes, stats.blob_bytes + max(0, stats.free_bytes - stats.min_free_bytes)))
    cells = max(5, min(BAR_CELLS_MAX, columns - 48))
    yield Line(f"store  {_bar(stats.blob_bytes, room, cells)} {render.size(stats.blob_bytes)} of {render.size(room)}")
    yield Line(f"hits   {_hits(one)}")
    yield Line(f"saved  {render.size(one.saved_bytes)} of {render.size(stats.served_bytes)} handed out")
    yield from _faults(one)
    yield from _downloads(one, columns, speeds)
    yield from _held(one, columns)
    yield from _queue(one, columns)
    yield from _users(one)


def _title(one: Overview) -> str:
    roles = ", ".join(one.roles) or "reader"
    return f"cacheserver {one.version}  up {render.age(one.now - one.stats.started_at)}  {one.user} ({roles})"


def _hits(one: Overview) -> str:
    stats = one.stats
    ever = f"{_percent(stats.hit_count, stats.fetch_count)} of {stats.fetch_count} fetches"
    recent = [each for each in one.history if each.at >= one.now - RECENT_SECONDS]
    if len(recent) < 2:
        return ever
    fetches = recent[-1].fetch_count - recent[0].fetch_count
    hits = recent[-1].hit_count - recent[0].hit_count
    return f"{ever}; of the last 10 min {_percent(hits, fetches)} {_sparks([each.fetch_count for each in recent])}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "none yet"


def _sparks(counters: Sequence[int]) -> str:
    """Differences of counters, as columns; at most one for each two samples."""
    steps = [max(0, after - before) for before, after in pairwise(counters)][-30:]
    most = max(steps, default=0)
    return "".join(SPARKS[(len(SPARKS) - 1) * step // most] if most else SPARKS[0] for step in steps)


def _faults(one: Overview) -> Iterator[Line]:
    for fault in one.faults[: ROWS["faults"]]:
        yield Line.of(
            f"{'!!' if fault.is_grave else ' !'} {render.printable(fault.words)}", RED if fault.is_grave else ""
        )


def _downloads(one: Overview, columns: int, speeds: Mapping[str, float]) -> Iterator[Line]:
    if not one.downloads:
        return
    yield from _head(f"coming ({len(one.downloads)})")
    for each in one.downloads[: ROWS["downloads"]]:
        yield Line(_download(each, columns, speeds.get(each.version)))


def _download(one: Download, columns: int, speed: float | None) -> str:
    progress = one.progress
    whose = f"  {', '.join(map(render.printable, one.users))}" if one.users and columns >= NARROW_COLUMNS else ""
    name = _short(one.version, max(12, columns - 50))
    if not progress.bytes_total:
        return f"{name}  the origin is asked{whose}"
    done, total = progress.bytes_done, progress.bytes_total
    rate = f", {render.size(speed)}/s" if speed is not None and columns >= NARROW_COLUMNS else ""
    return f"{_bar(done, total, 10)} {100 * done // total:3d} % of {render.size(total)}{rate}  {name}{whose}"


def _held(one: Overview, columns: int) -> Iterator[Line]:
    whose = "held" if one.sees_all else "held on your account"
    yield from _head(f"{whose} ({render.count(one.held.artifact_count, 'artifact')})")
    shown = one.groups[: ROWS["held"]]
    for group in shown:
        yield Line(_row(render.size(group.share_bytes), f"{group.artifact_count}", group.name, columns))
    left = one.held.share_bytes - sum(group.share_bytes for group in shown)
    if one.group_count > len(shown):
        yield Line(_row(render.size(max(0, left)), "", f"{one.group_count - len(shown)} others", columns))


def _queue(one: Overview, columns: int) -> Iterator[Line]:
    if not one.queue:
        return
    yield from _head(f"would go next (of {one.queue_length}; above {one.high_percent:g} % full)")
    going = [each for each in one.queue if not each.kept]
    for each in going[: ROWS["queue"]]:
        yield Line(_row(render.size(each.share_bytes), "", _queued(each, columns), columns))
    if staying := len(one.queue) - len(going):
        yield Line.of(f"{staying} before them stay: leased, pinned, kept by a rule or too young", DIM)


def _queued(one: QueuedTree, columns: int) -> str:
    name = one.versions[0] if one.versions else one.digest[: render.DIGEST_CHARS]
    if columns < NARROW_COLUMNS:
        return name
    return f"{_short(name, columns // 3)}  {one.reason}"


def _users(one: Overview) -> Iterator[Line]:
    yield from _head("users" if len(one.users) > 1 else "you")
    for each in one.users[: ROWS["users"]]:
        usage = each.usage
        limit = f" of {render.size(usage.held_bytes_max)}" if usage.held_bytes_max else ""
        counts = ", ".join(
            render.count(number, noun)
            for number, noun in (
                (usage.tree_count, "tree"),
                (each.session_count, "session"),
                (each.lease_count, "lease"),
                (each.download_count, "download"),
            )
            if number
        )
        held = f"{render.size(usage.held_bytes)}{limit}"
        yield Line(f"{held:>10}  {render.printable(usage.user)}{'  ' if counts else ''}{counts}")


def _head(text: str) -> Iterator[Line]:
    yield Line("")
    yield Line.of(text, BOLD)


def _row(size: str, count: str, text: str, columns: int) -> str:
    middle = f"{count:>6}  " if columns >= NARROW_COLUMNS else ""
    return f"{size:>10}  {middle}{render.printable(text)}"


def _bar(part: int, whole: int, cells: int) -> str:
    filled = min(cells, cells * part // whole) if whole > 0 else 0
    return f"[{'#' * filled}{'-' * (cells - filled)}]"


def _short(text: str, most: int) -> str:
    """The beginning and the end of a text that is too long: of a URI both matter."""
    shown = render.printable(text)
    if len(shown) <= most:
        return shown
    return f"{shown[: most // 2]}…{shown[len(shown) - (most - most // 2 - 1) :]}"


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: max(0, columns - 1)]}…"
