"""The sockets' folder, and what listens there.

Law of this file: a folder has one daemon, and nobody else could listen in its place; a socket gets its name when it can
be used.
"""

from __future__ import annotations

import errno
import os
import socket

from artifactcache.errors import CacheError
from cacheserver import lock
from cacheserver.config import ConfigError
from cacheserver.place import Place

SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), without its NUL
CONNECTIONS_WAITING_MAX = 1024
TCP_WAITING_MAX = 128

_IN_THE_WAY = {
    errno.EADDRINUSE: "something else listens there already: write another port, or stop it",
    errno.EADDRNOTAVAIL: "this host has no such address: write one of its own, or 0.0.0.0 or [::] for all of them",
    errno.EACCES: "the daemon's user may not listen there: write a port from 1024 on",
}


def take_folder(here: Place) -> None:
    """Makes the sockets' folder and takes it for this process: gRPC itself would share a socket with another daemon.

    Raises CacheError.
    """
    folder = here.socket_dir
    longest = os.path.join(folder, "handoff.sock")
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        raise CacheError(
            f"The socket path {longest} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that Linux takes."
        )
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        owner = os.stat(folder).st_uid
        if owner not in (0, os.geteuid()):
            raise CacheError(f"The sockets' folder {folder} belongs to uid {owner}, who could listen in your place.")
        if owner == os.geteuid():
            os.chmod(folder, 0o755 if here.serves_all else 0o700)
        lock.take(folder)
    except OSError as error:
        raise CacheError(f"The sockets' folder {folder} cannot be used: {error.strerror}.") from None


def fresh_path(here: Place, name: str) -> str:
    """A socket's path, without what an earlier daemon left there. Raises CacheError."""
    path = os.path.join(here.socket_dir, name)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CacheError(f"{path} is in the way of the daemon's socket: {error.strerror}. Remove it.") from None
    return path


def listener(here: Place, name: str) -> socket.socket:
    """A socket of that name, at which the kernel queues connections from now on. Raises CacheError."""
    path, made = fresh_path(here, name), fresh_path(here, "new.sock")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # It gets its name last: under the umask it is this user's alone, and who tried it then would be told that they
        # may not, instead of that nobody is there yet.
        found.bind(made)
        admit(here, made)
        found.listen(CONNECTIONS_WAITING_MAX)
        os.rename(made, path)
    except OSError as error:
        raise CacheError(f"The socket {path} cannot be made: {error.strerror}.") from None
    return found


def tcp(section: str, address: str) -> socket.socket:
    """A socket for metrics or the page, at which the kernel queues connections from now on.

    Args:
        section: of the configuration that wants it.
        address: host:port, where a host that is an IPv6 address stands in brackets.

    Raises ConfigError.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.listen(TCP_WAITING_MAX)
        except OSError:
            made.close()
            raise
    except OSError as error:
        why = _IN_THE_WAY.get(error.errno or 0, f"this address cannot be listened at: {error.strerror}")
        raise ConfigError(f'[{section}] listen = "{address}": {why}.') from None
    return made


def admit(here: Place, path: str) -> None:
    """Lets those whom the daemon serves connect to a socket."""
    os.chmod(path, 0o666 if here.serves_all else 0o600)
