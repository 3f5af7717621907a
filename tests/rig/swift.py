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


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[str, str, str]]:
    """A Swift, perhaps not answering yet: its S3 endpoint, access key and secret key."""
    ports = dict(zip((*KINDS, "proxy", "memcached"), _ports(), strict=True))
    (folder / "devices" / "d1").mkdir(parents=True)
    storage_ports = json.dumps({kind: ports[kind] for kind in KINDS})
    subprocess.run(("/usr/bin/python3", "-c", _RINGS, str(folder), storage_ports), check=True, capture_output=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    (folder / "swift.conf").write_text(_SWIFT)
    for name in (*KINDS, "proxy"):
        text = _COMMON.format(port=ports[name], user=user, folder=folder)
        text += _PROXY.format(memcached=ports["memcached"], key=KEY) if name == "proxy" else _STORAGE.format(kind=name)
        (folder / f"{name}.conf").write_text(text)
    commands: dict[str, tuple[str, ...]] = {
        name: (f"swift-{name}-server", str(folder / f"{name}.conf")) for name in (*KINDS, "proxy")
    }
    commands["memcached"] = ("memcached", "-u", user, "-l", "127.0.0.1", "-p", str(ports["memcached"]))
    processes = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        yield f"http://127.0.0.1:{ports['proxy']}", USER, KEY
    finally:
        for process in processes:
            stop_group(process)
