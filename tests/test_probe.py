"""The probe by hand: what it is, what it is not, and what a client can make of it that does not keep the rules."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.v1 import cache_pb2 as pb
from tests.conftest import StartDaemon
from tests.rig.caller import identity
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.linking import Session
from tests.rig.wire import Handoff

PROBE = pb.ProbeRequest()


@pytest.fixture
def folder(room: Path) -> Path:
    """An empty folder to link into, as a client makes it."""
    made = room / "tree"
    made.mkdir()
    made.chmod(0o777)
    return made


@contextlib.contextmanager
def probed(session: Session, *paths: Path, flags: int = os.O_RDONLY) -> Iterator[tuple[pb.HandoffReply, list[int]]]:
    """A reply, with its descriptors, which are closed at the end."""
    given = tuple(os.open(path, flags) for path in paths)
    with session.join() as joined:
        reply, fds = joined.ask(fds=given, probe=PROBE)
    try:
        yield reply, fds
    finally:
        for fd in (*given, *fds):
            os.close(fd)


def same_mount(daemon: Daemon, folder: Path) -> bool:
    """Whether the store is where links to this folder can be had."""
    found = [subprocess.check_output(("findmnt", "-no", "ID", "--target", path)) for path in (daemon.root, folder)]
    return found[0] == found[1]


def test_what_it_is(session: Session, daemon: Daemon, folder: Path) -> None:
    """A read-only descriptor of a file of the daemon's own, of 4 KiB that say what they are, with no byte of any
    artifact; linked into the caller's folder by one name where links go, and with the reason where they do not."""
    with probed(session, folder) as (reply, (fd,)):
        found, probe = os.fstat(fd), reply.probe
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (4096, 0o444)
        assert found.st_uid == daemon.root.stat().st_uid and os.get_blocking(fd)
        assert os.pread(fd, 100, 0).startswith(b"On this file `artifactcache doctor` tries")
        with pytest.raises(OSError):
            os.write(fd, b"x")
        views = (daemon.root / "views").stat()
        assert probe.views_path == os.fsencode(daemon.root / "views")
        assert (probe.views_device, probe.views_inode) == (views.st_dev, views.st_ino)
        if same_mount(daemon, folder):
            assert (probe.linked_as, probe.no_link) == ("probe", "")
            assert os.path.samestat((folder / "probe").stat(), found)
        else:
            assert probe.linked_as == "" and probe.no_link and os.listdir(folder) == []
    assert daemon.staging() == []


def test_without_a_folder(session: Session) -> None:
    """Nothing is linked then, and nothing said of links."""
    with probed(session) as (reply, fds):
        assert (len(fds), reply.probe.linked_as, reply.probe.no_link) == (1, "", "")


def test_it_tells_nothing_of_what_is_held(session: Session, folder: Path, uri: str) -> None:
    """It is the same file for whoever asks, with a lease or without, and needs none."""
    with Handoff(session.daemon.socket_dir) as other:
        other.hello()
        reply, fds = other.ask(probe=PROBE)
    with probed(session) as (again, more):
        assert reply == again and os.path.samestat(os.fstat(fds[0]), os.fstat(more[0]))
    os.close(fds[0])


def test_before_hello(daemon: Daemon) -> None:
    """Who has not said who they are gets none."""
    with Handoff(daemon.socket_dir) as nobody:
        reply, fds = nobody.ask(probe=PROBE)
    assert (reply.WhichOneof("reply"), fds) == ("failure", [])


def test_no_folder_to_link_into(session: Session, folder: Path, room: Path) -> None:
    """A file, a folder of somebody else's, two of them, and a folder in which the name is taken: each is refused, with
    no descriptor, and nothing is linked or followed."""
    (room / "file").write_text("")
    (room / "planted").mkdir()
    taken = room / "taken"
    taken.mkdir()
    (taken / "probe").symlink_to(room / "planted" / "here")
    cases = [[room / "file"], [folder, folder], [taken], [Path("/etc")], [session.daemon.root]]
    for paths in cases:
        with probed(session, *paths) as (reply, fds):
            refused = reply.failure.error == "InvalidRequest" and not fds
            assert refused or (reply.probe.no_link and not reply.probe.linked_as), (paths, reply)
    assert os.listdir(room / "planted") == [] and (taken / "probe").is_symlink() and os.listdir(folder) == []


def test_what_is_in_its_place(session: Session, daemon: Daemon, room: Path) -> None:
    """One that was removed, cut off or replaced by a symlink is made anew: nothing else is handed out in its place."""
    place = daemon.root / "probe"
    (room / "secret").write_bytes(b"s" * 4096)
    for meddling in ("gone", "short", "symlink", "pipe"):
        place.unlink(missing_ok=True)
        if meddling == "short":
            place.write_bytes(b"short")
        elif meddling == "symlink":
            place.symlink_to(room / "secret")
        elif meddling == "pipe":
            os.mkfifo(place)
        with probed(session) as (_, (fd,)):
            assert os.pread(fd, 12, 0) == b"On this file", meddling
    place.unlink()
    place.mkdir()
    with probed(session) as (reply, fds):
        assert (reply.failure.error, fds) == ("CacheError", [])
        assert "probe" in reply.failure.message
    place.rmdir()


def test_who_asks_without_an_end(session: Session, daemon: Daemon) -> None:
    """Descriptors that are not read count against the user as any others do: he is answered, and hung up on when he is
    seen to ask without reading, be it while he does. The store has one probe all the while."""
    answered = 0
    with session.join() as joined:
        packet = pb.HandoffRequest(probe=PROBE).SerializeToString()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(50):
                joined.send_bytes(packet)
        with contextlib.suppress(EOFError):
            while answered < 50:
                with contextlib.suppress(ConnectionResetError):  # told once, and before what has come until then
                    _, (fd,) = joined.receive()
                    os.close(fd)
                    answered += 1
    assert answered
    assert daemon.is_alive() and daemon.staging() == []
    assert [name for name in os.listdir(daemon.root) if "probe" in name] == ["probe"]


def test_a_store_with_a_probe_is_sound(start_daemon: StartDaemon, origin: CountingProxy, uri: str) -> None:
    """`fsck` does not mind it, nor the next daemon, which hands it out again."""
    daemon = start_daemon(origin.uri)
    session = Session(daemon, uri)
    with probed(session) as (_, fds):
        assert len(fds) == 1
    session.handoff.close()
    daemon.stop()
    command = (str(daemon.interpreter.python), "-m", "cacheserver", "fsck", "--config", daemon.folder / "config.toml")
    said = subprocess.check_output(command, env=daemon.environment(), text=True, **identity(daemon.user))
    assert said.splitlines()[-1] == "sound" and "probe" not in said
    daemon.start()
    with contextlib.closing(Session(daemon, uri).handoff) as handoff:
        reply, fds = handoff.ask(probe=PROBE)
        assert reply.WhichOneof("reply") == "probe"
        os.close(fds[0])
