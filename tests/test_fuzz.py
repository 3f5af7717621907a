"""Both sockets against nonsense from a seed: nobody else notices, and nothing of it stays.

`make fuzz` sends 100,000 inputs to each. The seed is printed; `--seed` sends the same again.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Job
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.until import until

ROUNDS = 10  # between two of them it is looked whether others are served
LOOKS = 200  # of until(), one after another, at which a daemon that has settled has the same descriptors
WARM_UP = 300  # inputs before it is counted what the daemon has
THREADS_MORE_MAX = 100  # its pools make threads as they need them, and keep them
RSS_MORE_BYTES_MAX = 96 << 20
SENDER = """
import random
from tests.fuzz import calls, packets
make = {"handoff.sock": packets.packets, "cache.sock": calls.calls}[socket_name]
with make(socket_dir, uri) as sender:
    while (told := hear()) != "end":
        say(sender.send(random.Random(told[0]), told[1]))
"""
OTHER = """
import artifactcache
client = artifactcache.Client()
client.fetch(uri)
while hear() != "end":
    say([client.ping().pid, client.fetch(uri).hit, sum(len(names) for _, _, names in os.walk(client.fetch(uri)))])
"""


@pytest.mark.parametrize("socket_name", ["handoff.sock", "cache.sock"])
def test_nonsense(
    start_daemon: StartDaemon,
    origin: CountingProxy,
    uri: str,
    room: Path,
    caller_of: CallerOf,
    request: pytest.FixtureRequest,
    socket_name: str,
) -> None:
    """The same daemon answers and serves a hit of another user throughout; afterwards it has no more descriptors than
    before, threads within its pools, memory within bounds, and no traceback in its log."""
    inputs, seed = request.config.getoption("--inputs"), request.config.getoption("--seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"\n{socket_name}: {inputs} inputs, --seed {seed}")
    daemon = start_daemon(origin.uri, unreachable_after=60.0)  # a host that is busy is no reason to fail
    alice, bob = caller_of(daemon, room), caller_of(daemon, room, "bob")
    told: dict[str, Any] = {"uri": uri, "socket_dir": str(daemon.socket_dir), "socket_name": socket_name}
    outcome = Counter[str]()
    with bob.start(OTHER, uri=uri) as other:
        with alice.start(SENDER, **told) as sender:
            _send(sender, f"{seed}/warm", WARM_UP)
            _others_are_served(daemon, other)
        before = _settled(daemon)
        threads, rss = _threads(daemon), _rss_bytes(daemon)
        with alice.start(SENDER, **told) as sender:
            for turn in range(ROUNDS):
                outcome += _send(sender, f"{seed}/{turn}", inputs // ROUNDS)
                _others_are_served(daemon, other)
        until(lambda: _descriptors(daemon) <= before, lambda: f"descriptors: {_descriptors(daemon)}, before {before}")
        _others_are_served(daemon, other)
    print(f"{socket_name}: {dict(outcome.most_common())}")
    print(
        f"{socket_name}: descriptors {before.total()} before, {_descriptors(daemon).total()} after; threads {threads} "
        f"before, {_threads(daemon)} after; RSS {rss >> 20} MiB before, {_rss_bytes(daemon) >> 20} MiB after"
    )
    assert _threads(daemon) <= threads + THREADS_MORE_MAX
    assert _rss_bytes(daemon) <= rss + RSS_MORE_BYTES_MAX
    daemon.assert_no_traceback()


def _send(sender: Job, seed: str, count: int) -> Counter[str]:
    sender.say([seed, count])
    return Counter(sender.hear())


def _others_are_served(daemon: Daemon, other: Job) -> None:
    assert daemon.is_alive(), daemon.read_log()[-2000:]
    other.say("go on")
    assert other.hear() == [daemon.pid, True, 4]


def _settled(daemon: Daemon) -> Counter[str]:
    """What it has open, once that has been the same for a while."""
    looks: deque[Counter[str]] = deque(maxlen=LOOKS)

    def is_settled() -> bool:
        looks.append(_descriptors(daemon))
        return len(looks) == LOOKS and all(look == looks[0] for look in looks)

    until(is_settled, "the daemon to settle", 60.0)
    return looks[0]


def _descriptors(daemon: Daemon) -> Counter[str]:
    """What the daemon has open, by kind; without its kept connections to the tracking server."""
    tcp = set[str]()
    for name in ("tcp", "tcp6"):
        lines = Path(f"/proc/{daemon.pid}/net/{name}").read_text().splitlines()[1:]
        tcp |= {f"socket:[{line.split()[9]}]" for line in lines}
    kinds = Counter[str]()
    for fd in os.listdir(f"/proc/{daemon.pid}/fd"):
        try:
            target = os.readlink(f"/proc/{daemon.pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target not in tcp:
            kinds[re.sub(r"\d+", "N", target)] += 1
    return kinds


def _threads(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/task"))


def _rss_bytes(daemon: Daemon) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10
