"""An origin that lies: right bytes or a typed error, nothing half-made, and the daemon none the worse for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import lying, trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.lying import HONEST, Lie, LyingOrigin, file, flat, folder
from tests.rig.slow import slow_but
from tests.rig.users import User

TEN = b"0123456789"


@pytest.fixture(scope="module")
def liar() -> Iterator[LyingOrigin]:
    """One liar for all tests of this module."""
    with lying.lying_origin() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, liar: LyingOrigin) -> Daemon:
    """A daemon that believes in it."""
    return module_start(liar.uri, unreachable_after=3.0)


def _endless(reply: lying.Reply) -> None:
    reply.head(Connection="close")
    for _ in range(4096):  # 256 MiB, if it is taken
        reply.write(bytes(1 << 16))
    reply.hang_up()


BYTES: dict[str, lying.Answer] = {
    "one byte short": lying.sends(TEN[:9]),
    "one byte short in chunks": lying.sends_chunked(TEN[:9]),
    "one byte short until close": lying.sends_until_close(TEN[:9]),
    "nothing": lying.sends(b""),
    "nothing in chunks": lying.sends_chunked(b""),
    "nothing until close": lying.sends_until_close(b""),
    "one byte more": lying.sends(TEN + b"x"),
    "one byte more in chunks": lying.sends_chunked(TEN + b"x"),
    "one byte more until close": lying.sends_until_close(TEN + b"x"),
    "breaks off": lying.breaks_off(TEN[:5], 10),
    "breaks off in chunks": lying.breaks_off_chunked(TEN[:5]),
    "promises more than is listed": lying.breaks_off(TEN, 1 << 40),
    "hangs up at once": lambda reply: reply.hang_up(),
    "fails with 500": lying.fails(500),
    "fails with 503": lying.fails(503),
    "has gone": lying.fails(404),
    "an endless answer": _endless,
}


def assert_refused(alice: Caller, daemon: Daemon, uri: str, *expected: type[errors.CacheError]) -> None:
    """The fetch ends with one of these errors, nothing half-made is left, and nothing is held of it."""
    with pytest.raises(errors.CacheError) as caught:
        alice.fetch(uri, alice.cwd / "dst", timeout=60)
    assert type(caught.value) in expected, repr(caught.value)
    assert os.listdir(alice.cwd) == []
    assert daemon.staging() == []
    assert daemon.is_alive()
    assert not list(alice.cwd.parent.glob("escaped*"))


def test_the_honest_run(alice: Caller, liar: LyingOrigin) -> None:
    """Without a lie this origin is as good as any."""
    handed = alice.fetch(f"runs:/{liar.run(HONEST)}", alice.cwd / "dst")
    assert trees.read(handed.path) == {"MLmodel": TEN, "data/a.bin": TEN, "data/empty": b""}


@pytest.mark.parametrize(
    ("where", "kind"),
    slow_but(
        itertools.product(("alone", "among others"), BYTES),
        lambda case: case[1] in ("one byte short", "breaks off"),
    ),
)
def test_bytes_that_are_not_as_listed(alice: Caller, daemon: Daemon, liar: LyingOrigin, where: str, kind: str) -> None:
    """10 bytes are listed and something else comes: never handed over, with or without a length, alone or in a tree."""
    answer = BYTES[kind]
    if where == "alone":
        lie = Lie(flat(file("a")), lambda path: answer)
    else:
        names = [file(f"f{number}") for number in range(5)]
        lie = Lie(flat(*names), lambda path: answer if path == "f3" else lying.sends(TEN))
    assert_refused(alice, daemon, f"runs:/{liar.run(lie)}", errors.Corrupted, errors.OriginUnavailable, errors.NotFound)


def test_a_lie_that_ends(alice: Caller, liar: LyingOrigin) -> None:
    """What failed because of the origin succeeds once it tells the truth; the failure is not kept."""
    run_id = liar.run(Lie(flat(file("a")), lambda path: lying.sends(TEN[:9])))
    with pytest.raises(errors.CacheError):
        alice.fetch(f"runs:/{run_id}")
    liar.lies[run_id] = Lie(flat(file("a")))
    assert trees.read(alice.fetch(f"runs:/{run_id}").path) == {"a": TEN}


NAMES = {
    "up": "../escaped",
    "far up": "../../../../../../../../tmp/escaped",
    "up inside": "a/../../escaped",
    "dot dot": "..",
    "dot": ".",
    "absolute": "/tmp/escaped",
    "absolute twice": "//tmp/escaped",
    "empty": "",
    "slash": "/",
    "double slash": "a//b",
    "NUL": "a\0b",
    "too long": "x" * 256,
    "much too long": "x" * 100_000,
    "deep": "x/" * 3000 + "y",
    "quoted up": "%2e%2e/escaped",
    "backslashes": "..\\escaped",
    "a file URI": "file:///etc/passwd",
    "a drive": "C:/escaped",
    "lone surrogate": "\ud800",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_names_that_lead_elsewhere(
    alice: Caller, daemon: Daemon, liar: LyingOrigin, name: str, kind: str, all_users: dict[str, User]
) -> None:
    """A listed name is one or more plain components below its folder: anything else is refused, or is a plain name."""
    entry = file(name) if kind == "file" else folder(name)
    lie = Lie(lambda path: [file("good"), entry] if not path else [file("inside")])
    before = set(Path("/tmp").glob("escaped*"))
    try:
        handed = alice.fetch(f"runs:/{liar.run(lie)}", alice.cwd / "dst", timeout=60)
    except errors.CacheError as error:
        assert type(error) in (errors.InvalidRequest, errors.Corrupted, errors.OriginUnavailable), repr(error)
        assert os.listdir(alice.cwd) == []
    else:
        assert all(".." not in Path(path).parts for path in trees.read(handed.path))
        assert os.listdir(alice.cwd) == ["dst"]
    assert daemon.staging() == []
    assert daemon.is_alive()
    assert set(Path("/tmp").glob("escaped*")) == before
    assert not list(alice.cwd.parent.glob("escaped*")) + list(daemon.root.parent.rglob("escaped*"))


LISTINGS: dict[str, Lie] = {
    "the same name twice": Lie(flat(file("a"), file("a"))),
    "the same name with two sizes": Lie(flat(file("a", 10), file("a", 11))),
    "a file and a folder of one name": Lie(lambda path: [file("a"), folder("a")] if not path else [file("b")]),
    "a file below a file": Lie(flat(file("a"), file("a/b"))),
    "a folder that contains itself": Lie(lambda path: [folder("a")]),
    "a folder of a million deep": Lie(lambda path: [file("f"), folder("x" * 100)]),
    "a negative size": Lie(flat(file("a", -1))),
    "a size that is text": Lie(flat(file("a", "many"))),
    "a size beyond all disks": Lie(flat(file("a", 1 << 62))),
    "a size beyond 64 bits": Lie(flat(file("a", 1 << 70))),
    "a fractional size": Lie(flat(file("a", 10.5))),
    "no path": Lie(flat({"is_dir": False, "file_size": 10})),
    "a path that is a number": Lie(flat({"path": 7, "is_dir": False, "file_size": 10})),
    "no kind": Lie(flat({"path": "a", "file_size": 10})),
    "entries that are text": Lie(lambda path: lambda reply: reply.json({"files": ["a", "b"]})),
    "files that are text": Lie(lambda path: lambda reply: reply.json({"files": "a"})),
    "a list": Lie(lambda path: lambda reply: reply.json([1, 2, 3])),
    "null": Lie(lambda path: lambda reply: reply.json(None)),
    "no JSON": Lie(lambda path: lambda reply: reply.sized(b"<html>login here</html>")),
    "half of a JSON": Lie(lambda path: lambda reply: reply.sized(b'{"files": [{"path": "a", "is_d')),
    "not UTF-8": Lie(lambda path: lambda reply: reply.sized(b'{"files": [{"path": "\xff\xfe", "is_dir": false}]}')),
    "nested too deep": Lie(lambda path: lambda reply: reply.sized(b"[" * 200_000)),
    "breaks off": Lie(lambda path: lying.breaks_off(b'{"files": [', 1000)),
    "500": Lie(lambda path: lying.fails(500)),
}


@pytest.mark.parametrize("lie", LISTINGS.values(), ids=LISTINGS.keys())
def test_listings_that_make_no_sense(alice: Caller, daemon: Daemon, liar: LyingOrigin, lie: Lie) -> None:
    """A listing that no tree can have ends in a typed error within bounds, or in the one tree that it can mean."""
    try:
        handed = alice.fetch(f"runs:/{liar.run(lie)}", alice.cwd / "dst", timeout=60)
    except errors.CacheError as error:
        assert type(error) in (errors.Corrupted, errors.OriginUnavailable, errors.InvalidRequest, errors.NoSpace), repr(
            error
        )
        assert os.listdir(alice.cwd) == []
    else:
        assert set(trees.read(handed.path).values()) <= {TEN}
        assert len(trees.read(handed.path)) <= 1
    assert daemon.staging() == []
    assert daemon.is_alive()


def test_millions_of_entries(alice: Caller, daemon: Daemon, liar: LyingOrigin) -> None:
    """A listing without end is given up at a limit: folders of 1,000 folders of 1,000 folders …"""
    lie = Lie(lambda path: [folder(f"{number:03}") for number in range(1000)])
    assert_refused(
        alice,
        daemon,
        f"runs:/{liar.run(lie)}",
        errors.Corrupted,
        errors.OriginUnavailable,
        errors.InvalidRequest,
        errors.DeadlineExceeded,
    )


@pytest.mark.parametrize("what", ["listing", "download"])
def test_an_origin_that_hangs(alice: Caller, daemon: Daemon, liar: LyingOrigin, what: str) -> None:
    """One that says nothing is OriginUnavailable after `unreachable_after`, and short calls do not wait behind it."""
    lie = Lie(lambda path: lying.hangs()) if what == "listing" else Lie(flat(file("a")), lambda path: lying.hangs())
    uri = f"runs:/{liar.run(lie)}"
    with alice.start("import artifactcache\nartifactcache.fetch(uri)", uri=uri) as job:
        assert daemon.is_alive()
        with pytest.raises(errors.OriginUnavailable):
            job.result()
    assert daemon.staging() == []


def test_what_is_held_survives_a_liar(alice: Caller, daemon: Daemon, liar: LyingOrigin) -> None:
    """What was fetched while an origin was honest is still served after it turned into a liar; a refresh fails."""
    run_id = liar.run(HONEST)
    honest = alice.fetch(f"runs:/{run_id}", alice.cwd / "honest")
    liar.lies[run_id] = Lie(HONEST.listing, lambda path: lying.sends(b"short"))
    with pytest.raises(errors.CacheError):
        alice.fetch(f"runs:/{run_id}", alice.cwd / "refreshed", refresh=True)
    again = alice.fetch(f"runs:/{run_id}", alice.cwd / "again")
    assert trees.read(again.path) == trees.read(honest.path)
    assert again.digest == honest.digest
    assert sorted(os.listdir(alice.cwd)) == ["again", "honest"]


def test_a_listing_without_sizes(alice: Caller, liar: LyingOrigin, caller_of: CallerOf) -> None:
    """MLflow's listing leaves the size of an empty file out: a file of unknown size is taken as HTTP frames it."""
    lie = Lie(
        flat({"path": "none", "is_dir": False}, {"path": "null", "is_dir": False, "file_size": None}),
        lambda path: lying.sends(b""),
    )
    try:
        handed = alice.fetch(f"runs:/{liar.run(lie)}")
    except errors.CacheError as error:
        assert type(error) in (errors.Corrupted, errors.OriginUnavailable)
    else:
        assert trees.read(handed.path) == {"none": b"", "null": b""}


NONSENSE: dict[str, object] = {
    "no object": 5,
    "empty": {},
    "a run that is none": {"run": 5},
    "no place": {"run": {"info": {"run_id": "x", "status": "FINISHED", "artifact_uri": ""}, "data": {}}},
    "half a surrogate pair": {"run": {"info": {"run_id": "x", "status": "FINISHED", "artifact_uri": "s3://\ud800/x"}}},
    "a list": [1, 2],
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_an_answer_that_makes_no_sense(
    alice: Caller, liar: LyingOrigin, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """It is the origin's fault and said to be that; nothing of it is remembered."""
    run_id = liar.run(HONEST)
    monkeypatch.setitem(liar.answers, "runs/get", answer)
    with pytest.raises((errors.Corrupted, errors.OriginUnavailable)):
        alice.fetch(f"runs:/{run_id}")
    monkeypatch.delitem(liar.answers, "runs/get")
    assert alice.fetch(f"runs:/{run_id}").file_count == 3


@pytest.mark.parametrize("answer", [{}, {"model_version": {"name": "m", "version": ""}}, {"model_version": 1}])
def test_an_alias_that_leads_to_no_version(
    alice: Caller, liar: LyingOrigin, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """It is the origin's fault as well."""
    monkeypatch.setitem(liar.answers, "registered-models/alias", answer)
    with pytest.raises(errors.Corrupted):
        alice.fetch("models:/m@champion")
