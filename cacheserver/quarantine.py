"""What is wrong, and kept for a person to look at.

Law of this file: nothing that was put here is ever served. The newest is kept; the oldest goes where all of it gets too
much, for a disk that rots would otherwise make good artifacts go for bad bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import NamedTuple

from cacheserver import mirror
from cacheserver.removal import remove

# Of what is kept: enough to see how a disk fails, and less than a model. The newest stays however large it is.
BYTES_MAX = 1 << 30
FILES_MAX = 1_000

_log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """Something that is kept: since when, nanoseconds since the epoch; its name; its path; how much of the disk it
    has."""

    since_ns: int
    name: str
    path: str
    size_bytes: int


class Quarantine:
    """The quarantine of the store in a folder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folder = os.path.join(root, "quarantine")

    def put(self, digest: str) -> None:
        """Moves what stands at the name of a blob whose row is gone to here. Raises OSError."""
        name, fan = f"{digest}-{secrets.token_hex(4)}", os.path.join(self._root, "blobs", digest[:2])
        try:
            os.rename(os.path.join(fan, digest[2:]), os.path.join(self._folder, name))
        except FileNotFoundError:
            return
        except OSError:  # a folder of another user: it can have another name, and no other parent
            # First the symlink, by which it is found and counted. On a full disk it goes without: fsck finds it then.
            with contextlib.suppress(OSError):
                os.symlink(_in_place(name), os.path.join(self._folder, name))
            os.rename(os.path.join(fan, digest[2:]), os.path.join(fan, f".{name}"))
        self._trim()

    def put_index(self, path: str) -> str:
        """Moves a damaged index with its log to here. Returns its path. Raises OSError."""
        aside = os.path.join(self._folder, f"{secrets.token_hex(4)}-{os.path.basename(path)}")
        for suffix in ("-wal", "-shm", ""):  # the index last: where this is broken off, it is found damaged again
            with contextlib.suppress(FileNotFoundError):
                os.rename(path + suffix, aside + suffix)
        self._trim()
        return aside

    def put_mirror(self, index_path: str) -> str:
        """The same for the mirror of an index."""
        return self.put_index(mirror.path_of(index_path))

    def count(self) -> int:
        """How many files are here."""
        return len(os.listdir(self._folder))

    def _trim(self) -> None:
        """Removes the oldest, where there is too much. What cannot be looked at, or removed, stays."""
        kept = sorted(self._all(), reverse=True)
        size_bytes, gone = 0, 0
        for number, one in enumerate(kept):
            size_bytes += one.size_bytes
            if number and (size_bytes > BYTES_MAX or number >= FILES_MAX) and self._remove(one):
                size_bytes -= one.size_bytes
                gone += 1
        if gone:
            _log.warning(
                "quarantine/ has more than %d files or %d bytes: the oldest %d are removed, the newest are kept to be"
                " looked at",
                FILES_MAX,
                BYTES_MAX,
                gone,
            )

    def _all(self) -> list[_Kept]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    # What was moved here has changed its status then, and bytes that were not changed keep their mtime.
                    since_ns, path = entry.stat(follow_symlinks=False).st_ctime_ns, self._path(entry.name)
                    found.append(_Kept(since_ns, entry.name, path, os.lstat(path).st_blocks * 512))
        return found

    def _path(self, name: str) -> str:
        """Where something is: not everything that was wrong could be moved. A symlink that was found as a blob is just
        that, wherever it leads to."""
        path, elsewhere = os.path.join(self._folder, name), _in_place(name)
        is_ours = os.path.islink(path) and os.readlink(path) == elsewhere
        return os.path.join(self._folder, elsewhere) if is_ours else path

    def _remove(self, one: _Kept) -> bool:
        return remove(one.path) is None and remove(os.path.join(self._folder, one.name)) is None


def _in_place(name: str) -> str:
    """Where what cannot be moved has another name, as seen from quarantine/."""
    return f"../blobs/{name[:2]}/.{name}"
