"""Several hosts, each with a daemon and a store of its own; one origin, far away; one object store, near by.

A host is a network namespace. From there the object store and the origin are at addresses of the site, and nothing else
is anywhere. The object store is a real Swift, in the site's namespace; the origin is a real MLflow server of the
machine's. Both ways lead through a `Link` each, which counts what moves for each host, and fails on command. Files are
those of the machine, so that a client needs a host's sockets only, and may run anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cacheserver.config import ConfigError, parse
from tests.rig import network, s3, swift
from tests.rig.daemon import Daemon, config_text
from tests.rig.interpreter import Interpreter
from tests.rig.link import Link, Moved, door
from tests.rig.network import SITE, Namespace
from tests.rig.spawner import Spawner
from tests.rig.until import until
from tests.rig.users import User

ORIGIN_PORT, STORE_PORT = 5000, 8080  # of the site's address, where nobody else is
BUCKET = "shared"
STEADY_SECONDS = 1.0


def reason_not_to() -> str | None:
    """Why there can be no cluster here; None where there can."""
    return network.reason_not_to() or swift.reason_not_to_start()


def shared(prefix: str) -> str:
    """The part of a daemon's configuration that gives it the second tier, below a prefix of the cluster's bucket."""
    return f'[shared]\nurl = "s3://{BUCKET}/{prefix}"\n'


def reason_not_to_share() -> str | None:
    """Why hosts cannot share here; None where they can."""
    try:
        parse(shared("any"), "the tests")
    except ConfigError as error:
        return f"the daemon has no second tier yet: {error}"
    return reason_not_to()


def trees_below(prefix: str) -> str:
    """Where a second tier keeps what says that a tree is there: it is written last."""
    return f"{prefix}/v1/trees/"


class ObjectStore:
    """A real Swift in the site, with one bucket.

    Attributes:
        link: how hosts reach it.
        endpoint: how the tests' own process does, by a door of its own.
    """

    def __init__(self, store: swift.Swift, site: Namespace) -> None:
        self._swift = store
        way = functools.partial(site.connect, "127.0.0.1", store.port)
        self._door = door(store.port, way)
        self.link = Link(functools.partial(site.listen, SITE, STORE_PORT), way)
        self.endpoint = s3.Endpoint(store.uri, swift.USER, swift.KEY)
        self.uri = f"http://{SITE}:{STORE_PORT}"
        self.env = {name: text for name, text in self.endpoint.env.items() if name.startswith("AWS_")}
        self.env |= {"AWS_ENDPOINT_URL": self.uri}

    def wait(self) -> None:
        """Wait until it answers."""
        self.endpoint.wait(self._swift.read_logs)

    def kill(self, *names: str) -> None:
        """SIGKILL to these of its servers, or to all; where its proxy is one of them, hosts are refused from now on."""
        if not names or "proxy" in names:
            self.link.close()
        self._swift.kill(*names)

    def launch(self) -> None:
        """Start what does not run of it, on what it had, and wait for nothing: it may refuse for a while yet. By the
        main thread only, for it ends with who has started it."""
        self._swift.start()
        self.link.open()

    def start(self) -> None:
        """The same, and wait until it answers."""
        self.launch()
        self.wait()

    def catch_up(self) -> None:
        """Have listings name all that is there, after kills."""
        self._swift.catch_up()

    def keys(self, prefix: str) -> set[str]:
        """The names of all objects below a prefix, as the store lists them."""
        pages = self.endpoint.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {found["Key"] for page in pages for found in page.get("Contents", ())}

    def wait_for_trees(self, prefix: str, before: set[str], seconds: float = 300.0) -> None:
        """Wait until the second tier has trees that it had not before, and no more come: hosts write them in the
        background."""
        found = until(lambda: self.keys(trees_below(prefix)) - before, "a tree in the object store", seconds)
        steady_at = time.monotonic() + STEADY_SECONDS
        while time.monotonic() < steady_at:
            time.sleep(STEADY_SECONDS / 10)
            now = self.keys(trees_below(prefix)) - before
            if now != found:
                found, steady_at = now, time.monotonic() + STEADY_SECONDS

    def close(self) -> None:
        """Nobody comes any more."""
        self.link.close()
        self._door.close()


@dataclasses.dataclass
class Host:
    """One host. Its daemon is killed and started by the `spawner`, and is the `daemon` of clients.

    Attributes:
        address: by which links count what moves for it.
    """

    address: str
    namespace: Namespace
    spawner: Spawner

    @property
    def daemon(self) -> Daemon:
        """What a client has to know of it."""
        return self.spawner.daemon

    def stop(self) -> None:
        """SIGTERM: the daemon has to end with status 0, and to have logged no traceback."""
        os.kill(self.spawner.pid, signal.SIGTERM)
        status = self.spawner.end()
        assert status == 0, f"the daemon ended with status {status}\n{self.daemon.read_log()[-4000:]}"
        self.daemon.assert_no_traceback()


@dataclasses.dataclass
class Cluster:
    """All of it. `origin` is the hosts' way to the origin."""

    hosts: list[Host]
    origin: Link
    store: ObjectStore

    def moved(self, host: Host) -> tuple[Moved, Moved]:
        """What has moved between a host and the origin, and between it and the object store."""
        return self.origin.moved[host.address], self.store.link.moved[host.address]

    def forget(self) -> None:
        """Count from now on."""
        self.origin.forget()
        self.store.link.forget()


@contextlib.contextmanager
def cluster(
    folder: Path,
    interpreter: Interpreter,
    user: User | None,
    origin_uri: str,
    *,
    host_count: int = 3,
    is_running: bool = True,
    **config: Any,
) -> Iterator[Cluster]:
    """A cluster for the length of a block, with an empty bucket and empty stores. Nothing of it stays, whatever
    happens; at the end the daemons that run are stopped as daemons should be.

    Args:
        folder: empty, and short enough for a socket's path.
        user: the daemons'; None for the tests' own.
        origin_uri: the origin's address, as the tests' own process has it: a server, or a proxy that counts.
        is_running: whether the daemons are started.
        config: that of `config_text`, of each daemon.
    """
    with contextlib.ExitStack() as stack:
        site = network.Site()
        stack.callback(site.close)
        # With the tests it ends in any case; before that by its process ID.
        wrap = (*site.site.wrap, "setpriv", "--pdeathsig", "KILL", "--")
        (folder / "swift").mkdir()
        store = ObjectStore(stack.enter_context(swift.running(folder / "swift", wrap)), site.site)
        stack.callback(store.close)
        there = urlsplit(origin_uri)
        origin = Link(
            functools.partial(site.site.listen, SITE, ORIGIN_PORT),
            functools.partial(socket.create_connection, (there.hostname, there.port)),
        )
        stack.callback(origin.close)
        names = [f"host{number}" for number in range(1, host_count + 1)]
        hosts = [_host(stack, folder / name, site, interpreter, user, store.env, config) for name in names]
        store.wait()
        store.endpoint.client.create_bucket(Bucket=BUCKET)
        try:
            for host in hosts if is_running else ():
                host.spawner.launch()
            for host in hosts if is_running else ():
                host.spawner.wait()
            yield Cluster(hosts, origin, store)
        except BaseException:
            print(*(f"{host.address}: {host.daemon.read_log()[-4000:]}" for host in hosts), sep="\n")
            raise
        for host in hosts:
            if host.spawner.has_daemon:
                host.stop()


def _host(
    stack: contextlib.ExitStack,
    folder: Path,
    site: network.Site,
    interpreter: Interpreter,
    user: User | None,
    env: dict[str, str],
    config: dict[str, Any],
) -> Host:
    folder.mkdir()
    root = folder / "store"
    text = config_text(root, f"http://{SITE}:{ORIGIN_PORT}", **config)
    daemon = Daemon(interpreter, user, folder, root, text, is_system=user is not None, env=env)
    daemon.prepare()
    address = site.add()
    namespace = site.hosts[address]
    with namespace.inside():  # and so are the daemons that it forks
        spawner = Spawner(daemon)
    stack.callback(spawner.close)
    return Host(address, namespace, spawner)
