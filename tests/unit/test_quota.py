"""How much of something a user may have at a time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import QuotaExceeded
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.looking import Looked
from cacheserver.quotas import Quota
from cacheserver.settings import AccessConfig
from tests.rig.until import until
from tests.rig.wire import bearer, error_name, stub
from tests.unit.house import PATIENCE_SECONDS, House
from tests.unit.serving import Served

FIRST_UID = 70001


def taken(quota: Quota, uid: int) -> int:
    """How many a user gets who takes one after the other, to the end."""
    count = 0
    with contextlib.suppress(QuotaExceeded):
        while True:
            quota.take(uid)
            count += 1
    return count


def test_there_is_an_end_for_each_and_for_all() -> None:
    """It is told whose end it is; what is given back can be had again."""
    quota = Quota("things", per_user=2, total=3)
    assert (taken(quota, 1), taken(quota, 2)) == (2, 1)
    with pytest.raises(QuotaExceeded, match="One user gets 2 things"):
        quota.take(1)
    with pytest.raises(QuotaExceeded, match="This daemon has 3 things"):
        quota.take(2)
    quota.give_back(1)
    with quota.one(2):
        assert quota.by_user() == {1: 1, 2: 2}
    assert (quota.total(), quota.standing(2)) == (2, ("things", 1, 2))


def test_the_last_one_is_for_who_has_none() -> None:
    """Whoever has some gets more only while as many are left: users who take all that they get leave one to somebody
    else, now and whenever one of theirs ends."""
    quota = Quota("things", per_user=2, total=8, leaves_some=True)
    assert [taken(quota, uid) for uid in (1, 2, 3, 4)] == [2, 2, 2, 1]
    with pytest.raises(QuotaExceeded, match="is for others"):
        quota.take(4)
    for newcomer in (5, 6, 7):
        assert taken(quota, newcomer) == 1
        with pytest.raises(QuotaExceeded, match="This daemon has 8"):
            quota.take(9)
        quota.give_back(newcomer - 4)
        assert taken(quota, newcomer - 4) == 0


def test_four_users_keep_no_fifth_from_the_doctor(
    filled: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many checkups each of them asks for, while the tracking server hangs."""
    asked, calls, go_on = list[int](), list[Any](), threading.Event()

    def look(path: str, headers: object, patience: float, owner: int) -> Looked:
        asked.append(owner)
        assert go_on.wait(PATIENCE_SECONDS)
        return Looked(0, trouble="it hangs")

    monkeypatch.setattr(filled.origin, "name", "http://tracking", raising=False)
    monkeypatch.setattr(filled.origin, "look", look, raising=False)
    served = Served(filled, tmp_path / "sockets", access=AccessConfig())
    try:
        with stub(served.folder) as cache:

            def begins(uid: int) -> bool:
                """Whether one more is begun for a user; else it is refused."""
                before, whose = len(asked), bearer(served.session(uid).token)
                call = cache.Checkup.future(pb.CheckupRequest(), metadata=whose)
                until(lambda: call.done() or len(asked) > before, "it to be begun or refused")
                calls.append(call)
                if not call.done():
                    return True
                assert error_name(call.exception()) == "QuotaExceeded"
                return False

            for uid in range(FIRST_UID, FIRST_UID + 4):
                for _ in range(3):
                    begins(uid)
            assert len(asked) == 7 and begins(FIRST_UID + 4)
    finally:
        go_on.set()
        served.stop()
