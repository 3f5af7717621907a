"""What may be at the destination before, and what is there after: the whole artifact, or what was there before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactcache import errors
from tests.rig import trees
from tests.rig.caller import Caller, Job
from tests.rig.mlflow_server import MlflowServer

FILES: trees.Files = {"a": b"new a", "sub/b": b"new b", "sub/empty": b""}
MODES = ("copy", "hardlink")


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(FILES)}"


def make(alice: Caller, code: str, path: Path) -> None:
    """Let alice make something at `path`."""
    alice.run(f"from pathlib import Path\npath = Path(path)\n{code}", path=str(path))


OBSTACLES: dict[str, str] = {
    "folder": "path.mkdir(); (path / 'a').write_text('old a'); (path / 'other').write_text('other')",
    "empty folder": "path.mkdir()",
    "file": "path.write_text('a file')",
    "link to a folder": "t = path.parent / 'target'; t.mkdir(); (t / 'a').touch(); path.symlink_to('target')",
    "link to a file": "(path.parent / 'target').write_text('a file'); path.symlink_to('target')",
    "dangling link": "path.symlink_to('nowhere')",
    "fifo": "os.mkfifo(path)",
}


def picture(folder: Path) -> dict[str, object]:
    """Everything below a folder: what kind it is, and its content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_exists_is_left_alone(alice: Caller, uri: str, obstacle: str) -> None:
    """By default anything at the destination, even a dangling link, is DestinationExists, and nothing is touched."""
    dst = alice.cwd / "dst"
    make(alice, OBSTACLES[obstacle], dst)
    before = picture(alice.cwd)
    with pytest.raises(errors.DestinationExists):
        alice.fetch(uri, dst)
    assert picture(alice.cwd) == before


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("mode", MODES)
def test_replace(alice: Caller, uri: str, obstacle: str, mode: str) -> None:
    """`replace` leaves exactly the artifact under that name; what a link pointed to is not touched."""
    dst = alice.cwd / "dst"
    make(alice, OBSTACLES[obstacle], dst)
    target = alice.cwd / "target"
    before = picture(target) if target.is_dir() else target.read_bytes() if target.exists() else None
    alice.fetch(uri, dst, exists="replace", mode=mode)
    assert not dst.is_symlink()
    assert trees.read(dst) == FILES
    after = picture(target) if target.is_dir() else target.read_bytes() if target.exists() else None
    assert after == before
    assert set(os.listdir(alice.cwd)) <= {"dst", "target"}


@pytest.mark.parametrize("mode", MODES)
def test_merge(alice: Caller, uri: str, mode: str) -> None:
    """`merge` overwrites the same names and keeps the others."""
    dst = alice.cwd / "dst"
    make(
        alice,
        "path.mkdir(); (path / 'a').write_text('old a'); (path / 'sub').mkdir(); (path / 'sub/other').touch()",
        dst,
    )
    alice.fetch(uri, dst, exists="merge", mode=mode)
    assert trees.read(dst) == FILES | {"sub/other": b""}
    assert os.listdir(alice.cwd) == ["dst"]


def test_merge_into_nothing(alice: Caller, uri: str) -> None:
    """Without a destination `merge` makes one."""
    alice.fetch(uri, alice.cwd / "dst", exists="merge")
    assert trees.read(alice.cwd / "dst") == FILES


def test_merge_does_not_write_through_a_link(alice: Caller, uri: str) -> None:
    """A file that a caller holds by hard link elsewhere is replaced under its name, not overwritten in place."""
    dst = alice.cwd / "dst"
    make(alice, "path.mkdir(); (path / 'a').write_text('old a'); os.link(path / 'a', path.parent / 'kept')", dst)
    alice.fetch(uri, dst, exists="merge")
    assert (alice.cwd / "kept").read_bytes() == b"old a"
    assert trees.read(dst) == FILES


def test_merge_over_links_of_its_own(alice: Caller, uri: str, mlflow_proxied: MlflowServer) -> None:
    """Merging a second artifact over hard links to the first leaves the first's bytes as they were."""
    dst = alice.cwd / "dst"
    alice.fetch(uri, dst, mode="hardlink")
    other = {"a": b"another a", "sub/b": b"another b"}
    alice.fetch(f"runs:/{mlflow_proxied.run(other)}", dst, mode="hardlink", exists="merge")
    assert trees.read(dst) == FILES | other
    assert trees.read(alice.fetch(uri).path) == FILES


@pytest.mark.parametrize(
    "code",
    [
        "path.mkdir(); (path / 'sub').write_text('a file where a folder has to be')",
        "path.mkdir(); (path / 'a').mkdir(); (path / 'a/x').touch()",
        "path.mkdir(); (path.parent / 'elsewhere').mkdir(); (path / 'sub').symlink_to('../elsewhere')",
    ],
)
def test_merge_where_kinds_differ(alice: Caller, uri: str, code: str) -> None:
    """A file in a folder's place, or a folder in a file's, or a link out of the tree: a typed error, or the right
    bytes under the destination; nothing is written behind a link."""
    dst = alice.cwd / "dst"
    make(alice, code, dst)
    try:
        alice.fetch(uri, dst, exists="merge")
    except (errors.DestinationExists, errors.InvalidRequest):
        pass
    else:
        assert (dst / "a").read_bytes() == b"new a"
        assert (dst / "sub" / "b").read_bytes() == b"new b"
    elsewhere = alice.cwd / "elsewhere"
    assert not elsewhere.exists() or os.listdir(elsewhere) == []
    assert not [name for name in os.listdir(alice.cwd) if name not in ("dst", "elsewhere")]


@pytest.mark.parametrize("exists", ["replace", "merge"])
def test_one_file_over_what_exists(alice: Caller, uri: str, exists: str) -> None:
    """An artifact of one file takes a file's place."""
    dst = alice.cwd / "dst"
    make(alice, "path.write_text('old')", dst)
    with pytest.raises(errors.DestinationExists):
        alice.fetch(f"{uri}/a", dst)
    assert dst.read_bytes() == b"old"
    assert alice.fetch(f"{uri}/a", dst, exists=exists).path == dst
    assert dst.read_bytes() == b"new a"
    assert os.listdir(alice.cwd) == ["dst"]


def test_parents_that_are_missing(alice: Caller, uri: str) -> None:
    """They are made, and belong to the caller."""
    dst = alice.cwd / "x" / "y" / "dst"
    alice.fetch(uri, dst)
    assert trees.read(dst) == FILES
    assert {path.stat().st_uid for path in (dst, dst.parent, dst.parent.parent)} == {alice.uid}


def _unwritable_parent(alice: Caller) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs a user whom modes stop")
    make(alice, "path.mkdir(); path.chmod(0o555)", alice.cwd / "closed")
    return alice.cwd / "closed" / "dst"


def _parent_is_a_file(alice: Caller) -> Path:
    make(alice, "path.write_text('x')", alice.cwd / "file")
    return alice.cwd / "file" / "dst"


def _parent_is_dangling(alice: Caller) -> Path:
    make(alice, "path.symlink_to('nowhere')", alice.cwd / "dangling")
    return alice.cwd / "dangling" / "dst"


def _name_too_long(alice: Caller) -> Path:
    return alice.cwd / ("x" * 300)


def _grandparent_of_others(alice: Caller) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs a user whom modes stop")
    return Path("/") / "artifactcache-must-not-be-here" / "dst"


@pytest.mark.parametrize(
    "obstacle", [_unwritable_parent, _parent_is_a_file, _parent_is_dangling, _name_too_long, _grandparent_of_others]
)
@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_where_nothing_can_be_made(alice: Caller, uri: str, obstacle: Callable[[Caller], Path], mode: str) -> None:
    """A destination that cannot be made is a typed error that says whose move it is, and nothing is left behind."""
    dst = obstacle(alice)
    before = picture(alice.cwd)
    with pytest.raises(errors.CacheError) as caught:
        alice.fetch(uri, dst, mode=mode)
    assert type(caught.value) in (errors.PermissionDenied, errors.InvalidRequest, errors.DestinationExists)
    assert picture(alice.cwd) == before


def test_a_failure_leaves_no_parents(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """A fetch that fails leaves nothing, not even the parents that it would have made."""
    with pytest.raises(errors.NotFound):
        alice.fetch(f"runs:/{mlflow_proxied.run(FILES)}/missing", alice.cwd / "x" / "y" / "dst")
    assert os.listdir(alice.cwd) == []


def test_the_destination_is_never_half_made(alice: Caller, mlflow_file: MlflowServer) -> None:
    """Somebody who looks at the destination all the time sees nothing or the whole tree."""
    files = {f"{number:04}": b"x" for number in range(1000)}
    dst = alice.cwd / "dst"
    job = alice.start(
        "import artifactcache\nsay('go')\nresult = artifactcache.fetch(uri, dst).file_count",
        uri=mlflow_file.artifact_uri(mlflow_file.run(files)),
        dst=str(dst),
    )
    with job:
        job.hear()
        seen: set[int] = set()
        while len(files) not in seen:
            assert job.process.poll() is None or dst.exists()
            if dst.exists():
                seen.add(len(os.listdir(dst)))
        assert job.result() == len(files)
    assert seen == {len(files)}


def test_a_killed_caller_leaves_no_destination(alice: Caller, uri: str, mlflow_file: MlflowServer) -> None:
    """A caller that is killed while it places a tree has made no destination; the next fetch there works."""
    files = {f"{number:05}": b"x" for number in range(3000)}
    big = mlflow_file.artifact_uri(mlflow_file.run(files))
    alice.fetch(big)
    dst = alice.cwd / "dst"
    with alice.start("import artifactcache\nartifactcache.fetch(uri, dst, mode='copy')", uri=big, dst=str(dst)) as job:
        while not os.listdir(alice.cwd):
            assert job.process.poll() is None
        job.kill()
    assert not dst.exists()
    assert trees.read(alice.fetch(uri, dst).path) == FILES


MANY: trees.Files = {f"many/{number}": b"x" for number in range(3000)}


def stopped_at_work(alice: Caller, job: Job) -> bool:
    """Let a fetch go on until it has made some of the tree, and stop it there. False where it has ended instead."""
    job.process.send_signal(signal.SIGCONT)
    while not list(alice.cwd.glob("**/.artifactcache-*/tree/many/*")):
        if job.process.poll() is not None:
            return False
    job.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, job.pid, os.WSTOPPED)
    assert not list(alice.cwd.glob("dst/many")), "it was done before it could be stopped: the tree is too small"
    return True


@pytest.fixture
def merging(alice: Caller, mlflow_file: MlflowServer) -> Job:
    """A process that is about to merge `MANY` into alice's `dst`."""
    uri = mlflow_file.artifact_uri(mlflow_file.run(MANY))
    alice.fetch(uri)
    return alice.start("import artifactcache\nartifactcache.fetch(uri, 'dst', mode='copy', exists='merge')", uri=uri)


def test_a_merge_into_what_is_replaced_meanwhile(alice: Caller, uri: str, merging: Job) -> None:
    """The artifact is merged into what stands there in the end."""
    dst = alice.cwd / "dst"
    make(alice, "path.mkdir(); (path / 'old').touch()", dst)
    with merging as job:
        assert stopped_at_work(alice, job)
        alice.fetch(uri, dst, exists="replace")
        job.process.send_signal(signal.SIGCONT)
        job.result()
    assert trees.read(dst) == FILES | MANY
    assert os.listdir(alice.cwd) == ["dst"]


def test_a_merge_into_what_is_replaced_again_and_again(alice: Caller, uri: str, merging: Job) -> None:
    """It gives up, and says why; what the other has put there is whole."""
    dst = alice.cwd / "dst"
    make(alice, "path.mkdir()", dst)
    with merging as job:
        while stopped_at_work(alice, job):
            alice.fetch(uri, dst, exists="replace")
        with pytest.raises(errors.DestinationExists, match="replaced by somebody else"):
            job.result()
    assert trees.read(dst) == FILES
    assert os.listdir(alice.cwd) == ["dst"]


def test_a_merge_into_what_comes_meanwhile(alice: Caller, uri: str, merging: Job) -> None:
    """Where nothing was, and somebody else makes the folder first, it is merged into that."""
    with merging as job:
        assert stopped_at_work(alice, job)
        alice.fetch(uri, alice.cwd / "dst")
        job.process.send_signal(signal.SIGCONT)
        job.result()
    assert trees.read(alice.cwd / "dst") == FILES | MANY
    assert os.listdir(alice.cwd) == ["dst"]
