"""OpenStack Swift with its S3 interface, from the distribution's packages, in a folder and on ports of the test's own.

One proxy, one server for each of accounts, containers and objects, one copy of everything, and a memcached.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.rig.process import stop_group

PACKAGES = "swift-proxy swift-account swift-container swift-object memcached"
KINDS = ("account", "container", "object")
PROGRAMS = ("memcached", "swift-proxy-server", *(f"swift-{kind}-server" for kind in KINDS))
PORTS = (10_000, 32_000)  # below those of net.ipv4.ip_local_port_range
USER, KEY = "test:tester", "testing-secret-of-swift"

_SWIFT = """
[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
[storage-policy:0]
name = gold
default = yes
"""
_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = WARNING
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# Ten errors while the others are still starting, and they would not be asked for a minute.
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {key} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
[object-updater]
recon_cache_path = {folder}
"""
# swift-ring-builder takes seconds for each step; this is the system's Python, for which Swift is installed.
_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
folder, ports = sys.argv[1], json.loads(sys.argv[2])
for kind, port in ports.items():
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def reason_not_to_start() -> str | None:
    """Why Swift cannot run here; None where it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"needs Swift ({', '.join(missing)} not found): apt-get install {PACKAGES}" if missing else None


def _ports() -> list[int]:
    """Ports that nobody listens on, and that the kernel gives to no outgoing connection: these servers take seconds
    until they listen."""
    found: list[int] = []
    while len(found) < len(KINDS) + 2:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


class Swift:
    """One Swift, that does not run yet.

    Args:
        folder: of everything that it has; what is there stays when it ends, or is killed, and is served again.
        wrap: a command that root runs and that then runs each of its servers, such as `nsenter --net=…`.

    Attributes:
        uri: of its S3 interface, at the loopback address of where it runs.
        port: of that.
    """

    def __init__(self, folder: Path, wrap: tuple[str, ...] = ()) -> None:
        ports = dict(zip((*KINDS, "proxy", "memcached"), _ports(), strict=True))
        self.folder = folder
        self.port = ports["proxy"]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._wrap = wrap
        (folder / "devices" / "d1").mkdir(parents=True)
        storage_ports = json.dumps({kind: ports[kind] for kind in KINDS})
        subprocess.run(("/usr/bin/python3", "-c", _RINGS, str(folder), storage_ports), check=True, capture_output=True)
        user = pwd.getpwuid(os.geteuid()).pw_name
        (folder / "swift.conf").write_text(_SWIFT)
        for name in (*KINDS, "proxy"):
            text = _COMMON + (_PROXY if name == "proxy" else _STORAGE)
            told = {"port": ports[name], "user": user, "folder": folder, "kind": name}
            (folder / f"{name}.conf").write_text(text.format(**told, memcached=ports["memcached"], key=KEY))
        self._commands: dict[str, tuple[str, ...]] = {
            "memcached": ("memcached", "-u", user, "-l", "127.0.0.1", "-p", str(ports["memcached"])),
            **{name: (f"swift-{name}-server", str(folder / f"{name}.conf")) for name in (*KINDS, "proxy")},
        }

    def start(self) -> None:
        """Start those of its servers that do not run, and wait for nothing."""
        for name in self._commands.keys() - self._processes.keys():
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    (*self._wrap, *self._commands[name]), stdout=log, stderr=log, start_new_session=True
                )

    def kill(self, *names: str) -> None:
        """SIGKILL to these of its servers ("proxy", "object", "container", "account", "memcached"), or to all."""
        for name in names or tuple(self._processes):
            process = self._processes.pop(name)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End all of them."""
        while self._processes:
            stop_group(self._processes.popitem()[1])

    def catch_up(self) -> None:
        """Have listings name what was stored while the container's server was away, as a daemon of Swift does."""
        command = (*self._wrap, "swift-object-updater", str(self.folder / "object.conf"), "once")
        subprocess.run(command, check=True, capture_output=True)

    def read_logs(self) -> str:
        """The end of what each of them has said."""
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def running(folder: Path, wrap: tuple[str, ...] = ()) -> Iterator[Swift]:
    """A Swift that has been started, and does perhaps not answer yet."""
    store = Swift(folder, wrap)
    try:
        store.start()
        yield store
    finally:
        store.stop()
