"""The inside of mallory's process: what the attacks of `tests/rig/attacks.py` are written with."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket  # noqa: F401 - attacks name it
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

import artifactcache
from artifactcache import credentials, errors
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import doors
from tests.rig.wire import Handoff, bearer, error_name, stub

SWAPS_MAX = 20
_DESCRIPTORS = 32  # of another process that are tried
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438


class Nothing(Exception):
    """It has led to nothing."""


class Own:
    """A session of mallory's, with a lease of what is his."""

    def __init__(self, sockets: str, server: str, uri: str, login: Mapping[str, str] | None = None) -> None:
        self.sockets, self.handoff = sockets, Handoff(sockets)
        self.token = self.handoff.hello()
        headers = credentials.headers(server) if login is None else login
        self.ask(present=pb.Present(headers=headers))
        self.lease = self.fetch(uri).lease

    def ask(self, fds: tuple[int, ...] = (), **request: Any) -> tuple[pb.HandoffReply, list[int]]:
        """An answer on handoff.sock; a failure is raised."""
        with Handoff(self.sockets) as joined:
            joined.hello(self.token)
            reply, found = joined.ask(fds=fds, **request)
        if reply.WhichOneof("reply") == "failure":
            raise errors.BY_NAME[reply.failure.error](reply.failure.message)
        return reply, found

    def fetch(self, uri: str) -> pb.FetchResult:
        """A fetch by hand."""
        return called(self.sockets, self.token, uri)


@contextlib.contextmanager
def _cache(sockets: str) -> Iterator[Any]:
    """The calls of cache.sock; an error is raised as one of artifactcache's."""
    try:
        with stub(sockets) as cache:
            yield cache
    except grpc.RpcError as error:
        raise errors.BY_NAME[error_name(error) or "CacheError"](str(error)) from None


def called(sockets: str, token: str, uri: str) -> pb.FetchResult:
    """A fetch with whatever token."""
    request = pb.FetchRequest(artifact=pb.ArtifactSelection(uri=uri))
    with _cache(sockets) as cache:
        *_, last = cache.Fetch(request, metadata=bearer(token), timeout=60)
    result: pb.FetchResult = last.result
    return result


def pinned(own: Own, uri: str) -> None:
    """A pin by a session of mallory's, whatever the client library would have asked first."""
    with _cache(own.sockets) as cache:
        cache.Pin(pb.PinRequest(artifact=pb.ArtifactSelection(uri=uri)), metadata=bearer(own.token), timeout=60)


def attempts(attacks: list[tuple[str, str]], values: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Tries one after the other. Returns the error of each, its class and its words; empty where it succeeded."""
    scope = _scope(values)
    found = {}
    for name, how in attacks:
        try:
            exec(how, scope)
            found[name] = ("", "")
        except Exception as error:  # noqa: BLE001 - what refuses it is what is looked at
            found[name] = (type(error).__name__, str(error))
    return found


def _scope(values: dict[str, Any]) -> dict[str, Any]:
    """The names that attacks have."""
    client = artifactcache.Client()
    sockets, server, mine = values["sockets"], values["server"], f"runs:/{values['mine']}"
    own_view = client.fetch(mine)
    own_links = client.fetch(mine, "own-links", mode="hardlink")
    own = Own(sockets, server, mine)

    def link(*fds: int, lease: int = own.lease) -> None:
        own.ask(fds=fds, link=pb.LinkRequest(lease=lease))

    def probe(*fds: int) -> int:
        """Where the probe was linked, or given, its descriptor."""
        reply, (found,) = own.ask(fds=fds, probe=pb.ProbeRequest())
        if reply.probe.no_link:
            raise errors.ModeUnavailable(reply.probe.no_link)
        return found

    def guess_leases(most: int) -> None:
        for number in range(1, most):
            if number != own.lease:
                with contextlib.suppress(errors.InvalidRequest):
                    own.ask(manifest=pb.ManifestRequest(lease=number))
                    return
        raise errors.InvalidRequest("none of them")

    def joined(token: str) -> None:
        with Handoff(sockets) as other:
            failure = other.ask(hello=pb.Hello(token=token))[0].failure
        if failure.error:
            raise errors.BY_NAME[failure.error](failure.message)

    def by_hand(uri: str, headers: dict[str, str], login: dict[str, str] | None = None) -> None:
        told = credentials.headers(server) if login is None else login
        Own(sockets, server, uri, headers | told)

    return (
        globals()
        | values
        | {
            "client": client,
            "own": own,
            "own_view": own_view,
            "own_links": own_links,
            "acl": doors.encode([os.getuid()]),
            "link": link,
            "probe": probe,
            "guess_leases": guess_leases,
            "joined": joined,
            "pinned": lambda uri: pinned(own, uri),
            "by_hand": by_hand,
            "called": lambda token, run: called(sockets, token, f"runs:/{run}"),
            "present": lambda headers: own.ask(present=pb.Present(headers=headers)),
            "blob_fd": lambda: own.ask(blobs=pb.BlobsRequest(lease=own.lease))[1][0],
            "manifest_fd": lambda: own.ask(manifest=pb.ManifestRequest(lease=own.lease))[1][0],
            "swapping": lambda other: swapping(link, other),
        }
    )


def nothing(found: list[Any]) -> None:
    """Raises Nothing where nothing was found."""
    if not found:
        raise Nothing("nothing was found")


def without_login(call: Callable[[], object]) -> object:
    """Does something with no login in the environment."""
    with _environment(MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD=""):
        return call()


def with_login(user: str, password: str, call: Callable[[], object]) -> object:
    """Does something with another login in the environment."""
    with _environment(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password):
        return call()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ[name] for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.update(before)


def below(fd: int, name: str) -> int:
    """Opens a file below a descriptor."""
    return os.open(name, os.O_RDONLY, dir_fd=fd)


def linked(path: str) -> str:
    """Another name for a file."""
    os.link(path, "another-name")
    return "another-name"


def take_descriptors(pid: int) -> None:
    """pidfd_getfd(2) of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = libc.syscall(_SYS_PIDFD_OPEN, pid, 0)
    nothing([fd for fd in range(_DESCRIPTORS) if libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0) >= 0])


_folders = iter(range(1000))


def folder(symlink: str = "") -> int:
    """A folder to link into, as a client makes it; with a symlink in the place of its folder `model`."""
    tree = Path(f"tree-{next(_folders)}")
    tree.mkdir()
    if symlink:
        (tree / "model").symlink_to(symlink)
    else:
        (tree / "model").mkdir()
        (tree / "model").chmod(0o777)
    tree.chmod(0o777)
    return os.open(tree, os.O_RDONLY)


def folder_with(name: str, target: str = "") -> int:
    """A folder to link into, in which that name is taken: by a file, or by a symlink."""
    fd = folder()
    if target:
        os.symlink(f"{target}/planted", name, dir_fd=fd)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    return fd


def swapping(link: Callable[[int], None], other: str) -> None:
    """Swaps a folder within for a symlink to one of alice's that all may write, while the daemon links."""
    for _ in range(SWAPS_MAX):
        fd, done = folder(), threading.Event()
        tree = os.readlink(f"/proc/self/fd/{fd}")
        os.symlink(other, f"{tree}/link")

        def swap(tree: str = tree, done: threading.Event = done) -> None:
            while not done.is_set():
                for old, new in (("model", "real"), ("link", "model"), ("model", "link"), ("real", "model")):
                    os.rename(f"{tree}/{old}", f"{tree}/{new}")

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            with contextlib.suppress(artifactcache.CacheError):
                link(fd)
        finally:
            done.set()
            swapper.join()
    nothing(os.listdir(other))
