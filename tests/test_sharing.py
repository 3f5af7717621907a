"""What all users share, and one of them would have for himself: others are served beside him."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver.downloads import DOWNLOADS_MAX
from tests.conftest import StartDaemon
from tests.rig import users
from tests.rig.lying import HONEST, Lie, LyingOrigin, Reply, file, flat
from tests.rig.mlflow_server import MlflowServer
from tests.rig.survival import People
from tests.rig.until import until

HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # RFC 9113, with empty SETTINGS


def begins(reply: Reply) -> None:
    """A download that begins, and does not go on."""
    reply.head(Content_Length=10)
    reply.hang()


def test_downloads_of_another_user(start_daemon: StartDaemon, liar: LyingOrigin, people: People, room: Path) -> None:
    """However many files one user waits for, of however many artifacts, another one's are downloaded beside them."""
    if not people.users:
        pytest.skip(users.reason_not_to_add() or "")
    stuck = Lie(flat(*(file(str(number)) for number in range(DOWNLOADS_MAX))), lambda path: begins)
    runs, honest = [liar.run(stuck) for _ in range(6)], f"runs:/{liar.run(HONEST)}"
    daemon = start_daemon(liar.uri, unreachable_after=30.0)
    alice, bob = (people.caller_of(daemon, room, role) for role in ("alice", "bob"))
    code = f"""
        import artifactcache, threading
        def fetch(run_id):
            try:
                artifactcache.fetch("runs:/" + run_id)
            except artifactcache.CacheError:
                pass
        threads = [threading.Thread(target=fetch, args=(run_id,), daemon=True) for run_id in {runs}]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """
    with alice.start(code) as hoarder:
        until(lambda: liar.download_count >= DOWNLOADS_MAX // 2, "as many downloads as there are of one user")
        assert not bob.fetch(honest, timeout=20).hit
        hoarder.kill()


def test_connections_of_another_user(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, uri: str, people: People, room: Path
) -> None:
    """However many connections to cache.sock one user makes, and makes anew, another one gets in."""
    if not people.users:
        pytest.skip(users.reason_not_to_add() or "")
    daemon = start_daemon(mlflow_proxied.uri, open_files_max=400)
    alice, bob = (people.caller_of(daemon, room, role) for role in ("alice", "bob"))
    code = f"""
        import socket
        def connect():
            made = socket.socket(socket.AF_UNIX)
            made.connect({str(daemon.socket_dir / "cache.sock")!r})
            try:
                made.sendall({HTTP2_GREETING!r})
            except OSError:
                pass
            return made
        kept = [connect() for _ in range(600)]
        say("full")
        while True:  # what was closed is made anew
            for number, one in enumerate(kept):
                one.setblocking(False)
                try:
                    while one.recv(1024): pass
                    kept[number] = connect()
                except BlockingIOError: pass
                except OSError: kept[number] = connect()
        """
    with alice.start(code) as hoarder:
        assert hoarder.hear() == "full"

        def bob_is_served() -> bool:
            with contextlib.suppress(CacheError):
                return bob.fetch(uri).file_count > 0
            return False

        until(bob_is_served, "bob to get in")
        hoarder.kill()
    assert "has more than its share of connections" in daemon.read_log()
