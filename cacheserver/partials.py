"""Downloads that were broken off, by the origin or by the daemon's end, and may go on where they ended.

Law of this file: what was written before goes on only as the same entity tag of the same file, as far as it has the
hash that was noted of it, and only within one boot of the host: what a crash of the host leaves of bytes that nobody
had synced is anybody's guess.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cacheserver.plain import open_plain
from cacheserver.removal import remove

NOTE = ".from"  # what a file in staging/ is the beginning of is written beside it
NOTE_BYTES_MAX = 65536
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """Tells this boot of the host from others; empty where the kernel does not say."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Noted(NamedTuple):
    """What is noted of the beginning of a file: where it is, its entity tag, how many bytes, and their XXH3-128."""

    path: str
    etag: str
    size_bytes: int
    xxh3: str


class Beginning(NamedTuple):
    """The beginning of a file that waits: the file's key, where it is, and when it was last written, seconds since the
    epoch."""

    key: str
    path: str
    size_bytes: int
    written_at: float


@dataclass
class Partials:
    """The beginnings of files in one staging folder."""

    folder: str
    _boot: str = field(default_factory=boot_id)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, Noted] = field(default_factory=dict)  # by key

    def load(self) -> None:
        """Finds what an earlier daemon left."""
        for name in os.listdir(self.folder):
            if name.endswith(NOTE):
                self.set_aside(os.path.join(self.folder, name.removesuffix(NOTE)))

    def keeps(self, path: str) -> bool:
        """Whether something in the folder is a beginning that waits, or the note of one."""
        path = path.removesuffix(NOTE)
        with self._lock:
            return any(path == one.path for one in self._waiting.values())

    def note(self, path: str, key: str, etag: str, size_bytes: int, xxh3: str) -> None:
        """Writes down of what a path has how many bytes, and their XXH3-128; without a tag, that none of it is of use.

        Raises OSError.
        """
        if not etag:
            remove(path + NOTE)
            return
        told = {"boot": self._boot, "key": key, "etag": etag, "size": size_bytes, "xxh3": xxh3}
        # In place: a second file, to be renamed, would stay where the daemon is killed. A note that is torn is no JSON,
        # or its hash is not that of the bytes: the file is downloaded anew.
        with open(open_plain(path + NOTE, os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
            file.write(text := json.dumps(told).encode())
            file.truncate(len(text))

    def set_aside(self, path: str) -> bool:
        """Keeps what was broken off. Returns False where nobody noted what it is, or any of it: it is of no use."""
        try:
            if os.stat(path + NOTE).st_size > NOTE_BYTES_MAX:
                return False
            with open(open_plain(path + NOTE), encoding="utf-8", errors="surrogatepass") as file:
                told = json.load(file)
            found = os.lstat(path)
            key, etag, boot, size, xxh3 = (told[name] for name in ("key", "etag", "boot", "size", "xxh3"))
        except (OSError, ValueError, LookupError, TypeError):
            return False
        own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
        is_told = all(isinstance(one, str) for one in (key, etag, xxh3)) and etag and isinstance(size, int) and size > 0
        if not (own and is_told and boot == self._boot != ""):
            return False
        with self._lock:
            return self._waiting.setdefault(key, Noted(path, etag, size, xxh3)).path == path

    def bytes_of(self, keys: Iterable[str]) -> int:
        """How much of some files waits here."""
        with self._lock:
            paths = [self._waiting[key].path for key in keys if key in self._waiting] if self._waiting else []
        found = 0
        for path in paths:
            with contextlib.suppress(OSError):
                found += os.lstat(path).st_size
        return found

    def take(self, key: str) -> Noted | None:
        """What is noted of the beginning of a file, for this caller alone. None where there is none."""
        with self._lock:
            found = self._waiting.pop(key, None)
        if found is None:
            return None
        try:
            fd = open_plain(found.path)
            try:
                os.fchmod(fd, 0o600)  # it may have been finished, and waited for others to be kept with
                os.fsync(fd)  # tells of bytes that the disk has lost meanwhile
            finally:
                os.close(fd)
        except OSError:
            self.forget(found.path)
            return None
        return found

    def forget(self, path: str) -> None:
        """Removes a file that was noted, where it is still there, and its note."""
        for each in (path, path + NOTE):
            remove(each)

    def waiting(self) -> list[Beginning]:
        """All that wait here, the oldest first."""
        with self._lock:
            noted = list(self._waiting.items())
        found = []
        for key, (path, *_) in noted:
            try:
                seen = os.lstat(path)
                found.append(Beginning(key, path, seen.st_size, seen.st_mtime))
            except OSError:  # whoever has removed it has left its note
                found.append(Beginning(key, path, 0, 0.0))
        return sorted(found, key=lambda one: one.written_at)

    def give_up(self, some: Iterable[Beginning], is_counted_on: Callable[[str], bool]) -> list[Beginning]:
        """Lets nobody go on with these any more, but for those that somebody counts on, or goes on with, by now.
        Returns which: their files are the caller's to `forget`.

        Args:
            is_counted_on: told a beginning's key.
        """
        with self._lock:
            gone = [
                one
                for one in some
                if (there := self._waiting.get(one.key)) and there.path == one.path and not is_counted_on(one.key)
            ]
            for one in gone:
                del self._waiting[one.key]
        return gone
