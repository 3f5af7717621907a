"""What a caller asks wrongly is told to the caller, and costs nobody else anything."""

from __future__ import annotations

import os
from typing import Any

import pytest

from artifactcache import errors, request
from cacheserver import selection as daemons_selection
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

RUN = "0123456789abcdef" * 2
MALFORMED = (
    "",
    " ",
    "runs:",
    "runs:/",
    "runs://",
    "models:/",
    "models:/name",
    "models:/name/",
    "models:/name@",
    "models:/@alias",
    "models:/name/one",
    "models:/name/-1",
    "models:/name/1/../2",
    "nonsense",
    "nonsense:/x",
    "/etc/passwd",
    "./relative",
    f"runs:/{RUN}/..",
    f"runs:/{RUN}/../{RUN}",
    f"runs:/{RUN}/a/../../b",
    f"runs:/{RUN}//etc/passwd",
    f"runs:/{RUN}/a\0b",
    f"runs:/{RUN}/{'x' * 256}",
    f"runs:/{RUN}/{'x/' * 4000}y",
    "mlflow-artifacts:/../../etc",
    "mlflow-artifacts:/a/../../etc/passwd",
    "\0",
    "x" * 100_000,
)


@pytest.mark.parametrize("uri", MALFORMED, ids=lambda uri: repr(uri[:40]))
def test_a_malformed_uri(alice: Caller, uri: str) -> None:
    """InvalidRequest (or NotFound, where it could have been a name); never bytes, never a defect."""
    with pytest.raises((errors.InvalidRequest, errors.NotFound)):
        alice.fetch(uri, alice.cwd / "dst")
    assert os.listdir(alice.cwd) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"uri": f"runs:/{RUN}", "run_id": RUN},
        {"uri": f"runs:/{RUN}", "artifact_path": "a"},
        {"artifact_path": "a"},
        {"run_id": RUN, "artifact_path": "../x"},
        {"run_id": RUN, "artifact_path": "/etc"},
        {"run_id": RUN, "artifact_path": "a\0b"},
        {"run_id": RUN, "artifact_path": "x" * 300},
        {"run_id": ""},
        {"uri": f"runs:/{RUN}", "mode": "teleport"},
        {"uri": f"runs:/{RUN}", "exists": "perhaps", "dst": "dst"},
        {"uri": f"runs:/{RUN}", "mode": "copy"},
        {"uri": f"runs:/{RUN}", "mode": "view", "dst": "dst"},
        {"uri": f"runs:/{RUN}", "mode": "hardlink", "dst": "dst", "writable": True},
        {"uri": f"runs:/{RUN}", "dst": ""},
        {"uri": f"runs:/{RUN}", "dst": "a\0b"},
        {"uri": f"runs:/{RUN}", "include": [""]},
        {"uri": f"runs:/{RUN}", "include": ["a\0b"]},
        {"uri": f"runs:/{RUN}", "include": ["x" * 100_000]},
        {"uri": f"runs:/{RUN}", "include": ["*"] * 100_000},
        {"uri": f"runs:/{RUN}", "timeout": -1},
    ],
    ids=lambda options: repr(options)[:60],
)
def test_arguments_that_contradict(alice: Caller, options: dict[str, Any]) -> None:
    """Arguments that make no sense are InvalidRequest, or ModeUnavailable where it is the mode; nothing is done."""
    code = "import artifactcache\nartifactcache.fetch(**options)"
    allowed = (errors.InvalidRequest, errors.ModeUnavailable)
    with pytest.raises(allowed):
        alice.run(code, options=options)
    assert os.listdir(alice.cwd) == []


@pytest.mark.parametrize(
    "pattern",
    ["[", "[!", "**[", "{a,b}", "(", "*" * 200, "**/" * 200 + "x", "a**b", "\\", "[z-a]", "?" * 300, "../*", "/x"],
)
def test_patterns_that_are_no_good(alice: Caller, daemon: Daemon, mlflow_proxied: MlflowServer, pattern: str) -> None:
    """Any pattern is either refused or selects; none of them hangs the daemon or breaks it."""
    uri = f"runs:/{mlflow_proxied.run({'a' * 60: b'1', 'x/y/z': b'2'})}"
    try:
        handed = alice.fetch(uri, include=[pattern], timeout=20.0)
    except errors.InvalidRequest:
        pass
    else:
        assert set(trees.read(handed.path)) <= {"a" * 60, "x/y/z"}
    assert daemon.is_alive()


@pytest.mark.parametrize(("include", "exclude"), [(101, 0), (0, 101), (60, 60)])
def test_too_many_patterns(include: int, exclude: int) -> None:
    """The client refuses what the daemon would refuse, in the same words; of both kinds together 100 are taken."""
    included, excluded = ([f"{kind}{n}" for n in range(count)] for kind, count in (("i", include), ("e", exclude)))
    with pytest.raises(errors.InvalidRequest) as by_daemon:
        daemons_selection.Selection.of(included, excluded)
    with pytest.raises(errors.InvalidRequest) as by_client:
        request.selection(f"runs:/{RUN}", include=included, exclude=excluded)
    assert str(by_client.value) == str(by_daemon.value)
    assert len(request.selection(f"runs:/{RUN}", include=included[:50], exclude=excluded[:50]).include) <= 100
    assert request.PATTERNS_MAX == daemons_selection.PATTERNS_MAX


ODD_NAMES = (
    "a b",
    "a%20b",
    "a%2520b",
    "a#b",
    "a?b",
    "a?b=c&d",
    "a&b",
    "a+b",
    "a;b",
    "a:b",
    "a\\b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a'b",
    'a"b',
    "ünïcödé",
    "e\u0301",
    "\u00e9",
    "日本",
    "-rf",
    "~",
    "$HOME",
    "*",
    "[x]",
    "a ",
    " a",
    ".hidden",
    "...",
    "MLmodel~",
    "a%",
    "a%zz",
    "a%2Fb",
    "a%00b",
    "x" * 255,
    "\U0001f600",
    "\x7f",
    "\x01",
)
AMBIGUOUS = {
    "a b": b"space",
    "a%20b": b"quoted",
    "a": b"plain",
    "a#b": b"hash",
    "a?b": b"question",
    "d/a b": b"d",
    "d/a%20b": b"e",
}
NOT_UTF8 = {"caf\udce9": b"latin-1", "d\udcff/\udc80": b"below", "plain": b"plain"}


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
@pytest.mark.parametrize("root", ["proxied", "file"])
def test_odd_names(
    alice: Caller, daemon: Daemon, mlflow_servers: tuple[MlflowServer, MlflowServer], root: str, name: str
) -> None:
    """A file and a folder of any name that a filesystem can have: right bytes, or a typed error; never wrong bytes."""
    server = mlflow_servers[root == "file"]
    files = {name: f"the file {name}".encode(), f"folder/{name}": b"nested", "z": b"z"}
    uri = server.artifact_uri(server.run(files))
    try:
        handed = alice.fetch(uri, alice.cwd / "dst")
    except errors.CacheError as error:
        assert type(error) in (errors.InvalidRequest, errors.NotFound, errors.Corrupted, errors.OriginUnavailable)
        assert root == "proxied", "a file:// root can serve every name"
        assert os.listdir(alice.cwd) == []
    else:
        assert trees.read(handed.path) == files
    assert daemon.staging() == []


@pytest.mark.parametrize("root", ["proxied", "file"])
@pytest.mark.parametrize("files", [AMBIGUOUS, NOT_UTF8], ids=["ambiguous", "not UTF-8"])
def test_names_that_collide(
    alice: Caller, mlflow_servers: tuple[MlflowServer, MlflowServer], root: str, files: trees.Files
) -> None:
    """Names that MLflow's HTTP interface confuses, and names that are no text: right bytes or a typed error."""
    server = mlflow_servers[root == "file"]
    uri = server.artifact_uri(server.run(files))
    try:
        handed = alice.fetch(uri, alice.cwd / "dst")
    except errors.CacheError as error:
        assert type(error) is not errors.CacheError
        assert root == "proxied" or files is NOT_UTF8
        assert os.listdir(alice.cwd) == []
    else:
        assert trees.read(handed.path) == files


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "a?b"])
def test_asking_for_an_odd_name(alice: Caller, mlflow_proxied: MlflowServer, name: str) -> None:
    """A file or folder asked for by such a name is that one and not its neighbour, or a typed error."""
    uri = f"runs:/{mlflow_proxied.run(AMBIGUOUS)}"
    try:
        handed = alice.fetch(f"{uri}/{name}")
    except errors.CacheError as error:
        assert type(error) in (errors.InvalidRequest, errors.NotFound, errors.Corrupted, errors.OriginUnavailable)
    else:
        assert handed.path.read_bytes() == AMBIGUOUS[name]


def test_empty_folders(alice: Caller, mlflow_file: MlflowServer) -> None:
    """Where the origin has empty folders the tree has them too, at a destination and in a view."""
    files = {"a": b"a", "empty/": b"", "deep/er/empty/": b"", "deep/b": b"b"}
    uri = mlflow_file.artifact_uri(mlflow_file.run(files))
    assert trees.read(alice.fetch(uri).path) == files
    for mode in ("copy", "hardlink"):
        assert trees.read(alice.fetch(uri, alice.cwd / mode, mode=mode).path) == files


def test_a_link_at_a_file_root_is_not_a_way_out(alice: Caller, mlflow_file: MlflowServer) -> None:
    """A symbolic link among the artifacts gives the bytes of a file that the daemon may read, or a typed error; what
    is handed over is a tree of files and folders."""
    run_id = mlflow_file.run(SMALL)
    (mlflow_file.folder(run_id) / "link").symlink_to("MLmodel")
    (mlflow_file.folder(run_id) / "loop").symlink_to(".")
    try:
        handed = alice.fetch(mlflow_file.artifact_uri(run_id), alice.cwd / "dst", timeout=60)
    except errors.CacheError as error:
        assert type(error) is not errors.CacheError
        assert os.listdir(alice.cwd) == []
    else:
        assert trees.below(trees.read(handed.path), "data") == trees.below(SMALL, "data")


def test_a_path_that_is_a_prefix_of_another(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """`data` is not `data2`: a path is compared by its parts."""
    uri = f"runs:/{mlflow_proxied.run({'data/a': b'a', 'data2/b': b'b', 'data.txt': b'c'})}"
    alice.fetch(uri)
    assert trees.read(alice.fetch(f"{uri}/data").path) == {"a": b"a"}
    assert trees.read(alice.fetch(f"{uri}/data2").path) == {"b": b"b"}
    with pytest.raises(errors.NotFound):
        alice.fetch(f"{uri}/dat")


def test_the_daemon_answers_after_all_this(daemon: Daemon) -> None:
    """None of it has hurt the daemon."""
    assert daemon.is_alive()
