"""Metrics of a real daemon: that they are true, and that nobody is kept waiting by who reads them."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from artifactcache import errors
from cacheserver.metrics import PREFIX
from cacheserver.visitors import CLIENTS_MAX
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import _MAIN, START_SECONDS_MAX, Daemon
from tests.rig.interpreter import Interpreter
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.scraped import Scrape, names, of, page, until_counted
from tests.rig.until import until
from tests.rig.upkeep import ALL_BYTES, call, new_artifact
from tests.test_single_flight import ask, start

_DOCS = Path(__file__).resolve().parent.parent / "docs" / "operations.md"


@pytest.fixture(scope="module")
def port() -> int:
    """Where the module's daemon shows its metrics."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy, port: int) -> Daemon:
    """One with metrics, in which what was brought may go at once."""
    return module_start(origin.uri, grace=0.0, more=f'[metrics]\nlisten = "127.0.0.1:{port}"\n')


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Who may sweep."""
    return caller_of(daemon, room, "root")


def test_fetches_are_counted_as_they_were(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer, port: int
) -> None:
    """A miss, who joined it, hits as views and as hard links; bytes served, saved, and sent by the origin."""
    before, files = Scrape(page(port)), trees.unique(files_count=4, file_bytes=20_000)
    uri, size, sent = f"runs:/{mlflow_proxied.run(files)}", trees.size(files), origin.bytes
    with contextlib.ExitStack() as stack:
        first, second = start(stack, alice, uri, None), start(stack, alice, uri, None)
        with origin.holding():
            ask(first)
            origin.wait_for_download()
            ask(second)
            until(lambda: Scrape(page(port)).value("flights_joined_total") > before.value("flights_joined_total"), uri)
        assert sorted(one.result()[0] for one in (first, second)) == [False, True]
    alice.fetch(uri)
    alice.fetch(uri, alice.cwd / "out", mode="hardlink")
    expected = {
        of("fetches_total", result="miss", mode="view"): 1,
        of("fetches_total", result="joined", mode="view"): 1,
        of("fetches_total", result="hit", mode="view"): 1,
        of("fetches_total", result="hit", mode="lease"): 1,
        of("fetch_seconds_count", result="miss"): 1,
        of("fetch_seconds_count", result="joined"): 1,
        of("fetch_seconds_count", result="hit"): 2,
        of("fetch_seconds_bucket", result="hit", le="+Inf"): 2,
        of("served_bytes_total"): 4 * size,
        of("saved_bytes_total"): 3 * size,
        of("origin_bytes_total"): size,
        of("bring_seconds_count", outcome="brought"): 1,
        of("flights_joined_total"): 1,
        of("handoff_seconds_count", reply="link"): 1,
        of("requests_total", method="Fetch", code="OK", error=""): 4,
    }
    seen = until_counted(port, {key: before.value(key[0], **dict(key[1])) + more for key, more in expected.items()})
    assert origin.bytes - sent == size
    waited = seen.value("fetch_seconds_sum", result="miss") - before.value("fetch_seconds_sum", result="miss")
    assert waited >= seen.value("fetch_seconds_sum", result="hit") - before.value("fetch_seconds_sum", result="hit")


def test_what_is_held_is_shown_as_the_daemon_tells_it(
    operator: Caller, mlflow_proxied: MlflowServer, port: int
) -> None:
    """The same numbers as `stats`, and one pin."""
    uri = new_artifact(mlflow_proxied)
    call(operator, "pin", uri)
    told = call(operator, "stats")
    expected = {
        of("store_artifacts"): told["artifact_count"],
        of("store_trees"): told["tree_count"],
        of("store_blobs"): told["blob_count"],
        of("store_logical_bytes"): told["artifact_bytes"],
        of("store_physical_bytes"): told["blob_bytes"],
        of("store_capacity_bytes"): told["capacity_bytes"],
        of("store_min_free_bytes"): told["min_free_bytes"],
        of("pins"): 1,
        of("leases"): 0,
        of("downloads"): 0,
        of("scrape_failed_groups"): 0,
    }
    try:
        until_counted(port, expected)
    finally:
        call(operator, "unpin", uri)


def test_what_an_operator_evicts_is_counted_as_asked_for(
    operator: Caller, mlflow_proxied: MlflowServer, port: int
) -> None:
    """Trees and bytes, as the sweep told them; nothing of it for another reason."""
    call(operator, "warm", new_artifact(mlflow_proxied))
    before = Scrape(page(port))
    swept = call(operator, "sweep", free_bytes=ALL_BYTES)
    assert swept["tree_count"] >= 1 and swept["freed_bytes"] > 0
    expected = {
        of("evicted_trees_total", why=why): before.value("evicted_trees_total", why=why) for why in ("room", "rule")
    }
    expected[of("evicted_trees_total", why="asked")] = swept["tree_count"]
    expected[of("evicted_bytes_total", why="asked")] = swept["freed_bytes"]
    until_counted(port, expected)


def test_what_goes_for_other_reasons_is_counted_by_them(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """To make room for what comes; and because a rule wants it gone."""
    port = free_port()
    more = f'[metrics]\nlisten = "127.0.0.1:{port}"\n[[retention]]\nexperiment = "no such"\ndrop = "1s"\n'
    daemon = start_daemon(mlflow_proxied.uri, capacity="100KB", high="100%", low="99%", grace=0, more=more)
    alice = caller_of(daemon, room)
    sizes = []
    for _ in range(3):
        files = trees.unique(files_count=1, file_bytes=60_000)
        alice.fetch(f"runs:/{mlflow_proxied.run(files)}")
        sizes.append(trees.size(files))
    until_counted(
        port, {of("evicted_trees_total", why="room"): 2, of("evicted_bytes_total", why="room"): sum(sizes[:2])}
    )
    (daemon.folder / "config.toml").write_text(daemon.config.replace('experiment = "no such"\n', ""))
    until(lambda: Scrape(page(port)).value("evicted_trees_total", why="rule") == 1, daemon.read_log, 120)
    until_counted(port, {of("evicted_bytes_total", why="rule"): sizes[2]})


def test_errors_are_counted_by_kind(alice: Caller, port: int) -> None:
    """Under the call's name, its status, and the name of the error that the client raises."""
    key = of("requests_total", method="Fetch", code="NOT_FOUND", error="NotFound")
    before = Scrape(page(port)).value(key[0], **dict(key[1]))
    with pytest.raises(errors.NotFound):
        alice.fetch("models:/nobody-has-made-this/1")
    until_counted(port, {key: before + 1})


@pytest.mark.usefixtures("daemon")
def test_promtool_finds_nothing_to_object_to(port: int) -> None:
    """`promtool check metrics`, in both formats that Prometheus asks for."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: it comes with Debian's package prometheus")
    done = subprocess.run(
        ("promtool", "check", "metrics"), input=page(port), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert page(port, "application/openmetrics-text; version=1.0.0").endswith("# EOF\n")


@pytest.mark.usefixtures("daemon")
def test_every_metric_is_explained(port: int) -> None:
    """docs/operations.md has each of ours in its table, and none that is not there."""
    documented = {
        line.split("`")[1].split("{")[0]
        for line in _DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{PREFIX}")
    }
    of_accounts = {f"{PREFIX}account_held_bytes", f"{PREFIX}account_limit_bytes", f"{PREFIX}accounts_timestamp_seconds"}
    of_the_tier = {name for name in documented if name.startswith(f"{PREFIX}shared_")}
    shown = {name for name in names(page(port)) if name.startswith(PREFIX)}
    assert documented - of_accounts - of_the_tier == shown and of_accounts <= documented


def test_nobody_is_named(alice: Caller, mlflow_proxied: MlflowServer, daemon: Daemon, port: int) -> None:
    """Not who fetched, nor what: whoever can connect can read it."""
    run_id = mlflow_proxied.run(trees.unique())
    alice.fetch(f"runs:/{run_id}")
    text = page(port)
    assert run_id not in text and str(daemon.root) not in text and "account" not in text
    assert alice.user is None or alice.user.name not in text


_NO_TIER = '[shared]\nurl = "s3://nowhere/x"\nendpoint = "http://127.0.0.1:9"\npatience = 0.2\n'


def test_accounts_and_the_tier_are_shown_where_that_is_wanted(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """Each user's bytes, and the quota's limit; what is taken from a shared tier, and given."""
    port = free_port()
    more = f'[metrics]\nlisten = "127.0.0.1:{port}"\naccounts = true\n[quotas.user."*"]\nheld = "1MiB"\n'
    daemon = start_daemon(mlflow_proxied.uri, more=more + _NO_TIER)
    alice, files = caller_of(daemon, room), trees.unique()
    alice.fetch(f"runs:/{mlflow_proxied.run(files)}")
    name = str(alice.run("import pwd\nresult = pwd.getpwuid(os.getuid()).pw_name"))
    daemon.restart()  # it adds up when it starts
    expected = {
        of("account_held_bytes", user=name): trees.size(files),
        of("account_limit_bytes", user=name): 1 << 20,
    }
    until_counted(port, expected)
    documented = set(re.findall(rf"^\| `({PREFIX}shared_\w+)", _DOCS.read_text(encoding="utf-8"), re.M))
    assert documented == {name for name in names(page(port)) if name.startswith(f"{PREFIX}shared_")}


def test_who_is_slow_keeps_nobody_waiting(daemon: Daemon, port: int) -> None:
    """More connections than there is room for, that say nothing, or half of it, or read nothing: whoever asks is
    answered at once, and the daemon has no more open than it grants."""
    with contextlib.ExitStack() as stack:
        for number in range(3 * CLIENTS_MAX):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.sendall((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nAccept: x\r\n")[number % 3])
        assert Scrape(page(port)).value("scrape_failed_groups") == 0
        assert Scrape(page(port)).value("sessions") >= 0
        taken = Path(f"/proc/{daemon.pid}/net/tcp").read_text().split("\n")
        ours = [line for line in taken if f"0100007F:{port:04X} 0100007F" in line and " 01 " in line]
        assert len(ours) <= CLIENTS_MAX
    assert daemon.is_alive()


@pytest.mark.parametrize(
    ("path", "data", "status"), [("/", None, 404), ("/metrics/../etc/passwd", None, 404), ("/metrics", b"x", 405)]
)
def test_there_is_nothing_else(daemon: Daemon, port: int, path: str, data: bytes | None, status: int) -> None:
    """No other path, and nothing to be sent."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data=data, timeout=10)
    assert refused.value.code == status


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("127.0.0.1:{port}", "something else listens there already: write another port, or stop it."),
        ("192.0.2.1:9464", "this host has no such address: write one of its own, or 0.0.0.0 or [::] for all of them."),
        ("no.such.host.invalid:9464", "this address cannot be listened at: "),
    ],
)
def test_where_it_cannot_listen_the_daemon_does_not_start(
    interpreter: Interpreter, room: Path, listen: str, words: str
) -> None:
    """It says which key, and what to write."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = listen.format(port=taken.getsockname()[1])
        (room / "config.toml").write_text(
            f'[store]\nroot = "{room}/store"\n[server]\nsocket_dir = "{room}/sockets"\n[metrics]\nlisten = "{listen}"\n'
        )
        done = subprocess.run(
            (str(interpreter.python), "-c", _MAIN, "serve", "--config", str(room / "config.toml")),
            env=interpreter.env | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert f'cacheserver: [metrics] listen = "{listen}": {words}' in done.stderr and "Traceback" not in done.stderr
