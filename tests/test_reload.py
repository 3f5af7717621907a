"""The configuration is read anew while the daemon serves: all of it or nothing, and who is served does not notice."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.until import until
from tests.rig.upkeep import call, held

READ_ANEW, STAYS = "the configuration was read anew", "the configuration stays as it was, as a whole"


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """A daemon of the test's own."""
    return start_daemon(proxy.uri, grace=0.0)


@pytest.fixture
def root(caller_of: CallerOf, daemon: Daemon, room: Path) -> Caller:
    """Who sees everything."""
    return caller_of(daemon, room, "root")


@pytest.fixture
def alice(caller_of: CallerOf, daemon: Daemon, room: Path) -> Caller:
    """Whom it serves."""
    return caller_of(daemon, room)


def _edit(daemon: Daemon, old: str, new: str, *, more: str = "") -> None:
    """As an editor does it: the file is another one then."""
    path = daemon.folder / "config.toml"
    text = path.read_text()
    assert old in text
    path.with_name("new").write_text(text.replace(old, new) + more)
    path.with_name("new").rename(path)


def _told(daemon: Daemon, words: str, count: int = 1) -> None:
    until(lambda: daemon.read_log().count(words) >= count, lambda: f"{words!r}\n{daemon.read_log()}")


def test_a_file_that_changes_counts_by_itself(daemon: Daemon, root: Caller) -> None:
    """Whether it is replaced or written over; and what has not changed is not told of."""
    _edit(daemon, 'capacity = "100GiB"', 'capacity = "7GiB"')
    _told(daemon, f"{READ_ANEW}: [store] capacity\n")
    assert call(root, "stats")["capacity_bytes"] == 7 << 30
    path = daemon.folder / "config.toml"
    path.write_text(path.read_text().replace('capacity = "7GiB"', 'capacity = "8GiB"'))
    until(lambda: call(root, "stats")["capacity_bytes"] == 8 << 30, daemon.read_log)


def test_what_a_folder_of_kubernetes_does(start_daemon: StartDaemon, proxy: CountingProxy) -> None:
    """A ConfigMap is links to a link that is exchanged: the file's own name never changes."""
    daemon = start_daemon(proxy.uri)
    daemon.stop()
    path = daemon.folder / "config.toml"
    for name, capacity in (("1", "100GiB"), ("2", "5GiB")):
        (daemon.folder / name).mkdir()
        (daemon.folder / name / path.name).write_text(path.read_text().replace("100GiB", capacity))
    path.unlink()
    path.symlink_to(f"..data/{path.name}")
    (daemon.folder / "..data").symlink_to("1")
    daemon.start()
    (daemon.folder / "..new").symlink_to("2")
    (daemon.folder / "..new").rename(daemon.folder / "..data")
    _told(daemon, f"{READ_ANEW}: [store] capacity\n")


def test_a_signal_has_it_read_anew(daemon: Daemon) -> None:
    """Also where nothing has changed: then that is said."""
    os.kill(daemon.pid, signal.SIGHUP)
    _told(daemon, f"{READ_ANEW}: nothing has changed")
    assert daemon.is_alive()


CHANGES: dict[str, tuple[str, str, str, Callable[[Caller, Caller, str], bool]]] = {
    "capacity": (
        'min_free = "1MiB"',
        'min_free = "3MiB"',
        "",
        lambda root, alice, uri: call(root, "stats")["min_free_bytes"] == 3 << 20,
    ),
    "who is let in": ("[access]", '[access]\ndeny = ["{alice}"]', "", lambda root, alice, uri: _is_refused(alice)),
    "who may pin": (
        "[access]",
        '[access]\noperators = ["{alice}"]',
        "",
        lambda root, alice, uri: "operator" in call(alice, "whoami")["roles"],
    ),
    "what is kept warm": (
        "[access]",
        "[access]",
        '\n[[warm]]\nuri = "{uri}"\n',
        lambda root, alice, uri: uri in held(root),
    ),
    "what is kept warm by times": (
        "[access]",
        "[access]",
        '\n[[warm]]\nuri = "{uri}"\nat = ["Mon..Fri 06:30", "Sat,Sun 09:00"]\n',
        lambda root, alice, uri: uri in held(root),
    ),
    "what rules drop": (
        "[access]",
        "[access]",
        '\n[[retention]]\nname = "nothing"\ndrop = "0s"\n',
        lambda root, alice, uri: bool(call(root, "sweep")) and not held(root),
    ),
    "quotas": (
        "[access]",
        "[access]",
        '\n[quotas.user."*"]\nheld = "1KiB"\n',
        lambda root, alice, uri: _is_over_quota(alice, uri),
    ),
}


def _is_refused(alice: Caller) -> bool:
    try:
        call(alice, "whoami")
    except errors.PermissionDenied:
        return True
    return False


def _is_over_quota(alice: Caller, uri: str) -> bool:
    try:
        alice.fetch(uri)
    except errors.QuotaExceeded:
        return True
    return False


@pytest.mark.parametrize("what", CHANGES)
def test_what_may_change(
    daemon: Daemon, root: Caller, alice: Caller, mlflow_proxied: MlflowServer, all_users: dict[str, object], what: str
) -> None:
    """Each goes by the new one as soon as that is told."""
    if what in ("who is let in", "who may pin") and not all_users:
        pytest.skip("needs users")
    uri = f"runs:/{mlflow_proxied.run({'a': os.urandom(3000)})}"
    if what == "what rules drop":
        alice.fetch(uri)
    old, new, more, is_so = CHANGES[what]
    names = {"alice": alice.user.name if alice.user else "", "uri": uri}
    for key, value in names.items():
        new, more = new.replace(f"{{{key}}}", value), more.replace(f"{{{key}}}", value)
    assert what == "quotas" or not is_so(root, alice, uri)
    _edit(daemon, old, new, more=more)
    _told(daemon, READ_ANEW)
    until(lambda: is_so(root, alice, uri), daemon.read_log, 90)


WRONG = {
    "a typing error": (
        "capacity =",
        "capacty =",
        r"config\.toml:3: \[store\] has no key capacty\. Did you mean capacity",
    ),
    "no TOML": ("[access]", "[access", r"config\.toml: this is not TOML"),
    "a contradiction": ('low = "90%"', 'low = "99%"', r"config\.toml:\d+: \[eviction\] low"),
    "what waits for a restart": (
        'policy = "gdsf"',
        'policy = "lru"',
        r"config\.toml: \[eviction\] policy cannot change while the daemon serves\. Restart it, or put back",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_changes_nothing(daemon: Daemon, root: Caller, what: str) -> None:
    """Nor does what is right beside it; the log says where, and what; and when it is mended, all of it counts."""
    old, new, words = WRONG[what]
    path = daemon.folder / "config.toml"
    right = path.read_text().replace('min_free = "1MiB"', 'min_free = "2MiB"')
    path.write_text(right.replace(old, new))
    _told(daemon, STAYS)
    assert re.search(words, daemon.read_log()), daemon.read_log()
    assert call(root, "stats")["min_free_bytes"] == 1 << 20
    path.write_text(right)
    until(lambda: call(root, "stats")["min_free_bytes"] == 2 << 20, daemon.read_log)
    path.unlink()
    os.kill(daemon.pid, signal.SIGHUP)
    _told(daemon, "config.toml cannot be read: No such file or directory.")
    assert daemon.is_alive()


def test_who_is_served_does_not_notice(
    daemon: Daemon, alice: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """Views stay leased, and a download that is under way goes on."""
    first = mlflow_proxied.run(trees.SMALL)
    second = mlflow_proxied.run({"a": os.urandom(1000)})
    code = """
        import artifactcache
        from tests.rig.trees import read
        view = artifactcache.fetch(first)
        say("viewed")
        other = artifactcache.fetch(second)
        result = [sorted(read(view.path)), other.file_count]
    """
    with alice.start(code, first=f"runs:/{first}", second=f"runs:/{second}") as job:
        assert job.hear() == "viewed"
        with proxy.holding():
            proxy.wait_for_download()
            _edit(daemon, 'capacity = "100GiB"', 'capacity = "99GiB"')
            _told(daemon, READ_ANEW)
        assert job.result() == [sorted(trees.SMALL), 1]


def test_who_is_put_out_gets_nothing_any_more(
    daemon: Daemon, alice: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """Not what was waited for, either."""
    if alice.user is None:
        pytest.skip("needs users")
    uri = f"runs:/{mlflow_proxied.run({'a': os.urandom(1000)})}"
    with alice.start("import artifactcache\nresult = artifactcache.fetch(uri).file_count", uri=uri) as job:
        with proxy.holding():
            proxy.wait_for_download()
            _edit(daemon, "[access]", f'[access]\ndeny = ["{alice.user.name}"]')
            _told(daemon, READ_ANEW)
        with pytest.raises(errors.PermissionDenied, match="deny"):
            job.result()


@pytest.mark.parametrize("what", ["a pipe", "a folder", "too long"])
def test_what_is_no_configuration_keeps_nobody_waiting(daemon: Daemon, root: Caller, what: str) -> None:
    """It is told, and the next one that is one counts."""
    path = daemon.folder / "config.toml"
    text = path.read_text()
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    os.kill(daemon.pid, signal.SIGHUP)
    _told(daemon, STAYS)
    (path.rmdir if what == "a folder" else path.unlink)()
    path.write_text(text.replace('min_free = "1MiB"', 'min_free = "2MiB"'))
    until(lambda: call(root, "stats")["min_free_bytes"] == 2 << 20, daemon.read_log)


@pytest.fixture
def manager(room: Path) -> Iterator[socket.socket]:
    """Where a service manager would listen."""
    path = str(room / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.settimeout(30)
        yield listener


def test_a_service_manager_is_told(
    start_daemon: StartDaemon, proxy: CountingProxy, manager: socket.socket, room: Path
) -> None:
    """Ready, and what it serves; that it lives, as often as is due; that it reads its configuration anew and is ready
    again; that it stops."""
    daemon = start_daemon(proxy.uri, env={"NOTIFY_SOCKET": str(room / "notify"), "WATCHDOG_USEC": "6000000"})
    heard: list[str] = []

    def hear(words: str) -> str:
        while not heard or words not in heard[-1]:
            heard.append(manager.recv(4096).decode())
        return heard[-1]

    assert f"STATUS=serving {proxy.uri} from {daemon.root}" in hear("READY=1")
    for _ in range(3):
        assert hear("WATCHDOG=1") == "WATCHDOG=1"
        heard.clear()
    os.kill(daemon.pid, signal.SIGHUP)
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d{6,}", hear("RELOADING=1"))
    hear("READY=1")
    daemon.stop()
    hear("STOPPING=1")
