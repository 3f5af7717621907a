"""`cacheserver shared sweep` on real object stores, Swift's S3 interface and moto, beside hosts that publish."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cacheserver import cli, publishing, tiersweep
from cacheserver.claims import Claims
from cacheserver.joining import objects_of
from cacheserver.packing import BLOBS, PACKS
from cacheserver.publishing import Name, Publishing
from cacheserver.retention import Rule
from cacheserver.settings import SharedConfig
from cacheserver.tierplan import How
from cacheserver.tierstore import TierStore
from cacheserver.tiersweep import TierSweep
from cacheserver.treerecords import CLAIMS, CONDEMNED, TREES, Condemned
from tests.conftest import CallerOf, StartDaemon
from tests.rig import s3
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer
from tests.rig.tier import lacking
from tests.rig.until import until
from tests.unit.house import House

BUCKET = "swept"
COMMON = os.urandom((1 << 20) + 1)
SETTLE_SECONDS = 0.3
HOSTS = 2
TREES_COUNT = 12  # that hosts have in the race
SWEEPS = 2
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module", params=["swift", pytest.param("moto", marks=pytest.mark.slow)])
def endpoint(request: pytest.FixtureRequest, base: Path) -> Iterator[s3.Endpoint]:
    """An object store with a bucket."""
    if why := s3.reason_not_to_start(request.param):
        pytest.skip(why)
    with s3.endpoint(request.param, base / f"swept-{request.param}") as found:
        found.client.create_bucket(Bucket=BUCKET)
        yield found


@pytest.fixture
def shared(endpoint: s3.Endpoint, room: Path, monkeypatch: pytest.MonkeyPatch) -> SharedConfig:
    """A tier of the test's own, for this process too."""
    for name, value in endpoint.env.items():
        monkeypatch.setenv(name, value)
    return SharedConfig(f"s3://{BUCKET}/{room.name}", endpoint=endpoint.uri, patience=10.0)


@pytest.fixture
def objects(shared: SharedConfig) -> TierStore:
    """What is in it."""
    return objects_of(shared)


class Host:
    """A store of its own, what it publishes, and trees to publish."""

    def __init__(self, root: Path, shared: SharedConfig) -> None:
        self.house = House(root, tier=objects_of(shared), shared=shared)
        self.busy = threading.Lock()

    @property
    def publishing(self) -> Publishing:
        """What gives to the tier."""
        assert self.house.sharing and self.house.sharing.publishing
        return self.house.sharing.publishing

    def have(self, uri: str, number: int) -> None:
        """Holds one of the trees: it has a small file and a large one of its own, and a large one that all have."""
        large = f"large {number} ".encode() * 140_000
        self.house.put({"small": b"%d" % number, "large": large, "common": COMMON}, uri)

    def publish(self, uri: str, number: int) -> None:
        """Has it published."""
        self.have(uri, number)
        self.publishing.publish(Name(uri, ""))


@pytest.fixture
def host_of(room: Path, shared: SharedConfig) -> Iterator[Callable[[], Host]]:
    """Makes hosts."""
    made: list[Host] = []

    def host() -> Host:
        made.append(Host(room / f"host{len(made)}", shared))
        return made[-1]

    yield host
    for each in made:
        each.house.close()


@pytest.fixture
def sweep(room: Path, shared: SharedConfig, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command in this process; the document that it prints, or what it says where it fails."""

    def sweep(*arguments: str, more: str = "", key: str = f'url = "{shared.url}"') -> Any:
        config = room / "sweep.toml"
        config.write_text(f'[shared]\n{key}\nendpoint = "{shared.endpoint}"\npatience = 10.0\n{more}')
        status = cli.main(["shared", "sweep", "--config", str(config), "--json", *arguments])
        told = capsys.readouterr()
        assert (status == 0) == (told.err == ""), told
        return json.loads(told.out) if status == 0 else told.err

    return sweep


AT_ONCE = ("--grace", "0s", "--settle", "0s")


def listed(endpoint: s3.Endpoint, below: str = "") -> dict[str, Any]:
    """What is in the bucket: tags and times by key."""
    pages = endpoint.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
    return {
        found["Key"]: (found["ETag"], found["LastModified"]) for page in pages for found in page.get("Contents", ())
    }


@pytest.mark.parametrize("endpoint", ["swift"], indirect=True)
def test_rules_drop_and_keep_beside_a_daemon(
    endpoint: s3.Endpoint,
    start_daemon: StartDaemon,
    origin: CountingProxy,
    mlflow_proxied: MlflowServer,
    caller_of: CallerOf,
    room: Path,
    shared: SharedConfig,
    objects: TierStore,
) -> None:
    """By what a real tracking server says of the runs. A dry run says what would go, and changes nothing; what has gone
    is its own bytes and no other's; and the daemon, whose store nobody looks at, goes on."""
    runs = [mlflow_proxied.run({"weights": os.urandom(2 << 20), "common": COMMON, "n": b"%d" % n}) for n in range(3)]
    for run, status in zip(runs, ("FAILED", "FAILED", "FINISHED"), strict=True):
        mlflow_proxied.client.set_terminated(run, status)
    mlflow_proxied.client.set_tag(runs[1], "team", "vision")
    daemon = start_daemon(origin.uri, env=endpoint.env, more=f'[shared]\nurl = "{shared.url}"\n')
    alice = caller_of(daemon, room)
    for run in runs:
        alice.fetch(f"runs:/{run}")
    until(lambda: len(list(objects.list(TREES))) == 3 and not list(objects.list(CLAIMS)), lambda: "three trees")
    config = room / "sweep.toml"
    config.write_text(
        f'{daemon.config}\n[[retention]]\nname = "failed"\nstatus = "FAILED"\ndrop = "0s"\n'
        '[[retention]]\nname = "vision"\ntag = { team = "vision" }\nkeep = "1d"\n'
    )

    def run_sweep(*more: str) -> Any:
        command = (sys.executable, "-m", "cacheserver", "shared", "sweep", "--config", str(config), "--json", *more)
        env = os.environ | endpoint.env
        done = subprocess.run((*command, *AT_ONCE), env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    before = listed(endpoint, room.name)
    dry = run_sweep("--dry-run")
    assert listed(endpoint, room.name) == before
    gone = [record for record in dry["records"] if record["removed"]]
    assert [record["versions"] for record in gone] == [[f"runs:/{runs[0]}"]]
    assert gone[0]["reason"] == f'rule "failed" drops runs:/{runs[0]} at once'
    assert dry["objects_removed"] == 2 and dry["bytes_freed"] > 2 << 20
    wet = run_sweep()
    assert {**wet, "dry_run": True} == dry and lacking(objects) == []
    assert (len(list(objects.list(BLOBS))), len(list(objects.list(PACKS)))) == (3, 2)
    assert alice.fetch(f"runs:/{runs[0]}").hit


def test_unreferenced_objects_grace_and_capacity(
    host_of: Callable[[], Host], sweep: Callable[..., Any], objects: TierStore
) -> None:
    """What no record needs goes once it is older than the grace; what is over the capacity goes, with what it alone
    needs."""
    host = host_of()
    for number in range(3):
        host.publish(f"s3://bucket/{number}", number)
    host.publish("s3://bucket/0", 3)  # another tree at the same place: nobody needs that of before
    assert sweep("--settle", "0s")["objects_removed"] == 0, "they are not a day old"
    found = sweep(*AT_ONCE)
    assert (found["objects_removed"], found["records_removed"]) == (2, 0) and lacking(objects) == []
    size = sum(one.size for kind in (TREES, BLOBS, PACKS) for one in objects.list(kind))
    found = sweep(*AT_ONCE, more=f"capacity = {size - 1}\n")
    assert (found["objects_removed"], found["records_removed"], found["records_kept"]) == (2, 1, 2)
    assert lacking(objects) == [] and len(list(objects.list(BLOBS))) == 3
    assert not list(objects.list(CLAIMS))


def test_what_is_not_to_be_swept(
    host_of: Callable[[], Host], sweep: Callable[..., Any], objects: TierStore, shared: SharedConfig
) -> None:
    """Each is refused in one line: no tier, one that may only be read, one that does not answer, beside another sweep,
    and with too long a time to settle."""
    with pytest.raises(SystemExit):
        sweep("--settle", "16m")
    assert "names no shared tier: write [shared] url" in sweep(key='url = ""')
    assert "read_only = true" in sweep(key=f'url = "{shared.url}"\nread_only = true')
    told = sweep(key=f'url = "s3://nobody-has-{BUCKET}/prefix"')
    assert told.startswith("cacheserver: The shared tier") and told.count("\n") == 1 and "Traceback" not in told
    host = host_of()
    host.publish("s3://bucket/0", 0)
    host.publish("s3://bucket/0", 1)
    waits, goes_on = threading.Event(), threading.Event()

    def settle(seconds: float) -> None:
        waits.set()
        assert goes_on.wait(PATIENCE_SECONDS)

    first = threading.Thread(target=sweeping(shared, settle))
    first.start()
    try:
        assert waits.wait(PATIENCE_SECONDS)
        assert "is running, on" in sweep(*AT_ONCE)
    finally:
        goes_on.set()
        first.join(PATIENCE_SECONDS)
    assert sweep(*AT_ONCE)["objects_removed"] == 0 and lacking(objects) == []


@pytest.fixture(autouse=True)
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who meets another sweep sees sooner that it is alive."""
    monkeypatch.setattr(tiersweep, "RENEW_SECONDS", 0.2)


def sweeping(shared: SharedConfig, settle: Callable[[float], object], *rules: Rule) -> Callable[[], Any]:
    """A sweep in this process."""
    how = How(rules, grace=0.0, settle=SETTLE_SECONDS)
    objects, clocks = objects_of(shared), (time.time, time.monotonic)
    claims = Claims(objects, "sweeper", *clocks, threading.Event().wait)
    return lambda: TierSweep(objects, claims, None, None, how, *clocks, settle, lambda line: None).run()


class Crowd:
    """Hosts that publish trees again and again, in threads of their own, but while they rest."""

    def __init__(self, hosts: list[Host], uris: list[str], seed: int) -> None:
        self._hosts, self._uris = hosts, uris
        self._goes_on, self._over = threading.Event(), threading.Event()
        self.errors = list[BaseException]()
        self.put_off = 0
        self._threads = [
            threading.Thread(target=self._publish, args=(host, random.Random(f"{seed}/{number}")))
            for number, host in enumerate(hosts)
        ]

    def __enter__(self) -> Crowd:
        self._goes_on.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._goes_on.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """While nobody is in the middle of anything."""
        self._goes_on.clear()
        with ExitStack() as stack:
            for host in self._hosts:
                stack.enter_context(host.busy)
            yield
        self._goes_on.set()

    def _publish(self, host: Host, dice: random.Random) -> None:
        try:
            while self._goes_on.wait() and not self._over.is_set():
                with host.busy, suppress(publishing._Condemned):
                    self.put_off += 1
                    host.publishing.publish(Name(dice.choice(self._uris), ""))
                    self.put_off -= 1
        except BaseException as error:  # noqa: BLE001 - told by who waits
            self.errors.append(error)


def test_hosts_publish_while_sweeps_run(
    host_of: Callable[[], Host], shared: SharedConfig, objects: TierStore, seed: int
) -> None:
    """Sweeps drop all records, wait for a moment only, and remove what no record needs then; hosts write the records
    again meanwhile, and count on what is there. Whenever nobody is in the middle of anything, every record has all its
    objects."""
    hosts = [host_of() for _ in range(HOSTS)]
    uris = [f"s3://bucket/{number}" for number in range(TREES_COUNT)]
    for number, uri in enumerate(uris):
        for host in hosts:
            host.house.put({"small": b"%d" % number, "common": COMMON}, uri)
        hosts[0].publishing.publish(Name(uri, ""))
    removed = 0
    with Crowd(hosts, uris, seed) as crowd:
        for _ in range(SWEEPS):
            removed += sweeping(shared, time.sleep, Rule("all", tracking_uri="*", drop=0.0))().objects
            with crowd.at_rest():
                assert not crowd.errors, crowd.errors
                assert lacking(objects) == []
    print(f"{removed} objects removed, {crowd.put_off} times put off")
    assert removed and not crowd.errors
    got = objects.get(CONDEMNED, 1 << 20)
    assert got and not Condemned.decode(got.data).keys


@pytest.mark.parametrize("endpoint", ["swift"], indirect=True)
def test_a_sweep_that_is_killed_is_finished_by_the_next(
    host_of: Callable[[], Host],
    sweep: Callable[..., Any],
    objects: TierStore,
    shared: SharedConfig,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By SIGKILL, while it waits: who publishes what it has condemned puts that off, and can after the next sweep."""
    host = host_of()
    host.publish("s3://bucket/0", 0)
    host.publish("s3://bucket/0", 1)
    config = room / "killed.toml"
    config.write_text(f'[shared]\nurl = "{shared.url}"\n')
    command = (sys.executable, "-m", "cacheserver", "shared", "sweep", "--config", str(config))
    process = subprocess.Popen((*command, "--grace", "0s", "--settle", "10m"), stdout=subprocess.PIPE)
    try:
        until(lambda: objects.get(CONDEMNED, 1 << 20) is not None, lambda: "a list of what goes")
    finally:
        process.kill()
        process.communicate()
    host.house.now = time.time()
    with pytest.raises(publishing._Condemned):
        host.publish("s3://bucket/1", 0)
    monkeypatch.setattr("cacheserver.claims.CLAIM_SECONDS", 1.0)
    assert sweep(*AT_ONCE)["objects_removed"] == 2
    host.publish("s3://bucket/1", 0)
    assert lacking(objects) == [] and len(list(objects.list(TREES))) == 2
