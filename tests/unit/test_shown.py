"""Several callers of one cache, to whom the tracking server shows different things: none gets what another was shown,
and none takes from another what he is not shown himself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from artifactcache.errors import CacheError, NotFound, OriginUnavailable, PermissionDenied
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.selection import Selection
from cacheserver.settings import AccessConfig
from cacheserver.words import Resolved
from tests.rig.wire import bearer, error_name, stub
from tests.unit.house import FRESHNESS, PATIENCE_SECONDS
from tests.unit.serving import Served
from tests.unit.shown import KEPT_SECONDS, ShownHouse

ALICE, BOB = "alice", "bob"
UIDS = {ALICE: 4_000_001, BOB: 4_000_002}
MODEL = "s3://bucket/m-1/artifacts"
DUE = FRESHNESS.relist_after + 1


class Callers:
    """Alice and bob, who call by hand."""

    def __init__(self, served: Served, cache: Any) -> None:
        self._cache = cache
        self._house = served.house
        self._mine = {name: bearer(served.session(uid, name).token) for name, uid in UIDS.items()}

    def fetch(self, who: str, uri: str, *, refresh: bool = False) -> dict[str, bytes | None]:
        """What somebody gets."""
        return self.result(self.start(who, uri, refresh=refresh))

    def start(self, who: str, uri: str, *, refresh: bool = False) -> Any:
        """A fetch that has begun."""
        request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri), refresh=refresh)
        return self._cache.Fetch(request, metadata=self._mine[who])

    def result(self, call: Any) -> dict[str, bytes | None]:
        """What somebody gets by it."""
        *_, last = call
        held = self._house.index.held(last.result.version, Selection().key)
        assert held is not None and held.tree == last.result.digest
        return self._house.content(held)

    def inspect(self, who: str, uri: str) -> set[str]:
        """The files that somebody is shown of what is held."""
        request = pb.InspectRequest(artifact=pb.ArtifactSelection(uri=uri))
        events = self._cache.Inspect(request, metadata=self._mine[who])
        return {file.path.decode() for event in events for file in event.files.files}

    def verify(self, who: str, uri: str) -> int:
        """How many blobs of what is held are hashed for somebody."""
        *_, last = self._cache.Verify(
            pb.VerifyRequest(artifact=pb.ArtifactSelection(uri=uri)), metadata=self._mine[who]
        )
        return int(last.result.blobs_checked)

    def explain(self, who: str, uri: str) -> int:
        """How many bytes of what is held are explained to somebody."""
        request = pb.ExplainRequest(artifact=pb.ArtifactSelection(uri=uri))
        return int(self._cache.Explain(request, metadata=self._mine[who]).artifact.size_bytes)

    def fails(self, kind: type[CacheError], call: Any) -> str:
        """What somebody is told who gets nothing."""
        with pytest.raises(grpc.RpcError) as caught:
            self.result(call)
        assert error_name(caught.value) == kind.__name__, caught.value
        return str(caught.value.details())

    def refused(self, kind: type[CacheError], who: str, uri: str, *, verb: str = "fetch", **options: bool) -> str:
        """What somebody is told who does not get it."""
        with pytest.raises(grpc.RpcError) as caught:
            getattr(self, verb)(who, uri, **options)
        assert error_name(caught.value) == kind.__name__, caught.value
        return str(caught.value.details())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ShownHouse]:
    """One that is empty."""
    house = ShownHouse(tmp_path / "store")
    yield house
    house.close()


@pytest.fixture
def callers(house: ShownHouse, tmp_path: Path) -> Iterator[Callers]:
    """Those of the house."""
    served = Served(house, tmp_path / "sockets", gate=house.gate, access=AccessConfig(check="caller"))
    try:
        with stub(served.folder) as cache:
            yield Callers(served, cache)
    finally:
        served.stop()


# -- what lies in several places --------------------------------------------------------------------------------------

OWN, BOTH = {"readme": b"of the run"}, {"readme": b"of the run", "weights": b"secret"}
URI = "runs:/r/model"
VERBS = ("inspect", "verify", "explain")


@pytest.fixture
def run(house: ShownHouse) -> str:
    """A run with a folder of its own, at the returned root; a logged model that shows as this folder comes later."""
    root = house.origin.run("r")
    house.origin.files = {f"{root}/model/readme": b"of the run", f"{MODEL}/weights": b"secret"}
    return root


def log_model(house: ShownHouse, instead: CacheError) -> None:
    """The run has put out the logged model; bob, who may read the run, is told an error instead of it."""
    house.origin.run("r", ("model", MODEL))
    house.origin.instead[BOB, MODEL] = instead


@pytest.mark.parametrize("verb", ["fetch", *VERBS])
def test_a_part_that_is_refused(house: ShownHouse, callers: Callers, run: str, verb: str) -> None:
    """Who was let in before the run had it, and is refused that part, gets nothing of what is held by now, though the
    decision would count still; whoever may read both has both."""
    assert callers.fetch(BOB, URI) == OWN
    log_model(house, PermissionDenied("not his"))
    assert callers.fetch(ALICE, URI, refresh=True) == BOTH
    callers.refused(PermissionDenied, BOB, URI, verb=verb)
    assert callers.fetch(ALICE, URI) == BOTH


@pytest.mark.parametrize("verb", VERBS)
def test_a_part_that_is_not_shown(house: ShownHouse, callers: Callers, run: str, verb: str) -> None:
    """Who is told that there is no such part gets what the run is without it, and by no verb what others have; and they
    have it still."""
    assert callers.fetch(BOB, URI) == OWN
    log_model(house, NotFound("no such model"))
    assert callers.fetch(ALICE, URI, refresh=True) == BOTH
    assert "another one that had its name" in callers.refused(NotFound, BOB, URI, verb=verb)
    for _ in range(2):
        assert callers.fetch(BOB, URI) == OWN
        assert callers.fetch(ALICE, URI) == BOTH
        callers.refused(NotFound, BOB, f"{URI}/weights")
        callers.refused(NotFound, BOB, f"{URI}/weights", verb=verb)
        assert callers.fetch(ALICE, f"{URI}/weights") == {"weights": b"secret"}
    assert house.origin.downloads[f"{MODEL}/weights"] == 1


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_part_that_was_deleted(house: ShownHouse, callers: Callers, run: str, is_pinned: bool) -> None:
    """It shows to nobody any more, so that it refuses nobody the run: whoever was refused it does not get what others
    have fetched of it by that, pinned or not, at the first attempt or later."""
    log_model(house, PermissionDenied("not his"))
    for uri in (URI, f"{URI}/weights"):
        callers.fetch(ALICE, uri)
        if is_pinned:
            assert house.index.pins.pin(uri, Selection().key, owner=0, asked=uri, now=house.now)
    callers.refused(PermissionDenied, BOB, f"{URI}/weights")
    house.ticks += KEPT_SECONDS
    for who in UIDS:
        house.origin.instead[who, MODEL] = NotFound("deleted")
    for _ in range(3):
        for verb in ("fetch", *VERBS):
            callers.refused(NotFound, BOB, f"{URI}/weights", verb=verb)
        assert callers.fetch(BOB, URI) == OWN


class Halt:
    """Where somebody's question, or a download, stops until it may go on."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._reached, self._opened = threading.Event(), threading.Event()

    def __call__(self, who: str, what: str = "") -> None:
        if who == self._whose:
            self._reached.set()
            assert self._opened.wait(PATIENCE_SECONDS)

    def wait(self) -> None:
        """Until it stands here."""
        assert self._reached.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        """Let it go on."""
        self._opened.set()


@pytest.mark.parametrize(
    ("instead", "told"),
    [(PermissionDenied("not his"), PermissionDenied), (NotFound("no such model"), OriginUnavailable)],
    ids=["refused", "not shown"],
)
def test_a_part_that_comes_while_one_waits(
    house: ShownHouse, callers: Callers, run: str, instead: CacheError, told: type[CacheError]
) -> None:
    """Who was let in before the run had it, and waits for what somebody else brings, is judged again when it has come:
    it is more than what he was let in to read."""
    callers.refused(NotFound, BOB, URI, verb="inspect")  # he may, and it is not held
    log_model(house, instead)
    halt = Halt(ALICE)
    house.origin.resolving = halt
    hers = callers.start(ALICE, URI)
    halt.wait()
    his = callers.start(BOB, URI)
    assert next(his).HasField("progress") and house.cache.download_count() == 1
    halt.open()
    assert callers.result(hers) == BOTH
    callers.fails(told, his)


def test_a_part_that_is_brought_while_another_is_not_shown_it(house: ShownHouse, callers: Callers, run: str) -> None:
    """What comes last of it is not taken for what the other one was shown meanwhile."""
    log_model(house, NotFound("no such model"))
    halt = Halt(f"{MODEL}/weights")
    house.origin.before_download = halt
    hers = callers.start(ALICE, URI, refresh=True)
    halt.wait()
    house.now += 1
    assert callers.fetch(BOB, URI) == OWN
    halt.open()
    assert callers.result(hers) == BOTH
    assert callers.fetch(BOB, URI) == OWN
    callers.refused(NotFound, BOB, f"{URI}/weights")
    assert callers.fetch(ALICE, URI) == BOTH


def test_an_answer_that_is_late(house: ShownHouse, callers: Callers, run: str) -> None:
    """Who has asked earlier, and been answered later, is not brought what another one was shown in between."""
    log_model(house, NotFound("no such model"))
    halt = Halt(BOB)
    house.origin.resolving = halt
    his = callers.start(BOB, URI, refresh=True)
    halt.wait()
    house.now += 1
    assert callers.fetch(ALICE, URI) == BOTH
    halt.open()
    assert callers.result(his) == OWN
    assert callers.fetch(ALICE, URI) == BOTH


def test_a_part_that_is_only_kept_is_given_to_nobody_else(house: ShownHouse, callers: Callers, run: str) -> None:
    """What is pinned stays held when a part does not show; it is not what the run is without that, not even where the
    store is away."""
    log_model(house, NotFound("no such model"))
    assert callers.fetch(ALICE, URI) == BOTH
    assert house.index.pins.pin(URI, Selection().key, owner=0, asked=URI, now=house.now)
    house.origin.instead[BOB, run] = OriginUnavailable("away")
    for _ in range(2):
        callers.refused(OriginUnavailable, BOB, URI)
        for verb in VERBS:
            callers.refused(NotFound, BOB, URI, verb=verb)
        house.now += DUE
    assert callers.fetch(ALICE, URI) == BOTH


# -- what is not there for one ----------------------------------------------------------------------------------------

ALIAS, HERS, HIS = "models:/orb@champion", "s3://bucket/hers", "s3://bucket/his"
ORB = "models:/orb/1"


@pytest.fixture
def orb(house: ShownHouse) -> str:
    """A registered model of alice's, with an alias; where its only version lies."""
    house.origin.files = {f"{HERS}/x": b"hers", f"{HIS}/x": b"his"}
    house.origin.versions[ORB] = Resolved(ORB, HERS, (), True, "monday")
    house.origin.aliases[ALIAS] = "1"
    return HERS


def test_an_alias_that_one_is_not_shown(house: ShownHouse, callers: Callers, orb: str) -> None:
    """It stands for the same for others, also while nobody can be asked."""
    assert callers.fetch(ALICE, ALIAS) == {"x": b"hers"}
    house.origin.instead[BOB, ALIAS] = NotFound("no such alias")
    callers.refused(NotFound, BOB, ALIAS)
    house.origin.down = True
    assert callers.fetch(ALICE, ALIAS) == {"x": b"hers"}


@pytest.mark.parametrize("what", ["runs:/r", "s3://bucket/r/artifacts"], ids=["the run", "its folder"])
@pytest.mark.parametrize("refresh", [False, True])
def test_what_is_there_no_more_for_one(house: ShownHouse, callers: Callers, run: str, what: str, refresh: bool) -> None:
    """Who may have read it a moment ago, and is told by now that there is no such thing, takes it from nobody: others
    have it at once, without a question, and whole."""
    for uri in (URI, f"{URI}/readme"):
        assert callers.fetch(ALICE, uri) == OWN
    assert callers.fetch(BOB, URI) == OWN
    house.origin.instead[BOB, what] = NotFound("no such thing")
    for uri in (URI, f"{URI}/readme") if refresh else (f"{URI}/none", "runs:/r/none"):
        callers.refused(NotFound, BOB, uri, refresh=refresh)
    assert house.index.versions.resolved("runs:/r") is not None
    house.origin.down = True
    for uri in (URI, f"{URI}/readme"):
        assert callers.inspect(ALICE, uri) == set(OWN)
        assert callers.fetch(ALICE, uri) == OWN


def test_what_was_resolved_is_not_forgotten_for_one(house: ShownHouse, callers: Callers, run: str) -> None:
    """What the tracking server has said of a version is known still when somebody finds nothing there."""
    house.origin.instead = {(ALICE, run): OriginUnavailable("away"), (BOB, run): NotFound("no such folder")}
    callers.refused(OriginUnavailable, ALICE, URI)
    known = house.index.versions.resolved("runs:/r")
    callers.refused(NotFound, BOB, URI)
    assert known is not None and house.index.versions.resolved("runs:/r") == known


def test_a_name_that_was_hers_is_only_kept(house: ShownHouse, callers: Callers, orb: str) -> None:
    """What is pinned stays held when its name goes to somebody else, and is given to nobody as what the name stands for
    by now, not even where that cannot be had."""
    assert callers.fetch(ALICE, ORB) == {"x": b"hers"}
    assert house.index.pins.pin(ORB, Selection().key, owner=0, asked=ORB, now=house.now)
    house.origin.versions[ORB] = Resolved(ORB, HIS, (), True, "tuesday")
    house.origin.instead = {(BOB, HIS): OriginUnavailable("away")}
    for _ in range(2):
        callers.refused(OriginUnavailable, BOB, ORB)
        for verb in VERBS:
            assert "another one that had its name" in callers.refused(NotFound, BOB, ORB, verb=verb)
        house.now += DUE
    house.origin.instead = {}
    assert callers.fetch(BOB, ORB) == {"x": b"his"}


def test_a_name_that_moves_while_one_is_judged(house: ShownHouse, callers: Callers, orb: str) -> None:
    """What was brought for somebody is not what the name stands for when it has come: it is not given to him, who is
    shown the other one by now."""
    download, question = Halt(f"{HERS}/x"), Halt(BOB)
    house.origin.before_download = download
    call = callers.start(BOB, ORB)
    download.wait()
    house.ticks += KEPT_SECONDS
    house.origin.asked = question
    download.open()
    question.wait()
    house.now += 1
    house.origin.versions[ORB] = Resolved(ORB, HIS, (), True, "tuesday")
    assert callers.fetch(ALICE, ORB, refresh=True) == {"x": b"his"}
    question.open()
    assert "made anew" in callers.fails(OriginUnavailable, call)
    assert callers.fetch(BOB, ORB) == {"x": b"his"}
