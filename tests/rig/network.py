"""Hosts as the network has them: namespaces, joined by a bridge in one more of them, and by nothing to the machine.

No namespace has a name. Each is held by a descriptor of the tests' process, so that it goes with that process, however
that ends, and with those that were started in it; and its interfaces go with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_CLONE_NEWNET = 0x40000000  # setns(2)
_OWN = "/proc/thread-self/ns/net"
SITE = "10.77.0.1"  # no address of the machine's: nothing leads from one to the other
_HOSTS = "10.77.0.{}"
_FIRST = 10
TOOLS = ("ip", "nsenter")


class Namespace:
    """One network namespace: a new one, with nothing in it but a loopback interface, or that which is at a path.

    Raises OSError where the kernel refuses it.
    """

    def __init__(self, path: str = "") -> None:
        if path:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return
        with ThreadPoolExecutor(1) as thread:  # which is in there, and ends
            self._fd = thread.submit(_unshared).result()
        self.ip("link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """Where it is found, for as long as it is open."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def wrap(self) -> tuple[str, ...]:
        """A command before one that is to run there; of all namespaces it enters this one only, so that files are
        the same, and links between them can be made."""
        return "nsenter", f"--net={self.path}", "--"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread starts or opens in this block is there: processes, threads and sockets."""
        before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._fd)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def ip(self, *arguments: str) -> None:
        """`ip`, which has to go well: CalledProcessError, or what it said."""
        with self.inside():
            subprocess.run(("ip", *arguments), check=True, capture_output=True)

    def listen(self, address: str, port: int) -> socket.socket:
        """A socket that listens there, for a thread that need not be."""
        with self.inside():
            return socket.create_server((address, port), backlog=256)

    def connect(self, address: str, port: int) -> socket.socket:
        """A socket that is connected from there."""
        with self.inside():
            return socket.create_connection((address, port))

    def close(self) -> None:
        """Let go of it. It ends when nothing runs in it any more."""
        os.close(self._fd)


class Site:
    """The hosts' network. Whoever serves them does it at the address `SITE`, in the namespace `site`.

    Attributes:
        hosts: their namespaces, by the addresses that they have.
    """

    def __init__(self) -> None:
        self.site = Namespace()
        self.hosts: dict[str, Namespace] = {}
        self.site.ip("link", "add", "bridge", "type", "bridge")
        self.site.ip("address", "add", f"{SITE}/24", "dev", "bridge")
        self.site.ip("link", "set", "bridge", "up")

    def add(self) -> str:
        """One host more; returns its address."""
        namespace = Namespace()
        port, address = f"host{len(self.hosts) + 1}", _HOSTS.format(_FIRST + len(self.hosts) + 1)
        self.hosts[address] = namespace
        self.site.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace.path)
        self.site.ip("link", "set", port, "master", "bridge", "up")
        namespace.ip("address", "add", f"{address}/24", "dev", "eth0")
        namespace.ip("link", "set", "eth0", "up")
        return address

    def close(self) -> None:
        """Let go of all of it."""
        for namespace in (self.site, *self.hosts.values()):
            namespace.close()


@functools.cache
def reason_not_to() -> str | None:
    """Why there can be no such network here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)} (packages iproute2 and util-linux)"
    try:
        with contextlib.closing(Site()) as tried:
            tried.add()
    except OSError as error:
        return f"the kernel refuses network namespaces: {error}"
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` is refused: {error.stderr.decode().strip()}"
    return None


def _unshared() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def _enter(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
