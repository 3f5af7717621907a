"""What numbers mean to the doctor: where "ok" ends, and what each finding says."""

from __future__ import annotations

import pytest

from artifactcache.findings import NOTE, OK, PROBLEM, Finding
from cacheserver import findings
from cacheserver.space import Amount, Fill, Limits

GIB = 1 << 30
LIMITS = Limits(Amount(100 * GIB), Amount(10 * GIB))


def levels(found: list[Finding]) -> list[str]:
    """The levels alone. Whatever is no "ok" has something to do about it, unless nobody can."""
    assert all(each.what and (each.todo or each.level != PROBLEM) for each in found)
    return [each.level for each in found]


def disk(stored: int, free: int, *, is_read_only: bool = False) -> list[Finding]:
    """Of a store on a filesystem of 200 GiB."""
    fill = Fill(stored * GIB, 0, 0, 200 * GIB, free * GIB)
    return findings.disk(fill, LIMITS, is_read_only=is_read_only, root="/store")


@pytest.mark.parametrize(
    ("stored", "free", "level", "words"),
    [
        (0, 200, OK, "holds 0 B of 100.0 GiB"),
        (95, 100, OK, "holds 95.0 GiB"),
        (96, 100, NOTE, "a sweep is due, which is to free 6.0 GiB"),
        (50, 9, PROBLEM, "1.0 GiB too little is free"),
    ],
)
def test_disk(stored: int, free: int, level: str, words: str) -> None:
    """Full is what is above the high watermark; a problem only what leaves others less than `min_free`."""
    assert levels(disk(stored, free)) == [level] and words in disk(stored, free)[0].what
    assert levels(disk(stored, free, is_read_only=True)) == [PROBLEM]


@pytest.mark.parametrize(
    ("total", "free", "found"),
    [(0, 0, []), (1000, 500, [OK]), (1000, 49, [NOTE]), (1000, 9, [PROBLEM]), (1000, 10, [NOTE])],
)
def test_inodes(total: int, free: int, found: list[str]) -> None:
    """btrfs has no such limit; others may have none left while bytes are free."""
    assert levels(findings.inodes(total, free)) == found


@pytest.mark.parametrize(
    ("skew", "found"), [(None, []), (0.0, [OK]), (-5.0, [OK]), (5.1, [NOTE]), (-60.0, [NOTE]), (60.1, [PROBLEM])]
)
def test_clock(skew: float | None, found: list[str]) -> None:
    """Whole seconds, and the way here, are no skew; a server that tells no time has none."""
    assert levels(findings.clock(skew)) == found


@pytest.mark.parametrize(("used", "found"), [(0, []), (79, []), (80, [NOTE]), (99, [NOTE]), (100, [PROBLEM])])
def test_limits(used: int, found: list[str]) -> None:
    """What is near its end is told before it is there."""
    assert levels(findings.limit("sessions", used, 100, "end some")) == found


def test_open_files() -> None:
    """Few are few, also where few are used."""
    assert levels(findings.open_files(40, 20_000)) == [OK]
    assert levels(findings.open_files(19_000, 20_000)) == [NOTE]
    assert levels(findings.open_files(40, 1024)) == [NOTE]


@pytest.mark.parametrize(
    ("trouble", "status", "level"),
    [("", 200, OK), ("", 401, OK), ("", 403, OK), ("", 404, NOTE), ("", 503, NOTE), ("refused", 0, PROBLEM)],
)
def test_tracking(trouble: str, status: int, level: str) -> None:
    """Any answer of MLflow's is one; what a proxy says in its place is noted; silence is a problem."""
    assert levels(findings.tracking("http://mlflow", trouble, status, 0.01)) == [level]


@pytest.mark.parametrize(
    ("status", "has_any", "level", "words"),
    [
        (200, True, OK, "takes the login"),
        (403, True, OK, "takes the login"),
        (403, False, NOTE, "for want of a login or"),
        (403, None, NOTE, "for want of a login or"),
        (404, True, OK, "takes the login"),
        (200, False, OK, "wants no login"),
        (200, None, OK, "lets the caller in"),
        (401, True, PROBLEM, "refuses the login"),
        (401, False, PROBLEM, "there is none"),
        (401, None, PROBLEM, "or wants one"),
        (503, True, NOTE, "does not say"),
        (0, True, NOTE, "does not say"),
    ],
)
def test_login(status: int, has_any: bool | None, level: str, words: str) -> None:
    """Only 401 refuses a login: 403 is for what that login may not see, and says nothing where none is known of."""
    found = findings.login("the caller", status, has_any, "log in")
    assert levels(found) == [level] and words in found[0].what


@pytest.mark.parametrize(
    ("uid", "is_named", "is_told", "level"),
    [(1000, True, True, OK), (1000, False, True, NOTE), (1000, False, False, PROBLEM), (65534, True, True, PROBLEM)],
)
def test_identity(uid: int, is_named: bool, is_told: bool, level: str) -> None:
    """The number that a user namespace gives to whomever it does not know is nobody's."""
    assert levels(findings.identity(uid, "x", ("operator",), is_named=is_named, is_told=is_told)) == [level]
