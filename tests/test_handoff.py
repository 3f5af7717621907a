"""The handoff socket against a client that keeps no rules: nothing is linked elsewhere, and nobody else notices.

Everything here is sent by hand. The session is that of the user who runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from tests.rig import mute_fs, trees
from tests.rig.daemon import Daemon
from tests.rig.linking import FILES, Session
from tests.rig.until import until
from tests.rig.users import User
from tests.rig.wire import bearer, manifest_lines, stub

FOLDERS = ("sub", "sub/deep")


@pytest.fixture
def tree(room: Path) -> Path:
    """A folder made as the contract says."""
    return make_tree(room / ".artifactcache-test")


def make_tree(staging: Path) -> Path:
    staging.mkdir(mode=0o700)
    tree = staging / "tree"
    for folder in (tree, *(tree / name for name in FOLDERS)):
        folder.mkdir()
        folder.chmod(0o777)
    return tree


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def names_below(folder: Path) -> set[str]:
    """Every file below a folder, without following links."""
    return {os.path.join(where, name) for where, _, names in os.walk(folder) for name in names}


def test_links_by_the_rules(session: Session, tree: Path) -> None:
    """A client that keeps the rules gets the daemon's own blobs under the right names."""
    with opened(tree) as fd:
        reply = session.link(fd)
    assert reply.link.file_count == 3, reply
    assert trees.read(tree) == {name: data for name, data in FILES.items() if data}
    if os.geteuid() == 0:
        assert (tree / "a").stat().st_uid == session.daemon.user.uid  # type: ignore[union-attr]


def test_the_manifest_and_the_blobs(session: Session) -> None:
    """The descriptors are read-only, and are those of the manifest's files that are not empty, from `first` on."""
    with session.join() as joined:
        lines = manifest_lines(joined, session.lease)
        assert [line.split(b" ", 2)[2] for line in lines] == [b"a", b"empty", b"sub/b", b"sub/deep/c"]
        for first in (0, 1, 2):
            reply, fds = joined.ask(blobs=pb.BlobsRequest(lease=session.lease, first=first))
            contents = []
            for fd in fds:
                assert os.get_blocking(fd)
                with pytest.raises(OSError):
                    os.write(fd, b"x")
                with os.fdopen(fd, "rb") as file:
                    contents.append(file.read())
            assert reply.blobs.count == len(fds)
            assert contents == [b"file a", b"file b", b"file c"][first:]


@pytest.mark.parametrize("first", [3, 4, 1 << 40, (1 << 63) - 1, -1, -(1 << 62)])
def test_blobs_beyond_the_end(session: Session, first: int) -> None:
    """A place that no blob has is a failure, not somebody else's blob."""
    with session.join() as joined:
        reply, fds = joined.ask(blobs=pb.BlobsRequest(lease=session.lease, first=first))
    assert (reply.failure.error, fds) == ("InvalidRequest", [])


@pytest.mark.parametrize(("limit", "count"), [(0, 3), (1, 1), (2, 2), (3, 3), (129, 3), ((1 << 63) - 1, 3)])
def test_no_more_blobs_than_the_client_takes(session: Session, limit: int, count: int) -> None:
    """A client says how many descriptors it has room for; 0 leaves it to the daemon."""
    with session.join() as joined:
        reply, fds = joined.ask(blobs=pb.BlobsRequest(lease=session.lease, limit=limit))
    for fd in fds:
        os.close(fd)
    assert (reply.blobs.count, len(fds)) == (count, count)


@pytest.mark.parametrize("limit", [-1, -(1 << 62)])
def test_fewer_blobs_than_none(session: Session, limit: int) -> None:
    """A negative limit is a failure."""
    with session.join() as joined:
        reply, fds = joined.ask(blobs=pb.BlobsRequest(lease=session.lease, limit=limit))
    assert (reply.failure.error, fds) == ("InvalidRequest", [])


def assert_nothing_linked(elsewhere: Path, reply: pb.HandoffReply) -> None:
    assert reply.WhichOneof("reply") == "failure", reply
    assert reply.failure.error in ("InvalidRequest", "PermissionDenied", "ModeUnavailable"), reply
    assert reply.failure.message
    assert names_below(elsewhere) == set()


@pytest.mark.parametrize("where", FOLDERS)
def test_a_folder_that_is_a_symlink(session: Session, tree: Path, room: Path, where: str) -> None:
    """A symlink in a folder's place is not followed, even to a folder of the same user."""
    elsewhere = room / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    elsewhere.chmod(0o777)
    (elsewhere / "deep").chmod(0o777)
    for name in reversed(FOLDERS):
        if name.startswith(where):
            (tree / name).rmdir()
    (tree / where).symlink_to(elsewhere)
    with opened(tree) as fd:
        assert_nothing_linked(elsewhere, session.link(fd))


@pytest.mark.parametrize("where", FOLDERS)
def test_a_folder_of_another_user(session: Session, tree: Path, where: str, all_users: dict[str, User]) -> None:
    """Every folder has to be the session's user's own, whatever its mode: so one moved in from elsewhere is refused."""
    if not all_users:
        pytest.skip("needs several users")
    os.chown(tree / where, all_users["bob"].uid, all_users["bob"].gid)
    with opened(tree) as fd:
        assert_nothing_linked(tree / where, session.link(fd))


def test_a_tree_of_another_user(session: Session, tree: Path, all_users: dict[str, User]) -> None:
    """So has the tree itself."""
    if not all_users:
        pytest.skip("needs several users")
    os.chown(tree, all_users["bob"].uid, all_users["bob"].gid)
    with opened(tree) as fd:
        assert_nothing_linked(tree, session.link(fd))


@pytest.mark.parametrize("below", ["", "blobs", "staging", "views", "manifests", "quarantine"])
def test_the_store_itself(session: Session, below: str) -> None:
    """A descriptor of the daemon's own folders makes no links in them."""
    if os.geteuid() != 0:
        pytest.skip("the store is the caller's own")
    store = session.daemon.root
    before = names_below(store)
    with opened(store / below) as fd:
        reply = session.link(fd)
    assert reply.WhichOneof("reply") == "failure", reply
    assert names_below(store) == before


def test_a_folder_that_is_missing(session: Session, tree: Path) -> None:
    """The folders are the client's to make."""
    (tree / "sub" / "deep").rmdir()
    with opened(tree) as fd:
        reply = session.link(fd)
    assert reply.WhichOneof("reply") == "failure", reply


def test_a_name_that_is_taken(session: Session, tree: Path) -> None:
    """Nothing is overwritten: a name that is there already is a failure, and stays as it was."""
    (tree / "a").write_bytes(b"mine")
    with opened(tree) as fd:
        reply = session.link(fd)
    assert reply.WhichOneof("reply") == "failure", reply
    assert (tree / "a").read_bytes() == b"mine"


def test_a_name_that_is_a_symlink(session: Session, tree: Path, room: Path) -> None:
    """Nor is a symlink in a file's place followed."""
    (tree / "a").symlink_to(room / "target")
    with opened(tree) as fd:
        reply = session.link(fd)
    assert reply.WhichOneof("reply") == "failure", reply
    assert not (room / "target").exists()


def _regular_file(room: Path) -> int:
    (room / "file").write_text("x")
    return os.open(room / "file", os.O_RDWR)


def _socket(room: Path) -> int:
    left, right = socket.socketpair()
    right.close()
    return left.detach()


def _pipe(room: Path) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _fifo(room: Path) -> int:
    os.mkfifo(room / "fifo")
    return os.open(room / "fifo", os.O_RDONLY | os.O_NONBLOCK)


def _path_of_a_symlink(room: Path) -> int:
    (room / "target").mkdir(mode=0o777)
    (room / "link").symlink_to("target")
    return os.open(room / "link", os.O_PATH | os.O_NOFOLLOW)


def _deleted_folder(room: Path) -> int:
    (room / "gone").mkdir()
    fd = os.open(room / "gone", os.O_RDONLY)
    (room / "gone").rmdir()
    return fd


def _proc(room: Path) -> int:
    return os.open("/proc/self/fd", os.O_RDONLY)


@pytest.mark.parametrize(
    "kind",
    [_regular_file, _socket, _pipe, _fifo, _path_of_a_symlink, _deleted_folder, _proc],
    ids=lambda kind: kind.__name__[1:],
)
def test_a_descriptor_of_no_tree(session: Session, room: Path, kind: Callable[[Path], int]) -> None:
    """Whatever is passed in a folder's place is a failure, and neither blocks the daemon nor ends it."""
    fd = kind(room)
    try:
        reply = session.link(fd)
    finally:
        os.close(fd)
    assert reply.WhichOneof("reply") == "failure", reply
    assert session.daemon.is_alive()


def test_a_folder_of_a_filesystem_that_never_answers(session: Session, room: Path) -> None:
    """Nothing is asked of it: the request is refused at once, and nobody waits."""
    reason = mute_fs.reason_not_to_mount()
    if reason is not None:
        pytest.skip(reason)
    with mute_fs.mute(room / "mute"), opened(room / "mute", os.O_PATH) as fd:
        assert session.link(fd).failure.error == "ModeUnavailable"
        assert session.daemon.is_alive()


def test_a_folder_that_something_is_mounted_on(session: Session, tree: Path) -> None:
    """Another mount inside the tree gets no links, and is not even looked at."""
    reason = mute_fs.reason_not_to_mount()
    if reason is not None:
        pytest.skip(reason)
    (tree / "sub" / "deep").rmdir()
    with mute_fs.mute(tree / "sub" / "deep"), opened(tree) as fd:
        assert session.link(fd).WhichOneof("reply") == "failure"
        assert session.daemon.is_alive()


@pytest.mark.parametrize("count", [0, 2, 100])
def test_a_wrong_number_of_descriptors(session: Session, tree: Path, count: int) -> None:
    """One descriptor is asked for; none, or several, are a failure, and the daemon keeps none of them."""
    before = len(os.listdir(f"/proc/{session.daemon.pid}/fd"))
    with opened(tree) as fd, session.join() as joined:
        reply, _ = joined.ask(link=pb.LinkRequest(lease=session.lease), fds=(fd,) * count)
    assert reply.WhichOneof("reply") == "failure", reply
    assert names_below(tree) == set()
    until(lambda: len(os.listdir(f"/proc/{session.daemon.pid}/fd")) <= before + 2, "the daemon to close descriptors")


def test_descriptors_beside_requests_that_take_none(session: Session, tree: Path) -> None:
    """They are closed, not kept: a client cannot fill the daemon's table of descriptors."""
    before = len(os.listdir(f"/proc/{session.daemon.pid}/fd"))
    with opened(tree) as fd, session.join() as joined:
        for _ in range(20):
            _, fds = joined.ask(manifest=pb.ManifestRequest(lease=session.lease), fds=(fd,) * 100)
            for each in fds:
                os.close(each)
    until(lambda: len(os.listdir(f"/proc/{session.daemon.pid}/fd")) <= before + 2, "the daemon to close descriptors")


def test_a_lease_of_another_session(session: Session, daemon: Daemon, uri: str, tree: Path) -> None:
    """A lease belongs to the session that took it: nobody else can link, read or end it."""
    other = Session(daemon, uri)
    with opened(tree) as fd:
        reply = other.link(fd, lease=session.lease)
    assert reply.failure.error in ("InvalidRequest", "NotFound", "PermissionDenied"), reply
    with other.join() as joined:
        for request in (
            {"manifest": pb.ManifestRequest(lease=session.lease)},
            {"blobs": pb.BlobsRequest(lease=session.lease)},
        ):
            reply, fds = joined.ask(**request)
            assert (reply.WhichOneof("reply"), fds) == ("failure", []), reply
    assert names_below(tree) == set()
    with stub(daemon.socket_dir) as cache, contextlib.suppress(grpc.RpcError):
        cache.Release(pb.ReleaseRequest(lease=session.lease), metadata=bearer(other.token))
    other.handoff.close()
    with opened(tree) as fd:
        assert session.link(fd).link.file_count == 3


@pytest.mark.parametrize("lease", [0, 12345678, (1 << 64) - 1])
def test_a_lease_that_never_was(session: Session, tree: Path, lease: int) -> None:
    """It is a failure."""
    with opened(tree) as fd:
        assert_nothing_linked_or_unknown(session.link(fd, lease=lease))
    assert names_below(tree) == set()


def assert_nothing_linked_or_unknown(reply: pb.HandoffReply) -> None:
    assert reply.failure.error in ("InvalidRequest", "NotFound", "PermissionDenied"), reply


def test_a_released_lease(session: Session, tree: Path) -> None:
    """After Release the lease is gone; to release it again is no error."""
    with stub(session.daemon.socket_dir) as cache:
        for _ in range(2):
            cache.Release(pb.ReleaseRequest(lease=session.lease), metadata=bearer(session.token))
    with opened(tree) as fd:
        assert_nothing_linked_or_unknown(session.link(fd))


def test_a_folder_swapped_for_a_symlink_while_linking(session: Session, room: Path) -> None:
    """While the daemon links, the folders are swapped for symlinks to a folder elsewhere, again and again: it links
    into the tree or fails, and never elsewhere."""
    elsewhere = room / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    for folder in (elsewhere, elsewhere / "deep"):
        folder.chmod(0o777)
    outcomes = set()
    for attempt in range(60):
        tree = make_tree(room / f"staging-{attempt}")
        (tree / "link").symlink_to(elsewhere)
        done = threading.Event()

        def swap(tree: Path = tree, done: threading.Event = done) -> None:
            while not done.is_set():
                for old, new in (("sub", "real"), ("link", "sub"), ("sub", "link"), ("real", "sub")):
                    os.rename(tree / old, tree / new)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            with opened(tree) as fd:
                outcomes.add(session.link(fd).WhichOneof("reply"))
        finally:
            done.set()
            swapper.join()
        assert names_below(elsewhere) == set(), "the daemon linked through a symlink"
    assert outcomes <= {"link", "failure"}
