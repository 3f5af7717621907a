"""What numbers mean: each check of the doctor as a decision, from what was measured to words.

Law of this file: it measures nothing. A problem is what makes something fail now; a note is what will, or may surprise.
Each says what the reader can do, where there is anything.
"""

from __future__ import annotations

from artifactcache.findings import NOTE, OK, PROBLEM, Finding
from cacheserver.space import Fill, Limits, missing, pressure, show

SKEW_SECONDS_NOTE = 5.0  # Date has whole seconds, and is as old as its way here
SKEW_SECONDS_MAX = 60.0  # signatures and certificates of a moment ago stop to be valid then, or soon
NEAR = 0.8  # of a limit
INODES_FREE_MIN, INODES_FREE_FEW = 0.01, 0.05  # of all
OPEN_FILES_MIN = 4096  # below it few clients can connect, for each takes one
UNKNOWN_UID = 65534  # the kernel's overflowuid: whom a user namespace does not know


def disk(fill: Fill, limits: Limits, *, is_read_only: bool, root: str) -> list[Finding]:
    """How full the store is, and its filesystem; and what a sweep would do."""
    capacity, min_free = limits.capacity.of(fill.total), limits.min_free.of(fill.total)
    what = (
        f"the store {root} holds {show(fill.stored)} of {show(capacity)}; {show(fill.free)} of its filesystem's"
        f" {show(fill.total)} are free, of which {show(min_free)} stay free"
    )
    if is_read_only:
        return [
            Finding(
                "disk",
                PROBLEM,
                f"the filesystem of the store {root} is read-only",
                "look into the kernel's log (`dmesg`) for the reason: an error of the disk makes some filesystems so;"
                " then mount it for writing again",
            )
        ]
    over = missing(0, fill, limits)
    need = pressure(fill, limits, above=limits.high)
    if over.disk_bytes:
        return [
            Finding(
                "disk",
                PROBLEM,
                f"{what}: {show(over.disk_bytes)} too little is free",
                "a sweep lets go what it can (`artifactcache sweep --dry-run` shows it); what others have on that"
                " filesystem it cannot: free some space there",
            )
        ]
    if need:
        return [
            Finding(
                "disk",
                NOTE,
                f"{what}: a sweep is due, which is to free {show(max(need))}",
                "nothing, if it is there only for a moment; else `artifactcache sweep --dry-run` says what has to stay,"
                " and [store] capacity may be raised",
            )
        ]
    return [Finding("disk", OK, what)]


def inodes(total: int, free: int) -> list[Finding]:
    """Whether the store's filesystem can make files; nothing of one that has no such limit."""
    if not total:
        return []
    what = f"{free:,} of {total:,} inodes of the store's filesystem are free"
    todo = "remove files there, or make the filesystem anew with more inodes: each blob is one"
    if free < total * INODES_FREE_MIN:
        return [Finding("disk", PROBLEM, what, todo)]
    return [
        Finding("disk", NOTE if free < total * INODES_FREE_FEW else OK, what, todo * (free < total * INODES_FREE_FEW))
    ]


def clock(skew: float | None) -> list[Finding]:
    """How far the tracking server's clock is ahead of this host's; None where it does not say."""
    if skew is None:
        return []
    if abs(skew) <= SKEW_SECONDS_NOTE:
        return [
            Finding("clock", OK, f"the tracking server's clock agrees with this host's within {SKEW_SECONDS_NOTE:g} s")
        ]
    return [
        Finding(
            "clock",
            PROBLEM if abs(skew) > SKEW_SECONDS_MAX else NOTE,
            f"the tracking server's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this host's",
            "set both by NTP (`timedatectl` shows this host's): tokens, signatures of object stores and certificates"
            " are refused where clocks differ",
        )
    ]


def limit(what: str, used: int, most: int, todo: str) -> list[Finding]:
    """How near something is to its limit; nothing where it is far from it."""
    if used < most * NEAR:
        return []
    level = PROBLEM if used >= most else NOTE
    return [Finding("limits", level, f"{what}: {used:,} of at most {most:,}", todo)]


def open_files(used: int, most: int) -> list[Finding]:
    """How many files the daemon may have open."""
    todo = "raise LimitNOFILE= in the daemon's unit, or `ulimit -Hn` where it is started"
    if most < OPEN_FILES_MIN:
        return [Finding("limits", NOTE, f"the daemon may have only {most:,} files open, and has {used:,}", todo)]
    return limit("files that the daemon has open", used, most, todo) or [
        Finding("limits", OK, f"the daemon has {used:,} files open of at most {most:,}")
    ]


def tracking(name: str, trouble: str, status: int, seconds: float) -> list[Finding]:
    """Whether the tracking server answers."""
    if trouble:
        return [
            Finding(
                "tracking server",
                PROBLEM,
                f"{name} does not answer the daemon: {trouble}",
                "what is held is served meanwhile. Look whether the server runs, and whether the daemon's host and user"
                " reach it: address, proxy, firewall. If the address is wrong, [origin] tracking_uri or"
                " MLFLOW_TRACKING_URI of the daemon is",
            )
        ]
    if status >= 500 or status in (404, 407):
        return [
            Finding(
                "tracking server",
                NOTE,
                f"{name} answers a look at /health with HTTP {status}",
                "an MLflow server says 200 there: check whether a proxy answers in its place, and the tracking URI",
            )
        ]
    return [Finding("tracking server", OK, f"{name} answers the daemon within {seconds * 1000:.0f} ms")]


def unasked(check: str, why: str) -> list[Finding]:
    """That the tracking server was not asked, for others are waited for: it says nothing of the server."""
    todo = "run it again in a moment; what is held is served meanwhile"
    return [Finding(check, NOTE, f"the tracking server was not looked at: {why}", todo)]


def login(whose: str, status: int, has_any: bool | None, todo: str) -> list[Finding]:
    """Whether the tracking server takes a login.

    Args:
        whose: "the daemon" or "the caller".
        status: of a question that needs one.
        has_any: whether there was a login at all; None where nobody knows.
    """
    if status == 401:
        what = {
            True: f"the tracking server refuses the login of {whose}",
            False: f"the tracking server wants a login, and there is none of {whose}",
            None: f"the tracking server refuses the login of {whose}, or wants one and there is none",
        }[has_any]
        return [Finding("credentials", PROBLEM, what, todo)]
    if status == 403 and not has_any:  # MLflow: that login may not see this; a gateway: it is no login of ours
        why = "be it for want of a login or of a permission"
        what = f"the tracking server refuses {whose} a question (HTTP 403), {why}"
        return [Finding("credentials", NOTE, what, todo)]
    if status == 0 or status >= 500:
        return [Finding("credentials", NOTE, f"whether the tracking server takes the login of {whose} it does not say")]
    if has_any is None:
        return [Finding("credentials", OK, f"the tracking server lets {whose} in")]
    if not has_any:
        return [Finding("credentials", OK, f"the tracking server wants no login of {whose}")]
    return [Finding("credentials", OK, f"the tracking server takes the login of {whose}")]


def identity(uid: int, user: str, roles: tuple[str, ...], *, is_named: bool, is_told: bool) -> list[Finding]:
    """Who the caller is to the daemon."""
    what = f"the daemon sees you as {user}, uid {uid}: {', '.join(('reader', *roles))}"
    if uid == UNKNOWN_UID:
        return [
            Finding(
                "identity",
                PROBLEM,
                f"{what}. That number stands for whoever a user namespace does not know",
                "run the job, or the daemon, outside of a user namespace, or map your uid into it: as it is, hard links"
                " and guarded views go by a user who is everybody's",
            )
        ]
    if not is_told:
        return [
            Finding(
                "identity",
                PROBLEM,
                f"{what}. The host's name service does not answer, so that no name and no group of yours is known",
                f"tell the administrator of this host that `getent passwd {uid}` fails",
            )
        ]
    if not is_named:
        return [
            Finding(
                "identity",
                NOTE,
                f"{what}. The daemon's host knows no user of that number",
                "lists of users and groups in its configuration cannot name you but by number",
            )
        ]
    return [Finding("identity", OK, what)]
