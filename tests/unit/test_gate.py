"""The gate: who is let in, for how long that counts, and what it costs to ask again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from artifactcache.errors import CacheError, NotFound, OriginUnavailable, PermissionDenied, Unauthenticated
from cacheserver import uris
from cacheserver.access import Caller, Grant, Target, judge
from cacheserver.credentials import Credentials
from cacheserver.gate import REFUSED_SECONDS_MAX, Gate
from cacheserver.retention import Facts, Rule
from cacheserver.sessions import Peer
from cacheserver.sources import Place, Proof
from cacheserver.uris import Artifact

ALICE, BOB = Peer(1001, 1001, 7), Peer(1002, 1002, 8)
NAMES = {1001: Caller("alice", frozenset({"vision"})), 1002: Caller("bob", frozenset({"audio"}))}
HER, HIS = Credentials({"Authorization": "hers"}, "1"), Credentials({"Authorization": "his"}, "2")
RUN = uris.parse("runs:/" + "a" * 32)
KEPT_SECONDS = 60.0


class House:
    """A tracking server with one answer for each login, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.refused: dict[str, CacheError] = {}
        self.asked: Counter[str] = Counter()
        self.facts: dict[str, Facts] = {}
        self.homes: dict[str, Artifact] = {}
        self.root = ""
        self.administrators: set[int] = set()
        self.owners: set[int] = set()

    def asked_by(self, owner: int) -> House:
        self.owners.add(owner)
        return self

    def prove(self, artifact: Artifact, credentials: Credentials) -> Proof:
        self.asked[credentials.key] += 1
        if credentials.key in self.refused:
            raise self.refused[credentials.key]
        return Proof("shown", self.root)

    def place(self, artifact: Artifact) -> Place:
        return Place(self.homes.get(artifact.uri), self.root)

    def describe(self, versions: Iterable[str], needs: frozenset[str]) -> dict[str, Facts]:
        self.asked.update(versions)
        return {version: self.facts.get(version, Facts(version)) for version in versions}

    def gate(self, *grants: Grant, asks_as_caller: bool = False) -> Gate:
        return Gate(
            self,
            asks_as_caller=asks_as_caller,
            grants=grants,
            kept_seconds=KEPT_SECONDS,
            who=lambda peer: NAMES[peer.uid],
            is_administrator=lambda peer: peer.uid in self.administrators,
            ticks=lambda: self.now,
        )


@pytest.fixture
def house() -> House:
    """The tracking server."""
    return House()


def test_a_decision_is_kept_for_its_caller_and_its_time(house: House) -> None:
    """Neither another login's, nor another user's, nor another source's; and from its question on."""
    gate = house.gate(asks_as_caller=True)
    for _ in range(3):
        assert gate.admit(ALICE, HER, replace(RUN, path="some/path")).reason == "shown"
        assert gate.admit(ALICE, HER, RUN).reason == "shown"
    assert house.asked == {"1": 1}
    gate.admit(ALICE, HIS, RUN)
    gate.admit(BOB, HER, RUN)
    gate.admit(ALICE, HER, uris.parse("runs:/" + "b" * 32))
    assert house.asked == {"1": 3, "2": 1}
    house.now += KEPT_SECONDS - 0.1
    gate.admit(ALICE, HER, RUN)
    assert house.asked["1"] == 3
    house.now += 0.1
    gate.admit(ALICE, HER, RUN)
    assert house.asked["1"] == 4


@pytest.mark.parametrize("kind", [PermissionDenied, Unauthenticated, NotFound])
def test_a_refusal_is_kept_for_a_moment(house: House, kind: type[CacheError]) -> None:
    """So that a loop of attempts does not hash a password each time; a permission that came since counts soon."""
    gate = house.gate(asks_as_caller=True)
    house.refused["1"] = kind("no")
    for _ in range(3):
        with pytest.raises(kind):
            gate.admit(ALICE, HER, RUN)
    assert house.asked == {"1": 1}
    del house.refused["1"]
    house.now += REFUSED_SECONDS_MAX
    assert gate.admit(ALICE, HER, RUN).reason == "shown"


def test_what_was_no_answer_is_asked_again(house: House) -> None:
    """A server that is away has refused nobody, and lets nobody in; a decision that is fresh counts all the same."""
    gate = house.gate(asks_as_caller=True)
    gate.admit(BOB, HIS, RUN)
    house.refused = {"1": OriginUnavailable("away"), "2": OriginUnavailable("away")}
    assert gate.admit(BOB, HIS, RUN).reason == "shown"
    for _ in range(2):
        with pytest.raises(OriginUnavailable):
            gate.admit(ALICE, HER, RUN)
    house.now += KEPT_SECONDS
    with pytest.raises(OriginUnavailable):
        gate.admit(BOB, HIS, RUN)


def test_of_many_at_once_one_asks(house: House) -> None:
    """All others wait for its answer."""
    gate, here, go_on = house.gate(asks_as_caller=True), threading.Event(), threading.Event()
    prove = house.prove

    def slowly(artifact: Artifact, credentials: Credentials) -> Proof:
        here.set()
        assert go_on.wait(30)
        return prove(artifact, credentials)

    house.prove = slowly  # type: ignore[method-assign]
    threads = [threading.Thread(target=gate.admit, args=(ALICE, HER, RUN)) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert here.wait(30)
    go_on.set()
    for thread in threads:
        thread.join()
    assert house.asked == {"1": 1}


def test_words_say_what_to_do(house: House) -> None:
    """Who presented nothing is told what to set; and no header is ever in a message."""
    gate = house.gate(asks_as_caller=True)
    house.refused = {"": Unauthenticated("HTTP 401"), "1": Unauthenticated("HTTP 401")}
    with pytest.raises(Unauthenticated, match="MLFLOW_TRACKING_USERNAME"):
        gate.admit(ALICE, Credentials(), RUN)
    with pytest.raises(Unauthenticated) as told:
        gate.admit(ALICE, HER, RUN)
    assert "hers" not in str(told.value) and "hers" not in repr(HER)


def test_both_have_to_let_a_caller_in(house: House) -> None:
    """The tracking server, and a grant where there are any."""
    gate = house.gate(Grant("g", ("bob",)), asks_as_caller=True)
    house.refused["1"] = PermissionDenied("no")
    for peer, credentials in ((ALICE, HER), (ALICE, HIS), (BOB, HER)):
        with pytest.raises(PermissionDenied):
            gate.admit(peer, credentials, RUN)
    assert gate.admit(BOB, HIS, RUN).reason == 'shown; granted by "g"'


def test_what_is_known_of_a_source_is_asked_once(house: House) -> None:
    """For all callers and all paths of it, and anew when it is too old; administrators need no grant."""
    gate = house.gate(Grant("g", ("@vision",), path="public/*", of=Rule(experiment="e")))
    house.facts[RUN.base] = Facts(RUN.base, experiment="e")
    public = replace(RUN, path="public/model")
    gate.admit(ALICE, HER, public)
    for peer, artifact in ((ALICE, RUN), (BOB, public), (ALICE, replace(RUN, path="other"))):
        with pytest.raises(PermissionDenied):
            gate.admit(peer, HER, artifact)
    assert house.asked == {RUN.base: 1}
    house.now += KEPT_SECONDS
    house.facts[RUN.base] = Facts(RUN.base, experiment="another")
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, public)
    house.administrators.add(BOB.uid)
    assert gate.admit(BOB, HIS, RUN).reason == "an administrator"


def test_a_version_is_granted_by_what_its_bytes_are(house: House) -> None:
    """Not by the run that it names: an experiment is that of the run in whose folder the bytes lie."""
    gate = house.gate(Grant("g", ("*",), of=Rule(experiment="open", model="resnet")))
    version, home = uris.parse("models:/resnet/3"), replace(RUN, path="model")
    house.facts = {
        version.base: Facts(version.base, experiment="open", model="resnet"),
        RUN.base: Facts(RUN.base, experiment="secret"),
    }
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, version)  # it lies in nothing that is known
    house.homes[version.uri] = home
    house.now += KEPT_SECONDS
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, version)
    house.facts[RUN.base] = Facts(RUN.base, experiment="open")
    house.now += KEPT_SECONDS
    assert gate.admit(ALICE, HER, version).reason == 'granted by "g"'


def test_where_a_version_lay_is_part_of_its_decision(house: House) -> None:
    """A name may go to another version meanwhile: the decision says which one it was about, until it is made anew."""
    version = uris.parse("models:/resnet/3")
    house.homes[version.uri], house.facts = RUN, {RUN.base: Facts(RUN.base, experiment="open")}
    for gate in (
        house.gate(asks_as_caller=True),
        house.gate(Grant("g", ("*",), of=Rule(experiment="open"))),
        house.gate(Grant("g", ("*",), of=Rule(experiment="open")), asks_as_caller=True),
    ):
        house.root = "s3://bucket/old"
        assert set(gate.admit(ALICE, HER, version).roots) == {"s3://bucket/old"}
        house.root = "s3://bucket/new"
        assert set(gate.admit(ALICE, HER, version).roots) == {"s3://bucket/old"}
        assert set(gate.admit(ALICE, HER, version, anew=True).roots) == {"s3://bucket/new"}


def test_a_bare_uri_is_granted_as_the_path_of_its_run(house: House) -> None:
    """Where it lies in one; a pattern of URIs grants it by itself."""
    bare = uris.parse("s3://bucket/1/model/weights")
    gate = house.gate(
        Grant("run", ("alice",), path="model/*", of=Rule(experiment="open")), Grant("b", ("bob",), uri="s3://bucket/*")
    )
    house.facts[RUN.base] = Facts(RUN.base, experiment="open")
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, bare)
    assert gate.admit(BOB, HIS, bare).reason == 'granted by "b"'
    house.homes[bare.uri] = replace(RUN, path="model/weights")
    house.now += KEPT_SECONDS
    assert gate.admit(ALICE, HER, bare).reason == 'granted by "run"'


FACTS = Facts("runs:/r", "http://here", "r", "e", "FINISHED", {"team": "vision", "none": None}, "carol", 1.0, "", 0)


@pytest.mark.parametrize(
    ("grant", "granted"),
    [
        (Grant(to=("*",)), True),
        (Grant(to=("alice",)), True),
        (Grant(to=("@vision",)), True),
        (Grant(to=("vision",)), False),
        (Grant(to=("@alice",)), False),
        (Grant(to=("alic*",)), False),
        (Grant(to=()), False),
        (Grant(to=("alice",), of=Rule(experiment="e", tag={"team": "vis*"}, owner="carol")), True),
        (Grant(to=("alice",), of=Rule(experiment="e", tag={"team": "audio"})), False),
        (Grant(to=("alice",), of=Rule(tag={"unknown": "*"})), False),
        (Grant(to=("alice",), of=Rule(tag={"none": "*"})), False),
        (Grant(to=("alice",), of=Rule(model="*")), False),
        (Grant(to=("alice",), path="a/*"), True),
        (Grant(to=("alice",), path="b/*"), False),
        (Grant(to=("alice",), path="a"), False),
        (Grant(to=("alice",), uri="*"), False),
    ],
)
def test_a_grant_covers_what_it_says(grant: Grant, granted: bool) -> None:
    """All of its conditions hold, or it grants nothing; what is not known holds nowhere."""
    assert judge([grant], NAMES[1001], Target(FACTS, "a/b")).granted is granted


@pytest.mark.parametrize("experiment", [None, ""])
def test_what_is_not_known_grants_nothing(experiment: str | None) -> None:
    """Nor what does not exist."""
    grant = Grant(to=("*",), of=Rule(experiment="*"))
    assert not judge([grant], NAMES[1001], Target(replace(FACTS, experiment=experiment), "")).granted


@pytest.mark.parametrize(
    ("grant", "home_path", "path", "granted"),
    [
        (Grant(to=("*",), path="model/*"), "model", "MLmodel", True),
        (Grant(to=("*",), path="MLmodel"), "private", "MLmodel", False),
        (Grant(to=("*",), path="private/*"), "private", "MLmodel", True),
        (Grant(to=("*",), path="model"), "model", "", True),
        (Grant(to=("*",), path="MLmodel", of=Rule(model="resnet")), "private", "MLmodel", True),
        (Grant(to=("*",), path="*"), None, "MLmodel", False),
        (Grant(to=("*",), path="MLmodel", of=Rule(model="resnet")), None, "MLmodel", True),
    ],
)
def test_a_versions_path_is_that_in_its_run(grant: Grant, home_path: str | None, path: str, granted: bool) -> None:
    """Whoever registers a version chooses where it begins: only a grant to a model's name is about the path in it."""
    target = Target(replace(FACTS, model="resnet", number=1), path, home_path=home_path)
    assert judge([grant], NAMES[1001], target).granted is granted


def test_what_was_refused_is_looked_at_again_soon(house: House) -> None:
    """A tag that was set since, or an answer that did not come, counts within seconds; what is granted stays so."""
    gate = house.gate(Grant("g", ("alice",), of=Rule(experiment="open")))
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, RUN)
    house.facts[RUN.base] = Facts(RUN.base, experiment="open")
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, RUN)
    house.now += REFUSED_SECONDS_MAX
    assert gate.admit(ALICE, HER, RUN).reason == 'granted by "g"'
    assert house.asked == {RUN.base: 2}


def test_what_was_looked_up_for_other_grants_counts_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is read anew while a look-up is under way: what that has found is enough for the old grants,
    and not for the new ones, which look at where in its run a version lies."""
    gate = house.gate(Grant("all", ("*",)))
    version = uris.parse("models:/released/1/public/x")
    house.homes[version.base] = house.homes[version.uri] = replace(RUN, path="secret/model")
    describe, changed = house.describe, list[bool]()

    def slowly(versions: Iterable[str], needs: frozenset[str]) -> dict[str, Facts]:
        if not changed:
            changed.append(True)
            gate.become((Grant("public", ("*",), path="public/*"),), KEPT_SECONDS)
        return describe(versions, needs)

    monkeypatch.setattr(house, "describe", slowly)
    assert gate.admit(ALICE, HER, version).reason == 'granted by "all"'  # it had begun before
    with pytest.raises(PermissionDenied):
        gate.admit(ALICE, HER, version)


def test_a_decision_made_for_another_time_counts_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long one is kept is what the configuration says when it is used."""
    gate, prove = house.gate(asks_as_caller=True), house.prove

    def slowly(artifact: Artifact, credentials: Credentials) -> Proof:
        gate.become((), 1.0)
        return prove(artifact, credentials)

    monkeypatch.setattr(house, "prove", slowly)
    gate.admit(ALICE, HER, RUN)
    monkeypatch.undo()
    house.now += 2.0
    gate.admit(ALICE, HER, RUN)
    assert house.asked[HER.key] == 2
