"""Fixtures. What they are made of is in `tests/rig`; here is only how long each of them lives."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.rig import attacker, linking, mlflow_server, mounts, users
from tests.rig.base import make_base, remove_base
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.guarded_server import guarded
from tests.rig.interpreter import Interpreter, open_interpreter, own_interpreter
from tests.rig.lying import LyingOrigin, lying_origin
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem
from tests.rig.plugin import MlflowUser, write_distribution
from tests.rig.spawner import Helper
from tests.rig.survival import People
from tests.rig.users import User

_numbers = itertools.count(1)


class StartDaemon(Protocol):
    """Start a daemon that lives as long as the fixture that starts it; `config` is that of `config_text`."""

    def __call__(
        self,
        tracking_uri: str,
        *,
        root: Path | None = None,
        env: dict[str, str] | None = None,
        open_files_max: int | None = None,
        **config: Any,
    ) -> Daemon: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of `tests/test_fuzz.py`; the seed is also that of kills, power cuts, faults, the soak and games."""
    parser.addoption("--inputs", type=int, default=1000, help="how much nonsense is sent to each socket")
    parser.addoption("--seed", type=int, default=None, help="of what is left to chance, as it was printed")
    parser.addoption("--minutes", type=float, default=20.0, help="how long `make soak` lasts")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing in the tests' own process may be served by a cache, or tell anyone that it ran."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that the fixtures clean up then as well
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup: all that the tests start would ignore it too
            signal.signal(number, handler)
    config.addinivalue_line("markers", "slow: takes minutes; `make test-slow` runs it")
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", ARTIFACTCACHE="off")


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt(f"signal {signum}")


# --- the session -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """The folder of everything; unmounted and deleted at the end."""
    folder = make_base()
    try:
        yield folder
    finally:
        remove_base(folder)


@pytest.fixture(scope="session")
def all_users() -> Iterator[dict[str, User]]:
    """The daemon's user, alice and bob; empty where users cannot be made."""
    if users.reason_not_to_add() is not None:
        yield {}
        return
    try:
        users.remove_users()
        yield {role: users.add_user(role) for role in ("daemon", "alice", "bob")}
    finally:
        users.remove_users()


@pytest.fixture(scope="session")
def interpreter(base: Path, all_users: dict[str, User]) -> Interpreter:
    """A Python that all of them can run."""
    return open_interpreter(base / "python") if all_users else own_interpreter()


@pytest.fixture(scope="session")
def helper(all_users: dict[str, User], interpreter: Interpreter) -> Iterator[Helper]:
    """Who forks daemons, instead of a second of imports for each."""
    with contextlib.closing(Helper(interpreter, all_users.get("daemon"))) as helper:
        yield helper


@pytest.fixture(scope="session")
def mlflow_servers(base: Path) -> Iterator[tuple[MlflowServer, MlflowServer]]:
    """Both servers, for as long as the session."""
    (base / "mlflow").mkdir()
    with mlflow_server.serving(base / "mlflow") as servers:
        yield servers


@pytest.fixture(scope="session")
def mlflow_proxied(mlflow_servers: tuple[MlflowServer, MlflowServer]) -> MlflowServer:
    """The server that serves artifacts itself (`mlflow-artifacts:`)."""
    return mlflow_servers[0]


@pytest.fixture(scope="session")
def mlflow_file(mlflow_servers: tuple[MlflowServer, MlflowServer]) -> MlflowServer:
    """The server whose artifacts lie below a `file://` root."""
    return mlflow_servers[1]


@pytest.fixture(scope="session")
def model(mlflow_proxied: MlflowServer) -> Any:
    """A real logged and registered model: version 1 of `doubler`, which `champion` points to."""
    info = mlflow_proxied.log_model("doubler")
    mlflow_proxied.client.set_registered_model_alias("doubler", "champion", "1")
    return info


@pytest.fixture(scope="module")
def uri(mlflow_proxied: MlflowServer) -> str:
    """A run of the files that a `Session` has a lease of."""
    return f"runs:/{mlflow_proxied.run(linking.FILES)}"


@pytest.fixture
def session(daemon: Daemon, uri: str) -> Iterator[linking.Session]:
    """One session with its lease, that asks by hand."""
    session = linking.Session(daemon, uri)
    yield session
    session.handoff.close()


@pytest.fixture(scope="session")
def mounted(base: Path) -> Callable[[str], Filesystem]:
    """Mounts a kind of filesystem at its first use."""
    (base / "mounts").mkdir()
    there: dict[str, Filesystem] = {}

    def mounted(name: str) -> Filesystem:
        kind = mounts.BY_NAME[name]
        reason = mounts.reason_not_to_mount(kind)
        if reason is not None:
            pytest.skip(reason)
        if name not in there:
            there[name] = mounts.mount(kind, base / "mounts" / f"{name}.img", base / "mounts" / name)
        return there[name]

    return mounted


@pytest.fixture(params=[kind.name for kind in mounts.KINDS])
def filesystem(request: pytest.FixtureRequest, mounted: Callable[[str], Filesystem]) -> Filesystem:
    """Each kind of filesystem, one after the other."""
    return mounted(request.param)


@pytest.fixture
def small_disk(base: Path) -> Iterator[Filesystem]:
    """An ext4 filesystem of 64 MiB that belongs to one test."""
    kind = mounts.BY_NAME["ext4"]
    reason = mounts.reason_not_to_mount(kind)
    if reason is not None:
        pytest.skip(reason)
    folder = base / f"small-{next(_numbers)}"
    folder.mkdir()
    try:
        yield mounts.mount(kind, folder / "disk.img", folder / "disk", size_bytes=64 << 20)
    finally:
        mounts.unmount_below(folder)


# --- folders and people ------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(mlflow_proxied: MlflowServer) -> Iterator[CountingProxy]:
    """The way to the real server, whose bytes are counted, and which a test can block."""
    proxy = CountingProxy(mlflow_proxied.uri)
    yield proxy
    with contextlib.suppress(AssertionError):  # a test may have left it so
        proxy.disconnect()


@pytest.fixture
def room(base: Path) -> Iterator[Path]:
    """An empty folder of the test's own that every user can reach."""
    folder = base / "rooms" / str(next(_numbers))
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def module_room(base: Path) -> Iterator[Path]:
    """The same, for what lives as long as a module."""
    folder = base / "modules" / str(next(_numbers))
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


class CallerOf(Protocol):
    """Make a caller of a daemon; its working directory is a folder of its own below `where`."""

    def __call__(self, daemon: Daemon, where: Path, role: str = "alice") -> Caller: ...


@pytest.fixture(scope="session")
def caller_of(all_users: dict[str, User], interpreter: Interpreter) -> CallerOf:
    """Alice, bob, or `root`, who runs the tests; all of them are the tests' own user where that is not root."""

    def caller_of(daemon: Daemon, where: Path, role: str = "alice") -> Caller:
        user = all_users.get(role)
        home = where / role
        home.mkdir(exist_ok=True)
        if user is not None:
            os.chown(home, user.uid, user.gid)
        return Caller(interpreter, user, daemon.socket_dir, home)

    return caller_of


@pytest.fixture
def people(all_users: dict[str, User], interpreter: Interpreter, caller_of: CallerOf) -> People:
    """Everybody, for a daemon and clients of the test's own."""
    return People(all_users, interpreter, caller_of)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What is left to chance follows from it; it is printed, and is in the report of a test that fails."""
    told: int | None = request.config.getoption("--seed")
    found = random.SystemRandom().randrange(2**31) if told is None else told
    print(f"seed {found}")
    return found


@pytest.fixture
def alice(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """A caller of the module's daemon."""
    return caller_of(daemon, room, "alice")


@pytest.fixture
def bob(daemon: Daemon, room: Path, caller_of: CallerOf, all_users: dict[str, User]) -> Caller:
    """Another one, whom alice does not trust."""
    if not all_users:
        pytest.skip(users.reason_not_to_add() or "")
    return caller_of(daemon, room, "bob")


@pytest.fixture
def root_caller(daemon: Daemon, room: Path, caller_of: CallerOf, all_users: dict[str, User]) -> Caller:
    """Root, who calls like everybody else."""
    if not all_users:
        pytest.skip("needs root")
    return caller_of(daemon, room, "root")


# --- origins and daemons -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def origin(mlflow_proxied: MlflowServer) -> Iterator[CountingProxy]:
    """The real server, its artifact bytes counted."""
    proxy = CountingProxy(mlflow_proxied.uri)
    yield proxy
    proxy.disconnect()


@pytest.fixture
def liar() -> Iterator[LyingOrigin]:
    """The misbehaving origin."""
    with lying_origin() as server:
        yield server


def _starter(
    stack: contextlib.ExitStack, folder: Path, all_users: dict[str, User], interpreter: Interpreter, helper: Helper
) -> StartDaemon:
    def start(
        tracking_uri: str,
        *,
        root: Path | None = None,
        env: dict[str, str] | None = None,
        open_files_max: int | None = None,
        **config: Any,
    ) -> Daemon:
        place = folder / f"daemon-{next(_numbers)}"
        place.mkdir()
        root = root or place / "store"
        text = config_text(root, tracking_uri, **config)
        daemon = Daemon(
            interpreter,
            all_users.get("daemon"),
            place,
            root,
            text,
            is_system=bool(all_users),
            env=env or {},
            open_files_max=open_files_max,
            helper=helper,
        )
        return stack.enter_context(running(daemon))

    return start


@pytest.fixture
def start_daemon(
    room: Path, all_users: dict[str, User], interpreter: Interpreter, helper: Helper
) -> Iterator[StartDaemon]:
    """Starts daemons that live as long as the test."""
    with contextlib.ExitStack() as stack:
        yield _starter(stack, room, all_users, interpreter, helper)


@pytest.fixture(scope="module")
def module_start(
    module_room: Path, all_users: dict[str, User], interpreter: Interpreter, helper: Helper
) -> Iterator[StartDaemon]:
    """Starts daemons that live as long as the module."""
    with contextlib.ExitStack() as stack:
        yield _starter(stack, module_room, all_users, interpreter, helper)


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy) -> Daemon:
    """The daemon of a module, whose origin is the counted one. Serves every user where there are several."""
    return module_start(origin.uri)


@pytest.fixture(scope="session")
def distribution(base: Path) -> Path:
    """The entry points of the MLflow plugin, as an installation shows them."""
    return write_distribution(base / "distribution")


@pytest.fixture
def mlflow_user(alice: Caller, distribution: Path, origin: CountingProxy) -> MlflowUser:
    """Alice, who has the plugin, and whose tracking server is the daemon's."""
    return MlflowUser(alice, distribution, origin.uri)


@pytest.fixture(scope="session")
def siege(
    base: Path, all_users: dict[str, User], interpreter: Interpreter, caller_of: CallerOf, helper: Helper
) -> Iterator[Any]:
    """Alice's artifacts behind a daemon that checks access, for the attempts of `tests/test_attacks*.py`."""
    if not all_users:
        pytest.skip(users.reason_not_to_add() or "")
    place = base / "siege"
    place.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(guarded(place / "server"))
        daemon = attacker.start(_starter(stack, place, all_users, interpreter, helper), server)
        yield attacker.prepared(server, daemon, caller_of(daemon, place, "alice"), caller_of(daemon, place, "bob"))


@pytest.fixture(autouse=True)
def _no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test asks of its daemon, it answers without a traceback in its log."""
    daemon = request.getfixturevalue("daemon") if "daemon" in request.fixturenames else None
    yield
    if daemon is not None:
        daemon.assert_no_traceback()


_log_offsets = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put what the daemons logged during a test that failed beside its report."""
    report = yield
    daemons = {name: value for name, value in getattr(item, "funcargs", {}).items() if isinstance(value, Daemon)}
    if report.when == "setup":
        item.stash[_log_offsets] = {name: len(daemon.read_log()) for name, daemon in daemons.items()}
    if report.when == "call" and report.failed:
        for name, daemon in daemons.items():
            report.sections.append((name, daemon.read_log()[item.stash[_log_offsets].get(name, 0) :][-8000:]))
    return report
