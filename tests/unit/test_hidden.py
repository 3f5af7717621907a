"""What is told to whom of artifacts that are the same bytes under several people's names; and of whom who is denied."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from cacheserver.selection import Selection
from cacheserver.sessions import Session
from cacheserver.settings import AccessConfig
from tests.rig.wire import bearer, error_name, stub
from tests.unit.house import FILES, ROOT, House
from tests.unit.serving import Served

HERS, HIS = ROOT, "s3://bucket/his"
ALIAS = "models:/hers@champion"
RULE = "The rule for-hers keeps it."
# The host has no names for them, so that each is named by its number.
ALICE, BOB, OPERATOR = 4_000_001, 4_000_002, 4_000_003
# One of the host's own users, who has a name there; neither root nor whoever runs this is ever denied.
DENIED = next(user for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid()))
ACCESS = AccessConfig(check="rules", operators=[str(OPERATOR)])

Open = Callable[..., Served]


@pytest.fixture
def opened(filled: House, tmp_path: Path) -> Iterator[Open]:
    """A daemon for all users, with the same bytes as hers and as his."""
    filled.origin.files |= {f"{HIS}/{name}": content for name, content in FILES.items()}
    for uri in (HERS, HIS):
        filled.bring(uri)
    running: list[Served] = []

    def start(access: AccessConfig = ACCESS) -> Served:
        running.append(Served(filled, tmp_path / "sockets", access=access, ruled=lambda tree: (RULE,)))
        return running[-1]

    yield start
    for served in running:
        served.stop()


def asked(uri: str) -> pb.ArtifactSelection:
    """An artifact, as a client names it."""
    return pb.ArtifactSelection(uri=uri)


def pin(house: House, uri: str, owner: int, name: str) -> None:
    """An operator has pinned an artifact, by some name."""
    assert house.index.pins.pin(uri, Selection().key, owner=owner, asked=name, now=house.now)


def explained(served: Served, session: Session, uri: str) -> str:
    """All that somebody is told of why it is kept."""
    with stub(served.folder) as cache:
        reply = cache.Explain(pb.ExplainRequest(artifact=asked(uri)), metadata=bearer(session.token))
    assert reply.artifact.version == uri and reply.is_kept
    return "\n".join(reply.reasons)


def test_pins_and_rules_of_others_are_not_explained(opened: Open, filled: House) -> None:
    """What bob has fetched is what alice has as well: neither by what name it is pinned for her, nor by whom, nor what
    rules say of the tree is his to know; a pin on what he names is. Operators are told everything."""
    served = opened()
    pin(filled, HERS, ALICE, ALIAS)
    bob, operator = served.session(BOB), served.session(OPERATOR)
    text = explained(served, bob, HIS)
    for secret in (ALIAS, str(ALICE), HERS, RULE, "pinned by"):
        assert secret not in text
    pin(filled, HIS, OPERATOR, HIS)
    text = explained(served, bob, HIS)
    assert f"pinned by {OPERATOR}, as {HIS}" in text and text.count("pinned by") == 1 and ALIAS not in text
    text = explained(served, operator, HIS)
    for told in (f"pinned by {ALICE}, as {ALIAS}", f"pinned by {OPERATOR}, as {HIS}", RULE):
        assert told in text


def test_without_access_rules_everything_is_explained(opened: Open, filled: House) -> None:
    """To everybody: there is nobody from whom it would have to be hidden."""
    served = opened(AccessConfig())
    pin(filled, HERS, ALICE, ALIAS)
    text = explained(served, served.session(BOB), HIS)
    assert f"pinned by {ALICE}, as {ALIAS}" in text and RULE in text


def verified(served: Served, session: Session, uri: str = "") -> tuple[list[str], list[str]]:
    """The blobs of an artifact, or for an operator of all, that are found to be wrong, and who is said to need them."""
    with stub(served.folder) as cache:
        request = pb.VerifyRequest(artifact=asked(uri)) if uri else pb.VerifyRequest()
        *_, last = cache.Verify(request, metadata=bearer(session.token))
    return list(last.result.corrupted), sorted(last.result.affected)


def test_who_else_lacks_what_is_wrong_is_not_told(opened: Open, filled: House) -> None:
    """A blob that is wrong is missing in all artifacts that have it: whoever has one verified hears of that one only,
    whoever may verify everything of each."""
    served = opened()
    bob, operator = served.session(BOB), served.session(OPERATOR)
    held = filled.index.held(HIS, "")
    assert held is not None
    wrong = filled.digest(held, "top")
    filled.damage(wrong)
    for _ in range(2):  # while it is put aside, and when it is known to be missing
        assert verified(served, bob, HIS) == ([wrong], [HIS])
    assert verified(served, operator) == ([wrong], sorted([HERS, HIS]))
    assert verified(served, operator, HERS) == ([wrong], [HERS])


# -- who is denied ----------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "Fetch": lambda cache, mine: list(cache.Fetch(pb.FetchRequest(artifact=asked(HIS)), metadata=mine)),
    "Inspect": lambda cache, mine: list(cache.Inspect(pb.InspectRequest(artifact=asked(HIS)), metadata=mine)),
    "Verify": lambda cache, mine: list(cache.Verify(pb.VerifyRequest(artifact=asked(HIS)), metadata=mine)),
    "Explain": lambda cache, mine: cache.Explain(pb.ExplainRequest(artifact=asked(HIS)), metadata=mine),
    "Pin": lambda cache, mine: cache.Pin(pb.PinRequest(artifact=asked(HIS)), metadata=mine),
}


@pytest.mark.parametrize("verb", CALLS)
def test_who_is_denied_since_has_one_line_in_the_audit_log(opened: Open, verb: str) -> None:
    """Whoever has a session from before, and calls by it, is refused there: with who it is, what was asked for, and
    why. It is one attempt, and counted as one."""
    served = opened(AccessConfig(deny=[DENIED.pw_name]))
    denied = served.session(DENIED.pw_uid)
    with stub(served.folder) as cache:
        with pytest.raises(grpc.RpcError) as refused:
            CALLS[verb](cache, bearer(denied.token))
        assert error_name(refused.value) == "PermissionDenied"
        with pytest.raises(grpc.RpcError) as refused:  # what is no look at an artifact is refused too, without a line
            list(cache.List(pb.ListRequest(), metadata=bearer(denied.token)))
        assert error_name(refused.value) == "PermissionDenied"
    served.audit.stop()  # all of it is written
    (line,) = served.attempts(1)
    assert (line["user"], line["uid"], line["pid"]) == (DENIED.pw_name, DENIED.pw_uid, os.getpid())
    assert (line["verb"], line["artifact"], line["decision"]) == (verb, HIS, "refused")
    assert line["reason"].startswith("PermissionDenied: [access] deny in the daemon's configuration names you")
    assert (line["version"], line["tree"], line["bytes"], line["given"]) == ("", "", 0, "")
    assert served.audit.refused_count() == 1
