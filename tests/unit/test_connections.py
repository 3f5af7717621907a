"""The connections of the handoff socket: nobody's requests keep anybody else waiting."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver import connections as room
from cacheserver.connections import Connection, Connections
from tests.rig.until import until

SECONDS_MAX = 20.0  # before a test gives up
OTHER_UID = 54321


class Board:
    """Connections whose requests are answered by `answer`, and what came of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[Connection, bytes], None] = lambda connection, packet: None
        self.ended: list[Connection] = []
        self.closed: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        path.chmod(0o777)
        self._listener.listen(100)
        self.connections = Connections(self._listener, self._work, self.ended.append, self.closed.append)
        self._clients: list[socket.socket] = []

    def client(self, uid: int | None = None) -> socket.socket:
        """A new connection; of another user where `uid` says so, for the kernel looks when it is made."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(SECONDS_MAX)
        self._clients.append(client)
        if uid is not None:
            os.seteuid(uid)
        try:
            client.connect(str(self.path))
        finally:
            if uid is not None:
                os.seteuid(0)
        return client

    def close(self) -> None:
        """Hangs up on everybody."""
        for client in self._clients:
            client.close()
        self.connections.stop()

    def _work(self, connection: Connection) -> bool:
        packet = connection.socket.recv(100)
        if not packet:
            return False
        self.answer(connection, packet)
        connection.socket.send(b"done " + packet)
        return True


@pytest.fixture
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("board")
    for each in (folder, *folder.parents):  # pytest's folders are its user's alone
        if each.stat().st_uid == os.geteuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o011)
    board = Board(folder / "sock")
    board.connections.start()
    yield board
    board.close()


def asked(client: socket.socket, packet: bytes = b"x") -> bytes:
    """One request and its answer."""
    client.send(packet)
    return client.recv(100)


def test_a_connection_is_answered_again_and_again(board: Board) -> None:
    """Each request has its answer, and the end of a connection is told."""
    one, other = board.client(), board.client()
    for n in range(20):
        assert asked(one, b"%d" % n) == b"done %d" % n
        assert asked(other) == b"done x"
    one.close()
    assert asked(other) == b"done x"
    while not board.ended:
        assert asked(other) == b"done x"
    assert len(board.ended) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_slow_requests_of_one_user_keep_no_other_waiting(board: Board) -> None:
    """One user's requests take only a share of the workers, and are all answered in the end."""
    go, most, lock = threading.Event(), 0, threading.Lock()
    running = 0

    def answer(connection: Connection, packet: bytes) -> None:
        nonlocal most, running
        if connection.peer.uid == OTHER_UID:
            with lock:
                running += 1
                most = max(most, running)
            assert go.wait(SECONDS_MAX)
            with lock:
                running -= 1

    board.answer = answer
    slow = [board.client(OTHER_UID) for _ in range(room.REQUESTS_MAX + 10)]
    for client in slow:
        client.send(b"slow")
    quick = board.client()
    for _ in range(3):
        assert asked(quick, b"quick") == b"done quick"
    go.set()
    assert [client.recv(100) for client in slow] == [b"done slow"] * len(slow)
    assert most <= room.REQUESTS_PER_USER_MAX


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_one_user_cannot_take_all_connections(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has as many as one may is hung up on; another user is not, and what ends makes room."""
    monkeypatch.setattr(room, "CONNECTIONS_PER_USER_MAX", 3)
    mine = [board.client(OTHER_UID) for _ in range(3)]
    assert [asked(client) for client in mine] == [b"done x"] * 3
    assert board.client(OTHER_UID).recv(100) == b""
    assert asked(board.client()) == b"done x"
    mine[0].close()
    while not board.ended:
        assert asked(mine[1]) == b"done x"
    assert asked(board.client(OTHER_UID)) == b"done x"


def test_who_says_nothing_is_hung_up_on(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is for those who ask; who has asked once may be silent for as long as they like."""
    asker = board.client()
    assert asked(asker) == b"done x"
    monkeypatch.setattr(room, "GREETING_SECONDS", 0.05)
    assert board.client().recv(100) == b""
    assert asked(asker) == b"done x"


def test_a_request_that_fails_ends_its_connection_only(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """A defect is logged, and everybody else is served as before."""

    def answer(connection: Connection, packet: bytes) -> None:
        if packet == b"bad":
            raise RuntimeError("a defect")

    board.answer = answer
    assert asked(board.client(), b"bad") == b""
    assert asked(board.client()) == b"done x"
    assert "a defect" in caplog.text


def test_a_failure_of_the_watching_thread_does_not_end_it(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only one: it goes on with the next connection."""
    real = room._peer

    def fail(client: socket.socket) -> object:
        monkeypatch.setattr(room, "_peer", real)
        raise RuntimeError("a defect")

    monkeypatch.setattr(room, "_peer", fail)
    board.client()
    assert asked(board.client()) == b"done x"


def test_what_was_sent_and_not_read_is_seen() -> None:
    """The kernel's count falls when the other side reads."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        connection = Connection(left, room._peer(left), 0.0)
        assert not connection.has_unread()
        left.send(b"x")
        assert connection.has_unread()
        right.recv(10)
        assert not connection.has_unread()


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR], ids=["half", "both ways"])
def test_a_connection_keeps_its_place_until_it_is_read(board: Board, monkeypatch: pytest.MonkeyPatch, how: int) -> None:
    """Its end is told at once, but who hangs up without reading has no room for another connection."""
    monkeypatch.setattr(room, "CONNECTIONS_PER_USER_MAX", 2)
    monkeypatch.setattr(room, "LINGER_SECONDS", 0.01)
    unread, asker = board.client(), board.client()
    unread.send(b"x")
    assert unread.recv(100, socket.MSG_PEEK) == b"done x"
    unread.shutdown(how)
    until(lambda: board.ended, "the end to be told")
    for _ in range(5):
        assert asked(asker) == b"done x"
        assert board.client().recv(100) == b"", "it has no place left"
    assert not board.closed
    assert unread.recv(100) == b"done x"
    until(lambda: board.closed, "the connection to be closed")
    assert board.closed == board.ended
    assert asked(board.client()) == b"done x"


def test_a_client_that_closes_without_reading_keeps_no_place(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in a closed socket is gone."""
    monkeypatch.setattr(room, "LINGER_SECONDS", 0.01)
    client = board.client()
    client.send(b"x")
    assert client.recv(100, socket.MSG_PEEK) == b"done x"
    client.close()
    until(lambda: board.closed, "the connection to be closed")


def test_a_client_that_sends_its_own_end_keeps_no_place(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that was not read holds what lies beside it: the client's own end, which then never closes by itself,
    nor is what it has not read thrown away. It is, when the connection is over."""
    monkeypatch.setattr(room, "LINGER_SECONDS", 0.01)
    both_are_sent = threading.Event()

    def answer(connection: Connection, packet: bytes) -> None:
        if packet == b"last":
            both_are_sent.wait(SECONDS_MAX)
            raise OSError

    board.answer = answer
    client = board.client()
    client.send(b"x")
    assert client.recv(100, socket.MSG_PEEK) == b"done x"
    client.send(b"last")
    for packet in (b"", b"", b"never read", b""):
        client.sendmsg([packet])
        socket.send_fds(client, [packet], [client.fileno()])
    both_are_sent.set()
    client.close()
    until(lambda: board.closed, "the connection to be closed")
