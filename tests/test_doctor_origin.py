"""The doctor and the tracking server: whether it answers the daemon, its clock, and whether it takes logins."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from tests.conftest import CallerOf, StartDaemon
from tests.rig.clockwork import Clockwork, clockwork
from tests.rig.daemon import Daemon
from tests.rig.doctor import doctor
from tests.rig.guarded_server import GuardedServer, guarded
from tests.rig.until import until
from tests.rig.wire import Handoff, bearer, error_name, stub


@pytest.fixture
def stand_in() -> Iterator[Clockwork]:
    """A tracking server that answers as it is told."""
    with clockwork() as server:
        yield server


# -- the tracking server ----------------------------------------------------------------------------------------------


def test_a_tracking_server_that_hangs(
    start_daemon: StartDaemon, stand_in: Clockwork, caller_of: CallerOf, room: Path
) -> None:
    """It is a finding, with what still works; the modes are tried as ever."""
    stand_in.hangs = True
    told = doctor(caller_of(start_daemon(stand_in.uri), room))
    assert told.levels("tracking server") == ["problem"]
    assert "answers nothing within 3 s" in told.text("tracking server")
    assert told.works["copy"] and told.levels("disk")[0] == "ok"


def test_a_tracking_server_that_is_not_there(
    start_daemon: StartDaemon, stand_in: Clockwork, caller_of: CallerOf, room: Path
) -> None:
    """Refused connections and names that nobody knows are told apart, and from a proxy that answers in its place."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
    alice = caller_of(start_daemon(uri), room)
    assert "no connection: [Errno 111] Connection refused" in doctor(alice).text("tracking server")
    alice = caller_of(start_daemon("http://no-such-host.invalid:5000"), room)
    assert "its name cannot be resolved on this host" in doctor(alice).text("tracking server")
    stand_in.status = 404
    told = doctor(caller_of(start_daemon(stand_in.uri), room))
    assert told.levels("tracking server") == ["note"] and "HTTP 404" in told.text("tracking server")


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [(600, "problem", "600 s ahead of"), (-20, "note", "20 s behind"), (2, "ok", "agrees")],
)
def test_a_tracking_server_with_another_clock(
    start_daemon: StartDaemon,
    stand_in: Clockwork,
    caller_of: CallerOf,
    room: Path,
    ahead: int,
    level: str,
    words: str,
) -> None:
    """What the Date of its answers says is compared with this host's clock; what differs too much is a problem."""
    stand_in.ahead_seconds = ahead
    told = doctor(caller_of(start_daemon(stand_in.uri), room))
    assert told.levels("clock") == [level]
    near = [words.replace(str(abs(ahead)), str(abs(ahead) + more)) for more in (-1, 0, 1)]
    assert any(each in told.text("clock") for each in near), told.text("clock")


def test_many_at_once(start_daemon: StartDaemon, stand_in: Clockwork) -> None:
    """The tracking server is asked for two of one user's checkups at a time; whoever asks once more is told so, and the
    two are answered."""
    daemon = start_daemon(stand_in.uri)
    stand_in.hangs = True
    with Handoff(daemon.socket_dir) as session, stub(daemon.socket_dir) as cache:
        whose = bearer(session.hello())
        under_way = [cache.Checkup.future(pb.CheckupRequest(), metadata=whose) for _ in range(2)]
        until(lambda: stand_in.asked == 2, "both of them to have the server asked")
        with pytest.raises(grpc.RpcError) as refused:
            cache.Checkup(pb.CheckupRequest(), metadata=whose)
        assert error_name(refused.value) == "QuotaExceeded"
        assert all("answers nothing within 3 s" in str(one.result()) for one in under_way)


def test_a_time_for_all_of_it(start_daemon: StartDaemon, stand_in: Clockwork, caller_of: CallerOf, room: Path) -> None:
    """--timeout ends it where something hangs, which is a problem, said with the time that it had; what was not begun
    by then is a note each."""
    stand_in.hangs = True
    told = doctor(caller_of(start_daemon(stand_in.uri), room), "--timeout", "2")
    assert told.status == 1 and told.levels("sockets") == ["ok"]
    (had,) = re.findall(r"this check was not done within ([\d.]+) s", told.text("daemon"))
    assert float(had) <= 2
    for check in ("destination", "credentials", "mlflow", "limits"):
        assert told.levels(check) == ["note"] and "the time of --timeout was over" in told.text(check)


# -- credentials ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(module_room: Path) -> Iterator[GuardedServer]:
    """A real tracking server with logins; alice has one."""
    with guarded(module_room / "guarded") as server:
        server.add_user("alice")
        yield server


@pytest.fixture(scope="module")
def asking(module_start: StartDaemon, server: GuardedServer) -> Daemon:
    """A daemon that asks as the caller."""
    return module_start(server.uri, check="caller", unreachable_after=30.0)


def test_a_login(asking: Daemon, server: GuardedServer, caller_of: CallerOf, room: Path) -> None:
    """One that is right is taken, one that is wrong refused, one that is missing asked for; and whence it is."""
    alice = caller_of(asking, room)
    told = doctor(alice, env=server.login("alice"))
    assert told.levels("credentials") == ["ok", "ok"]
    assert "takes the login of the caller" in told.text("credentials")
    assert "those of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told.text("credentials")
    wrong = server.login("alice") | {"MLFLOW_TRACKING_PASSWORD": "gue55ed"}
    told = doctor(alice, env=wrong)
    assert (told.status, told.levels("credentials")) == (1, ["problem", "ok"])
    assert "refuses the login of the caller" in told.text("credentials") and "gue55ed" not in str(told.document)
    told = doctor(alice)
    assert told.levels("credentials") == ["problem", "note"]
    assert "wants a login, and there is none of the caller" in told.text("credentials")


def test_files_of_credentials(asking: Daemon, server: GuardedServer, caller_of: CallerOf, room: Path) -> None:
    """MLflow's file and ~/.netrc are named where they are what counts; one that others can read is noted."""
    alice = caller_of(asking, room)
    home = alice.cwd
    (home / ".mlflow").mkdir()
    path = home / ".mlflow" / "credentials"
    login = server.login("alice")
    user, password = login["MLFLOW_TRACKING_USERNAME"], login["MLFLOW_TRACKING_PASSWORD"]
    path.write_text(f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n")
    path.chmod(0o644)
    told = doctor(alice, env={"HOME": str(home)})
    assert told.levels("credentials") == ["ok", "note", "ok"]
    assert f"{path} can be read by others (mode 0644)" in told.text("credentials")
    assert f"presented to the daemon: those of {path}" in told.text("credentials")
    assert password not in str(told.document)
    netrc = home / ".netrc"
    netrc.write_text(f"machine 127.0.0.1\nlogin {user}\npassword {password}\n")
    os.chown(netrc, alice.uid, -1)
    netrc.chmod(0o600)
    assert f"those of {netrc}" in doctor(alice, env={"HOME": str(home)}).text("credentials")


def test_credentials_that_stay_here(asking: Daemon, server: GuardedServer, caller_of: CallerOf, room: Path) -> None:
    """Those of another server are not presented, and those that no client can hand over are named."""
    alice = caller_of(asking, room)
    told = doctor(alice, env=server.login("alice") | {"MLFLOW_TRACKING_URI": "http://elsewhere.example:5000"})
    assert "no credentials are presented: they are for http://elsewhere.example:5000" in told.text("credentials")
    assert told.levels("mlflow")[0] == "problem" and "the plugin steps aside" in told.text("mlflow")
    told = doctor(alice, env={"MLFLOW_TRACKING_AWS_SIGV4": "true"})
    assert "MLFLOW_TRACKING_AWS_SIGV4 is set: such a login cannot be handed" in told.text("credentials")


def test_the_daemons_own_login(
    start_daemon: StartDaemon, server: GuardedServer, caller_of: CallerOf, room: Path
) -> None:
    """With an account of the daemon's, operators are told whether the tracking server lets it in; others nothing."""
    daemon = start_daemon(server.uri, unreachable_after=30.0)
    operator = caller_of(daemon, room).as_operator()
    assert "refuses the login of the daemon" in doctor(operator).text("credentials")
    if operator.uid != caller_of(daemon, room).uid:
        assert doctor(caller_of(daemon, room)).of("credentials") == []
