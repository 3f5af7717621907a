"""Downloads that were broken off, by the origin or by the daemon's end, and may go on where they ended.

Law of this file: what was written before goes on only as the same entity tag of the same file, and only within one boot
of the host: what a crash of the host leaves of bytes that nobody had synced is anybody's guess.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

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


@dataclass
class Partials:
    """The beginnings of files in one staging folder."""

    folder: str
    _boot: str = field(default_factory=boot_id)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, tuple[str, str]] = field(default_factory=dict)  # by key: path and entity tag

    def load(self) -> None:
        """Finds what an earlier daemon left."""
        for name in os.listdir(self.folder):
            if name.endswith(NOTE):
                self.set_aside(os.path.join(self.folder, name.removesuffix(NOTE)))

    def keeps(self, path: str) -> bool:
        """Whether something in the folder is a beginning that waits, or the note of one."""
        path = path.removesuffix(NOTE)
        with self._lock:
            return any(path == one for one, _ in self._waiting.values())

    def note(self, path: str, key: str, etag: str) -> None:
        """Writes down which bytes are about to be written to a path; without a tag, that none of it is of use.

        Raises OSError.
        """
        if not etag:
            remove(path + NOTE)
            return
        with open(path + NOTE, "w", encoding="utf-8", errors="surrogatepass") as file:
            json.dump({"boot": self._boot, "key": key, "etag": etag}, file)

    def set_aside(self, path: str) -> bool:
        """Keeps what was broken off. Returns False where nobody noted what it is: then it is of no use."""
        try:
            if os.stat(path + NOTE).st_size > NOTE_BYTES_MAX:
                return False
            with open(path + NOTE, encoding="utf-8", errors="surrogatepass") as file:
                told = json.load(file)
            found = os.lstat(path)
            key, etag, boot = told["key"], told["etag"], told["boot"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
        if not (own and isinstance(key, str) and isinstance(etag, str) and etag and boot == self._boot != ""):
            return False
        with self._lock:
            return self._waiting.setdefault(key, (path, etag))[0] == path

    def bytes_of(self, keys: Iterable[str]) -> int:
        """How much of some files waits here."""
        with self._lock:
            paths = [self._waiting[key][0] for key in keys if key in self._waiting] if self._waiting else []
        found = 0
        for path in paths:
            with contextlib.suppress(OSError):
                found += os.lstat(path).st_size
        return found

    def take(self, key: str) -> tuple[str, str] | None:
        """The path of the beginning of a file, and its entity tag, for this caller alone. None where there is none."""
        with self._lock:
            found = self._waiting.pop(key, None)
        if found is None:
            return None
        try:
            fd = os.open(found[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o600)  # it may have been finished, and waited for others to be kept with
                os.fsync(fd)  # tells of bytes that the disk has lost meanwhile
            finally:
                os.close(fd)
        except OSError:
            self.forget(found[0])
            return None
        return found

    def forget(self, path: str) -> None:
        """Removes a file that was noted, where it is still there, and its note."""
        for each in (path, path + NOTE):
            remove(each)

    def drop(self, before: float) -> None:
        """Removes what has waited since before a time, in seconds since the epoch."""
        with self._lock:
            waiting = list(self._waiting.items())
        for key, (path, _) in waiting:
            try:
                old = os.stat(path).st_mtime < before
            except OSError:
                old = True
            if old:
                with self._lock:
                    taken = self._waiting.get(key, ("", ""))[0] == path and self._waiting.pop(key)
                if taken:
                    self.forget(path)
